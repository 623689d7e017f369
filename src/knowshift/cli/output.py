"""What commands print: one JSON object on standard output for scripts, everything else on standard error."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from knowshift.files import expanded
from knowshift.system.progress import Shown, is_watched
from knowshift.system.terminal import Terminal

#: For messages and progress; standard output has the object of ``--json``, tables of `facts`, a folder of tasks.
console = Terminal(stderr=True)

#: What ``--facts`` and ``knowshift facts`` take; :data:`knowshift.facts.sources.load.FORMS` for people.
FACTS_FORMS = (
    "entity-questions[:PATH], world:tiny, world:PATH, popqa:FILE, triviaqa:FILE, nq-open:FILE, "
    "or a CSV, JSONL or Parquet table."
)

#: Every option and argument that takes a path is one of these, so that "~" is the home folder after "=" too.
PathOption = functools.partial(typer.Option, parser=expanded, metavar="PATH")
PathArgument = functools.partial(typer.Argument, parser=expanded)


def _place(text: str) -> Path | str:
    return text if "://" in text else expanded(text)


#: The same of runs, which may also lie at URLs.
RunOption = functools.partial(typer.Option, parser=_place, metavar="PATH|URL")
RunArgument = functools.partial(typer.Argument, parser=_place)

FactsOption = Annotated[str, typer.Option("--facts", help=FACTS_FORMS)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on standard output.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="Seed of every random choice.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 or auto.")]
DtypeOption = Annotated[str, typer.Option("--dtype", help="float32, bfloat16, float16 or auto (as stored).")]
FittingDtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="float32, bfloat16, float16 or auto (as stored); where not given, as stored if this device is fast in it, "
        "else float32.",
    ),
]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.")]
BaseOption = Annotated[
    str | None,
    typer.Option("--base", help="The base model of an adapter; where not given, the one that its configuration names."),
]
BaseRevisionOption = Annotated[
    str | None, typer.Option("--base-revision", help="Branch, tag or commit of the base on the hub.")
]


def lines_for_a_log() -> Shown:
    """What takes lines on progress where nobody sees a bar; None, a bar, where somebody does."""
    return None if is_watched() else lambda line: console.print(line, soft_wrap=True)


def emit(result: Mapping[str, Any], as_json: bool) -> None:
    """Print ``result`` as the command's one JSON object, if it was asked for."""
    if as_json:
        typer.echo(json.dumps(result))
