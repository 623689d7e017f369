"""Exact global selection of the k largest sort keys, without sorting and without holding the keys.

A radix selection over the bits of a sort key: one pass counts the upper 16 bits, a second counts the lower 16 bits
inside the few bins that hold a threshold. Where only some of the keys equal to a threshold are selected, the stretch
of the last one follows from what the second pass saw (or, beyond a bounded memory, from a third pass), and that
stretch alone is read again. Large regions are first tried with one pass, inside brackets that a sample gives
(:mod:`knowshift.parameters.selection.brackets`). All counts share the passes. Equal keys rank by tensor (sorted names),
then by flat position. Every pass adds integers, so the result is the same for any piece size and number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from knowshift.errors import InputError
from knowshift.parameters.selection.brackets import GUESS_FROM, bracketed
from knowshift.parameters.selection.radix import radix
from knowshift.parameters.selection.thresholds import Keys, Threshold

#: The paper's fractions.
FRACTIONS = (0.01, 0.03, 0.05, 0.1, 0.2, 0.4, 0.6)


@dataclass(frozen=True)
class Cut:
    """The first ``count`` weights: those with keys above ``key``, and its equals before (``tensor``, ``stop``)."""

    count: int
    key: int  # the smallest key selected
    tensor: int
    stop: int

    def mask(self, tensor: int, start: int, keys: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which weights of a stretch are selected: shape of ``keys``."""
        key, end = self.within(tensor, start, len(keys))
        chosen = np.empty(len(keys), np.bool_)
        np.greater_equal(keys[:end], key, out=chosen[:end])
        np.greater(keys[end:], key, out=chosen[end:])
        return chosen

    def within(self, tensor: int, start: int, length: int) -> tuple[int, int]:
        """The same for a stretch: keys above the first number are selected, and its equals before the second."""
        if tensor == self.tensor:
            return self.key, min(max(self.stop - start, 0), length)
        return self.key, length if tensor < self.tensor else 0


#: No key lies above the largest there is.
NOTHING = Cut(0, (1 << 31) - 1, 0, 0)
_ALL_EQUALS = (1 << 62, 0)


def exact_count(fraction: float, eligible: int) -> int:
    """floor(fraction x eligible) of the decimal as written: 0.29 of 100 is 29, though 0.29 * 100 < 29 in floats."""
    if not 0.0 <= fraction <= 1.0:  # also refuses NaN
        raise InputError(f"fraction {fraction}: expected a number from 0 to 1")
    return int(Fraction(str(fraction)) * eligible)


def fraction_name(fraction: float) -> str:
    """How a fraction is written in records and names of files: "0.01", "0.2", "1", "1e-05".

    The shortest digits that are read back as the same number, so different fractions have different names.
    """
    return repr(float(fraction) + 0.0).removesuffix(".0")


def choose(keys: Keys, counts: Sequence[int]) -> list[Cut]:
    """The cut of each count, in the order given; see the module."""

    wanted = sorted({count for count in counts if count > 0})
    if not wanted:
        return [NOTHING for _ in counts]
    assert wanted[-1] <= sum(keys.sizes), "more asked than there is"
    found = bracketed(keys, wanted) if sum(keys.sizes) >= GUESS_FROM else None
    cuts = {count: _cut(keys, count, one) for count, one in (found or radix(keys, wanted)).items()}
    return [cuts.get(count, NOTHING) for count in counts]


def _cut(keys: Keys, count: int, found: Threshold) -> Cut:
    if found.taken == found.there:
        return Cut(count, found.key, *_ALL_EQUALS)
    left = found.taken
    for (tensor, start, stop), number in found.equals():
        if left <= number:
            positions = np.flatnonzero(keys.of(tensor, start, stop) == found.key)
            return Cut(count, found.key, tensor, start + int(positions[left - 1]) + 1)
        left -= number
    raise AssertionError("fewer equals than were counted")
