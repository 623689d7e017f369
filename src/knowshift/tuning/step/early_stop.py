"""Early stopping by the token shift: a training ends once what the base knows begins to move away.

The measure is the paper's (4.1), taken during the training: the base reads a completion prompt, the model in training
the fine-tuning prompt. It falls while the model learns the form, and rises as knowledge is overwritten; the weights of
the minimum are what is left. Behind one and the same prompt it could only rise, and the minimum would be the base.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import TrainerCallback

from knowshift.errors import InputError
from knowshift.facts.fact import tuning_prompt
from knowshift.probing.budget.plan import balanced_sample
from knowshift.token_shift import BaseLogits, ShiftItems, best_prompts, leading, select_items, shared_ids, shift_from
from knowshift.training.strategy import Held, Kind, Strategy, Training, setting

if TYPE_CHECKING:
    from torch import Tensor

#: The mastery level of the facts that are watched.
_LEVEL = 4


@dataclass(frozen=True)
class EarlyStop(Strategy):
    """The training stops where the KL of the token shift has not fallen for some looks; its minimum is kept.

    The record notes ``kept_step`` and ``kl``, the mean KL there in nats.

    Watched are facts of the training split that the base knows best and that are not trained on.
    """

    name: ClassVar[str] = "early-stop"
    about: ClassVar[str] = "stops where the token shift of known facts is smallest"
    needs_known: ClassVar[bool] = True
    source: ClassVar[str] = "ours, by the measure of the paper, 4.1"
    cost: ClassVar[str] = "a copy of the trained weights; a forward pass of the watched facts at each look"
    held: ClassVar[Held] = Held(there=1.0)
    kind: ClassVar[Kind] = "step"
    every: int = setting(5, "steps between two looks; one more at the last step", unit="steps", least=1)
    patience: int = setting(3, "looks without a smaller KL after which the training stops", unit="looks", least=1)
    count: int = setting(64, "facts that are watched at most", unit="facts", least=1)

    def callbacks(self, training: Training) -> list[TrainerCallback]:
        """Raises :class:`InputError` without a mastery record, or without known facts to watch."""
        return [_Watch(training, self)]


def watched(training: Training, count: int) -> ShiftItems:
    """The facts to watch, balanced over relations, with the completion prompts that their relations are known by.

    Raises:
        InputError: no mastery record, or no fact of level 4 whose answer the base begins with and that is not trained.
    """
    known = training.known
    if known is None:
        raise InputError("early-stop: watches facts that the base model knows; expected its mastery record")
    trained = {fact.id for fact in training.members}
    facts = [fact for fact in known.of("train", _LEVEL) if fact.id not in trained]
    best = best_prompts(known.of("train"), known.prompt_counts("prompt_hits"), known.prompt_counts("prompt_draws"))
    items = select_items(training.loaded, balanced_sample(facts, count, training.seed), best)
    if not items.kept:
        raise InputError(
            f"early-stop: of {len(facts)} training facts of level {_LEVEL} that are not trained on, the base begins "
            "with the answer to none that is watched; expected some"
        )
    return items


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Looks at the token shift, stops the training, and puts the weights of the smallest back."""

    def __init__(self, training: Training, strategy: EarlyStop) -> None:
        self._strategy, self._loaded = strategy, training.loaded
        self._items = watched(training, strategy.count)
        self._asked = [tuning_prompt(self._items.facts[place].question) for place in self._items.kept]
        base = BaseLogits.of(training.loaded, self._items)
        self._base, self._shared = base, shared_ids(base.vocabulary, base.vocabulary, base.name, base.name)
        self._trained: list[Tensor] = [one for one in training.trained.parameters() if one.requires_grad]
        self._smallest, self._at, self._since = math.inf, 0, 0
        self._noted = training.noted
        self._kept: list[Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> Any:
        if state.global_step % self._strategy.every and state.global_step < state.max_steps:
            return control
        now = self.shift()
        self._since += 1
        if now < self._smallest:
            self._smallest, self._at, self._since = now, state.global_step, 0
            self._kept = [one.detach().clone() for one in self._trained]
        if self._since >= self._strategy.patience:
            control.should_training_stop = True
        return control

    @torch.no_grad()
    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self._since:
            for weight, kept in zip(self._trained, self._kept, strict=True):
                weight.copy_(kept)
        self._kept = []
        self._noted.update({"kept_step": self._at, "kl": self._smallest})

    def shift(self) -> float:
        """The mean KL of the watched facts now, in nats."""
        training = self._loaded.model.training
        self._loaded.model.eval()
        led = leading(self._loaded, self._shared, self._asked)
        self._loaded.model.train(training)
        found = shift_from(self._base, self._items, led).mean
        assert found is not None
        return found
