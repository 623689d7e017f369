"""A key-value cache for a tree where rows are lists of nodes: what a node holds lies in memory once.

Rows that branch, are picked, dropped or put together change numbers of nodes, and no keys and values are copied; what
several rows begin with is read from the same memory. It takes attention that looks keys up by their nodes
(:class:`~knowshift.models.layers.attention.Pages`), so the loop in C.

Shapes: N rows, T new tokens of each, L tokens of a row, C nodes for which there is memory, G key-value heads, W their
width.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from knowshift.models.layers.attention import Pages, can_compile


class NotByNodes(Exception):
    """The layers of this model do not look keys up by their nodes, or not as fast."""


class Pool:
    """Keys and values of all nodes of a walk, for each layer; nodes that no row needs make room when it is full.

    ``capacity``: nodes for which memory is asked at first; it grows.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.used = max(1, capacity), 0
        self._held: dict[int, list[torch.Tensor]] = {}
        self._rows: weakref.WeakSet[Rows] = weakref.WeakSet()

    def join(self, rows: Rows) -> None:
        """Nodes of these rows are needed as long as the rows are."""
        self._rows.add(rows)

    def take(self, count: int) -> int:
        """The first of so many new nodes with consecutive numbers. Others may be renumbered."""
        if self.used + count > self.capacity:
            self.collect()
            needed = self.used + count
            if needed > self.capacity // 2:  # or it would be full again soon
                self.capacity = 2 * needed
                for number, held in self._held.items():
                    self._held[number] = [_grown(old, self.used, self.capacity) for old in held]
        first = self.used
        self.used += count
        return first

    def collect(self) -> None:
        """Put the nodes that rows need together at the beginning, in their order."""
        rows = list(self._rows)
        needed = np.zeros(self.used, dtype=bool)
        for one in rows:
            needed[one.nodes] = True
        kept = np.flatnonzero(needed)
        if len(kept) == self.used:
            return
        number = np.cumsum(needed, dtype=np.int32) - 1
        places = torch.from_numpy(kept)
        for held in self._held.values():
            for of in held:
                of[: len(kept)] = of.index_select(0, places)
        for one in rows:
            one.nodes = number[one.nodes]
        self.used = len(kept)

    def of_layer(self, number: int, shape: tuple[int, int], like: torch.Tensor) -> list[torch.Tensor]:
        """Memory for keys and for values of a layer [C, G, W], of the dtype of ``like``; ``shape`` is G and W."""
        if number not in self._held:
            if not can_compile(shape[1], like.dtype):
                raise NotByNodes
            self._held[number] = [like.new_empty((self.capacity, *shape)) for _ in range(2)]
        return self._held[number]


def _grown(old: torch.Tensor, used: int, capacity: int) -> torch.Tensor:
    new = old.new_empty(capacity, *old.shape[1:])
    new[:used] = old[:used]
    return new


@dataclass(eq=False)
class Rows:
    """The rows of one cache, for all its layers.

    Attributes:
        nodes: int32 [N, L], the numbers of each row's tokens in the pool.
    """

    pool: Pool
    nodes: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 0), dtype=np.int32))

    def __post_init__(self) -> None:
        self.pool.join(self)

    def extend(self, rows: int, tokens: int) -> None:
        """So many new nodes at the end of each row."""
        first = self.pool.take(rows * tokens)
        new = np.arange(first, first + rows * tokens, dtype=np.int32).reshape(rows, tokens)
        self.nodes = np.concatenate([self.nodes if self.nodes.size else new[:, :0], new], axis=1)


class PagedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer. It shows those of the newest tokens, with pages beside the keys."""

    def __init__(self, rows: Rows, number: int) -> None:
        super().__init__()
        self.rows, self.number, self.length = rows, number, 0
        self.pages: Pages | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, heads, tokens, width = key_states.shape
        held = self.room(rows, tokens, (heads, width), key_states)
        for stored, new in zip(held, (key_states, value_states), strict=True):
            stored.view(rows, tokens, heads, width).copy_(new.transpose(1, 2))
        return self.shown(key_states), value_states

    def room(self, rows: int, tokens: int, shape: tuple[int, int], like: torch.Tensor) -> list[torch.Tensor]:
        """Memory [N T, G, W] for the keys and for the values of so many new tokens, to be filled before they are shown.

        ``shape`` is heads and width; the dtype is that of ``like``.
        """
        self.dtype, self.device, self.is_initialized = like.dtype, like.device, True
        if self.length == self.rows.nodes.shape[1]:  # the first layer that gets these tokens
            self.rows.extend(rows, tokens)
        self.length += tokens
        first = int(self.rows.nodes[0, self.length - tokens])
        held = self.rows.pool.of_layer(self.number, shape, like)
        self.pages = Pages(held[0], held[1], self.rows.nodes)
        return [of[first : first + rows * tokens] for of in held]

    def shown(self, key_states: torch.Tensor) -> torch.Tensor:
        """The keys of the newest tokens [N, G, T, W], the pages beside them."""
        assert self.pages is not None
        return self.pages.beside(key_states)

    def get_seq_length(self) -> int:
        return self.length

    def beside(self, rows: Rows) -> PagedLayer:
        """The same layer of a cache with other rows, as long as these."""
        other = copy.copy(self)
        other.rows, other.pages = rows, None
        return other


def check_by_nodes(cache: DynamicCache) -> None:
    """Raise :class:`NotByNodes` where attention has not looked at the pages that a layer has shown; they are let go."""
    for layer in cache.layers:
        if isinstance(layer, PagedLayer):
            if layer.pages is None or not layer.pages.used:
                raise NotByNodes
            layer.pages = None  # they would hold the memory of a pool that has grown since
