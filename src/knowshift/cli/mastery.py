"""`knowshift mastery`: how well a model knows each fact, by sampling (paper 2.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from knowshift.cli.output import (
    BaseOption,
    BaseRevisionOption,
    DeviceOption,
    FactsOption,
    FittingDtypeOption,
    JsonOption,
    PathOption,
    RevisionOption,
    SeedOption,
    console,
    emit,
    lines_for_a_log,
)


def register(app: typer.Typer) -> None:
    app.command()(mastery)


def mastery(
    facts: FactsOption,
    output: Annotated[Path, PathOption("--output", help="Record file to write (Parquet).")],
    model: Annotated[
        str | None,
        typer.Argument(help="Local folder, hub id, adapter (PEFT), world:tiny, or http://... of a server."),
    ] = None,
    server: Annotated[
        list[str] | None,
        typer.Option(help="URL of a server with the same model, to share the work; may be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first N facts of a seeded shuffle.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Time that the run may take, such as 90s, 10m or 1h30m: as many facts are asked as fit."),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of each prompt (paper: 10).")] = 10,
    temperature: Annotated[float, typer.Option(min=0.01, help="Sampling temperature (paper: 0.7).")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a draw at most (paper: 32).")] = 32,
    stopping: Annotated[
        str, typer.Option(help="full: every draw (paper). exact: the same levels with fewer. sequential: fewer still.")
    ] = "full",
    error: Annotated[float, typer.Option(help="What --stopping sequential may err.")] = 0.2,
    estimate: Annotated[
        str, typer.Option(help="hits: count draws (paper). expected: the model's own probabilities along few texts.")
    ] = "hits",
    texts: Annotated[
        int | None,
        typer.Option(min=2, help="Texts of each prompt for expected. Without it: 2, and up to 10 where they differ."),
    ] = None,
    least_weight: Annotated[
        float | None,
        typer.Option(
            help="Least weight of a text of expected (0.1). 2: fewer go on, for models that answer at once or never."
        ),
    ] = None,
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
    dtype: FittingDtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sample the completion prompts of every fact; count the draws that hold an accepted answer; write the record.

    Parts of the record are written as they come. The same command goes on where an earlier one stopped.
    """
    import knowshift

    done = knowshift.mastery(
        model,
        facts,
        server=server or (),
        output=output,
        limit=limit,
        budget=budget,
        draws=draws,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        stopping=stopping,
        error=error,
        estimate=estimate,
        texts=texts,
        least_weight=least_weight,
        grading=grading,
        compare=compare,
        certainty=certainty,
        prompts=prompts,
        workers=workers,
        seed=seed,
        revision=revision,
        base=base,
        base_revision=base_revision,
        device=device,
        dtype=dtype,
        progress=lines_for_a_log(),
    )
    facts_there = sum(done.levels)
    if done.resumed:
        console.print(f"{done.resumed} of {facts_there} facts were recorded already")
    for level, count in enumerate(done.levels):
        console.print(f"level {level}: {count:>8}  {count / facts_there:6.1%}")
    drawn = "draws" if estimate == "hits" else "texts"
    console.print(f"wrote {output} ({facts_there} facts, {done.draws} {drawn}, {done.seconds:.1f} s)", soft_wrap=True)
    if budget is not None and done.resumed < facts_there and done.seconds > done.more["budget"]["seconds"]:
        console.print(f"this took longer than the budget of {budget}; all facts chosen are measured")
    if compare is not None:
        found = done.more["agreement"]
        console.print(f"same level as in {compare}: {found['same']:.1%} of {found['facts']} facts", soft_wrap=True)
    if certainty is not None:
        console.print(f"wrote {certainty}", soft_wrap=True)
    if prompts is not None:
        console.print(f"wrote {done.more['prompts']['table']} and {done.more['prompts']['figure']}", soft_wrap=True)
    emit(
        {
            **done.more,
            "facts": facts_there,
            "levels": done.levels,
            "draws": done.draws,
            "positions": done.positions,
            "seconds": round(done.seconds, 3),
            "output": str(output),
            "stopping": stopping,
            **({"estimate": estimate} if estimate != "hits" else {}),
        },
        as_json,
    )
