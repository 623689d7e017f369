"""`knowshift finetune`, `evaluate`, `tokens`: single stages on a user's own model, facts and mastery record."""

from __future__ import annotations

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
from knowshift.errors import InputError, nearest

if TYPE_CHECKING:
    from knowshift.facts.fact import Fact

MasteryOption = Annotated[Path, PathOption("--mastery", help="Mastery record of the base model.")]
OutputOption = Annotated[Path, PathOption("--output", help="Record file to write (Parquet).")]

STRATEGIES = ("sft",)


def register(app: typer.Typer) -> None:
    app.command(name="finetune")(finetune)
    app.command(name="evaluate")(evaluate)
    app.command(name="tokens")(tokens)


def finetune(
    model: Annotated[str, typer.Argument(help="Local folder, hub id, adapter (PEFT), or world:tiny.")],
    facts: FactsOption,
    mastery: MasteryOption,
    level: Annotated[int, typer.Option(min=0, max=4, help="Mastery level of the training facts.")],
    output_dir: Annotated[Path, PathOption(help="New folder for the tuned checkpoint.")],
    size: Annotated[int | None, typer.Option(min=1, help="Training facts; all of the level where not given.")] = None,
    strategy: Annotated[str, typer.Option(help="sft: full-parameter supervised fine-tuning.")] = "sft",
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
    """Fine-tune on facts of one mastery level, balanced over relations, as the paper does."""
    from knowshift.files import check_parent, folder_beside, write_json
    from knowshift.training.draws import draw_training_set
    from knowshift.training.precision import check_trainable

    check_trainable(model, dtype)  # before torch and TRL are imported
    if not 0 < learning_rate < float("inf"):
        raise InputError(f"--learning-rate {learning_rate}: expected a positive number")
    if strategy not in STRATEGIES:
        raise InputError(f"finetune: no strategy {strategy!r}{nearest(strategy, STRATEGIES)}")
    if output_dir.exists():
        raise InputError(f"{output_dir}: exists already; a checkpoint is written to a new folder")
    check_parent(output_dir)
    by_id, levels = _facts_and_levels(facts, mastery)
    train = {fact: its for fact, its in levels.items() if by_id[fact].split == "train"}
    relations = {fact: by_id[fact].relation for fact in train}
    members = draw_training_set(train, relations, level=level, size=size, draw=draw, seed=seed)

    from knowshift.models.loading import load_model
    from knowshift.models.saving import save_model
    from knowshift.training import sft

    loaded = load_model(model, revision=revision, dtype=dtype, device=device, base=base, base_revision=base_revision)
    check_trainable(model, loaded.dtype)  # of "auto"
    recipe = sft.TrainingRecipe(
        learning_rate=learning_rate,
        batch_size=batch_size,
        epochs=epochs,
        shared_prefix=shared_prefix,
        report_to=report_to,
    )
    console.print(f"fine-tuning {model} on {len(members)} facts of level {level}", soft_wrap=True)
    record = sft.finetune(loaded, [by_id[fact] for fact in members], recipe, seed=seed)
    about = {
        "base": loaded.about(),
        "source": facts,
        "level": level,
        "draw": draw,
        "seed": seed,
        "recipe": recipe.as_record(),
        "facts": members,
        **record,
    }
    with folder_beside(output_dir) as folder:
        save_model(loaded, folder)
        write_json(folder / "knowshift.json", about)
    console.print(f"{record['steps']} steps, loss {record['train_loss']:.3f}; wrote {output_dir}")
    emit({"output": str(output_dir), "steps": record["steps"], "train_loss": record["train_loss"]}, as_json)


def evaluate(
    model: Annotated[str, typer.Argument(help="Local folder, hub id, adapter (PEFT), or world:tiny.")],
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
    from knowshift import evaluation
    from knowshift.facts.sources.load import limited
    from knowshift.files import check_output_file
    from knowshift.models.loading import load_model

    check_output_file(output)
    by_id, levels = _facts_and_levels(facts, mastery)
    asked = [by_id[fact] for fact in levels if by_id[fact].split == "test"]
    asked = limited(asked, limit, seed)
    loaded = load_model(model, revision=revision, dtype=dtype, device=device, base=base, base_revision=base_revision)
    answers = evaluation.evaluate(loaded, asked, levels)
    answers.write(output, {**loaded.about(), "source": facts, "mastery": mastery.name, "seed": seed, "limit": limit})
    accuracy = evaluation.accuracy_by_level(answers)
    for domain, result in accuracy.items():
        shown = "  ".join("-" if share is None else f"{share:.3f}" for share in result["levels"])
        levels_there = sum(share is not None for share in result["levels"])
        mean = "-" if result["mean"] is None else f"{result['mean']:.3f}"
        mean += "" if levels_there in (0, 5) else f" of the {levels_there} levels with facts"
        console.print(f"{domain}: mean {mean}; levels 0..4  {shown}  (facts {result['counts']})")
    console.print(f"wrote {output}")
    empty = evaluation.empty_rate(answers)
    emit({"accuracy": accuracy, "empty_rate": empty, "output": str(output)}, as_json)


def tokens(
    base: Annotated[str, typer.Argument(help="The model before fine-tuning.")],
    tuned: Annotated[str, typer.Argument(help="The model after it, or an adapter's folder (PEFT).")],
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
    from knowshift import token_shift
    from knowshift.files import check_output_file
    from knowshift.models.finding import model_folder
    from knowshift.models.loading import load_model
    from knowshift.parameters.files.adapter import is_adapter

    check_output_file(output)
    by_id, levels = _facts_and_levels(facts, mastery)
    rows = _mastery_rows(mastery)
    known = [by_id[fact] for fact, level in levels.items() if level == 4 and by_id[fact].split == "test"]
    tests = [by_id[fact] for fact in levels if by_id[fact].split == "test"]
    best = token_shift.best_prompts(
        tests, {row["fact"]: row["prompt_hits"] for row in rows}, {row["fact"]: row["prompt_draws"] for row in rows}
    )
    before = load_model(base, revision=base_revision, dtype=dtype, device=device)
    on_base = is_adapter(model_folder(tuned, revision=revision))
    after = load_model(
        tuned,
        revision=revision,
        dtype=dtype,
        device=device,
        base=base if on_base else None,
        base_revision=base_revision if on_base else None,
    )
    shift = token_shift.token_shift(before, after, token_shift.select_items(before, known, best))
    shift.write(output, {"base": before.about(), "tuned": after.about(), "source": facts, "mastery": mastery.name})
    scored = sum(1 for value in shift.columns["kl"] if value is not None)
    mean = "none" if shift.mean is None else f"{shift.mean:.4f} nats"
    console.print(f"mean KL {mean} over {scored} of {len(known)} level-4 test facts; wrote {output}")
    emit({"kl_mean": shift.mean, "facts": scored, "level_4_facts": len(known), "output": str(output)}, as_json)


def _mastery_rows(path: Path) -> list[dict[str, Any]]:
    from knowshift.records import MASTERY, read_table

    rows: list[dict[str, Any]] = read_table(path, MASTERY, "mastery")[0].to_pylist()
    return rows


def _facts_and_levels(source: str, mastery: Path) -> tuple[dict[str, Fact], dict[str, int]]:
    """Facts by id, and the level of each fact in the mastery record, in the record's order."""
    from knowshift.facts.sources.load import load_facts

    by_id = {fact.id: fact for fact in load_facts(source).facts}
    rows = _mastery_rows(mastery)
    for row in rows:
        fact = by_id.get(row["fact"])
        if fact is None or fact.exposures != row["exposures"]:  # worlds number their facts alike
            raise InputError(f"{mastery}: fact {row['fact']!r} is not that of {source}; the record is of other facts")
    return by_id, {row["fact"]: row["level"] for row in rows}
