"""Settling thresholds in one pass: a sample says between which keys each falls, and the pass proves it.

For each count, the pass counts what lies above its bracket and keeps what lies inside, a percent or so of the keys;
the threshold is then a matter of those. A key that many weights share (the 0 of weights that did not change) is
counted, not kept. Where the proof fails, or a bracket would hold too much, the answer is None and the radix
selection of :mod:`knowshift.weights.radix` does it: a guess costs time, never exactness.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from knowshift.weights.tensors import Stretch
from knowshift.weights.thresholds import KEPT, Kept, Keys, Threshold, above, at_least, compressed, counted, equal

#: Weights in a region from which a sample pays.
GUESS_FROM = 1 << 24
_CHUNKS, _CHUNK, _GROUPS = 1024, 4096, 8
#: Standard errors on either side of the sample's estimate.
_WIDTH = 6.0
#: A key is counted, not kept, when it has this share of the sample.
_COMMON = 0.005
_FIRST, _LAST = -(1 << 31), (1 << 31) - 1
_LOWER = (1 << 16) - 1  # the lower half of a key


@dataclass(frozen=True)
class Bracket:
    """Keys from ``low`` to ``high`` are kept, but for ``common``; that and those above ``high`` are counted.

    The edges are whole bins of the upper 16 bits, so that a key's upper half tells whether it lies inside.
    """

    low: int
    high: int
    common: int | None
    expected: float  # share of all keys that will be kept

    def own(self, keys: Tensor) -> Tensor:
        """Those of a few keys that lie inside, without the common one, in their order."""
        mine = at_least(keys, self.low)
        if self.high < _LAST:
            mine &= ~above(keys, self.high)
        if self.common is not None:
            mine &= ~equal(keys, self.common)
        return compressed(keys, mine)


def sort_out(brackets: Sequence[Bracket], keys: Tensor) -> list[tuple[int, int, Tensor]]:
    """For each bracket (keys above, keys equal to ``common``, the others inside, in their order) of one stretch.

    What lies in any bracket is picked out once, since picking costs more than comparing.
    """
    upper = (keys >> 16).to(torch.int16)
    counts: list[tuple[int, int]] = []
    near: Tensor | None = None
    for bracket in brackets:
        over = above(upper, bracket.high >> 16)
        inside = at_least(upper, bracket.low >> 16)
        inside ^= over  # what lies above the bracket also lies above its lower end
        number = 0
        if bracket.common is not None:
            same = equal(keys, bracket.common)
            inside &= ~same
            number = counted(same)
        near = inside if near is None else near.logical_or_(inside)
        counts.append((counted(over), number))
    few = keys[:0].cpu() if near is None else compressed(keys, near).cpu()
    return [(*found, bracket.own(few)) for bracket, found in zip(brackets, counts, strict=True)]


def bracketed(keys: Keys, wanted: Sequence[int]) -> dict[int, Threshold] | None:
    """The threshold of each count, or None where guessing does not do; see the module."""
    total = sum(keys.sizes)
    parts = _places(keys.sizes)
    drawn = [part.cpu().numpy() for _, part in keys.scan(lambda values: values, parts)]
    groups = [np.sort(np.concatenate(drawn[group::_GROUPS])) for group in range(_GROUPS)]
    sample = np.sort(np.concatenate(groups))
    brackets = {count: _bracket(sample, groups, count / total) for count in wanted}
    if sum(bracket.expected for bracket in brackets.values()) * total > KEPT / 2:
        return None
    kept = {count: Kept(int(2 * bracket.expected * total) + (1 << 16)) for count, bracket in brackets.items()}
    over = dict.fromkeys(wanted, 0)
    common: dict[int, list[tuple[Stretch, int]]] = {count: [] for count in wanted}

    for stretch, sorted_out in keys.scan(partial(sort_out, list(brackets.values()))):
        for count, (number, same, inside) in zip(brackets, sorted_out, strict=True):
            over[count] += number
            common[count].append((stretch, same))
            kept[count].add(stretch, inside)
            if not kept[count].whole:
                return None
    found = {}
    for count, bracket in brackets.items():
        threshold = _settle(bracket, count - over[count], common[count], kept[count])
        if threshold is None:
            return None
        found[count] = threshold
    return found


def _places(sizes: Sequence[int]) -> list[Stretch]:
    """Short stretches all over the region, each somewhere in its share of it."""
    ends = np.cumsum(sizes)
    jitter = np.random.default_rng(0).random(_CHUNKS)
    places = []
    for number in range(_CHUNKS):
        place = int((number + jitter[number]) * (int(ends[-1]) / _CHUNKS))
        tensor = int(np.searchsorted(ends, place, side="right"))
        start = place - int(ends[tensor] - sizes[tensor])
        places.append((tensor, start, min(start + _CHUNK, sizes[tensor])))
    return places


def _bracket(sample: NDArray[np.int32], groups: Sequence[NDArray[np.int32]], share: float) -> Bracket:
    """Where the key that ``share`` of all keys reach must lie, going by the sample and its groups' disagreement."""
    size = len(sample)
    estimate = sample[min(size - 1, max(0, round(size * (1 - share))))]
    shares = [1 - np.searchsorted(group, estimate) / len(group) for group in groups]
    error = max(float(np.std(shares, ddof=1)) / _GROUPS**0.5, (share * (1 - share) / size) ** 0.5)
    first = int(size * (1 - share - _WIDTH * error)) - 2
    last = int(size * (1 - share + _WIDTH * error)) + 2
    low = int(sample[first]) & ~_LOWER if first >= 0 else _FIRST
    high = int(sample[last]) | _LOWER if last < size else _LAST
    inside = sample[np.searchsorted(sample, low) : np.searchsorted(sample, high, side="right")]
    values, counts = np.unique(inside, return_counts=True)
    most = int(counts.argmax())
    common = int(values[most]) if counts[most] > _COMMON * size else None
    held = len(inside) - (int(counts[most]) if common is not None else 0)
    return Bracket(low, high, common, (held + 64) / size)


def _settle(bracket: Bracket, left: int, common: list[tuple[Stretch, int]], kept: Kept) -> Threshold | None:
    """The threshold that leaves ``left`` weights to take inside the bracket; None when it is not there."""
    equal = sum(number for _, number in common)
    values = kept.values.numpy()
    if not 0 < left <= len(values) + equal:
        return None
    if bracket.common is not None:
        higher = int(np.count_nonzero(values > bracket.common))
        if higher < left <= higher + equal:
            return Threshold(bracket.common, left - higher, equal, lambda: common)
        if left > higher + equal:
            left -= equal  # among the others the common key is passed over
    key = int(np.partition(values, len(values) - left)[len(values) - left])
    higher = int(np.count_nonzero(values > key))
    return Threshold(key, left - higher, int(np.count_nonzero(values == key)), partial(_kept_equals, kept, key))


def _kept_equals(kept: Kept, key: int) -> Iterable[tuple[Stretch, int]]:
    return ((stretch, int(torch.count_nonzero(held == key))) for stretch, held in kept)
