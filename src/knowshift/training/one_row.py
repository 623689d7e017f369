"""A training batch as one row: the common beginning of its examples once, then the rest of each.

Every token sees the shared beginning and its own example, at the position it would have alone, so loss and gradients
are those of one padded row an example, up to float rounding. There is no padding, and the words of the fine-tuning
prompt before the question are computed once a batch: 144 tokens instead of 204 for eight facts of the shipped world.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from knowshift.errors import InputError

#: In labels: a token without a loss.
IGNORED = -100
#: Attention that takes any mask.
_ANY_MASK = ("sdpa", "eager")
#: Relative difference of the two losses that rounding may make, in float32 and in less.
_CLOSE = {torch.float32: 1e-4, torch.float64: 1e-6}
_CLOSE_IN_LESS = 2e-2


class OneRow:
    """The collator: ``examples`` with ``input_ids`` and ``labels`` become tensors of one row of T tokens.

    ``attention_mask`` [1, 1, T, T]: True where a token may look, or 0 and the lowest number for ``eager`` attention.

    Raises :class:`InputError` for attention that takes no such mask.
    """

    def __init__(self, attention: str, dtype: torch.dtype) -> None:
        if attention not in _ANY_MASK:
            raise InputError(
                f"training.shared_prefix: needs attention that takes any mask ({' or '.join(_ANY_MASK)}), "
                f"found {attention!r}"
            )
        self._added = dtype if attention == "eager" else None

    def __call__(self, examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
        shared = shared_tokens(examples)
        ids, labels = (list(examples[0][key][:shared]) for key in ("input_ids", "labels"))
        positions, owner = list(range(shared)), [0] * shared  # owner 0: shared by all
        for number, example in enumerate(examples, start=1):
            own = example["input_ids"][shared:]
            ids += own
            labels += example["labels"][shared:]
            positions += range(shared, shared + len(own))
            owner += [number] * len(own)
        whose = torch.tensor(owner)
        mask = ((whose[None, :] == 0) | (whose[None, :] == whose[:, None])).tril()[None, None]
        if self._added is not None:
            mask = torch.zeros(mask.shape, dtype=self._added).masked_fill_(~mask, torch.finfo(self._added).min)
        return {
            "input_ids": torch.tensor([ids]),
            "labels": torch.tensor([labels]),
            "position_ids": torch.tensor([positions]),
            "attention_mask": mask,
        }


def shared_tokens(examples: Sequence[Mapping[str, Sequence[int]]]) -> int:
    """How many tokens all examples begin with; fewer than there are before any loss.

    The last shared token cannot predict the first token of every example, so that one must be without a loss.
    """
    columns = zip(*(example["input_ids"] for example in examples), strict=False)
    same = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    silent = min(sum(1 for _ in takewhile(lambda label: label == IGNORED, e["labels"])) for e in examples)
    return max(0, min(same, silent - 1))


@torch.no_grad()
def check_same_loss(model: Any, examples: Sequence[Mapping[str, Sequence[int]]], collator: OneRow) -> None:
    """Raise :class:`InputError` where the model's loss of a batch as one row is not that of its examples alone.

    A model that keeps other states than keys and values, or sets its own mask, would mix the examples.
    """
    examples = [example for example in examples if any(label != IGNORED for label in example["labels"])]
    if not examples:
        return  # a strategy may leave a batch without a loss
    training = model.training
    model.eval()
    device = model.device
    tokens = sum(label != IGNORED for example in examples for label in example["labels"])

    def loss(batch: Mapping[str, Tensor]) -> float:
        return float(model(**{key: value.to(device) for key, value in batch.items()}, use_cache=False).loss)

    try:
        together = loss(collator(examples))
    except (TypeError, ValueError, RuntimeError, IndexError):  # no such mask, or no positions, in this architecture
        together = float("nan")
    alone = (
        sum(
            loss({key: torch.tensor([list(e[key])]) for key in ("input_ids", "labels")})
            * sum(label != IGNORED for label in e["labels"])
            for e in examples
        )
        / tokens
    )
    model.train(training)
    if not abs(together - alone) <= _CLOSE.get(model.dtype, _CLOSE_IN_LESS) * abs(alone):
        raise InputError(
            f"training.shared_prefix: model type {model.config.model_type!r} does not keep the examples of a row apart "
            f"(loss {together:.4f}, expected {alone:.4f}); leave it off for this model"
        )
