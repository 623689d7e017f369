"""Exact global selection of the k largest keys, without sorting and without holding the keys.

A radix selection over the 31 bits of a key: one pass counts the upper 16 bits, a second counts the lower 16 bits
inside the few bins where a threshold falls, and only where a threshold's equals are taken in part does a third pass
find where they end. All fractions share the passes. Equal keys rank by tensor (sorted names), then flat position.
Every pass adds integers, so the result is the same for any piece size and any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from knowshift.errors import InputError

BINS = 1 << 15
_LOW = 1 << 16

#: ``scan(function)`` yields ``function(tensor, start, keys)`` for every piece, in ranking order.
Scan = Callable[[Callable[[int, int, Tensor], Any]], Iterable[Any]]


@dataclass(frozen=True)
class Cut:
    """The first ``count`` weights: those with keys above ``key``, and its equals before (``tensor``, ``stop``)."""

    count: int
    key: int  # the smallest key selected; above every key when count is 0
    tensor: int
    stop: int

    def mask(self, tensor: int, start: int, keys: Tensor) -> Tensor:
        """Which weights of a piece are selected: bool, shape of ``keys``."""
        if tensor < self.tensor:
            return keys >= self.key
        if tensor > self.tensor or start >= self.stop:
            return keys > self.key
        end = self.stop - start
        if end >= len(keys):
            return keys >= self.key
        return torch.cat((keys[:end] >= self.key, keys[end:] > self.key))


NOTHING = Cut(0, (1 << 31) - 1, 0, 0)


def exact_count(fraction: float, eligible: int) -> int:
    """floor(fraction x eligible) of the decimal as written: 0.29 of 100 is 29, though 0.29 * 100 < 29 in floats."""
    if not 0.0 <= fraction <= 1.0:  # also refuses NaN
        raise InputError(f"fraction {fraction}: expected a number from 0 to 1")
    return int(Fraction(str(fraction)) * eligible)


def fraction_name(fraction: float) -> str:
    """How a fraction is written in records: "0.01", "0.2", "1"."""
    return format(fraction, ".12g")


def choose(scan: Scan, counts: Sequence[int]) -> list[Cut]:
    """The cut of each count, in the order given; see the module."""
    wanted = sorted({count for count in counts if count > 0})
    if not wanted:
        return [NOTHING for _ in counts]
    upper = torch.zeros(BINS, dtype=torch.int64)
    for part in scan(lambda tensor, start, keys: upper_counts(keys)):
        upper += part
    assert wanted[-1] <= int(upper.sum()), "more asked than there is"
    bins = {count: find(upper, count) for count in wanted}
    refined = Refinement([bin_ for bin_, _ in bins.values()])
    for low in scan(lambda tensor, start, keys: refined.counts(keys)):
        refined.add(low)
    found: dict[int, tuple[int, int, int]] = {}  # count -> key, equals taken, equals there are
    for count, (bin_, above) in bins.items():
        counts_here = refined.of(bin_)
        low, higher = find(counts_here, count - above)
        found[count] = (bin_ << 16 | low, count - above - higher, int(counts_here[low]))
    partial = {key: taken for key, taken, there in found.values() if taken < there}
    ends = _ends(scan, partial, [(key, taken) for key, taken, there in found.values() if taken < there])
    last = (1 << 62, 0)
    cuts = {count: Cut(count, key, *ends.get((key, taken), last)) for count, (key, taken, _) in found.items()}
    return [cuts.get(count, NOTHING) for count in counts]


def upper_counts(keys: Tensor, weights: Tensor | None = None) -> Tensor:
    """How many keys (or how much weight) each value of the upper bits holds: shape (BINS,), on the CPU."""
    return torch.bincount(keys >> 16, weights=weights, minlength=BINS).cpu()


def find(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The bin, from the top, in which the ``wanted``-th weight lies, and how many lie above that bin."""
    down = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(down, wanted))
    bin_ = len(counts) - 1 - place
    return bin_, int(down[place - 1]) if place else 0


class Refinement:
    """Counts of the lower 16 bits inside chosen bins of the upper bits: one exact float32 value each."""

    def __init__(self, bins: Iterable[int]) -> None:
        self._bins = sorted(set(bins))
        self._row = torch.full((BINS,), -1, dtype=torch.int32)
        self._row[self._bins] = torch.arange(len(self._bins), dtype=torch.int32)
        self._counts = torch.zeros(len(self._bins) * _LOW, dtype=torch.int64)

    def counts(self, keys: Tensor) -> Tensor:
        """One piece's places in the table, a few percent of its keys: int32 on the CPU."""
        if len(self._bins) <= 2:
            inside = (keys >> 16) == self._bins[0]
            for other in self._bins[1:]:
                inside |= (keys >> 16) == other
        else:
            inside = self._row.to(keys.device)[keys >> 16] >= 0
        kept = keys[inside]
        row = self._row.to(keys.device)[kept >> 16]
        return (row << 16 | (kept & 0xFFFF)).cpu()

    def add(self, places: Tensor) -> None:
        """Take in what :meth:`counts` gave; one thread at a time."""
        if len(places) > _LOW:
            self._counts += torch.bincount(places, minlength=len(self._counts))
        else:
            self._counts.index_add_(0, places, torch.ones((), dtype=torch.int64).expand(len(places)))

    def of(self, bin_: int) -> Tensor:
        """Counts of one bin's lower bits: shape (65536,)."""
        row = int(self._row[bin_])
        return self._counts[row * _LOW : (row + 1) * _LOW]


def _ends(
    scan: Scan, keys_wanted: Iterable[int], wanted: list[tuple[int, int]]
) -> dict[tuple[int, int], tuple[int, int]]:
    """(key, how many equals) -> (tensor, position after the last one taken)."""
    if not wanted:
        return {}
    distinct = sorted({key for key, _ in wanted})

    def equals(tensor: int, start: int, keys: Tensor) -> tuple[int, int, list[Tensor]]:
        return tensor, start, [torch.nonzero(keys == key).reshape(-1).cpu() for key in distinct]

    seen = dict.fromkeys(distinct, 0)
    ends: dict[tuple[int, int], tuple[int, int]] = {}
    pieces: Iterator[tuple[int, int, list[Tensor]]] = iter(scan(equals))
    for tensor, start, positions in pieces:
        for key, here in zip(distinct, positions, strict=True):
            for other, taken in wanted:
                if other == key and 0 < taken - seen[key] <= len(here):
                    ends[key, taken] = (tensor, start + int(here[taken - seen[key] - 1]) + 1)
            seen[key] += len(here)
    return ends
