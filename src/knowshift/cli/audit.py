"""`knowshift audit`: what a fine-tuning did to what a model knew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from knowshift.cli.output import (
    BaseRevisionOption,
    DeviceOption,
    FactsOption,
    JsonOption,
    PathOption,
    RevisionOption,
    SeedOption,
    console,
    emit,
)
from knowshift.errors import InputError


def register(app: typer.Typer) -> None:
    app.command(name="audit")(audit)


def audit(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[BASE] TUNED",
            help="Before and after: local folders, hub ids, world:tiny. Of an adapter, TUNED alone.",
        ),
    ],
    facts: FactsOption,
    output_dir: Annotated[Path, PathOption(help="Folder of the audit: records, audit.json and audit.html.")],
    budget: Annotated[str, typer.Option(help="The time it may take: 90s, 10m, 1h30m; or none: all facts.")] = "10m",
    limit: Annotated[int | None, typer.Option(min=1, help="The first N facts of a seeded shuffle.")] = None,
    repair: Annotated[bool, typer.Option(help="Try ways to undo a part of the tuning.")] = True,
    keep: Annotated[
        Path | None,
        PathOption(help="What the tuning was for: a table of questions and answers, or a .txt file. Repairs keep it."),
    ] = None,
    guard: Annotated[
        str | None, typer.Option(help="The same as lm-eval tasks, with commas between them: gsm8k,arc_easy.")
    ] = None,
    guard_limit: Annotated[int, typer.Option(min=1, help="Documents of each of these tasks at most.")] = 100,
    prompt_format: Annotated[str | None, typer.Option(help="Your own form of asking, with {question} in it.")] = None,
    fail_above: Annotated[
        float | None, typer.Option(min=0, help="Exit status 3 where more than so many points of known facts were lost.")
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Push a confirmed repair to this repository of the hub, private if new.",
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="With --push-to-hub: the repository that is made is public.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one a core or GPU where not given.")] = None,
    seed: SeedOption = 0,
    revision: RevisionOption = None,
    base_revision: BaseRevisionOption = None,
    device: DeviceOption = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16, float16 or auto (as stored); float32 where this device is slow in that."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What did my fine-tuning do to what the model knew? Base and tuned asked fact by fact, chance subtracted."""
    import knowshift

    if len(models) > 2:
        raise InputError(f"{len(models)} models: expected [BASE] TUNED")
    found = knowshift.audit(
        models[0] if len(models) == 2 else None,
        models[-1],
        facts,
        output_dir=output_dir,
        budget=None if budget == "none" else budget,
        limit=limit,
        repair=repair,
        keep=keep,
        guard=guard,
        guard_limit=guard_limit,
        prompt_format=prompt_format,
        seed=seed,
        revision=revision,
        base_revision=base_revision,
        device=device,
        dtype=dtype,
        workers=workers,
        push_to_hub=push_to_hub,
        public=public,
    )
    console.print(f"{found.verdict.title} ({found.verdict.kind})", soft_wrap=True)
    for sentence in found.verdict.sentences:
        console.print(sentence, soft_wrap=True)
    console.print(found.repair_words, soft_wrap=True)
    console.print(f"page: {found.page}", soft_wrap=True)
    if push_to_hub is not None:
        pushed = found.told["pushed"]
        console.print(f"pushed: {pushed}" if pushed else "nothing was pushed: no repair is confirmed", soft_wrap=True)
    emit(found.told, as_json)
    points, interval = found.told["points"], found.told["interval"]
    if fail_above is None:
        return
    if points is None or interval is None:
        console.print(f"--fail-above {fail_above:g}: these facts cannot tell", soft_wrap=True)
    elif -points > fail_above and interval[1] < 0:
        console.print(f"{-points:.1f} points lost; --fail-above {fail_above:g}", soft_wrap=True)
        raise typer.Exit(3)
