"""Sort keys of weights under a criterion: an int32 each, and the largest key is restored first.

Scores are float32 whatever the stored dtype, and the bit pattern of a non-negative float32 is ordered as the number
is, so the pattern itself is the sort key. With p the base weight and s the tuned one:

- ``relative`` (the paper, section 4.2): r = |s - p| / |p|. s = p has score 0, also where both are 0. p = 0 and s != p
  ranks before every other weight, and so does a pair that is not finite and not equal (read only when allowed).
- ``absolute``: |s - p|.
- ``least``: the smallest r first, the mirror of the paper's choice.
- ``magnitude``: the smallest |p| first, whatever the change: what dividing by |p| favours by itself.
- ``random``: 31 bits of a hash of seed, tensor name and position, so nothing is stored and order does not matter.
- ``authors``: the authors' tool (github.com/UmeanNever/ParamRestore), every step rounded to bfloat16:
  |s - p| / (|p| + 1e-8).
- ``ties``: the smallest |s - p| first: the trimming step of TIES-Merging (Yadav et al., arXiv 2306.01708), which keeps
  the largest changes of the whole task vector. Its sign election needs several models and has no part here.

Published methods that are not one global order are in :mod:`knowshift.parameters.selection.published`.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from numpy.typing import NDArray

from knowshift.parameters.kernels import compiled as kernels
from knowshift.parameters.tensors import BFLOAT16, Array, single

CRITERIA = ("relative", "absolute", "random", "least", "magnitude", "authors", "ties")

#: The bit pattern of float32 infinity, the largest sort key of a score.
INFINITE = 0x7F800000
_LARGEST = np.finfo(np.float32).max


class NotFinite(Exception):
    """A weight is NaN or infinite; the caller that knows the files raises an InputError that names it."""


def keys(criterion: str, base: Array, tuned: Array, strict: bool = False) -> NDArray[np.int32]:
    """int32 sort keys of a flat piece, shape as the piece, for every criterion but ``random`` (:func:`random_keys`).

    With ``strict``, raises :class:`NotFinite` where a weight that the score reads is NaN or infinite.
    """
    compiled = kernels.keys(criterion, base, tuned)
    if compiled is not None:
        made, finite = compiled
        if strict and not finite:
            raise NotFinite
        return made
    if criterion == "relative":
        return relative(base, tuned, strict).view(np.int32)
    if criterion == "absolute":
        return absolute(base, tuned, strict).view(np.int32)
    if criterion == "least":
        return INFINITE - relative(base, tuned, strict).view(np.int32)
    if criterion == "ties":
        return INFINITE - absolute(base, tuned, strict).view(np.int32)
    if strict:
        check_finite(base, tuned)
    if criterion == "magnitude":
        return INFINITE - clamped(np.abs(single(base)), nan=np.inf).view(np.int32)
    assert criterion == "authors", criterion
    return authors(base, tuned).view(np.int32)


def score_of(criterion: str, key: int) -> float:
    """The score of a sort key: r, |s - p| or |p|; for ``random`` a number in [0, 1)."""
    if criterion == "random":
        return float(key / 2**31)
    bits = INFINITE - key if criterion in ("least", "magnitude", "ties") else key
    return float(struct.unpack("<f", struct.pack("<i", bits))[0])


@np.errstate(all="ignore")
def relative(base: Array, tuned: Array, strict: bool = False) -> NDArray[np.float32]:
    """r = |s - p| / |p| in float32, shape as given; see the module for zeros and what is not finite."""
    magnitude = single(base)
    score = single(tuned) - magnitude
    score /= magnitude
    np.abs(score, out=score)  # |s - p| / |p| to the last bit
    # Whatever needs care (a zero base, an overflow, a weight that is not finite) shows as a score that is not finite.
    if score.size and not np.isfinite(score.max()):
        return ratio(absolute(base, tuned, strict), np.abs(magnitude))
    return score


@np.errstate(all="ignore")
def absolute(base: Array, tuned: Array, strict: bool = False) -> NDArray[np.float32]:
    """|s - p| in float32, shape as given; infinite only for a pair that is not finite and not equal."""
    p, s = single(base), single(tuned)
    change: NDArray[np.float32] = np.abs(s - p)
    if change.size and not np.isfinite(change.max()):
        finite = np.isfinite(p) & np.isfinite(s)
        if strict and not finite.all():
            raise NotFinite
        change[np.isinf(change) & finite] = _LARGEST
        change[np.isnan(change)] = np.inf
        change[(p == s) | (np.isnan(p) & np.isnan(s))] = 0.0
    return change


@np.errstate(all="ignore")
def ratio(change: NDArray[np.float32], magnitude: NDArray[np.float32]) -> NDArray[np.float32]:
    """change / magnitude in float32; no change is 0, and infinite means a zero base or an infinite change."""
    score = change / magnitude
    if score.size and not np.isfinite(score.max()):
        score[np.isinf(score) & (magnitude != 0) & np.isfinite(change)] = _LARGEST
        score[np.isnan(score)] = np.inf
        score[change == 0] = 0.0
    return score


def check_finite(base: Array, tuned: Array) -> None:
    """Raise :class:`NotFinite` where a weight is NaN or infinite."""
    compiled = kernels.keys("absolute", base, tuned)
    if compiled is None:
        absolute(base, tuned, strict=True)
    elif not compiled[1]:
        raise NotFinite


@np.errstate(all="ignore")
def authors(base: Array, tuned: Array) -> NDArray[np.float32]:
    """The authors' score, widened to float32; see the module."""
    p, s = _rounded(single(base)), _rounded(single(tuned))
    score = _rounded(single(np.abs(_rounded(s - p)) / _rounded(single(np.abs(p) + np.float32(1e-8)))))
    return clamped(score, nan=np.inf)


def clamped(values: NDArray[np.float32], nan: float) -> NDArray[np.float32]:
    """``nan`` for NaN, and the largest finite numbers for infinities."""
    return np.where(np.isnan(values), np.float32(nan), np.clip(values, -_LARGEST, _LARGEST))


def _rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values.astype(BFLOAT16).astype(np.float32)


def random_keys(seed: int, name: str, start: int, stop: int) -> NDArray[np.int32]:
    """int32 sort keys, 0 to 2^31 - 1, of positions ``start:stop``: a hash, the same for any stretch or thread.

    Two words from SHA-256 of seed and name salt a 32-bit mixer (Wellons' lowbias32, a bijection), applied twice.
    """
    first, second = struct.unpack_from("<II", hashlib.sha256(f"{seed}\0{name}".encode()).digest())
    compiled = kernels.random_keys(first, second, start, stop)
    if compiled is not None:
        return compiled
    position = np.arange(start, stop, dtype=np.uint64)
    value = (position + (position >> np.uint64(32)) * np.uint64(0x9E3779B1)).astype(np.uint32)
    value = _mix(_mix(value + np.uint32(first)) ^ np.uint32(second))
    return (value & np.uint32(0x7FFFFFFF)).view(np.int32)


def _mix(value: NDArray[np.uint32]) -> NDArray[np.uint32]:
    value ^= value >> np.uint32(16)
    value *= np.uint32(0x7FEB352D)
    value ^= value >> np.uint32(15)
    value *= np.uint32(0x846CA68B)
    value ^= value >> np.uint32(16)
    return value
