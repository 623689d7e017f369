"""The loops of loops.c on tensors: root-mean-square norm, rotary positions, and attention to few keys.

transformers computes a norm or positions by five to ten operations of PyTorch, each of which reads and writes the whole
tensor and costs some microseconds by itself: on a small model more than its matrix products. The same results to the
bit with PyTorch 2.13 on an Intel Xeon, for rows of up to 512 numbers; elsewhere sums over a row may have another order.
Attention gives what PyTorch's gives up to rounding.

All tensors are float32 without gaps, on the CPU. Shapes: N rows (tokens), D width, H heads, W their width.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from knowshift.system.compiled import open_library

_long, _pointer = ctypes.c_int64, ctypes.c_void_p
_SIGNATURES = {
    "squares": (None, [_long, _long, *[_pointer] * 3, ctypes.c_float, _pointer]),
    "scale": (None, [_long, _long, *[_pointer] * 4]),
    "norm_backward": (None, [_long, _long, *[_pointer] * 8]),
    "rotate": (None, [*[_long] * 4, _pointer, _pointer, ctypes.c_int, _pointer]),
    "attend": (None, [*[_long] * 3, *[_pointer] * 3, ctypes.c_float, *[_pointer] * 5]),
    "attend_backward": (None, [*[_long] * 3, *[_pointer] * 3, ctypes.c_float, *[_pointer] * 9]),
}


#: Keys are few where tokens see at most one in so many. The loop over them has one thread, and PyTorch's attention over
#: all keys has all, so it is not taken where there are more threads either.
FEW = 4


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled loops, or None where there are none."""
    return open_library(Path(__file__).with_name("loops.c"), _SIGNATURES)


def norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """weight * (x * r) [N, D] and r = 1 / sqrt(mean of x squared + epsilon) [N]."""
    squares = x.new_empty(len(x))
    _loops().knowshift_squares(len(x), x.shape[1], x.data_ptr(), None, None, epsilon, squares.data_ptr())
    return _scaled(x, squares, weight)


def added_norm(x: Tensor, added: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """x + added [N, D], and :func:`norm` of it."""
    summed, squares = torch.empty_like(x), x.new_empty(len(x))
    _loops().knowshift_squares(
        len(x), x.shape[1], x.data_ptr(), added.data_ptr(), summed.data_ptr(), epsilon, squares.data_ptr()
    )
    return summed, *_scaled(summed, squares, weight)


def _scaled(x: Tensor, squares: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    r, out = squares.rsqrt_(), torch.empty_like(x)
    _loops().knowshift_scale(len(x), x.shape[1], x.data_ptr(), r.data_ptr(), weight.data_ptr(), out.data_ptr())
    return out, r


def norm_backward(
    x: Tensor, r: Tensor, weight: Tensor, gradient: Tensor, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of x [N, D], plus ``residual``, and of the weight [D], from that of the norm."""
    products, out, room = torch.empty_like(x), torch.empty_like(x), x.new_empty(x.shape[1])
    _loops().knowshift_norm_backward(
        len(x),
        x.shape[1],
        *(tensor.data_ptr() for tensor in (x, r, weight, gradient)),
        None if residual is None else residual.data_ptr(),
        *(tensor.data_ptr() for tensor in (products, room, out)),
    )
    return out, products.sum(0)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor, back: bool = False) -> Tensor:
    """x [N, H, W], rotated in place by the angles of row n modulo A of cosine and sine [A, W]; back, for a gradient."""
    rows, heads, width = x.shape
    angles = (len(cosine), cosine.data_ptr(), sine.data_ptr())
    _loops().knowshift_rotate(rows, heads, width, *angles, back, x.data_ptr())
    return x


class Keys(NamedTuple):
    """The keys that each of T tokens may see: from ``starts[t]`` to ``starts[t + 1]`` of ``keys``."""

    starts: Tensor  # int64 [T + 1]
    keys: Tensor  # int64, as many as are seen by all tokens together

    @classmethod
    def of(cls, mask: Tensor) -> Keys:
        """Of a mask bool [T, T], True where a token may see a key."""
        counts = mask.sum(1)
        return cls(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), mask.nonzero()[:, 1].contiguous())


def few_keys(mask: Tensor) -> bool:
    """Whether, by a mask bool [T, T], every token sees a key, and so few that products over all keys are slower."""
    counts = mask.sum(1)
    few = FEW * int(counts.sum()) <= mask.numel() and torch.get_num_threads() <= FEW
    return few and bool(counts.all())


def attend(q: Tensor, k: Tensor, v: Tensor, keys: Keys, scale: float, asked: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention of q [K, H, W] to k and v [T, H, W], shaped as q, and the probabilities, which its gradient needs.

    ``asked``: the tokens of q, int64 [K] without gaps; None: all T.
    """
    out, probabilities = torch.empty_like(q), q.new_empty(len(keys.keys) * q.shape[1])
    given = (q, k, v, probabilities, out)
    _loops().knowshift_attend(*q.shape, *_pointers(keys, asked), scale, *(tensor.data_ptr() for tensor in given))
    return out, probabilities


def attend_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    probabilities: Tensor,
    keys: Keys,
    scale: float,
    asked: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from that of :func:`attend`'s output."""
    of_q, of_k, of_v, room = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v), q.new_empty(len(k))
    given = (q, k, v, probabilities, gradient, room, of_q, of_k, of_v)
    _loops().knowshift_attend_backward(
        *q.shape, *_pointers(keys, asked), scale, *(tensor.data_ptr() for tensor in given)
    )
    return of_q, of_k, of_v


def _pointers(keys: Keys, asked: Tensor | None) -> tuple[int | None, int, int]:
    return None if asked is None else asked.data_ptr(), keys.starts.data_ptr(), keys.keys.data_ptr()


def _loops() -> ctypes.CDLL:
    loops = library()
    assert loops is not None
    return loops
