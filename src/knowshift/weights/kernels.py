"""The compiled loops of ``kernels.c``, for pieces in the processor's memory.

Each function gives exactly what the tensor code of its caller gives, in one reading of memory, and lets other threads
run meanwhile. It gives None (or False) where that cannot be had: the library was not built (no C compiler at
installation) or from another source, is switched off (``KNOWSHIFT_COMPILED=0``), or a piece lies on another device.
The caller's own code, which is the definition, then does the work.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

#: Criteria with compiled keys, as kernels.c numbers them.
_KEYED = ("relative", "absolute", "least", "magnitude", "authors", "ties", "fapm")
_FILE = Path(__file__).with_name("_kernels.so")

_int, _long, _word, _pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_uint32, ctypes.c_void_p
_SIGNATURES = {
    "keys": (_int, [_int, _int, _pointer, _pointer, _long, ctypes.c_float, _pointer]),
    "random_keys": (None, [_word, _word, _long, _long, _pointer]),
    "sort_out": (_long, [_pointer, _long, _int, *[_pointer] * 7]),
    "label": (None, [_pointer, _long, _int, _pointer, _pointer, _pointer]),
    "put_back": (None, [_int, _long, _pointer, ctypes.c_uint8, _pointer, _pointer, _pointer]),
    "upper_counts": (None, [_pointer, _long, _pointer]),
    "upper_sums": (None, [_pointer, _long, _pointer, _pointer]),
    "tally": (None, [_pointer, _long, _pointer, _pointer, _pointer]),
    "inside": (_long, [_pointer, _long, _pointer, _pointer]),
    "count": (None, [_pointer, _long, _pointer]),
}


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled library, or None where there is none."""
    if os.environ.get("KNOWSHIFT_COMPILED") == "0":
        return None
    try:
        found = ctypes.CDLL(str(_FILE))
        built_from = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(found, "knowshift_source")))
        if built_from.decode() != hashlib.sha256(_FILE.with_name("kernels.c").read_bytes()).hexdigest():
            return None
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(found, f"knowshift_{name}")
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError, ValueError):  # not built, for another machine, or something else altogether
        return None
    return found


def _usable(*pieces: Tensor) -> ctypes.CDLL | None:
    if any(piece.device.type != "cpu" or not piece.is_contiguous() for piece in pieces):
        return None
    return library()


def keys(criterion: str, base: Tensor, tuned: Tensor, mean: float = 0.0) -> tuple[Tensor, bool] | None:
    """(int32 keys of a flat piece, whether every weight of it is finite); ``mean`` is what ``fapm`` needs."""
    compiled = _usable(base, tuned)
    if compiled is None or criterion not in _KEYED:
        return None
    half = base.dtype == tuned.dtype == torch.bfloat16
    if not half:
        if criterion == "authors" and torch.float64 in (base.dtype, tuned.dtype):
            return None  # rounded to bfloat16 at once, not by way of float32
        base, tuned = base.to(torch.float32), tuned.to(torch.float32)
    made = torch.empty(tuned.shape, dtype=torch.int32)
    number = _KEYED.index(criterion)
    broken = compiled.knowshift_keys(
        number, half, base.data_ptr(), tuned.data_ptr(), tuned.numel(), mean, made.data_ptr()
    )
    return made, not broken


def random_keys(first: int, second: int, start: int, stop: int) -> Tensor | None:
    """Keys of ``criterion="random"``: the two words that salt the hash, and the positions."""
    compiled = library()
    if compiled is None:
        return None
    made = torch.empty(stop - start, dtype=torch.int32)
    compiled.knowshift_random_keys(first & 0xFFFFFFFF, second & 0xFFFFFFFF, start, stop - start, made.data_ptr())
    return made


