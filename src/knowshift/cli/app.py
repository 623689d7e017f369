"""The `knowshift` command: its doors, and how every one of them ends."""

from __future__ import annotations

import importlib
import importlib.util
import sys

import click
import typer

from knowshift.errors import InputError

app = typer.Typer(
    name="knowshift",
    help="What fine-tuning did to what a language model knows, and how to repair it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

#: In the order of `--help`. Each module has ``register(app)`` and imports what is heavy only when it runs.
DOORS = ("study", "facts", "mastery", "stages", "weights", "world", "report")

for _door in DOORS:
    if importlib.util.find_spec(f"knowshift.cli.{_door}") is None:
        continue
    importlib.import_module(f"knowshift.cli.{_door}").register(app)


def main() -> None:
    """Exit 0; 2 and one line for bad input; 130 when interrupted; anything else is a bug and shows its traceback."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except InputError as error:
        print(f"knowshift: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except click.exceptions.Abort:
        print("knowshift: interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        print("knowshift: interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
