"""Fine-tuning on facts of one mastery level, or of all."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knowshift.api.inputs import FactsLike, MasteryLike, ModelLike, Named, load_model, values_of, with_mastery
from knowshift.errors import InputError, check_whole
from knowshift.files import check_parent, folder_beside, write_json
from knowshift.system.progress import bar
from knowshift.training.precision import check_trainable

if TYPE_CHECKING:
    from knowshift.models.loading import LoadedModel


def strategies() -> list[dict[str, Any]]:
    """The strategies of :func:`finetune`: name, kind, what each is, its source, its cost and its settings."""
    from knowshift.tuning.registry import listed

    return listed()


@dataclass(frozen=True)
class FineTuned:
    """A tuned model, and the results of its training."""

    model: LoadedModel
    output: Path | None  # the checkpoint's folder; None where it was not written
    facts: list[str]  # ids of the training facts, in training order
    steps: int  # updates of the optimiser
    train_loss: float  # mean over the steps, in nats a target token
    record: dict[str, Any]  # the content of knowshift.json: recipe, seed, facts, the loss of every step


def finetune(
    model: ModelLike,
    facts: FactsLike,
    mastery: MasteryLike,
    *,
    level: int | None = None,
    output_dir: str | Path | None = None,
    size: int | None = None,
    strategy: str = "sft",
    settings: Named = (),
    reference: ModelLike | None = None,
    draw: int = 0,
    learning_rate: float = 1e-5,
    batch_size: int = 8,
    epochs: int = 1,
    shared_prefix: bool = False,
    report_to: str = "none",
    seed: int = 0,
    revision: str | None = None,
    base: str | None = None,
    base_revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    progress: bool | None = None,
) -> FineTuned:
    """Fine-tune on facts of one mastery level, or of all, balanced over relations, as the paper does (2.2).

    A loaded model stays as it is: a copy is trained.

    Args:
        mastery: the model's mastery record; training facts are drawn from it.
        level: of the training facts; of all levels in turn where not given. Some strategies choose their own.
        output_dir: new folder for the tuned checkpoint.
        size: number of training facts; all there are where not given.
        strategy: one of :func:`strategies`; "sft" is full-parameter supervised fine-tuning.
        settings: of the strategy, by name or as texts ("weight=0.5"); its defaults where not given.
        reference: the model that a strategy compares with at every step; where not given, ``model`` before training.
        draw: number of the random draw, from 0.
        learning_rate: peak of the cosine schedule (paper: 1e-5).
        shared_prefix: every batch as one row: the same gradients, faster on short facts.
        report_to: passed on to the Trainer: trackio, wandb, tensorboard.

    Raises:
        InputError: bad input of any kind, and a training that failed; nothing is written then.
    """
    if isinstance(model, (str, Path)):
        check_trainable(str(model), dtype)  # before torch and TRL are imported
    if not 0 < learning_rate < float("inf"):
        raise InputError(f"learning rate {learning_rate} (--learning-rate): expected a positive number")
    if level is not None:
        check_whole("level", level, 0, 5)
    check_whole("draw", draw)
    check_whole("seed", seed)
    for name, value in (("size", size), ("batch size", batch_size), ("epochs", epochs)):
        if value is not None:
            check_whole(name, value, 1)
    from knowshift.training.strategy import Draw
    from knowshift.tuning.registry import strategy_of

    chosen = strategy_of(strategy, values_of(settings, "--option", "weight=0.5"))
    target = None if output_dir is None else Path(output_dir)
    if target is not None:
        if target.exists():
            raise InputError(f"{target}: exists already; a checkpoint is written to a new folder")
        check_parent(target)
    known, source, _ = with_mastery(facts, mastery)
    drawn = Draw(known, level=level, size=size, draw=draw, seed=seed)
    members = chosen.facts(drawn)

    from knowshift.models.saving import save_model
    from knowshift.parameters.loaded import copy_of
    from knowshift.training import sft
    from knowshift.tuning.run import check_room, reference_of, tune

    loaded = load_model(model, revision=revision, dtype=dtype, device=device, base=base, base_revision=base_revision)
    check_trainable(loaded.name, loaded.dtype)  # of "auto", and of a loaded model
    about = {"base": loaded.about()}
    if not isinstance(model, (str, Path)):
        loaded = replace(loaded, model=copy.deepcopy(loaded.model))
    recipe = sft.TrainingRecipe(
        learning_rate=learning_rate,
        batch_size=batch_size,
        epochs=epochs,
        shared_prefix=shared_prefix,
        report_to=report_to,
    )
    asked = None if reference is None else load_model(reference, dtype=dtype, device=device)
    check_room(loaded, chosen, asked)
    compared = reference_of(loaded, chosen, asked)
    before = copy_of(loaded.model) if chosen.kind == "after" else {}
    with bar("fine-tuning", recipe.steps(len(members)), "step", progress) as advance:
        made = tune(loaded, members, recipe, chosen, before, seed=seed, base=compared, known=known, progress=advance)
    ids = [fact.id for fact in members]
    record = {
        **about,
        "source": source,
        "level": level,
        "draw": draw,
        "seed": seed,
        "recipe": recipe.as_record(),
        "strategy": {"name": chosen.name, "settings": chosen.settings},
        "reference": None if asked is None else asked.about(),
        "facts": ids,
        **made,
    }
    if target is not None:
        with folder_beside(target) as folder:
            save_model(loaded, folder)
            write_json(folder / "knowshift.json", record)
    return FineTuned(
        replace(loaded, name=f"{loaded.name}, fine-tuned"), target, ids, made["steps"], made["train_loss"], record
    )
