"""Attention of one new token over a short cache on the CPU, over the cache as it lies in memory.

PyTorch's fused kernel is made for long queries: with one token a row, what it does for each row and head costs more
than the few products in it. So rows are gone through by a loop in C (one_token.c), 16 numbers at a time, which reads
keys and values once and, of two bytes, as they are. Where it was not compiled, for heads that are no multiple of 16
wide, for float16 and with several threads, PyTorch does it: two batched matrix products over rows and key-value heads;
or, where heads are narrow, plain products and sums, since a matrix product costs more than what is in it. All in
float32, sums in another order each. docs/mastery.md has the times.

Rows of a tree share what their prompts and texts begin with. For the loop in C a row is a list of nodes, and the keys
and values of a node lie in memory once (:class:`Pages`). Otherwise what all rows have in common does, examples or a
template before each question (:class:`Prefix`): of that part the products of all rows are one matrix product for each
key-value head, and the softmax is over both parts.

Anything else (a mask, soft capping, attention sinks, a long cache, another device) goes to the kernel as before, after
rows have been put together.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from knowshift.system.compiled import open_library

#: Its name in transformers; models are loaded with PyTorch's (:func:`knowshift.system.patches.attention`).
NAME = "knowshift_one_token"
USUAL = "sdpa"
#: Width of a head, up to which products and sums are faster than matrix products.
NARROW = 32
#: Tokens in the cache, up to which this was faster than the kernel: by the loop and matrix products, and otherwise.
LONG, LONG_NARROW = 512, 64
#: Rows at a time, so that products before their sum, a megabyte or two, stay in the processor's own memory.
ROWS_AT_ONCE = 128
#: The width of a head that the loop takes: any multiple up to a largest one.
LANES, WIDEST = 16, 256

_long, _pointer = ctypes.c_int64, ctypes.c_void_p
_SIGNATURES = {
    "attention": (None, [ctypes.c_int, *[_long] * 5, *[_pointer] * 7, ctypes.c_float, _pointer, _pointer]),
    "choose": (
        ctypes.c_int,
        [_long, _long, _pointer, _long, ctypes.c_float, _long, *[_pointer] * 2, _long, *[_pointer] * 5],
    ),
}


@dataclass
class Prefix:
    """Keys and values [1, G, P, W] of tokens that stand before those of every row.

    A layer shows its own keys with these beside them (:meth:`beside`), through code of transformers that knows nothing
    of it. Where that code hands on other tensors than it was shown, ``used`` does not count, and what was computed is
    to be thrown away.
    """

    keys: torch.Tensor
    values: torch.Tensor
    used: int = 0

    @property
    def length(self) -> int:
        return self.keys.shape[2]

    def beside(self, keys: torch.Tensor) -> None:
        """Let whoever gets these keys find the prefix."""
        keys.knowshift_prefix = self  # type: ignore[attr-defined]

    @staticmethod
    def of(keys: torch.Tensor) -> Prefix | None:
        """What stands before these keys."""
        return getattr(keys, "knowshift_prefix", None)


@dataclass
class Pages:
    """The tokens of every row, by number, among keys and values [C, G, W] that all rows share.

    A layer shows the keys of its newest tokens with these beside them, as it shows a :class:`Prefix`.

    Attributes:
        nodes: int32 [N, L], without gaps.
    """

    keys: torch.Tensor
    values: torch.Tensor
    nodes: NDArray[np.int32]
    used: int = 0
    whole: Pages | None = None  # those of all rows, where these are of some

    def use(self) -> None:
        """Count that attention has looked at them."""
        self.used += 1
        if self.whole is not None:
            self.whole.use()

    def beside(self, keys: torch.Tensor) -> torch.Tensor:
        """Let whoever gets these keys find the pages."""
        keys.knowshift_pages = self  # type: ignore[attr-defined]
        return keys

    @staticmethod
    def of(keys: torch.Tensor) -> Pages | None:
        """The pages that these keys stand for."""
        return getattr(keys, "knowshift_pages", None)

    def together(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [N, G, L, W] of each row."""
        places = torch.from_numpy(self.nodes.reshape(-1).astype(np.int64))
        rows, length = self.nodes.shape
        keys, values = (of.index_select(0, places).view(rows, length, *of.shape[1:]) for of in (self.keys, self.values))
        return keys.transpose(1, 2), values.transpose(1, 2)


