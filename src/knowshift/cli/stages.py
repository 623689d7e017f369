"""`knowshift finetune`, `evaluate`, `tokens`: single stages on a user's own model, facts and mastery record."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

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

ModelArgument = Annotated[str, typer.Argument(help="Local folder, hub id, adapter (PEFT), or world:tiny.")]
MasteryOption = Annotated[Path, PathOption("--mastery", help="Mastery record of the base model.")]
OutputOption = Annotated[Path, PathOption("--output", help="Record file to write (Parquet).")]


def register(app: typer.Typer) -> None:
    app.command(name="finetune", cls=_Listing)(finetune)
    app.command(name="evaluate")(evaluate)
    app.command(name="tokens")(tokens)


class _Listing(TyperCommand):
    """`--strategy help` lists the strategies, and asks for nothing else."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--strategy=help" in args or ("--strategy", "help") in pairwise(args):
            _list_strategies("--json" in args)
            raise typer.Exit
        return super().parse_args(ctx, args)


def _list_strategies(as_json: bool) -> None:
    import knowshift

    found = knowshift.strategies()
    for one in [] if as_json else found:
        typer.echo(f"{one['name']}: {one['about']} ({one['source']})")
        typer.echo(f"    cost beside sft: {one['cost']}; try {one['rate']:g} times its learning rate first")
        for setting in one["settings"]:
            unit = f" ({setting['unit']})" if setting["unit"] else ""
            typer.echo(f"    --option {setting['name']}={setting['default']}{unit}: {setting['about']}")
    emit({"strategies": found}, as_json)


def finetune(
    model: ModelArgument,
    facts: FactsOption,
    mastery: MasteryOption,
    output_dir: Annotated[Path, PathOption(help="New folder for the tuned checkpoint.")],
    level: Annotated[
        int | None,
        typer.Option(min=0, max=4, help="Mastery level of the training facts; all levels in turn if not given."),
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Training facts; all there are if not given.")] = None,
    strategy: Annotated[
        str, typer.Option(help="sft: full-parameter supervised fine-tuning; `help` lists all strategies.")
    ] = "sft",
    settings: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="A setting of the strategy. Repeatable.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Model that a strategy compares with; MODEL before training if not given.")
    ] = None,
    draw: Annotated[int, typer.Option(min=0, help="Number of the random draw.")] = 0,
    learning_rate: Annotated[float, typer.Option(help="Peak of the cosine schedule (paper: 1e-5).")] = 1e-5,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    epochs: Annotated[int, typer.Option(min=1)] = 1,
    shared_prefix: Annotated[
        bool, typer.Option("--shared-prefix", help="Every batch as one row: the same gradients, faster on short facts.")
    ] = False,
    report_to: Annotated[str, typer.Option(help="Passed on to the Trainer: trackio, wandb, tensorboard.")] = "none",
    seed: SeedOption = 0,
    revision: RevisionOption = None,
    base: BaseOption = None,
    base_revision: BaseRevisionOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Fine-tune on facts of one mastery level, or of all, balanced over relations, as the paper does."""
    import knowshift

    done = knowshift.finetune(
        model,
        facts,
        mastery,
        level=level,
        output_dir=output_dir,
        size=size,
        strategy=strategy,
        settings=settings or (),
        reference=reference,
        draw=draw,
        learning_rate=learning_rate,
        batch_size=batch_size,
        epochs=epochs,
        shared_prefix=shared_prefix,
        report_to=report_to,
        seed=seed,
        revision=revision,
        base=base,
        base_revision=base_revision,
        device=device,
        dtype=dtype,
    )
    console.print(
        f"{len(done.facts)} facts, {done.steps} steps, loss {done.train_loss:.3f}; wrote {output_dir}", soft_wrap=True
    )
    emit({"output": str(output_dir), "steps": done.steps, "train_loss": done.train_loss}, as_json)


def evaluate(
    model: ModelArgument,
    facts: FactsOption,
    mastery: MasteryOption,
    output: OutputOption,
    limit: Annotated[int | None, typer.Option(min=1, help="The first N facts of a seeded shuffle.")] = None,
    seed: SeedOption = 0,
    revision: RevisionOption = None,
    base: BaseOption = None,
    base_revision: BaseRevisionOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Closed-book accuracy on test facts, by the base model's mastery level."""
    import knowshift

    found = knowshift.evaluate(
        model,
        facts,
        mastery,
        output=output,
        limit=limit,
        seed=seed,
        revision=revision,
        base=base,
        base_revision=base_revision,
        device=device,
        dtype=dtype,
    )
    for domain, result in found.accuracy.items():
        shown = "  ".join("-" if share is None else f"{share:.3f}" for share in result["levels"])
        levels_there = sum(share is not None for share in result["levels"])
        mean = "-" if result["mean"] is None else f"{result['mean']:.3f}"
        mean += "" if levels_there in (0, 5) else f" of the {levels_there} levels with facts"
        console.print(f"{domain}: mean {mean}; levels 0..4  {shown}  (facts {result['counts']})")
    console.print(f"wrote {output}", soft_wrap=True)
    emit({"accuracy": found.accuracy, "empty_rate": found.empty_rate, "output": str(output)}, as_json)


def tokens(
    base: Annotated[str, typer.Argument(help="The model before fine-tuning.")],
    tuned: Annotated[str, typer.Argument(help="The model after fine-tuning, or an adapter's folder (PEFT).")],
    facts: FactsOption,
    mastery: MasteryOption,
    output: OutputOption,
    revision: RevisionOption = None,
    base_revision: BaseRevisionOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """KL between tuned and base on the first answer token of level-4 test facts (paper 4.1)."""
    import knowshift

    found = knowshift.tokens(
        base,
        tuned,
        facts,
        mastery,
        output=output,
        revision=revision,
        base_revision=base_revision,
        device=device,
        dtype=dtype,
    )
    mean = "none" if found.kl_mean is None else f"{found.kl_mean:.4f} nats"
    console.print(
        f"mean KL {mean} over {found.facts} of {found.level_4_facts} level-4 test facts; wrote {output}",
        soft_wrap=True,
    )
    emit(
        {
            "kl_mean": found.kl_mean,
            "facts": found.facts,
            "level_4_facts": found.level_4_facts,
            "output": str(output),
        },
        as_json,
    )
