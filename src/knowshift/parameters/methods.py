"""What a criterion does to a region: one plan for all fractions asked, applied stretch by stretch.

A plan knows, before anything is written, which weights return to their base values (a selection, over the region or
within each tensor) or how every value is computed anew (the blends and DG-Hard of
:mod:`knowshift.parameters.selection.published`). ``edit`` gives the new values of one stretch for every fraction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from knowshift.errors import InputError, nearest
from knowshift.parameters.regions import Place
from knowshift.parameters.selection import published
from knowshift.parameters.selection.criteria import CRITERIA, check_finite, random_keys, score_of
from knowshift.parameters.selection.keys import PairKeys
from knowshift.parameters.selection.norms import same_norm_cuts
from knowshift.parameters.selection.select import Cut, choose, exact_count
from knowshift.parameters.tensors import PIECE, Array, Runner, WeightPair, as_dtype, single, stretches

SAME_NORM = "same-norm"
#: Everything ``--criterion`` takes.
METHODS = (*CRITERIA, SAME_NORM, *published.PUBLISHED)

#: Criteria whose sort keys show every weight that is not finite.
_CHECKED = ("relative", "absolute", "least", "ties", "magnitude", "authors", "breadcrumbs")
_BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


#: For each tensor of the region: the weights of the first cut are restored, and those after the second, if any.
Cuts = Mapping[int, tuple[Cut, Cut | None]]


@dataclass(frozen=True)
class RestorationPlan:
    """See the module. ``counts`` is how many weights each fraction restores; None where only editing determines it."""

    pair: WeightPair
    places: Sequence[Place]
    depth: int  # layers of the whole model
    criterion: str
    seed: int
    fractions: Sequence[float]
    counts: Sequence[int | None]
    thresholds: Sequence[float | None]  # the score of the last weight restored; None where there is none
    keys: PairKeys
    cuts: Sequence[Cuts] = ()  # for each fraction

    @property
    def whole(self) -> bool:
        """Whether tensors are edited whole: the singular values of a matrix need all of it."""
        return self.criterion in published.SPECTRAL

    def unchecked(self) -> RestorationPlan:
        """The same plan for weights that are known to be finite; restored ones may not be (rounded to infinity)."""
        keys = self.keys.unchecked()
        return replace(self, pair=keys.pair, keys=keys)

    def edit(self, tensor: int, start: int, stop: int, only: int | None = None) -> tuple[list[Array], list[int]]:
        """New values, in the tuned dtype, and how many weights were put back, for every fraction, or ``only`` one."""
        chosen = range(len(self.fractions)) if only is None else (only,)
        base, tuned = self.pair.read(tensor, start, stop)
        if self.pair.strict and self.criterion not in _CHECKED:
            check_finite(base, tuned)
        if self.criterion in published.BLENDS:
            return self._blend(tensor, start, base, tuned, [self.fractions[i] for i in chosen])
        if self.criterion in published.SPECTRAL:
            filtered, count = self._filter(tensor, base, tuned)
            here = [self.fractions[i] for i in chosen]
            return [filtered if f else tuned for f in here], [count if f else 0 for f in here]
        values = [np.empty_like(tuned) for _ in chosen]
        restored = [self.put_back(i, tensor, start, base, tuned, out) for i, out in zip(chosen, values, strict=True)]
        return values, restored

    def put_back(self, number: int, tensor: int, start: int, base: Array, tuned: Array, out: Array) -> int:
        """Write a stretch into ``out``, in its dtype, with what a selection's fraction restores; how many weights.

        ``out`` may be ``tuned`` itself, and ``tuned`` an earlier fraction's result: its weights are restored again.
        """
        first, until = self.cuts[number][tensor]
        if until is None:
            found = self.keys.restore(tensor, start, base, tuned, first, out)
            if found is not None:
                return found
        mask = selected((first, until), tensor, start, self.keys.given(tensor, start, base, tuned))
        mix(mask, base, tuned, out)
        return int(np.count_nonzero(mask))

    def _blend(
        self, tensor: int, start: int, base: Array, tuned: Array, fractions: Sequence[float]
    ) -> tuple[list[Array], list[int]]:
        values, restored = [], []
        for fraction in fractions:
            count = len(tuned)
            if fraction == 0.0:
                value, count = tuned, 0
            elif self.criterion == "dare":
                keys = random_keys(self.seed, self.pair.names[tensor], start, start + len(tuned))
                blended, dropped = published.dare(base, tuned, fraction, keys)
                value, count = as_dtype(tuned.dtype, blended), int(np.count_nonzero(dropped))
            else:
                scale = 1.0 - fraction
                if self.criterion == "lines":
                    scale = published.lines_scale(self.places[tensor].layer, self.depth, fraction)
                if scale == 1.0:
                    value, count = tuned, 0
                elif scale == 0.0:
                    value = as_dtype(tuned.dtype, base)
                else:
                    value = as_dtype(tuned.dtype, published.interpolate(base, tuned, 1.0 - scale))
            values.append(value)
            restored.append(count)
        return values, restored

    def _filter(self, tensor: int, base: Array, tuned: Array) -> tuple[Array, int]:
        shape = tuple(self.pair.tuned.shapes[self.pair.names[tensor]])
        if len(shape) not in (2, 3) or shape[-1] * shape[-2] < published.SMALLEST_MATRIX:
            return tuned, 0
        p, s = single(base), single(tuned)
        change = (s - p).reshape(-1, *shape[-2:])  # experts that are fused in one tensor are matrices of their own
        if not np.count_nonzero(change):
            return tuned, 0
        kept = np.stack([published.spectral_filter(matrix)[0] for matrix in change]).reshape(-1)
        return as_dtype(tuned.dtype, p + kept), len(tuned)


def mix(mask: NDArray[np.bool_], base: Array, tuned: Array, out: Array) -> None:
    """Write into ``out``, in its dtype, the base's value where ``mask``, else the tuned one; it may be ``tuned``.

    Bit operations take a tenth of the time of ``numpy.where``, whose branches cannot be predicted here.
    """
    base, tuned = as_dtype(out.dtype, base), as_dtype(out.dtype, tuned)
    bits = _BITS[out.itemsize]
    old = tuned.view(bits)
    change = base.view(bits) ^ old
    change *= mask
    np.bitwise_xor(old, change, out=out.view(bits))


def plan_restoration(
    pair: WeightPair,
    places: Sequence[Place],
    depth: int,
    criterion: str,
    fractions: Sequence[float],
    seed: int,
    run: Runner,
    *,
    piece: int = PIECE,
    progress: Callable[[int], None] = lambda weights: None,
) -> RestorationPlan:
    """Select for every fraction at once; reads the region once to three times for a selection, not at all for a blend.

    Raises :class:`InputError` for an unknown criterion, a fraction outside 0..1, and fractions given to a method that
    has none (1 stands for applying it, 0 for not).
    """
    if criterion not in METHODS:
        raise InputError(f"criterion {criterion!r} is not known{nearest(criterion, METHODS)}")
    if criterion in published.SPECTRAL and not set(fractions) <= {0.0, 1.0}:
        raise InputError(f"criterion {criterion!r} sets its own threshold and takes no fraction")
    sizes = pair.sizes
    counts = [exact_count(fraction, sum(sizes)) for fraction in fractions]
    means = _means(pair, run) if criterion == "fapm" else ()
    keys = PairKeys(pair, criterion, seed, run, piece, means=means, progress=progress)
    none: list[float | None] = [None for _ in fractions]
    everywhere = range(len(sizes))

    def plan(found: Sequence[int | None], scores: Sequence[float | None], cuts: Sequence[Cuts] = ()) -> RestorationPlan:
        return RestorationPlan(pair, places, depth, criterion, seed, fractions, found, scores, keys, cuts)

    if criterion in (*published.BLENDS, *published.SPECTRAL):
        return plan([None for _ in fractions], none)
    if criterion in published.PER_TENSOR:
        per_fraction = _within(keys, criterion, fractions)
        return plan([_count(by, sizes) for by in per_fraction], none, per_fraction)
    if criterion == SAME_NORM:
        chosen = same_norm_cuts(pair, counts, seed, run)
        return plan([cut.count for cut in chosen], none, [dict.fromkeys(everywhere, (cut, None)) for cut in chosen])
    chosen = choose(keys, counts)
    scores = [score_of(criterion, cut.key) if cut.count else None for cut in chosen]
    return plan(counts, scores, [dict.fromkeys(everywhere, (cut, None)) for cut in chosen])


def check_unread(plan: RestorationPlan, run: Runner, piece: int = PIECE) -> None:
    """Raise :class:`.NotFinite` for weights that were not read to make the plan.

    A file is checked as it is written; a model that is changed in place must be known to be finite before.
    """
    pair = plan.pair
    if pair.strict and not (plan.criterion in _CHECKED and any(plan.counts)):
        for _ in run(lambda *stretch: check_finite(*pair.read(*stretch)), stretches(pair.sizes, piece)):
            pass


def selected(cuts: tuple[Cut, Cut | None], tensor: int, start: int, keys: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which weights of a stretch are restored: shape of ``keys``."""
    first, until = cuts
    mask = first.mask(tensor, start, keys)
    return mask if until is None else mask | ~until.mask(tensor, start, keys)


