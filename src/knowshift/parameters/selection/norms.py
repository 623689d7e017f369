"""A control of equal norm: random weights are restored until the update's norm has fallen as much.

The paper's choice takes a share of the update's norm back that a random choice of as many weights does not. So for
each fraction the sum of squared changes that the relative criterion restores is measured, and weights are restored in
a random order until theirs reaches it: the same L2 norm of what remains, a different choice of weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from knowshift.parameters.selection.criteria import keys, random_keys
from knowshift.parameters.selection.keys import PairKeys
from knowshift.parameters.selection.radix import BINS, upper_counts, upper_of
from knowshift.parameters.selection.select import NOTHING, Cut, choose
from knowshift.parameters.tensors import PIECE, Array, Runner, WeightPair, stretches

_LOW = 1 << 16


def same_norm_cuts(pair: WeightPair, counts: Sequence[int], seed: int, run: Runner) -> list[Cut]:
    """For each count of the relative criterion, the random cut that takes back the same squared norm (or just over).

    Sums are float64 over stretches of a fixed size, in order, so nothing depends on the threads.
    """
    paper = PairKeys(pair, "relative", seed, run)
    chosen = choose(paper, counts)

    def squared(tensor: int, start: int, stop: int) -> list[float]:
        base, tuned = pair.read(tensor, start, stop)
        order = paper.given(tensor, start, base, tuned)
        squares = _squares(base, tuned)
        return [float(squares[cut.mask(tensor, start, order)].sum()) for cut in chosen]

    targets = [0.0] * len(chosen)
    for part in run(squared, stretches(pair.sizes, PIECE)):
        targets = [target + here for target, here in zip(targets, part, strict=True)]
    return _cuts(pair, targets, seed, run)


def _squares(base: Array, tuned: Array) -> NDArray[np.float64]:
    change = keys("absolute", base, tuned).view(np.float32).astype(np.float64)
    change[np.isinf(change)] = 0.0
    return change * change


def _cuts(pair: WeightPair, targets: Sequence[float], seed: int, run: Runner) -> list[Cut]:
    def upper(tensor: int, start: int, stop: int) -> tuple[Array, Array]:
        order = random_keys(seed, pair.names[tensor], start, stop)
        return upper_counts(order), upper_counts(order, _squares(*pair.read(tensor, start, stop)))

    counts, sums = np.zeros(BINS, np.int64), np.zeros(BINS, np.float64)
    for part_counts, part_sums in run(upper, stretches(pair.sizes, PIECE)):
        counts += part_counts
        sums += part_sums
    places = [_place(sums, target) for target in targets]
    bins = sorted({bin_ for bin_, _ in places})

    def lower(tensor: int, start: int, stop: int) -> list[tuple[Array, Array]]:
        order = random_keys(seed, pair.names[tensor], start, stop)
        squares, high = _squares(*pair.read(tensor, start, stop)), order >> 16
        found = []
        for bin_ in bins:
            inside = high == bin_ - BINS // 2
            found.append((order[inside] & 0xFFFF, squares[inside]))
        return found

    low_counts = {bin_: np.zeros(_LOW, np.int64) for bin_ in bins}
    low_sums = {bin_: np.zeros(_LOW, np.float64) for bin_ in bins}
    for part in run(lower, stretches(pair.sizes, PIECE)):
        for bin_, (low, squares) in zip(bins, part, strict=True):
            low_counts[bin_] += np.bincount(low, minlength=_LOW)
            low_sums[bin_] += np.bincount(low, weights=squares, minlength=_LOW)
    cuts = []
    for target, (bin_, over) in zip(targets, places, strict=True):
        if target <= 0.0:
            cuts.append(NOTHING)
            continue
        low_bits, _ = _place(low_sums[bin_], target - over)
        count = int(counts[bin_ + 1 :].sum()) + int(low_counts[bin_][low_bits:].sum())
        key = ((bin_ - BINS // 2) << 16) + low_bits
        assert upper_of(key) == bin_
        cuts.append(Cut(count, key, 1 << 62, 0))
    return cuts


def _place(sums: NDArray[np.float64], target: float) -> tuple[int, float]:
    """The bin, from the top, at which the running sum reaches ``target``, and the sum above it."""
    down = sums[::-1].cumsum()
    # Rounding may leave the last sum just below a target of the whole sum: then the last bin that is not empty.
    reached = int(np.searchsorted(down, min(target, float(down[-1]))))
    return len(sums) - 1 - reached, float(down[reached - 1]) if reached else 0.0
