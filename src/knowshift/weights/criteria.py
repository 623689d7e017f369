"""What a weight's claim to be restored is, as a key: an int32, larger ranks first.

Scores are float32 whatever the stored dtype, and the bit pattern of a non-negative float32 is ordered as the number
is, so the pattern itself is the key. With p the base weight and s the tuned one:

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

More that are published, and are not one global order, stand in :mod:`knowshift.weights.published`.
"""

from __future__ import annotations

import hashlib
import struct

import torch
from torch import Tensor

from knowshift.weights import kernels

CRITERIA = ("relative", "absolute", "random", "least", "magnitude", "authors", "ties")

#: The bit pattern of float32 infinity, the largest key of a score.
INFINITE = 0x7F800000
_LARGEST = torch.finfo(torch.float32).max


class NotFinite(Exception):
    """A weight is NaN or infinite; whoever knows the files turns this into a refusal that names it."""


def keys(criterion: str, base: Tensor, tuned: Tensor, strict: bool = False) -> Tensor:
    """int32 keys of a flat piece, shape as the piece, for every criterion but ``random`` (:func:`random_keys`).

    With ``strict``, raises :class:`NotFinite` where a weight that the score reads is NaN or infinite.
    """
    compiled = kernels.keys(criterion, base, tuned)
    if compiled is not None:
        made, finite = compiled
        if strict and not finite:
            raise NotFinite
        return made
    if criterion == "relative":
        return relative(base, tuned, strict).view(torch.int32)
    if criterion == "absolute":
        return absolute(base, tuned, strict).view(torch.int32)
    if criterion == "least":
        return INFINITE - relative(base, tuned, strict).view(torch.int32)
    if criterion == "ties":
        return INFINITE - absolute(base, tuned, strict).view(torch.int32)
    if strict:
        check_finite(base, tuned)
    if criterion == "magnitude":
        return INFINITE - base.to(torch.float32, copy=True).abs_().nan_to_num_(nan=float("inf")).view(torch.int32)
    assert criterion == "authors", criterion
    return authors(base, tuned).view(torch.int32)


def score_of(criterion: str, key: int) -> float:
    """The score behind a key: r, |s - p| or |p|; for ``random`` a number in [0, 1)."""
    if criterion == "random":
        return float(key / 2**31)
    bits = INFINITE - key if criterion in ("least", "magnitude", "ties") else key
    return float(struct.unpack("<f", struct.pack("<i", bits))[0])


def relative(base: Tensor, tuned: Tensor, strict: bool = False) -> Tensor:
    """r = |s - p| / |p| in float32, shape as given; see the module for zeros and what is not finite."""
    magnitude, score = base.to(torch.float32), tuned.to(torch.float32, copy=True)
    score.sub_(magnitude).div_(magnitude).abs_()  # |s - p| / |p| to the last bit
    # Whatever needs care (a zero base, an overflow, a weight that is not finite) shows as a score that is not finite.
    if score.numel() and not _finite(score):
        return ratio(absolute(base, tuned, strict), magnitude.abs())
    return score


def absolute(base: Tensor, tuned: Tensor, strict: bool = False) -> Tensor:
    """|s - p| in float32, shape as given; infinite only for a pair that is not finite and not equal."""
    p = base.to(torch.float32)
    change = tuned.to(torch.float32, copy=True).sub_(p).abs_()
    if change.numel() and not _finite(change):
        s = tuned.to(torch.float32)
        if strict and not (_finite(p.abs()) and _finite(s.abs())):
            raise NotFinite
        change[torch.isinf(change) & torch.isfinite(p) & torch.isfinite(s)] = _LARGEST
        change[torch.isnan(change)] = float("inf")
        change[(p == s) | (torch.isnan(p) & torch.isnan(s))] = 0.0
    return change


def ratio(change: Tensor, magnitude: Tensor) -> Tensor:
    """change / magnitude in float32; no change is 0, and infinite means a zero base or a change without end."""
    score = torch.div(change, magnitude)
    if score.numel() and not _finite(score):
        score[torch.isinf(score) & (magnitude != 0) & torch.isfinite(change)] = _LARGEST
        score[torch.isnan(score)] = float("inf")
        score[change == 0] = 0.0
    return score


def check_finite(base: Tensor, tuned: Tensor) -> None:
    """Raise :class:`NotFinite` where a weight is NaN or infinite."""
    absolute(base, tuned, strict=True)


def _finite(magnitudes: Tensor) -> bool:
    """Whether the largest of some non-negative numbers is finite; NaN comes through as the largest."""
    return bool(torch.isfinite(magnitudes.amax()))


def authors(base: Tensor, tuned: Tensor) -> Tensor:
    """The authors' score, widened to float32; see the module."""
    p, s = base.to(torch.bfloat16), tuned.to(torch.bfloat16)
    score = (s - p).abs() / (p.abs() + 1e-8)
    return score.to(torch.float32).nan_to_num_(nan=float("inf"))


def random_keys(seed: int, name: str, start: int, stop: int, device: torch.device | None = None) -> Tensor:
    """int32 keys, 0 to 2^31 - 1, of positions ``start:stop``: a hash, the same for any stretch, thread or device.

    Two words from SHA-256 of seed and name salt a 32-bit mixer (Wellons' lowbias32, a bijection), applied twice.
    """
    first, second = struct.unpack_from("<ii", hashlib.sha256(f"{seed}\0{name}".encode()).digest())
    compiled = kernels.random_keys(first, second, start, stop) if device in (None, torch.device("cpu")) else None
    if compiled is not None:
        return compiled
    position = torch.arange(start, stop, dtype=torch.int64, device=device)
    value = (position + (position >> 32) * 0x9E3779B1).to(torch.int32) if stop >> 31 else position.to(torch.int32)
    value = _mix(_mix(value.add_(first)).bitwise_xor_(second))
    return value.bitwise_and_(0x7FFFFFFF)


def _mix(value: Tensor) -> Tensor:
    value ^= (value >> 16) & 0xFFFF
    value *= 0x7FEB352D
    value ^= (value >> 15) & 0x1FFFF
    value *= 0x846CA68B - (1 << 32)
    value ^= (value >> 16) & 0xFFFF
    return value
