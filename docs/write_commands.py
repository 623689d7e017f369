"""Writes docs/commands.md from the commands themselves: ``python docs/write_commands.py``.

tests/docs/test_commands.py fails where the page is not what the commands say.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from typer.main import get_command

from knowshift.cli.app import app

PAGE = Path(__file__).with_name("commands.md")

KINDS = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}

HEAD = """\
# Commands

`docs/write_commands.py` writes this page from the commands; `knowshift COMMAND --help` prints the same.

| exit status | when |
|---|---|
| 0 | the command is done |
| 2 | bad input: one line says where, what was found and what was expected; nothing is written, nothing is lost |
| 3 | `audit --fail-above`: more was lost than that |
| 130 | interrupted; one line says whether the same command goes on or starts over |
| 1 | a bug, with a traceback |

Every command takes `--json`: standard output then holds exactly one JSON object ([its keys](records.md#json)); text for
people and progress go to standard error. `~` in a path is the home folder.
"""


def page() -> str:
    """The whole page, as Markdown."""
    return "\n".join([HEAD, *_commands(get_command(app), ())])


def _commands(group: Any, words: tuple[str, ...]) -> Iterator[str]:
    for name, command in group.commands.items():
        write = _commands if hasattr(command, "commands") else _command
        yield from write(command, (*words, name))


def _command(command: Any, words: tuple[str, ...]) -> Iterator[str]:
    given = [one for one in command.params if one.name != "help"]
    arguments = [one for one in given if one.param_type_name == "argument"]
    options = [one for one in given if one.param_type_name == "option"]
    call = ["knowshift", *words]
    call += [_name(one) if one.required else f"[{_name(one)}]" for one in arguments]
    call += [_name(one) for one in options if one.required]
    yield f"## knowshift {' '.join(words)}\n"
    yield f"```text\n{' '.join([*call, '[OPTIONS]'])}\n```\n"
    yield f"{_line(command.help)}\n"
    yield "| name | meaning | default |\n|---|---|---|"
    for one in (*arguments, *options):
        yield f"| `{_name(one)}` | {_line(one.help)} | {_default(one)} |"
    yield ""


def _name(one: Any) -> str:
    """MODEL of an argument, ``--limit INTEGER`` of an option, ``--json`` of a flag."""
    if one.param_type_name == "argument":
        return str(one.name).upper()
    if one.is_flag:
        return str(one.opts[0])
    kind = one.type_descriptor.annotation
    inner = get_args(kind)[0] if get_args(kind) else kind
    return f"{one.opts[0]} {KINDS[inner]}{' ...' if one.multiple else ''}"


def _default(one: Any) -> str:
    if one.required:
        return "required"
    shown = one.show_default if isinstance(one.show_default, str) else one.default
    return "" if shown is None or shown is False else f"`{shown}`"


def _line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", r"\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