def sort_out(
    keys: Tensor, low: Sequence[int], high: Sequence[int], common: Sequence[int | None]
) -> tuple[list[int], list[int], Tensor] | None:
    """For brackets of keys, by their upper halves: (keys above each, keys equal to ``common``, the keys inside any)."""
    compiled = _usable(keys)
    if compiled is None:
        return None
    number = len(low)
    edges = (ctypes.c_int16 * number)(*low), (ctypes.c_int16 * number)(*high)
    same = (ctypes.c_int32 * number)(*(key or 0 for key in common))
    has = (ctypes.c_uint8 * number)(*(key is not None for key in common))
    above, equal = (ctypes.c_int64 * number)(), (ctypes.c_int64 * number)()
    near = torch.empty(len(keys) + 1, dtype=torch.int32)
    found = compiled.knowshift_sort_out(
        keys.data_ptr(), len(keys), number, *edges, same, has, above, equal, near.data_ptr()
    )
    return list(above), list(equal), near[:found].clone()


def label(keys: Tensor, cuts: Sequence[tuple[int, int]], labels: Tensor) -> bool:
    """Write into ``labels`` (uint8) how many cuts do not take each key, and say that it was done.

    A cut is (its smallest key, how many of the piece's first weights it takes with that key).
    """
    compiled = _usable(keys, labels)
    if compiled is None:
        return False
    number = len(cuts)
    least = (ctypes.c_int32 * number)(*(key for key, _ in cuts))
    ends = (ctypes.c_int64 * number)(*(end for _, end in cuts))
    compiled.knowshift_label(keys.data_ptr(), len(keys), number, least, ends, labels.data_ptr())
    return True


def put_back(labels: Tensor, step: int, base: Tensor, tuned: Tensor, out: Tensor) -> bool:
    """Write base values into ``out`` where a label (uint8 or bool) is ``step``, else tuned ones; say that it was done.

    All three are of one dtype; ``out`` may be ``tuned``.
    """
    width = out.element_size()
    compiled = _usable(labels, base, tuned, out) if width in (2, 4, 8) else None
    if compiled is None:
        return False
    assert base.dtype == tuned.dtype == out.dtype
    compiled.knowshift_put_back(
        width, len(out), labels.data_ptr(), step, base.data_ptr(), tuned.data_ptr(), out.data_ptr()
    )
    return True


def upper_counts(keys: Tensor, weights: Tensor | None, bins: int) -> Tensor | None:
    """How many keys (or how much weight, float64) each value of the upper 16 bits holds: shape (bins,)."""
    compiled = _usable(keys) if weights is None else _usable(keys, weights)
    if compiled is None:
        return None
    made = torch.zeros(bins, dtype=torch.int64 if weights is None else torch.float64)
    if weights is None:
        compiled.knowshift_upper_counts(keys.data_ptr(), keys.numel(), made.data_ptr())
    else:
        assert weights.dtype == torch.float64
        compiled.knowshift_upper_sums(keys.data_ptr(), keys.numel(), weights.data_ptr(), made.data_ptr())
    return made


def tally(scores: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """By the upper 16 bits of float32 scores: (how many, their sum, the sum of their squares), each (bins,)."""
    compiled = _usable(scores)
    if compiled is None:
        return None
    assert scores.dtype == torch.float32
    counts = torch.zeros(bins, dtype=torch.int64)
    sums, squares = torch.zeros(2, bins, dtype=torch.float64)
    compiled.knowshift_tally(scores.data_ptr(), scores.numel(), counts.data_ptr(), sums.data_ptr(), squares.data_ptr())
    return counts, sums, squares


def inside(keys: Tensor, rows: Tensor) -> Tensor | None:
    """row << 16 | lower bits of the keys whose upper bits have a row (``rows``: int32, -1 for none), in order."""
    compiled = _usable(keys, rows)
    if compiled is None:
        return None
    places = torch.empty(len(keys) + 1, dtype=torch.int32)
    found = compiled.knowshift_inside(keys.data_ptr(), len(keys), rows.data_ptr(), places.data_ptr())
    return places[:found].clone()


def count(places: Tensor, counts: Tensor) -> bool:
    """Add one to the count (int64) of each place (int32), and say that it was done."""
    compiled = _usable(places, counts)
    if compiled is None:
        return False
    compiled.knowshift_count(places.data_ptr(), len(places), counts.data_ptr())
    return True
