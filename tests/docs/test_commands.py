"""docs/commands.md is what the commands say, and every command in a Markdown file has the options that it is given."""

from __future__ import annotations

import importlib.util
import shlex
from typing import Any

import pytest
from typer.main import get_command

from knowshift.cli.app import app
from pages import NAMES, ROOT, commands, spans

COMMANDS = get_command(app)


def command_of(words: list[str]) -> tuple[Any, list[str]] | None:
    """The command that ``knowshift WORDS`` calls, and the words after its name; None where there is none."""
    command: Any = COMMANDS
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return None if hasattr(command, "commands") else (command, words)


def parse(line: str) -> None:
    """Parse a command line as the app does, without running it; raises what the app would refuse it with."""
    program, *words = shlex.split(line)
    assert program == "knowshift", line
    found = command_of(words)
    assert found is not None, line
    found[0].make_context("knowshift", list(found[1]))


def test_the_page_of_commands_is_written_from_them() -> None:
    path = ROOT / "docs" / "write_commands.py"
    spec = importlib.util.spec_from_file_location("write_commands", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert written == module.page(), "python docs/write_commands.py writes it anew"


@pytest.mark.parametrize(
    "page", [page for page in NAMES if any(line.startswith("knowshift") for line in commands(page))]
)
def test_every_command_of_a_page_parses(page: str) -> None:
    for line in commands(page):
        if line.startswith("knowshift"):
            parse(line)


@pytest.mark.parametrize("line", ["knowshift restore BASE TUNED --part 0.2 --output-dir OUT", "knowshift evaluate M"])
def test_a_command_that_the_app_refuses_is_found(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such option|missing"):
        parse(line)


#: Options that belong to no command.
OF_THE_APP = ("knowshift COMMAND --help", "knowshift --help", "knowshift --version")


def test_commands_in_running_text_have_their_options() -> None:
    checked = 0
    for page in NAMES:
        for span in spans(page):
            if not span.startswith("knowshift ") or span in OF_THE_APP:
                continue
            found = command_of(shlex.split(span)[1:])
            assert found is not None, (page, span)
            known = {name for one in found[0].params for name in one.opts}
            given = [word.partition("=")[0] for word in found[1] if word.startswith("--")]
            assert [option for option in given if option not in {*known, "--help"}] == [], (page, span)
            checked += 1
    assert checked > 20
