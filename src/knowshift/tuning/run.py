"""One fine-tuning by a strategy, from its facts to its tuned weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.system.allocator import free_bytes
from knowshift.training.strategy import Strategy

if TYPE_CHECKING:
    from knowshift.known_facts import KnownFacts
    from knowshift.models.loading import LoadedModel
    from knowshift.training.sft import TrainingRecipe
    from knowshift.training.strategy import Weights


def reference_of(loaded: LoadedModel, strategy: Strategy, given: LoadedModel | None = None) -> LoadedModel | None:
    """The model that the strategy asks at every step: ``given``, or a copy of ``loaded``; None where it asks none.

    Raises:
        InputError: a model is given that the strategy does not ask, or one of another vocabulary.
    """
    if not strategy.needs_base:
        if given is not None:
            raise InputError(f"strategy {strategy.name!r} asks no reference model, and {given.name} was given as one")
        return None
    if given is not None:
        if rows_of(given) != rows_of(loaded):
            raise InputError(
                f"strategy {strategy.name!r}: the reference {given.name} has a vocabulary of {rows_of(given):,} rows "
                f"and {loaded.name} one of {rows_of(loaded):,}; expected the same tokens and as many rows"
            )
        theirs, ours = given.tokenizer.get_vocab(), loaded.tokenizer.get_vocab()
        if theirs != ours:
            other = min(token for token, _ in theirs.items() ^ ours.items())
            raise InputError(
                f"strategy {strategy.name!r}: token {other!r} is number {theirs.get(other, 'none')} of the reference "
                f"{given.name} and number {ours.get(other, 'none')} of {loaded.name}; expected the same tokens"
            )
        return given
    return replace(loaded, model=copy.deepcopy(loaded.model))


def check_room(loaded: LoadedModel, strategy: Strategy, given: LoadedModel | None = None) -> None:
    """Refuse a device that is too small for a training of ``loaded``, which lies on it, without its activations.

    ``given`` is as in :func:`reference_of`: a model that lies there too.

    Raises:
        InputError: says both numbers.
    """
    bytes_of, device = loaded.weight_bytes, loaded.model.device
    on_cpu = device.type == "cpu"
    weights = sum(parameter.numel() for parameter in loaded.model.parameters())
    needed = 3 * bytes_of + strategy.held.bytes_of(weights, bytes_of // weights, on_cpu=on_cpu)
    what = "gradients and moments"
    if (strategy.needs_base and given is None) or (strategy.kind == "after" and on_cpu):
        needed, what = needed + bytes_of, f"{what}, a copy of the base"
    free = free_bytes(device)
    if needed > free:
        raise InputError(
            f"strategy {strategy.name!r}: {what} and what else it holds beside the model take {needed / 1e9:,.1f} GB, "
            f"and {device} has {free / 1e9:,.1f} GB free; expected more memory, or a strategy that holds less, such as "
            "lora"
        )


def tune(
    loaded: LoadedModel,
    members: Sequence[Fact],
    recipe: TrainingRecipe,
    strategy: Strategy,
    weights: Weights,
    *,
    seed: int,
    base: LoadedModel | None = None,
    known: KnownFacts | None = None,
    progress: Callable[[int], None] = lambda steps: None,
) -> dict[str, Any]:
    """Fine-tune ``loaded.model`` in place by a strategy, on the facts that it chose (:meth:`.Strategy.facts`).

    Args:
        weights: the base model's, by the names of its parameters, for what is done after the training.
        base: the base model in memory of its own, where the strategy asks it.
        known: facts with the base's mastery of them, for strategies that watch what it knows.

    Returns:
        As :func:`knowshift.training.sft.finetune`.

    Raises:
        InputError: as there.
    """
    from knowshift.training import sft

    record = sft.finetune(
        loaded, members, recipe, seed=seed, strategy=strategy, base=base, known=known, progress=progress
    )
    strategy.after(weights, loaded.model, seed)
    return record


def rows_of(loaded: LoadedModel) -> int:
    """Tokens that a model has rows for."""
    return int(loaded.model.config.get_text_config().vocab_size)