def _within(keys: PairKeys, criterion: str, fractions: Sequence[float]) -> list[Cuts]:
    """Cuts tensor by tensor, for each fraction; all fractions share the passes over a tensor."""
    cuts: list[dict[int, tuple[Cut, Cut | None]]] = [{} for _ in fractions]
    for tensor, size in enumerate(keys.pair.sizes):
        counts = [exact_count(fraction, size) for fraction in fractions]
        alone = keys.alone(tensor)
        if criterion == "fapm":
            for by_tensor, cut in zip(cuts, choose(alone, counts), strict=True):
                by_tensor[tensor] = (cut, None)
            continue
        outliers = [min(count, exact_count(published.OUTLIERS, size)) for count in counts]
        ends = [size - count + out for count, out in zip(counts, outliers, strict=True)]
        chosen = choose(alone, [*outliers, *ends])
        for number, by_tensor in enumerate(cuts):
            by_tensor[tensor] = (chosen[number], chosen[number + len(cuts)])
    return list(cuts)


def _count(cuts: Cuts, sizes: Sequence[int]) -> int:
    return sum(
        first.count + (0 if until is None else sizes[tensor] - until.count) for tensor, (first, until) in cuts.items()
    )


def _means(pair: WeightPair, run: Runner) -> list[float]:
    """Mean |p| of every tensor, summed in float64 over stretches of a fixed size."""
    sizes = pair.sizes

    def total(tensor: int, start: int, stop: int) -> tuple[int, float]:
        return tensor, float(np.abs(pair.read(tensor, start, stop)[0].astype(np.float64)).sum())

    sums = [0.0] * len(sizes)
    for tensor, part in run(total, stretches(sizes, PIECE)):
        sums[tensor] += part
    return [total / max(size, 1) for total, size in zip(sums, sizes, strict=True)]
