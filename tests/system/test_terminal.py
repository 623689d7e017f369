"""Nothing that a user, a file, a server or a model wrote steers the terminal, or is taken for markup."""

from __future__ import annotations

import ast
import io
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.table import Table

import knowshift
from damage import STEERING
from knowshift.cli import app, output
from knowshift.errors import InputError, KnowshiftWarning, inert
from knowshift.models.server.connection import ServerError
from knowshift.system.terminal import Terminal

SOURCE = Path(knowshift.__file__).parent
HOSTILE = "".join(STEERING) + "\x9b31m\x1bc"


def shown(*what: Any) -> str:
    out = io.StringIO()
    Terminal(file=out, force_terminal=False, width=400).print(*what)
    return out.getvalue()


def test_no_message_is_written_in_markup() -> None:
    """The terminal shows square brackets as they are; a style is an argument."""
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert "[/bold]" not in node.value, (file, node.lineno)
                assert "[/]" not in node.value, (file, node.lineno)


@pytest.mark.parametrize("text", STEERING)
def test_a_text_and_a_table_are_shown_as_they_are(text: str) -> None:
    table = Table("relation", title=text)
    table.add_row(text)
    for printed in (shown(text), shown(table)):
        assert "".join(inert(text).splitlines()[:1]).strip() in printed
        assert printed.replace("\n", "").isprintable()


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=60)
def test_no_text_steers_or_fails(text: str) -> None:
    assert shown(text).replace("\n", "").isprintable()
    for said in (str(InputError(text)), str(KnowshiftWarning(text))):
        assert said.isprintable()


def test_every_console_is_this_one() -> None:
    """rich's own would take brackets for markup and pass escape sequences on."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            of_rich = isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rich")
            if of_rich and {alias.name for alias in node.names} & {"Console", "print", "Text"}:  # type: ignore[attr-defined]
                found.add(path.name)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.add(f"{path.name}: print")
    assert found == {"terminal.py", "app.py: print"}
    assert isinstance(output.console, Terminal)


def test_warnings_logs_and_tracebacks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # pytest has put its own in the place of the interpreter's.
    monkeypatch.setattr(app, "_PLAIN", lambda message, *where: print(message, file=sys.stderr))
    for kind in (KnowshiftWarning, UserWarning):
        app._show_warning(warnings.WarningMessage(kind(HOSTILE), kind, "file", 1).message, kind, "file", 1)
    try:
        raise RuntimeError(HOSTILE)
    except RuntimeError as error:
        app._show_traceback(RuntimeError, error, error.__traceback__)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(app._inert_record)
    logger = logging.Logger("library")
    logger.addHandler(handler)
    try:
        logger.warning("config says %s and %d", HOSTILE, 3)
    finally:
        logging.setLogRecordFactory(before)
    said = capsys.readouterr().err + stream.getvalue()
    assert said.count("[/y]") == 4
    assert said.replace("\n", "").isprintable()
    assert "and 3" in stream.getvalue()


def test_a_path_with_brackets_in_a_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "study.yaml"
    facts = tmp_path / "[" / "y]\x1b[31m.csv"
    facts.parent.mkdir()
    facts.write_text(
        "question,subject,answers,prompts,split\nCapital of Peru?,Peru,Lima,{subject}: its capital is,train\n"
    )
    settings = {"name": "run", "model": "world:tiny", "facts": str(facts), "levels": [0], "sizes": [1]}
    config.write_text(json.dumps(settings))
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(sys, "argv", ["knowshift", "study", str(config), "--dry-run"])
    hook, factory, show = sys.excepthook, logging.getLogRecordFactory(), warnings.showwarning
    try:
        with pytest.raises(SystemExit) as ended:
            app.main()
    finally:
        sys.excepthook, warnings.showwarning = hook, show
        logging.setLogRecordFactory(factory)
    assert ended.value.code == 0, out.getvalue()
    assert "[/y]" in out.getvalue()
    assert "\x1b[31m" not in out.getvalue()


def test_a_refusal_that_quotes_a_server() -> None:
    assert str(ServerError(f"http://x: refuses with {HOSTILE}")).isprintable()
    assert "[/y]" in str(ServerError(HOSTILE))
