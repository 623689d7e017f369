"""Pairs of answers to the same question, right or wrong: how many differ, and which way (McNemar 1947)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Turned:
    """The table of McNemar's test, in pairs of answers: one question asked of two models that share a draw.

    From the second model to the first: ``gained`` went from wrong to right, ``lost`` from right to wrong.
    """

    gained: int
    lost: int
    right: int  # in both
    wrong: int  # in both

    @property
    def pairs(self) -> int:
        """All pairs of answers."""
        return self.gained + self.lost + self.right + self.wrong

    def __add__(self, other: Turned) -> Turned:
        return Turned(
            self.gained + other.gained, self.lost + other.lost, self.right + other.right, self.wrong + other.wrong
        )

    def negated(self) -> Turned:
        """From the first model to the second."""
        return Turned(self.lost, self.gained, self.right, self.wrong)


def turned(first: Bools, second: Bools) -> Turned:
    """Count the pairs of two models' answers, any shape, the same for both."""
    wrong, lost, gained, right = np.bincount(2 * first.astype(np.int64) + second, minlength=4).tolist()
    return Turned(gained, lost, right, wrong)
