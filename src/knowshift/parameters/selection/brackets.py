"""Finding thresholds in one pass: a sample gives a bracket of sort keys for each, and the pass verifies it.

For each count, the pass counts what lies above its bracket and keeps what lies inside, a percent or so of the keys;
the threshold is then found among those. A key that many weights share (the 0 of weights that did not change) is
counted, not kept. Where a bracket is wrong or would hold too much, the answer is None and the radix
selection of :mod:`knowshift.parameters.selection.radix` is used: a wrong bracket costs time, never exactness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from knowshift.parameters.kernels import compiled as kernels
from knowshift.parameters.selection.radix import BINS, Refinement, find, first_key, upper_counts, upper_of
from knowshift.parameters.selection.thresholds import KEPT, Kept, Keys, Threshold
from knowshift.parameters.tensors import PIECE, Stretch

#: Weights in a region from which sampling saves time.
GUESS_FROM = 1 << 24
_CHUNKS, _CHUNK, _GROUPS = 512, 4096, 8
#: Standard errors on either side of the sample's estimate.
_WIDTH = 6.0
#: A key is counted, not kept, when it has this share of the sample.
_COMMON = 0.005
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


def sort_out(brackets: Sequence[Bracket], keys: NDArray[np.int32]) -> tuple[list[int], list[int], NDArray[np.int32]]:
    """(for each bracket the keys above it, for each those equal to ``common``, the others inside any, in order)."""
    edges = [(bracket.low >> 16, bracket.high >> 16) for bracket in brackets]
    commons = [bracket.common for bracket in brackets]
    compiled = kernels.sort_out(keys, [low for low, _ in edges], [high for _, high in edges], commons)
    if compiled is not None:
        return compiled
    upper = (keys >> 16).astype(np.int16)
    near = np.zeros(len(keys), np.bool_)
    above_each, same_each = [], []
    for common, (low, high) in zip(commons, edges, strict=True):
        over = upper > high
        inside = (upper >= low) ^ over  # what lies above the bracket also lies above its lower end
        number = 0
        if common is not None:
            same = keys == common
            inside &= ~same
            number = int(np.count_nonzero(same))
        near |= inside
        above_each.append(int(np.count_nonzero(over)))
        same_each.append(number)
    return above_each, same_each, keys[near]


def bracketed(keys: Keys, wanted: Sequence[int]) -> dict[int, Threshold] | None:
    """The threshold of each count, or None where a bracket does not hold; see the module."""
    total = sum(keys.sizes)
    drawn = [part for _, part in keys.scan(lambda values: values, _places(keys.sizes))]
    sample = np.concatenate(drawn)
    groups = np.stack([upper_counts(np.concatenate(drawn[group::_GROUPS])) for group in range(_GROUPS)])
    brackets = [_bracket(sample, groups, count / total) for count in wanted]
    expected = sum(bracket.expected for bracket in brackets) * total
    if expected > KEPT:
        return None
    kept = Kept(int(1.5 * expected) + (1 << 16))
    over = [0] * len(brackets)
    common: list[list[tuple[Stretch, int]]] = [[] for _ in brackets]
    for stretch, (above_each, same_each, near) in keys.scan(partial(sort_out, brackets)):
        for number, same in enumerate(same_each):
            over[number] += above_each[number]
            if same:
                common[number].append((stretch, same))
        kept.add(stretch, near)
        if not kept.whole:
            return None
    upper = upper_counts(kept.values)
    found = {}
    for count, bracket, higher, equals in zip(wanted, brackets, over, common, strict=True):
        threshold = _settle(bracket, count - higher, equals, kept, upper)
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


def _bracket(sample: NDArray[np.int32], groups: NDArray[np.int64], share: float) -> Bracket:
    """Where the key that ``share`` of all keys reach must lie, by the sample and the differences between its groups.

    ``groups`` counts the upper halves in each part of the sample: shape (parts, BINS).
    """
    size = len(sample)
    bins = groups.sum(axis=0)
    up_to = bins.cumsum()

    def bin_of(rank: int) -> int:
        return int(np.searchsorted(up_to, rank, side="right"))

    estimate = bin_of(min(size - 1, max(0, round(size * (1 - share)))))
    shares = groups[:, estimate:].sum(axis=1) / groups.sum(axis=1)
    error = max(float(np.std(shares, ddof=1)) / _GROUPS**0.5, (share * (1 - share) / size) ** 0.5)
    first = int(size * (1 - share - _WIDTH * error)) - 2
    last = int(size * (1 - share + _WIDTH * error)) + 2
    lowest = bin_of(first) if first >= 0 else 0
    highest = bin_of(last) if last < size else BINS - 1
    low, high = first_key(lowest), first_key(highest) | _LOWER
    held, common = int(bins[lowest : highest + 1].sum()), None
    if held > _COMMON * size:
        values, counts = np.unique(sample[(sample >= low) & (sample <= high)], return_counts=True)
        most = int(counts.argmax())
        if counts[most] > _COMMON * size:
            common = int(values[most])
            held -= int(counts[most])
    return Bracket(low, high, common, (held + 64) / size)


def _settle(
    bracket: Bracket, left: int, common: list[tuple[Stretch, int]], kept: Kept, upper: NDArray[np.int64]
) -> Threshold | None:
    """The threshold that leaves ``left`` weights to take inside the bracket; None when it is not there.

    ``upper`` counts the upper halves of what was kept. Counted, as in :mod:`knowshift.parameters.selection.radix`, not
    sorted: a copy of what was kept would be the largest thing in memory.
    """
    equal = sum(number for _, number in common)
    own = np.zeros_like(upper)
    inside = slice(upper_of(bracket.low), upper_of(bracket.high) + 1)
    own[inside] = upper[inside]
    if bracket.common is not None:
        bin_ = upper_of(bracket.common)
        lower = _lower(kept, bin_)
        own[bin_] -= lower[bracket.common & _LOWER]  # kept for the sake of another bracket
        higher = int(own[bin_ + 1 :].sum() + lower[(bracket.common & _LOWER) + 1 :].sum())
        if higher < left <= higher + equal:
            return Threshold(bracket.common, left - higher, equal, lambda: common)
        if left > higher + equal:
            left -= equal  # among the others the common key is passed over
    if not 0 < left <= own.sum():
        return None
    bin_, over = find(own, left)
    lower = _lower(kept, bin_)
    if bracket.common is not None and bin_ == upper_of(bracket.common):
        lower[bracket.common & _LOWER] = 0
    place, higher = find(lower, left - over)
    key = first_key(bin_) + place
    return Threshold(key, left - over - higher, int(lower[place]), partial(kept.equals, key))


def _lower(kept: Kept, bin_: int) -> NDArray[np.int64]:
    """How often each lower half was kept in one bin of the upper ones: shape (65536,)."""
    refined = Refinement([bin_])
    for start in range(0, len(kept.values), PIECE):
        refined.add(refined.inside(kept.values[start : start + PIECE]))
    return refined.of(bin_)
