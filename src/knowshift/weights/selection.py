"""Exact global selection of the k largest keys, without sorting and without holding the keys.

A radix selection over the bits of a key: one pass counts the upper 16 bits, a second counts the lower 16 bits inside
the few bins where a threshold falls. Where a threshold's equals are taken in part, the stretch in which the last one
lies follows from what the second pass saw (or, beyond a bounded memory, from a third pass), and that stretch alone
is read again. All counts share the passes. Equal keys rank by tensor (sorted names), then by flat position. Every
pass adds integers, so the result is the same for any piece size and any number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from knowshift.errors import InputError

BINS = 1 << 16  # of the upper bits; keys may be negative
_LIFT = 1 << 15
_LOW = 1 << 16
#: Keys of threshold bins kept from the second pass, so that a third is rarely needed (4 bytes each).
KEPT = 1 << 24


class Keys(Protocol):
    """The int32 keys of a region: by stretch, and as a scan of all of them in ranking order."""

    def of(self, tensor: int, start: int, stop: int) -> Tensor:
        """Keys of one stretch: shape (stop - start,)."""

    def scan(self, function: Any) -> Iterator[tuple[tuple[int, int, int], Any]]:
        """((tensor, start, stop), function(keys)) of every stretch, in ranking order, computed in parallel."""


@dataclass(frozen=True)
class Cut:
    """The first ``count`` weights: those with keys above ``key``, and its equals before (``tensor``, ``stop``)."""

    count: int
    key: int  # the smallest key selected
    tensor: int
    stop: int

    def mask(self, tensor: int, start: int, keys: Tensor) -> Tensor:
        """Which weights of a stretch are selected: bool, shape of ``keys``."""
        if self.count == 0:
            return torch.zeros(keys.shape, dtype=torch.bool, device=keys.device)
        if tensor < self.tensor:
            return at_least(keys, self.key)
        if tensor > self.tensor or start >= self.stop:
            return above(keys, self.key)
        end = self.stop - start
        if end >= len(keys):
            return at_least(keys, self.key)
        return torch.cat((at_least(keys[:end], self.key), above(keys[end:], self.key)))


NOTHING = Cut(0, 0, 0, 0)
_ALL_EQUALS = (1 << 62, 0)


def exact_count(fraction: float, eligible: int) -> int:
    """floor(fraction x eligible) of the decimal as written: 0.29 of 100 is 29, though 0.29 * 100 < 29 in floats."""
    if not 0.0 <= fraction <= 1.0:  # also refuses NaN
        raise InputError(f"fraction {fraction}: expected a number from 0 to 1")
    return int(Fraction(str(fraction)) * eligible)


def fraction_name(fraction: float) -> str:
    """How a fraction is written in records: "0.01", "0.2", "1"."""
    return format(fraction, ".12g")


def choose(keys: Keys, counts: Sequence[int]) -> list[Cut]:
    """The cut of each count, in the order given; see the module."""
    wanted = sorted({count for count in counts if count > 0})
    if not wanted:
        return [NOTHING for _ in counts]
    upper = torch.zeros(BINS, dtype=torch.int64)
    for _, part in keys.scan(upper_counts):
        upper += part
    assert wanted[-1] <= int(upper.sum()), "more asked than there is"
    bins = {count: find(upper, count) for count in wanted}
    refined = Refinement(bin_ for bin_, _ in bins.values())
    kept = _Kept()
    for stretch, low in keys.scan(refined.inside):
        refined.add(low)
        kept.add(stretch, low)
    found: dict[int, tuple[int, int]] = {}  # count -> key, how many of its equals are taken
    partial: set[tuple[int, int]] = set()
    for count, (bin_, over) in bins.items():
        inside = refined.of(bin_)
        low_bits, higher = find(inside, count - over)
        key, taken = ((bin_ - _LIFT) << 16) + low_bits, count - over - higher
        found[count] = key, taken
        if taken < int(inside[low_bits]):
            partial.add((key, taken))
    ends = _ends(keys, partial, refined, kept)
    cuts = {count: Cut(count, key, *ends.get((key, taken), _ALL_EQUALS)) for count, (key, taken) in found.items()}
    return [cuts.get(count, NOTHING) for count in counts]


def upper_counts(keys: Tensor, weights: Tensor | None = None) -> Tensor:
    """How many keys (or how much weight) each value of the upper bits holds: shape (BINS,), on the CPU."""
    return torch.bincount((keys >> 16).add_(_LIFT), weights=weights, minlength=BINS).cpu()


def upper_of(key: int) -> int:
    """The bin of a key's upper bits."""
    return (key >> 16) + _LIFT


