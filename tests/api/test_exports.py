"""What `import knowshift` offers: the verbs of the commands, with their names and defaults, and nothing heavy."""

from __future__ import annotations

import inspect
import json
import pkgutil
import subprocess
import sys
import typing

import click
import pytest
import typer

import knowshift
from knowshift.cli.app import app

COMMANDS = ("study", "mastery", "screen", "finetune", "evaluate", "tokens", "weights", "restore", "report")
#: Options of a command that its verb lacks, with the reason.
OF_COMMANDS = {
    "as_json": "how the result is printed",
    "dry_run": "plan_study",
}
#: Options that a command needs and its verb does not: a result may stay in memory.
KEPT_ON_DISK = {("mastery", "output"), ("screen", "output"), ("evaluate", "output"), ("tokens", "output")}
KEPT_ON_DISK |= {("finetune", "output_dir"), ("restore", "output_dir")}
#: Arguments that a command may lack and its verb may be given None for.
MAY_BE_NONE = {("mastery", "model")}


def test_the_names_that_are_offered() -> None:
    assert knowshift.__all__ == [
        "AuditCallback",
        "InputError",
        "KnowshiftWarning",
        "__version__",
        "audit",
        "evaluate",
        "finetune",
        "load_facts",
        "load_model",
        "mastery",
        "plan_study",
        "report",
        "restore",
        "screen",
        "strategies",
        "study",
        "tokens",
        "weights",
    ]
    # A package of that name would take a verb's place as soon as anything in it is imported.
    assert not set(knowshift.__all__) & {module.name for module in pkgutil.iter_modules(knowshift.__path__)}
    for name in knowshift.__all__:
        assert getattr(knowshift, name) is not None
        assert name in dir(knowshift)
    with pytest.raises(AttributeError, match="module 'knowshift' has no attribute 'masterry'"):
        knowshift.masterry  # noqa: B018


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "numpy", "pyarrow", "matplotlib", "scipy", "typer", "rich", "pandas")
    code = f"import sys, json, knowshift; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(said.stdout) == []


def _command(name: str) -> click.Command:
    group = typing.cast(click.Group, typer.main.get_command(app))
    found = group.get_command(click.Context(group), name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_a_verb_has_the_options_of_its_command_and_their_defaults(name: str) -> None:
    verb = inspect.signature(getattr(knowshift, name)).parameters
    command = {option.name: option for option in _command(name).params if option.name != "help"}
    assert set(command) - set(OF_COMMANDS) <= set(verb)
    assert set(verb) - set(command) <= {"progress"}
    for option, parameter in command.items():
        if option in OF_COMMANDS:
            continue
        default = verb[option].default
        if parameter.required:
            assert default is (None if (name, option) in KEPT_ON_DISK else inspect.Parameter.empty), option
        elif (name, option) in MAY_BE_NONE:
            assert default is inspect.Parameter.empty, option
        else:
            assert (parameter.default or None) == (default or None), option


def test_every_verb_says_what_it_takes_and_refuses() -> None:
    for name in (*COMMANDS, "load_model", "load_facts", "plan_study"):
        verb = getattr(knowshift, name)
        assert "Raises:" in (verb.__doc__ or ""), name
        assert all(parameter.annotation is not inspect.Parameter.empty for parameter in _parameters(verb)), name


def _parameters(verb: typing.Any) -> typing.Iterable[inspect.Parameter]:
    return inspect.signature(verb).parameters.values()
