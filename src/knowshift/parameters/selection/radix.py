"""Selection by counting: the upper 16 bits of every sort key, then the lower 16 bits in the bins of thresholds.

The bit pattern of a float32 is the sort key (see :mod:`knowshift.parameters.selection.criteria`), so inside a bin of
the upper bits every value of the lower bits is one exact score. Nothing is sorted, nothing but counts is held.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from knowshift.parameters.kernels import compiled as kernels
from knowshift.parameters.selection.thresholds import KEPT, Kept, Keys, Threshold
from knowshift.parameters.tensors import Array, Stretch

BINS = 1 << 16  # of the upper bits; keys may be negative
_LIFT = 1 << 15
_LOW = 1 << 16


def radix(keys: Keys, wanted: Sequence[int]) -> dict[int, Threshold]:
    """The threshold of each count, by counting upper bits and then lower bits."""
    upper = np.zeros(BINS, np.int64)
    for _, part in keys.scan(upper_counts):
        upper += part
    bins = {count: find(upper, count) for count in wanted}
    refined = Refinement(bin_ for bin_, _ in bins.values())
    kept = Kept(KEPT)
    for stretch, low in keys.scan(refined.inside):
        refined.add(low)
        kept.add(stretch, low)
    found = {}
    for count, (bin_, over) in bins.items():
        inside = refined.of(bin_)
        low_bits, higher = find(inside, count - over)
        key = first_key(bin_) + low_bits
        equals = partial(_equals, keys, key, kept, refined.place(key))
        found[count] = Threshold(key, count - over - higher, int(inside[low_bits]), equals)
    return found


def _equals(keys: Keys, key: int, kept: Kept, value: int) -> Iterable[tuple[Stretch, int]]:
    """How many equals of a key lie in each stretch: from what was kept (as ``value``), or from another pass."""
    if kept.whole:
        return kept.equals(value)
    return keys.scan(lambda values: int(np.count_nonzero(values == key)))


def upper_counts(keys: NDArray[np.int32], weights: NDArray[np.float64] | None = None) -> Array:
    """How many keys (or how much weight) each value of the upper bits holds: shape (BINS,)."""
    compiled = kernels.upper_counts(keys, weights, BINS)
    if compiled is not None:
        return compiled
    return np.bincount((keys >> 16) + _LIFT, weights=weights, minlength=BINS)


def tally(scores: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """By the upper bits of non-negative float32 scores: (how many, their sum, the sum of their squares).

    Each of shape (BINS,). A score that is not finite adds nothing to the sums, which are float64.
    """
    compiled = kernels.tally(scores, BINS)
    if compiled is not None:
        return compiled
    keys, finite = scores.view(np.int32), np.where(np.isfinite(scores), scores, np.float32(0)).astype(np.float64)
    return upper_counts(keys), upper_counts(keys, finite), upper_counts(keys, finite * finite)


def upper_of(key: int) -> int:
    """The bin of a key's upper bits."""
    return (key >> 16) + _LIFT


def first_key(bin_: int) -> int:
    """The smallest key of a bin."""
    return (bin_ - _LIFT) << 16


def find(counts: NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """The bin, from the top, in which the ``wanted``-th weight lies, and how many lie above that bin."""
    down = counts[::-1].cumsum()
    place = int(np.searchsorted(down, wanted))
    return len(counts) - 1 - place, int(down[place - 1]) if place else 0


class Refinement:
    """Counts of the lower 16 bits inside chosen bins of the upper bits: there each bin is one exact key."""

    def __init__(self, bins: Iterable[int]) -> None:
        chosen = sorted(set(bins))
        self._row = np.full(BINS, -1, np.int32)
        self._row[chosen] = np.arange(len(chosen))
        self._counts = np.zeros(len(chosen) * _LOW, np.int64)

    def inside(self, keys: NDArray[np.int32]) -> NDArray[np.int32]:
        """Places in the table of the keys that fall in a chosen bin, in their order."""
        compiled = kernels.inside(keys, self._row)
        if compiled is not None:
            return compiled
        rows = self._row[(keys >> 16) + _LIFT]
        places: NDArray[np.int32] = (rows << 16 | keys & 0xFFFF)[rows >= 0]
        return places

    def add(self, places: NDArray[np.int32]) -> None:
        """Count the places that :meth:`inside` gave; one thread at a time."""
        if not kernels.count(places, self._counts):
            np.add.at(self._counts, places, 1)

    def of(self, bin_: int) -> NDArray[np.int64]:
        """Counts of one bin's lower bits: shape (65536,)."""
        row = int(self._row[bin_])
        return self._counts[row * _LOW : (row + 1) * _LOW]

    def row(self, bin_: int) -> int:
        """The upper half of the places of a chosen bin's keys."""
        return int(self._row[bin_])

    def place(self, key: int) -> int:
        """Where a key of a chosen bin is counted."""
        return self.row(upper_of(key)) << 16 | (key & 0xFFFF)
