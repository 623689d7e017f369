"""What is told of a model on one task by one metric: a number for each item, and one of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from knowshift.models.loading import LoadedModel


@dataclass(frozen=True)
class Measured:
    """One model on one task by one metric.

    ``score`` is the mean of ``values`` weighted by ``weights``, but for a metric of lm-eval that is no mean: there it
    is what lm-eval makes of all items, and an item that has no number by itself has None.
    """

    task: str
    metric: str
    higher_is_better: bool
    score: float
    items: Sequence[str]  # what was asked: a prompt, a text, the number of a document
    values: Sequence[float | None]
    weights: Sequence[float]
    texts: Sequence[str | None]  # the model's answers as it wrote them; None where nothing was written


class Task(Protocol):
    """Items that every model of a study is asked in the same way."""

    def measure(self, loaded: LoadedModel) -> list[Measured]:
        """One entry for each metric."""


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Of at least one value with a weight above 0."""
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / math.fsum(weights)