def some_rows(rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The given rows [K] of what a layer shows of keys and values."""
    of_rows = key.index_select(0, rows), value.index_select(0, rows)
    if (pages := Pages.of(key)) is not None:
        Pages(pages.keys, pages.values, pages.nodes[rows.numpy()], whole=pages).beside(of_rows[0])
    return of_rows


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled loops of one_token.c, or None where there are none."""
    return open_library(Path(__file__).with_name("one_token.c"), _SIGNATURES)


def one_token_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(q k / sqrt(W)) v for query [N, H, 1, W], key and value [N, G, L, W], G dividing H: [N, 1, H, W].

    Keys may have a :class:`Prefix`, which is attended to as well, or :class:`Pages`, which are attended to instead.
    """
    rows, heads, length, width = query.shape
    special = any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias", "cache"))
    plain = length == 1 and attention_mask is None and not special and query.device.type == "cpu"
    scale = width**-0.5 if scaling is None else scaling
    if (pages := Pages.of(key)) is not None:
        pages.use()
        if plain and (compiled := _compiled(query, pages.keys, pages.values, scale, pages.nodes)) is not None:
            return compiled, None
        key, value = pages.together()
    elif (prefix := Prefix.of(key)) is not None:
        prefix.used += 1
        if plain:
            return _behind(prefix, query, key, value, scale), None
        key, value = (
            torch.cat([before.expand(rows, -1, -1, -1), own], dim=2)
            for before, own in ((prefix.keys, key), (prefix.values, value))
        )
    if plain and key.shape[2] <= LONG and (compiled := _compiled(query, key, value, scale)) is not None:
        return compiled, None
    short = key.shape[2] <= (LONG_NARROW if width <= NARROW else LONG)
    if not plain or not short or query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        output: torch.Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )[0]
        return output, None
    dtype = query.dtype
    query, key, value = query.float(), key.float(), value.float()  # themselves where they are wide already
    groups = key.shape[1]
    if width > NARROW:
        keys, values = key.flatten(0, 1), value.flatten(0, 1)  # [N G, L, W]
        scores = torch.bmm(query.reshape(rows * groups, heads // groups, width), keys.transpose(1, 2))
        return torch.bmm(scores.mul_(scale).softmax(dim=-1), values).view(rows, 1, heads, width).to(dtype), None
    queries = query.reshape(rows, 1, groups, heads // groups, width)
    keys, values = key.transpose(1, 2).unsqueeze(3), value.transpose(1, 2).unsqueeze(3)  # [N, L, G, 1, W]
    result = query.new_empty(rows, 1, heads, width)
    for start in range(0, rows, ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        weights = (keys[some] * queries[some]).sum(dim=-1).mul_(scale).softmax(dim=1)
        torch.sum(
            values[some] * weights.unsqueeze(-1), dim=1, out=result[some].view(-1, groups, heads // groups, width)
        )
    return result.to(dtype), None


def _behind(prefix: Prefix, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """The same over a prefix and the keys and values of each row: [N, 1, H, W]."""
    rows, heads, _, width = query.shape
    groups, own = key.shape[1:3]
    each, dtype = heads // groups, query.dtype
    queries = (query.float() * scale).view(rows, groups, each, width)
    by_group = queries.transpose(0, 1).reshape(groups, rows * each, width)
    before = torch.bmm(by_group, prefix.keys[0].float().transpose(1, 2)).view(groups, rows, each, -1).transpose(0, 1)
    scores = queries.new_empty(rows, groups, each, own + prefix.length)
    scores[..., own:] = before
    by_row = queries.reshape(rows * groups, each, width)
    scores[..., :own] = torch.bmm(by_row, key.float().flatten(0, 1).transpose(1, 2)).view(rows, groups, each, own)
    weights = scores.softmax(dim=-1)
    result = torch.bmm(weights[..., :own].reshape(rows * groups, each, own), value.float().flatten(0, 1))
    of_prefix = weights[..., own:].transpose(0, 1).reshape(groups, rows * each, prefix.length)
    summed = torch.bmm(of_prefix, prefix.values[0].float()).view(groups, rows, each, width).transpose(0, 1)
    return (result.view(rows, groups, each, width) + summed).reshape(rows, 1, heads, width).to(dtype)


def _compiled(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    nodes: NDArray[np.int32] | None = None,
) -> torch.Tensor | None:
    """The same by the loop in C, on one thread; None where it cannot be had. With nodes [N, L] keys are [C, G, W]."""
    loop = library()
    rows, heads, _, width = query.shape
    groups, length = (key.shape[1], key.shape[2] if nodes is None else nodes.shape[1])
    nodes = None if nodes is None else np.ascontiguousarray(nodes)
    plain = all(of.stride(-1) == 1 and of.dtype == query.dtype for of in (query, key, value))
    if loop is None or not plain or not can_compile(width, query.dtype):
        return None
    result = torch.empty(rows, 1, heads, width)
    scores = torch.empty(length + LANES - 1)
    places = []
    for of in (query, key, value):
        steps = of.stride()[:3] if of.dim() == 4 else (0, of.stride(1), of.stride(0))
        places += [of.data_ptr(), (_long * 3)(*(step * of.element_size() for step in steps))]
    loop.knowshift_attention(
        query.dtype == torch.bfloat16,
        rows,
        heads,
        groups,
        length,
        width,
        None if nodes is None else nodes.ctypes.data,
        *places,
        scale,
        scores.data_ptr(),
        result.data_ptr(),
    )
    return result.to(query.dtype)


def can_compile(width: int, dtype: torch.dtype) -> bool:
    """Whether the loop in C takes heads of this width and numbers of this dtype here, on one thread."""
    takes = width % LANES == 0 and width <= WIDEST and dtype in (torch.float32, torch.bfloat16)
    return takes and library() is not None and torch.get_num_threads() == 1


AttentionInterface.register(NAME, one_token_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
