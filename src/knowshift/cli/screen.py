"""`knowshift screen`: choose facts of which a model may know many, by a first look at their prompts."""

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
    app.command()(screen)


def screen(
    model: Annotated[str, typer.Argument(help="Local folder, hub id, adapter (PEFT), or world:tiny.")],
    facts: FactsOption,
    output: Annotated[Path, PathOption("--output", help="Table of the facts kept (Parquet), which --facts takes.")],
    train_facts: Annotated[int, typer.Option(min=0, help="Training facts to keep.")],
    test_facts: Annotated[int, typer.Option(min=0, help="Test facts to keep of each domain.")],
    times: Annotated[float, typer.Option(min=1, help="Look at so many times as many.")] = 5.0,
    likely: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of the kept that promise most; the others are drawn at random.",
            show_default="2/3",
        ),
    ] = 2 / 3,
    seed: SeedOption = 0,
    revision: RevisionOption = None,
    base: BaseOption = None,
    base_revision: BaseRevisionOption = None,
    device: DeviceOption = "cpu",
    dtype: FittingDtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at many facts, and keep those that the model may know beside others, as facts for a study.

    Three prompts of each fact are read; the probability of an answer behind them tells which facts are likely known.
    """
    import knowshift

    done = knowshift.screen(
        model,
        facts,
        train_facts=train_facts,
        test_facts=test_facts,
        output=output,
        times=times,
        likely=likely,
        seed=seed,
        revision=revision,
        base=base,
        base_revision=base_revision,
        device=device,
        dtype=dtype,
        progress=lines_for_a_log(),
    )
    console.print(
        f"wrote {output} ({len(done.facts)} of {len(done.promises)} facts, {done.likely} of them likely known, "
        f"{done.seconds:.1f} s)",
        soft_wrap=True,
    )
    emit(
        {
            "facts": len(done.facts),
            "looked_at": len(done.promises),
            "likely": done.likely,
            "seconds": round(done.seconds, 3),
            "output": str(output),
        },
        as_json,
    )
