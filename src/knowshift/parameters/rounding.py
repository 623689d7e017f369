"""What rounding alone explains, where the two sides of a tensor are stored in different dtypes.

A bfloat16 copy of a float32 checkpoint differs from it in nearly every weight, and nothing was trained. Rounding
explains the difference of two weights when one of them is a value of its side's dtype that is nearest to the other: no
value of that dtype lies nearer, and of two that are equally near (a tie) either will do. The change is then at most
half a unit in the last place of the narrower dtype. Between bfloat16 and float16, of which neither holds all values of
the other, either side may be the rounded one.

Everything is compared in float32 here, so a float64 weight counts as the float32 it is nearest to, and the dtypes that
round are bfloat16 and float16.

Where the base is the narrower side, its values are exact in the tuned dtype, so rounding explains nothing of a model
that was trained from this very base. What is counted there is the most that rounding may explain if the model was
trained from a wider original, of which the base is a rounded copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knowshift.parameters.tensors import BFLOAT16, Array, as_dtype, single

#: Dtypes that lose bits of a float32: (bits of a significand, half of the smallest unit).
_NARROW = {BFLOAT16.name: (8, 2.0**-134), "float16": (11, 2.0**-25)}
_EXPONENT = np.int32(0x7F800000)
#: Weights at a time: the temporary arrays stay in a core's cache.
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Rounding:
    """What rounding explains of a region's change. Dtypes are those of tensors whose two sides differ in it."""

    base: list[str]
    tuned: list[str]
    to: list[str]  # the dtype that rounds, or both, where neither holds the other
    weights: int  # in tensors whose dtypes differ
    explained: int  # how many of these changed by no more than rounding explains
    share_of_changed: float | None  # explained / weights of the region that changed; None where none did
    share_of_all: float  # explained / weights of the region

    @property
    def base_is_narrower(self) -> bool:
        """Whether the base alone may have been rounded. Casting it up is exact, so training from it rounds nothing."""
        return set(self.to) <= set(self.base) and not set(self.to) & set(self.tuned)

    def sentence(self, base: str, tuned: str, eligible: int) -> str:
        """The sentence of the text output; ``eligible`` is the region's number of weights."""
        part = "" if self.weights == eligible else f" in {self.weights:,} of these weights"
        stored = f"{base} is stored in {' and '.join(self.base)}, {tuned} in {' and '.join(self.tuned)}{part}"
        if self.share_of_changed is None:
            return f"{stored}; no weight changed"
        if self.base_is_narrower:
            return (
                f"{stored}, which holds every {' and '.join(self.base)} number exactly: no change of a model trained "
                f"from this base is explained by rounding. If {tuned} was trained from a wider original of it, at most "
                f"{self.share_of_changed:.2%} of the weights that changed ({self.share_of_all:.2%} of all) are"
            )
        return (
            f"{stored}: {self.share_of_changed:.2%} of the weights that changed ({self.share_of_all:.2%} of all) "
            f"changed by no more than rounding to {' or '.join(self.to)} explains"
        )


def rounding_of(
    dtypes: Sequence[tuple[str, str]], sizes: Sequence[int], explained: Sequence[int | None], changed: int
) -> Rounding | None:
    """Sum up tensors, each with its dtypes, size and what is explained of it (None where its two dtypes are equal).

    ``changed`` is how many weights of all tensors changed. None where every tensor has equal dtypes.
    """
    differ = [i for i, count in enumerate(explained) if count is not None]
    if not differ:
        return None
    total = sum(explained[i] or 0 for i in differ)
    return Rounding(
        base=sorted({dtypes[i][0] for i in differ}),
        tuned=sorted({dtypes[i][1] for i in differ}),
        to=sorted({name for i in differ for name in _rounding_dtypes(*dtypes[i])}),
        weights=sum(sizes[i] for i in differ),
        explained=total,
        share_of_changed=total / changed if changed else None,
        share_of_all=total / sum(sizes),
    )


def explained(base: Array, tuned: Array, change: NDArray[np.float32]) -> int:
    """How many weights of a flat stretch changed, and by no more than rounding explains; see the module.

    ``change`` is |s - p| in float32, as :func:`knowshift.parameters.selection.criteria.absolute` has it.

    A pure cast is always explained, since it gives a value nearest to what was cast. So is one from float64 that did
    not go through float32: rounding to float32 keeps the order of numbers, and the points halfway between neighbours of
    a narrow dtype are float32 numbers, so it takes no value across one, and what was nearest stays nearest.
    """
    if base.dtype == tuned.dtype:
        return 0
    count = 0
    for start in range(0, len(change), _BLOCK):
        part = slice(start, start + _BLOCK)
        p, s, moved = base[part], tuned[part], change[part]
        found = np.zeros(moved.shape, np.bool_)
        for finer, coarser in ((p, s), (s, p)):
            if coarser.dtype.name in _NARROW:
                found |= _nearest(single(finer), coarser, moved)
        found &= moved > 0
        count += int(np.count_nonzero(found))
    return count


@np.errstate(invalid="ignore", over="ignore")
def _nearest(values: NDArray[np.float32], coarser: Array, change: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether no value of the coarser dtype is nearer to each value than the coarser one that stands beside it.

    Narrow numbers around a value are spaced by the unit of its binade, so the nearest are those within half of it; a
    power of two is such a number itself, and gets the smaller unit of the binade below, within half of which no other
    lies. The comparison is exact: the distance of a float32 number to a narrow one next to it is a float32 number, and
    rounding the distance of any other does not take it back to half a unit.
    """
    bits, least = _NARROW[coarser.dtype.name]
    half: NDArray[np.float32] = ((values.view(np.int32) - 1) & _EXPONENT).view(np.float32)
    half *= np.float32(2.0**-bits)
    np.maximum(half, np.float32(least), out=half)
    near: NDArray[np.bool_] = change <= half
    if not (np.isfinite(half.max()) and np.isfinite(change.max())):
        # Zero, which has no binade, and what is not finite: what is beyond a narrow dtype is rounded to infinity.
        rest = ~(np.isfinite(half) & np.isfinite(change))
        near[rest] = single(as_dtype(coarser.dtype, values[rest])) == single(coarser[rest])
    return near


def _rounding_dtypes(*pair: str) -> list[str]:
    """The names of the narrower of two dtypes, or of both where they take the same number of bytes."""
    width = {name: 2 if name in _NARROW else np.dtype(name).itemsize for name in pair}
    return [name for name in pair if width[name] == min(width.values())]
