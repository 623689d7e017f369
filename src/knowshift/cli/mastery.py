"""`knowshift mastery`: how well a model knows each fact, by sampling (paper 2.3)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knowshift.cli.output import (
    BaseOption,
    BaseRevisionOption,
    DeviceOption,
    DtypeOption,
    FactsOption,
    JsonOption,
    PathOption,
    RevisionOption,
    SeedOption,
    console,
    emit,
)

if TYPE_CHECKING:
    from knowshift.probing.certainty import Agreement
    from knowshift.probing.run import EngineSpec

#: Weights below this many bytes are loaded once per core.
SMALL = 1 << 30


def register(app: typer.Typer) -> None:
    app.command()(mastery)


def mastery(
    model: Annotated[
        str, typer.Argument(help="Local folder, hub id, adapter (PEFT), world:tiny, or http://... of a server.")
    ],
    facts: FactsOption,
    output: Annotated[Path, PathOption("--output", help="Record file to write (Parquet).")],
    limit: Annotated[int | None, typer.Option(min=1, help="The first N facts of a seeded shuffle.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of each prompt (paper: 10).")] = 10,
    temperature: Annotated[float, typer.Option(min=0.01, help="Sampling temperature (paper: 0.7).")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a draw at most (paper: 32).")] = 32,
    stopping: Annotated[
        str, typer.Option(help="full: every draw (paper). exact: the same levels with fewer. sequential: fewer still.")
    ] = "full",
    error: Annotated[float, typer.Option(help="What --stopping sequential may err.")] = 0.2,
    grading: Annotated[str, typer.Option(help="What a hit is: substring (paper), or word, at word boundaries.")] = (
        "substring"
    ),
    compare: Annotated[Path | None, PathOption(help="Another record of these facts: how far levels agree.")] = None,
    certainty: Annotated[Path | None, PathOption(help="Also write intervals and level probabilities here.")] = None,
    prompts: Annotated[Path | None, PathOption(help="Also write prompts.csv and prompts.svg to this folder.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; where not given, one per core or GPU.")] = None,
    seed: SeedOption = 0,
    revision: RevisionOption = None,
    base: BaseOption = None,
    base_revision: BaseRevisionOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Sample the completion prompts of every fact; count the draws that hold an accepted answer; write the record.

    Parts of the record are written as they come. The same command goes on where an earlier one stopped.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from knowshift.facts.sources.load import limited, load_facts
    from knowshift.probing.measure import Protocol
    from knowshift.probing.run import EngineSpec, run_mastery

    source = load_facts(facts)
    asked = limited(source.facts, limit, seed)
    protocol = Protocol(
        draws_per_prompt=draws,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
        stopping=stopping,
        error=error,
        grading=grading,
    )
    _check_extras(compare, certainty, prompts)
    spec, processes = _engine(
        EngineSpec(model, revision, dtype, base=base, base_revision=base_revision), device, workers, len(asked)
    )
    began = time.monotonic()
    first: list[tuple[int, float]] = []  # facts recorded already, and when the model was there
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
    with Progress(*columns, console=console, transient=not console.is_terminal) as bar:
        task = bar.add_task("facts", total=len(asked), pace="")

        def tell(done: int, total: int) -> None:
            if not first:
                first.append((done, time.monotonic()))
            made, took = done - first[0][0], time.monotonic() - first[0][1]
            pace = f"{made / took:.1f} facts/s, {_minutes(took / made * (total - done))} left" if made else ""
            bar.update(task, completed=done, pace=pace)

        outcome = run_mastery(spec, asked, output, protocol, workers=processes, progress=tell)
    seconds = time.monotonic() - began
    if first[0][0]:
        console.print(f"{first[0][0]} of {len(asked)} facts were recorded already")
    for level, count in enumerate(outcome.levels):
        console.print(f"level {level}: {count:>8}  {count / outcome.facts:6.1%}")
    console.print(f"wrote {output} ({outcome.facts} facts, {outcome.draws} draws, {seconds:.1f} s)")
    more = _extras(output, compare, certainty, prompts)
    emit(
        {
            **more,
            "facts": outcome.facts,
            "levels": outcome.levels,
            "draws": outcome.draws,
            "positions": outcome.positions,
            "seconds": round(seconds, 3),
            "output": str(output),
            "stopping": stopping,
        },
        as_json,
    )


def _check_extras(compare: Path | None, certainty: Path | None, prompts: Path | None) -> None:
    """Refuse what could not be read or written at the end, before the work."""
    from knowshift.errors import InputError
    from knowshift.files import check_output_file, check_parent
    from knowshift.records import MASTERY, read_table

    if compare is not None:
        read_table(compare, MASTERY, "mastery")
    if certainty is not None:
        check_output_file(certainty)
    if prompts is not None:
        check_parent(prompts / "prompts.csv")
        if prompts.is_file():
            raise InputError(f"{prompts}: is a file; expected a folder")


def _extras(output: Path, compare: Path | None, certainty: Path | None, prompts: Path | None) -> dict[str, Any]:
    """What is asked for beside the record, made from the record."""
    more: dict[str, Any] = {}
    if compare is not None:
        found = compare_records(compare, output)
        more["agreement"] = {"facts": found.facts, "same": found.same, "within_one": found.within_one}
        more["agreement"]["kappa"] = None if found.kappa != found.kappa else found.kappa
        console.print(f"same level as in {compare}: {found.same:.1%} of {found.facts} facts")
    if certainty is not None:
        from knowshift.probing.certainty import write_certainty

        write_certainty(output, certainty)
        more["certainty"] = str(certainty)
        console.print(f"wrote {certainty}")
    if prompts is not None:
        from knowshift.probing.prompts import write_prompts

        table, figure = write_prompts(output, prompts)
        more["prompts"] = {"table": str(table), "figure": str(figure)}
        console.print(f"wrote {table} and {figure}")
    return more


def compare_records(first: Path, second: Path) -> Agreement:
    """Agreement on the facts that both records hold; bad records as :class:`InputError`."""
    from knowshift.errors import InputError
    from knowshift.probing.certainty import agreement
    from knowshift.records import MASTERY, read_table

    levels = []
    for path in (first, second):
        table, _ = read_table(path, MASTERY, "mastery")
        levels.append(dict(zip(table["fact"].to_pylist(), table["level"].to_pylist(), strict=True)))
    common = [fact for fact in levels[0] if fact in levels[1]]
    if not common:
        raise InputError(f"{first}: has no fact in common with {second}")
    return agreement([levels[0][fact] for fact in common], [levels[1][fact] for fact in common])


def _engine(spec: EngineSpec, device: str, workers: int | None, facts: int) -> tuple[EngineSpec, int]:
    """Where to open the engine, and in how many processes: one a GPU, and of small models on a CPU one a core.

    ``--device cuda`` and ``auto`` take every GPU, ``cuda:N`` that one. A given number of ``workers`` overrides it.
    """
    import os
    from dataclasses import replace

    import torch

    from knowshift.models.finding import find_model
    from knowshift.probing.run import PART

    if spec.is_server:
        return spec, 1
    parts = -(-facts // PART)
    if device in ("auto", "cuda") and torch.cuda.is_available():
        devices = tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
        return replace(spec, devices=devices), workers or min(len(devices), parts)
    if device not in ("auto", "cpu"):
        return replace(spec, devices=(device,)), workers or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    files = find_model(spec.name, revision=spec.revision, base=spec.base, base_revision=spec.base_revision)
    small = files.bytes < SMALL
    processes = workers or (min(cores, parts) if small else 1)
    # One thread a process computes the same bits whatever the number of processes; a large model needs them all.
    placed = replace(spec, devices=("cpu",), threads=1 if small else None)
    return placed, processes


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
