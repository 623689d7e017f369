"""Selective token masking (Wu et al. 2025, arXiv 2501.14315): no loss on tokens that the base finds unlikely.

The perplexities are the base model's, taken once before training. On facts that the base does not know, most of the
answer is masked: what is left teaches the form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.training.strategy import Kind, Strategy, setting

if TYPE_CHECKING:
    from knowshift.models.loading import LoadedModel

#: Examples of one forward pass.
_BATCH = 32


@dataclass(frozen=True)
class Stm(Strategy):
    """-log s(y) where 1 / p(y) is at most the threshold, else no loss; the mean is over tokens that have one."""

    name: ClassVar[str] = "stm"
    about: ClassVar[str] = "no loss on tokens whose perplexity under the base model is above a threshold"
    source: ClassVar[str] = "Wu et al. 2025, arXiv 2501.14315"
    cost: ClassVar[str] = "a forward pass of all examples before training"
    kind: ClassVar[Kind] = "loss"
    threshold: float = setting(2.5, "largest perplexity of a token that has a loss", unit="1 / probability", least=1)

    def examples(self, loaded: LoadedModel, members: Sequence[Fact], usual: Callable[..., Any]) -> Any:
        """The examples of plain fine-tuning without the labels of unlikely tokens.

        Raises:
            InputError: no token is left.
        """
        from knowshift.training.one_row import IGNORED

        examples = super().examples(loaded, members, usual)
        found = perplexities(loaded, examples)
        for example, values in zip(examples, found, strict=True):
            start = len(example["labels"]) - len(values)
            for place, value in enumerate(values, start):
                if value > self.threshold:
                    example["labels"][place] = IGNORED
        lowest = min(min(values) for values in found)
        if lowest > self.threshold:
            raise InputError(
                f"stm: threshold: the base's perplexity of every token of {len(examples)} answers is above "
                f"{self.threshold:g}; expected at least {lowest:.6g}"
            )
        return examples


def perplexities(loaded: LoadedModel, examples: Sequence[dict[str, list[int]]]) -> list[list[float]]:
    """1 / p of each token that has a label, under the loaded model: one list an example."""
    import torch

    from knowshift.training.one_row import IGNORED

    by_length: dict[int, list[int]] = {}
    for place, example in enumerate(examples):
        by_length.setdefault(len(example["input_ids"]), []).append(place)
    found: list[list[float]] = [[] for _ in examples]
    for length, places in sorted(by_length.items()):  # equal lengths need no padding
        for begin in range(0, len(places), _BATCH):
            batch = places[begin : begin + _BATCH]
            answers = [sum(label != IGNORED for label in examples[place]["labels"]) for place in batch]
            kept = max(answers) + 1
            ids_BT = torch.tensor([examples[place]["input_ids"] for place in batch], device=loaded.model.device)
            with torch.no_grad():
                logits = loaded.model(input_ids=ids_BT, use_cache=False, logits_to_keep=kept).logits[:, -kept:-1]
                said = logits.float().log_softmax(-1).gather(-1, ids_BT[:, length - kept + 1 :, None]).squeeze(-1)
            for place, answer, row in zip(batch, answers, said.tolist(), strict=True):
                found[place] = [_inverse(value) for value in row[len(row) - answer :]]
    return found


def _inverse(log_probability: float) -> float:
    return math.exp(-log_probability) if log_probability > -700 else math.inf  # beyond it exp overflows
