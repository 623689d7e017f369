"""The compiled loops of ``kernels.c``.

Each function gives exactly what the numpy code of its caller gives, in one reading of memory, and lets other threads
run meanwhile. It gives None (or False) where that cannot be had: the library was not built (no C compiler at
installation) or from another source, is switched off (``KNOWSHIFT_COMPILED=0``), or a piece is not contiguous. The
caller's own code, which is the definition, then does the work.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from knowshift.parameters.tensors import BFLOAT16, Array, single
from knowshift.system.compiled import open_library

#: Criteria with compiled sort keys, as kernels.c numbers them.
_KEYED = ("relative", "absolute", "least", "magnitude", "authors", "ties", "fapm")
#: Dtypes that they read; weights of other dtypes are widened first.
_LOADED = (BFLOAT16, np.dtype(np.float32))
_SOURCE = Path(__file__).with_name("kernels.c")

_int, _long, _word, _pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_uint32, ctypes.c_void_p
_SIGNATURES = {
    "keys": (_int, [_int, _int, _pointer, _pointer, _long, ctypes.c_float, _pointer]),
    "random_keys": (None, [_word, _word, _long, _long, _pointer]),
    "sort_out": (_long, [_pointer, _long, _int, *[_pointer] * 7]),
    "restore": (
        _long,
        [_int, _int, _pointer, _pointer, _long, ctypes.c_float, ctypes.c_int32, _long, _pointer, _pointer],
    ),
    "upper_counts": (None, [_pointer, _long, _pointer]),
    "upper_sums": (None, [_pointer, _long, _pointer, _pointer]),
    "tally": (None, [_pointer, _long, _pointer, _pointer, _pointer]),
    "inside": (_long, [_pointer, _long, _pointer, _pointer]),
    "count": (None, [_pointer, _long, _pointer]),
}


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled library, or None where there is none."""
    return open_library(_SOURCE, _SIGNATURES)


def _usable(*pieces: Array) -> ctypes.CDLL | None:
    """The library, if all pieces are contiguous and of one size."""
    plain = all(piece.flags.c_contiguous and piece.flags.aligned for piece in pieces)
    return library() if plain and len({piece.size for piece in pieces}) <= 1 else None


def keys(criterion: str, base: Array, tuned: Array, mean: float = 0.0) -> tuple[NDArray[np.int32], bool] | None:
    """(int32 sort keys of a flat piece, whether every weight of it is finite); ``mean`` is what ``fapm`` needs."""
    compiled = _usable(base, tuned)
    if compiled is None or criterion not in _KEYED:
        return None
    half = base.dtype == tuned.dtype == BFLOAT16
    if not half:
        base, tuned = single(base), single(tuned)
    made = np.empty(tuned.shape, np.int32)
    number = _KEYED.index(criterion)
    broken = compiled.knowshift_keys(
        number, half, base.ctypes.data, tuned.ctypes.data, tuned.size, mean, made.ctypes.data
    )
    return made, not broken


def random_keys(first: int, second: int, start: int, stop: int) -> NDArray[np.int32] | None:
    """Sort keys of ``criterion="random"``: the two words that salt the hash, and the positions."""
    compiled = library()
    if compiled is None:
        return None
    made = np.empty(stop - start, np.int32)
    compiled.knowshift_random_keys(first, second, start, stop - start, made.ctypes.data)
    return made


def sort_out(
    keys: NDArray[np.int32], low: Sequence[int], high: Sequence[int], common: Sequence[int | None]
) -> tuple[list[int], list[int], NDArray[np.int32]] | None:
    """For brackets of sort keys, by upper halves: (keys above each, keys equal to ``common``, the keys inside any)."""
    compiled = _usable(keys)
    if compiled is None:
        return None
    number = len(low)
    edges = (ctypes.c_int16 * number)(*low), (ctypes.c_int16 * number)(*high)
    same = (ctypes.c_int32 * number)(*(key or 0 for key in common))
    has = (ctypes.c_uint8 * number)(*(key is not None for key in common))
    above, equal = (ctypes.c_int64 * number)(), (ctypes.c_int64 * number)()
    near = np.empty(len(keys) + 1, np.int32)
    found = compiled.knowshift_sort_out(
        keys.ctypes.data, len(keys), number, *edges, same, has, above, equal, near.ctypes.data
    )
    return list(above), list(equal), near[:found].copy()


def restore(
    criterion: str, base: Array, tuned: Array, mean: float, cut: tuple[int, int], out: Array
) -> tuple[int, bool] | None:
    """Write base values into ``out`` where a cut has the weight, else tuned ones: (how many, whether all are finite).

    A cut is (its smallest key, how many of the piece's first weights it has with that key). ``out`` may be ``tuned``.
    """
    compiled = _usable(base, tuned, out)
    if compiled is None or criterion not in _KEYED or not base.dtype == tuned.dtype == out.dtype in _LOADED:
        return None
    finite = ctypes.c_int()
    restored = compiled.knowshift_restore(
        _KEYED.index(criterion),
        out.dtype == BFLOAT16,
        base.ctypes.data,
        tuned.ctypes.data,
        len(out),
        mean,
        *cut,
        out.ctypes.data,
        ctypes.addressof(finite),
    )
    return restored, bool(finite.value)


def upper_counts(keys: NDArray[np.int32], weights: NDArray[np.float64] | None, bins: int) -> Array | None:
    """How many sort keys (or how much weight) each value of the upper 16 bits holds: shape (bins,)."""
    compiled = _usable(keys) if weights is None else _usable(keys, weights)
    if compiled is None:
        return None
    made = np.zeros(bins, np.int64 if weights is None else np.float64)
    if weights is None:
        compiled.knowshift_upper_counts(keys.ctypes.data, keys.size, made.ctypes.data)
    else:
        compiled.knowshift_upper_sums(keys.ctypes.data, keys.size, weights.ctypes.data, made.ctypes.data)
    return made


def tally(
    scores: NDArray[np.float32], bins: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]] | None:
    """By the upper 16 bits of float32 scores: (how many, their sum, the sum of their squares), each (bins,)."""
    compiled = _usable(scores)
    if compiled is None:
        return None
    counts, sums, squares = np.zeros(bins, np.int64), np.zeros(bins, np.float64), np.zeros(bins, np.float64)
    compiled.knowshift_tally(scores.ctypes.data, scores.size, counts.ctypes.data, sums.ctypes.data, squares.ctypes.data)
    return counts, sums, squares


def inside(keys: NDArray[np.int32], rows: NDArray[np.int32]) -> NDArray[np.int32] | None:
    """row << 16 | lower bits of the sort keys whose upper bits have a row (``rows``: -1 for none), in order."""
    compiled = _usable(keys) if _usable(rows) else None
    if compiled is None:
        return None
    places = np.empty(len(keys) + 1, np.int32)
    found = compiled.knowshift_inside(keys.ctypes.data, len(keys), rows.ctypes.data, places.ctypes.data)
    return places[:found].copy()


def count(places: NDArray[np.int32], counts: NDArray[np.int64]) -> bool:
    """Add one to the count of each place, and say that it was done."""
    compiled = _usable(places) if _usable(counts) else None
    if compiled is None:
        return False
    compiled.knowshift_count(places.ctypes.data, len(places), counts.ctypes.data)
    return True
