"""The `knowshift` command: its subcommands, exit statuses and error lines."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import logging
import os
import sys
import traceback
import warnings
from types import TracebackType
from typing import Annotated, Any

import typer

from knowshift.errors import InputError, KnowshiftWarning, disk_full, inert, printable
from knowshift.version import __version__

app = typer.Typer(
    name="knowshift",
    help="What fine-tuning did to what a language model knows, and how to repair it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"knowshift {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


#: In the order of `--help`. Each module has ``register(app)`` and imports what is heavy only when it runs.
DOORS = ("audit", "study", "facts", "screen", "mastery", "stages", "weights", "world", "report", "tasks")

for _door in DOORS:
    importlib.import_module(f"knowshift.cli.{_door}").register(app)

#: Commands that resume after an interrupt; the others start over.
RESUMED = (("audit",), ("study",), ("mastery",), ("facts",), ("world", "levels"))

# Newer typer brings its own copy of click's exceptions, older typer uses click's: catch those of the one in use.
_UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def main() -> None:
    """Exit 0; 2 and one line for bad input; 130 when interrupted; anything else is a bug and shows its traceback."""
    warnings.showwarning = _show_warning
    sys.excepthook = _show_traceback
    logging.setLogRecordFactory(_inert_record)
    gc.set_threshold(100_000, 20, 20)  # importing torch makes many objects and hardly any garbage
    atexit.register(gc.freeze)  # nor at the end, where the interpreter would collect three times
    try:
        code = app(standalone_mode=False) or 0
        sys.stdout.flush()  # a failed write is an error here, and not at the interpreter's exit
        if code == 130:  # newer typer's status of an interrupt
            _interrupted()
        sys.exit(code)
    except InputError as error:
        _refuse(str(error))
    except (typer.Abort, KeyboardInterrupt):
        _interrupted()
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except _UsageError as error:
        _refuse(error.format_message())  # type: ignore[attr-defined]
    except Exception as error:
        full = disk_full(error)
        if full is None:
            raise
        place = getattr(error, "filename", None) or "standard output, or a temporary folder"
        _drop_output()
        _refuse(f"{place}: {full}")


_PLAIN = warnings.showwarning


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """The project's own warnings are for users: one line, without the place in the code."""
    if issubclass(category, KnowshiftWarning):
        print(f"knowshift: warning: {printable(str(message))}", file=sys.stderr)
    else:
        _PLAIN(printable(str(message)), category, *where, **more)


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As the interpreter shows it, without escape sequences that a file or a server put into the message."""
    sys.stderr.write(inert("".join(traceback.format_exception(kind, error, trace))))


_plain_record = logging.getLogRecordFactory()


def _inert_record(*given: Any, **more: Any) -> logging.LogRecord:
    """A log record without escape sequences: libraries log texts of configurations and servers to the terminal."""
    record = _plain_record(*given, **more)
    with contextlib.suppress(TypeError, ValueError):  # format and arguments do not match: logging reports that
        record.msg, record.args = inert(record.getMessage()), ()
    return record


def _drop_output() -> None:
    """Discard unwritten standard output: the interpreter would try to write it again at its exit."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _interrupted() -> None:
    kept = any(tuple(sys.argv[1 : 1 + len(words)]) == words for words in RESUMED)
    again = "goes on where it stopped" if kept else "starts over; nothing was written"
    print(f"knowshift: interrupted; the same command {again}", file=sys.stderr)
    sys.exit(130)


def _refuse(message: str) -> None:
    if message:  # empty where the help was shown instead
        print(f"knowshift: {printable(message)}", file=sys.stderr)
    sys.exit(2)