def find(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The bin, from the top, in which the ``wanted``-th weight lies, and how many lie above that bin."""
    down = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(down, wanted))
    return len(counts) - 1 - place, int(down[place - 1]) if place else 0


def at_least(keys: Tensor, key: int) -> Tensor:
    """keys >= key; numpy's comparison is four times as fast as torch's on the CPU."""
    return torch.from_numpy(np.greater_equal(keys.numpy(), key)) if keys.device.type == "cpu" else keys >= key


def above(keys: Tensor, key: int) -> Tensor:
    """keys > key."""
    return torch.from_numpy(np.greater(keys.numpy(), key)) if keys.device.type == "cpu" else keys > key


class Refinement:
    """Counts of the lower 16 bits inside chosen bins of the upper bits: there each bin is one exact key."""

    def __init__(self, bins: Iterable[int]) -> None:
        self._bins = sorted(set(bins))
        self._row = torch.full((BINS,), -1, dtype=torch.int32)
        self._row[self._bins] = torch.arange(len(self._bins), dtype=torch.int32)
        self._counts = torch.zeros(len(self._bins) * _LOW, dtype=torch.int64)

    def inside(self, keys: Tensor) -> Tensor:
        """Places in the table of the keys that fall in a chosen bin, in their order: int32 on the CPU."""
        mask: Tensor | None = None
        for bin_ in self._bins:
            low = (bin_ - _LIFT) << 16
            here = at_least(keys, low) & ~at_least(keys, low + _LOW) if bin_ < BINS - 1 else at_least(keys, low)
            mask = here if mask is None else mask | here
        kept = keys[mask] if mask is not None else keys[:0]
        row = self._row.to(keys.device)[(kept >> 16).add_(_LIFT)]
        return (row << 16 | (kept & 0xFFFF)).cpu()

    def add(self, places: Tensor) -> None:
        """Take in what :meth:`inside` gave; one thread at a time."""
        if len(places) > _LOW:
            self._counts += torch.bincount(places, minlength=len(self._counts))
        else:
            self._counts.index_add_(0, places, torch.ones((), dtype=torch.int64).expand(len(places)))

    def of(self, bin_: int) -> Tensor:
        """Counts of one bin's lower bits: shape (65536,)."""
        row = int(self._row[bin_])
        return self._counts[row * _LOW : (row + 1) * _LOW]

    def place(self, key: int) -> int:
        """Where a key of a chosen bin is counted."""
        return int(self._row[upper_of(key)]) << 16 | (key & 0xFFFF)


class _Kept:
    """What the second pass saw of each stretch, in one block of memory; dropped as soon as it would not fit."""

    def __init__(self) -> None:
        self.whole = True
        self._block = torch.empty(KEPT, dtype=torch.int32)  # takes memory only as it is filled
        self._stretches: list[tuple[tuple[int, int, int], int]] = []  # and where each ends in the block
        self._end = 0

    def add(self, stretch: tuple[int, int, int], places: Tensor) -> None:
        self.whole = self.whole and self._end + len(places) <= KEPT
        if self.whole:
            self._block[self._end : self._end + len(places)] = places
            self._end += len(places)
            self._stretches.append((stretch, self._end))

    def __iter__(self) -> Iterator[tuple[tuple[int, int, int], Tensor]]:
        begin = 0
        for stretch, end in self._stretches:
            yield stretch, self._block[begin:end]
            begin = end


def _ends(
    keys: Keys,
    partial: set[tuple[int, int]],
    refined: Refinement,
    kept: _Kept,
) -> dict[tuple[int, int], tuple[int, int]]:
    """(key, how many of its equals) -> (tensor, position after the last one taken)."""
    if not partial:
        return {}
    distinct = sorted({key for key, _ in partial})

    def equals(values: Tensor, wanted: Sequence[int]) -> list[int]:
        return [int(torch.count_nonzero(values == value)) for value in wanted]

    wanted = [refined.place(key) for key in distinct]
    counted: Iterator[tuple[tuple[int, int, int], list[int]]] = (
        ((stretch, equals(low, wanted)) for stretch, low in kept)
        if kept.whole
        else keys.scan(lambda values: equals(values, distinct))
    )
    seen = dict.fromkeys(distinct, 0)
    ends: dict[tuple[int, int], tuple[int, int]] = {}
    for (tensor, start, stop), here in counted:
        for key, number in zip(distinct, here, strict=True):
            for other, taken in partial:
                if other == key and 0 < taken - seen[key] <= number:
                    positions = torch.nonzero(keys.of(tensor, start, stop) == key).reshape(-1)
                    ends[key, taken] = (tensor, start + int(positions[taken - seen[key] - 1]) + 1)
            seen[key] += number
    return ends
