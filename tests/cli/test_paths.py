"""The home folder "~" wherever a path is taken: every option and argument, every source, a study's config."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.models import OptionInfo
from typer.testing import CliRunner

from knowshift.cli.app import app
from knowshift.errors import InputError
from knowshift.facts.sources.load import load_facts
from knowshift.files import expanded
from knowshift.studies.config import parse_config
from knowshift.studies.run import plan_of
from small_questions import small_rows, write_folder

TABLE = "question,subject,answer\nCapital of Peru?,Peru,Lima\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


def commands(group: typer.Typer, names: str = "") -> Iterator[tuple[str, Callable[..., None]]]:
    for command in group.registered_commands:
        assert command.callback is not None
        yield f"{names}{command.name or command.callback.__name__}", command.callback
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from commands(inner.typer_instance, f"{names}{inner.name} ")


COMMANDS = dict(commands(app))


def paths_of(function: Callable[..., None]) -> list[str]:
    """The parameters that the function declares as paths."""
    hints = typing.get_type_hints(function)
    return [name for name, hint in hints.items() if hint is Path or Path in typing.get_args(hint)]


def words_for(function: Callable[..., None], path: str) -> list[str]:
    """A command line with ``path`` for every path, and something for whatever else is required."""
    hints = typing.get_type_hints(function, include_extras=True)
    words = []
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = typing.get_args(hints[name])[:2]
        if name in paths_of(function):
            value = path
        elif parameter.default is inspect.Parameter.empty:
            value = "1" if kind is int else "x"
        else:
            continue
        if isinstance(info, OptionInfo):
            words.append((info.param_decls or [f"--{name.replace('_', '-')}"])[0])
        words.append(value)
    return words


def test_every_command_with_a_path_is_walked() -> None:
    walked = {name for name, function in COMMANDS.items() if paths_of(function)}
    assert {"study", "mastery", "finetune", "evaluate", "tokens", "weights", "restore", "report"} <= walked
    assert {"world build", "world levels"} <= walked


@pytest.mark.parametrize("name", [name for name, function in COMMANDS.items() if paths_of(function)])
def test_every_path_of_every_command_is_expanded(name: str, home: Path) -> None:
    told: dict[str, Any] = {}
    recorder = typer.Typer()
    recorder.command()(functools.wraps(COMMANDS[name])(lambda **values: told.update(values)))
    for written, meant in (("~/some/file", home / "some" / "file"), ("some/~file", Path("some/~file"))):
        done = CliRunner().invoke(recorder, words_for(COMMANDS[name], written), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert {path: told[path] for path in paths_of(COMMANDS[name])} == dict.fromkeys(paths_of(COMMANDS[name]), meant)


def test_a_name_that_nobody_has_stays_as_it_is() -> None:
    assert expanded("~no-such-user/x") == Path("~no-such-user/x")
    with pytest.raises(InputError, match=r"~no-such-user/x\.csv: no such file"):
        load_facts("~no-such-user/x.csv")
    refused = CliRunner().invoke(app, ["weights", "~no-such-user/a", "~no-such-user/b"])
    assert isinstance(refused.exception, InputError)


def test_sources_in_the_home_folder(home: Path) -> None:
    (home / "facts.csv").write_text(TABLE, encoding="utf-8")
    write_folder(home / "eq", small_rows())
    (home / "p.tsv").write_text(
        'subj\tprop\tobj\tquestion\tpossible_answers\nPeru\tcapital\tLima\tCapital?\t["Lima"]\n', encoding="utf-8"
    )
    (home / "nq.jsonl").write_text('{"question": "q", "answer": ["a"]}\n', encoding="utf-8")
    (home / "t.json").write_text(
        '{"Data": [{"Question": "q", "QuestionId": "i", "Answer": {"Value": "a"}}]}', encoding="utf-8"
    )
    for source in ("facts.csv", "entity-questions:eq", "popqa:p.tsv", "nq-open:nq.jsonl", "triviaqa:t.json"):
        scheme, _, path = source.rpartition(":")
        colon = ":" if scheme else ""
        found = load_facts(f"{scheme}{colon}~/{path}")
        assert found == load_facts(f"{scheme}{colon}{home / path}")
        assert "~" not in found.name
    with pytest.raises(InputError, match="nearest: 'entity-questions:~/eq'"):
        load_facts("~/eq")


def test_a_world_and_a_study_in_the_home_folder(home: Path, small_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "w").symlink_to(small_world)
    assert load_facts("world:~/w").facts == load_facts(f"world:{small_world}").facts
    text = "name: s\nmodel: {0}\nfacts: {1}\nlevels: [0]\nsizes: [2]\n"
    plan = plan_of(parse_config(text.format("~/w", "world:~/w"), "config"))
    there = plan_of(parse_config(text.format(small_world, f"world:{small_world}"), "config"))
    assert [cell.digest for cell in plan[0].cells] == [cell.digest for cell in there[0].cells]
