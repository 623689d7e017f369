"""A key-value cache whose rows are the nodes of a prefix tree: rows are chosen, repeated and dropped at every step.

``DynamicCache`` copies everything twice a step, once to choose rows and once to append. Where attention can look keys
up by their nodes, nothing is copied (:mod:`.pages`). Elsewhere a row keeps room for the tokens to come, so appending
writes in place; and a node's first child takes over its row, so only further children are copied, into rows that have
become free. Layers that are not plain (sliding windows, convolution and recurrent states) keep the implementation of
transformers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from knowshift.models.layers.attention import NARROW, Prefix
from knowshift.models.sampling.pages import PagedLayer, Pool, Rows

Ints = NDArray[np.int64]

#: Rows grow by this many token positions at a time.
ROOM = 8


class TreeLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, [rows, heads, room, width], of which [rows, heads, length, width] is shown.

    What stands before them in every row, ``prefix``, is shown beside the keys.
    """

    def __init__(
        self, arena: Arena | None = None, number: int = 0, prefix: Prefix | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.arena, self.number, self.prefix = arena, number, prefix
        self.stored: list[torch.Tensor] = []
        self.rows = 0
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.rows, heads = key_states.shape[:2]
        if self.arena is not None:
            self.stored = self.arena.lend(self.number, key_states, value_states)
        else:
            self.stored = [_room_for(new, self.rows, heads, 0) for new in (key_states, value_states)]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self.length, self.length + key_states.shape[-2]
        if end > self.stored[0].shape[2]:
            self._reallocate(self.rows, end + ROOM)
        for stored, new in zip(self.stored, (key_states, value_states), strict=True):
            stored[: self.rows, :, start:end] = new
        self.length = end
        return self._show()

    def get_seq_length(self) -> int:
        return self.length + (self.prefix.length if self.prefix else 0)

    def batch_select_indices(self, indices: torch.Tensor, room: int = 0) -> None:
        """The rows at ``indices``, in that order, copied; tensors that other layers may share stay untouched.

        ``room`` is for tokens to come, which would otherwise have to be made by copying once more.
        """
        picked = [_room_for(old, len(indices), old.shape[1], self.length + room) for old in self.stored]
        for new, old in zip(picked, self.stored, strict=True):
            _take_rows(old[:, :, : self.length], indices, new[:, :, : self.length])
        self.stored, self.arena, self.rows = picked, None, len(indices)
        self._show()

    def move_rows(self, source: torch.Tensor, target: torch.Tensor, rows: int) -> None:
        """Copy rows ``source`` to ``target`` in place, no row being both, and keep the first ``rows`` rows.

        ``target`` ascends. Where it is one range behind the sources, as where nodes branch, rows are copied once.
        """
        if rows > self.stored[0].shape[0]:
            self._reallocate(rows + rows // 4, self.stored[0].shape[2])
        if len(source):
            start, end = int(target[0]), int(target[-1]) + 1
            behind = end - start == len(source) and int(source.max()) < start
            for stored in self.stored:
                held = stored[:, :, : self.length]
                if behind:
                    _take_rows(held[:start], source, held[start:end])
                else:
                    held.index_copy_(0, target, held.index_select(0, source))
        self.rows = rows
        self._show()

    def append_rows(self, other: TreeLayer, chosen: torch.Tensor) -> None:
        """Put the rows ``chosen`` of ``other``, whose length is the same, below these."""
        assert self.length == other.length
        above, rows = self.rows, self.rows + len(chosen)
        if rows > self.stored[0].shape[0]:
            self._reallocate(rows + rows // 4, self.stored[0].shape[2])
        for stored, new in zip(self.stored, other.stored, strict=True):
            _take_rows(new[:, :, : self.length], chosen, stored[above:rows, :, : self.length])
        self.rows = rows
        self._show()

    def _reallocate(self, rows: int, room: int) -> None:
        kept = min(rows, self.rows)
        for which, old in enumerate(self.stored):
            grown = _room_for(old, rows, old.shape[1], room)
            grown[:kept, :, : self.length] = old[:kept, :, : self.length]
            self.stored[which] = grown

    def _show(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys, self.values = (old[: self.rows, :, : self.length] for old in self.stored)
        if self.prefix is not None:
            self.prefix.beside(self.keys)
        return self.keys, self.values


def _room_for(like: torch.Tensor, rows: int, heads: int, room: int) -> torch.Tensor:
    """Memory for [rows, heads, room, width], of the width, dtype and device of ``like``.

    The tokens of a head lie together where attention is a product for each head; where heads are narrow, the heads of
    a token do, since rows are then copied in longer pieces (see :mod:`knowshift.models.layers.attention`).
    """
    width = like.shape[3]
    if width > NARROW:
        return like.new_empty((rows, heads, room, width))
    return like.new_empty((rows, room, heads, width)).transpose(1, 2)


def _take_rows(source: torch.Tensor, rows: torch.Tensor, target: torch.Tensor) -> None:
    """target = source[rows], as one copy; indexing with a tensor takes several times as long."""
    if len(rows):
        torch.index_select(source, 0, rows, out=target)


@dataclass
class Arena:
    """Memory for one cache of at most ``rows`` rows and ``length`` tokens, lent again and again.

    Fresh memory costs more than what is written to it, so a walk asks for it once. Only one cache may use it at a
    time; rows that are picked from that cache get memory of their own.
    """

    rows: int
    length: int
    held: dict[int, list[torch.Tensor]] = field(default_factory=dict)

    def lend(self, number: int, keys: torch.Tensor, values: torch.Tensor) -> list[torch.Tensor]:
        """The storage of layer ``number``, [rows, heads, length, width] for keys and for values."""
        if number not in self.held:
            rows = max(self.rows, keys.shape[0])
            self.held[number] = [_room_for(new, rows, new.shape[1], self.length) for new in (keys, values)]
        return list(self.held[number])


def tree_cache(
    config: PreTrainedConfig, memory: Arena | Pool | None = None, prefix: Sequence[Prefix] | None = None
) -> DynamicCache:
    """An empty cache for a model of this config, its plain layers replaced by :class:`TreeLayer`.

    Where all are plain, ``prefix`` may be that of each layer, or they may have their nodes in a pool.
    """
    cache = DynamicCache(config=config)
    if isinstance(memory, Pool):
        nodes = Rows(memory)
        cache.layers = [PagedLayer(nodes, number) for number in range(len(cache.layers))]
    elif prefix is not None:
        cache.layers = [TreeLayer(memory, i, own) for i, own in enumerate(prefix)]
    elif cache.layers:
        plain = [type(layer) is DynamicLayer for layer in cache.layers]
        cache.layers = [
            TreeLayer(memory, i) if mine else layer
            for i, (mine, layer) in enumerate(zip(plain, cache.layers, strict=True))
        ]
    else:
        cache.layer_class_to_replicate = TreeLayer
    return cache


def all_plain(config: PreTrainedConfig) -> bool:
    """Whether all layers of a model of this config have keys and values and nothing else."""
    layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def prefix_of(cache: DynamicCache) -> list[Prefix] | None:
    """What the one row of a cache holds, as the prefix of each layer of other caches; None where it cannot be one."""
    if not can_append(cache):
        return None
    return [Prefix(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]


def continue_rows(cache: DynamicCache, parents: Ints) -> Ints:
    """Change ``cache`` so that it has one row for each of these nodes, whose parents are rows of it now.

    Returns the row that each node has got, a permutation. A first child keeps its parent's row where that row stays.
    """
    if (paged := _paged(cache)) is not None:
        paged.nodes = paged.nodes[parents]
        return np.arange(len(parents))
    rows, count = _rows(cache), len(parents)
    alive, first = np.unique(parents, return_index=True)
    got = np.full(count, -1, dtype=np.int64)
    stays = alive < count
    got[first[stays]] = alive[stays]
    free = np.setdiff1d(np.arange(count), alive[stays], assume_unique=True)
    others = np.flatnonzero(got < 0)
    got[others] = free
    if count == rows and not len(others):
        return got
    device = cache.layers[0].device
    source, target = torch.from_numpy(parents[others]).to(device), torch.from_numpy(free).to(device)
    by_row = None
    for layer in cache.layers:
        if isinstance(layer, TreeLayer):
            layer.move_rows(source, target, count)
            continue
        if by_row is None:
            by_row = torch.from_numpy(parents[np.argsort(got)]).to(device)
        _select(layer, by_row)
    return got


def pick_rows(cache: DynamicCache, rows: Ints, room: int = 0) -> DynamicCache:
    """A cache of the given rows of ``cache``, in that order, repeats allowed; ``cache`` itself stays as it was.

    ``room`` is how many more tokens plain layers may take before they must be copied again.
    """
    picked = copy.copy(cache)
    if (paged := _paged(cache)) is not None:
        own = Rows(paged.pool, paged.nodes[rows])
        picked.layers = [layer.beside(own) for layer in cache.layers]
        return picked
    picked.layers = [_copied(layer) for layer in cache.layers]
    indices = torch.from_numpy(rows).to(cache.layers[0].device)
    for layer in picked.layers:
        if isinstance(layer, TreeLayer):
            layer.batch_select_indices(indices, room)
        else:
            _select(layer, indices)
    return picked


def _copied(layer: Any) -> Any:
    """A layer that can be changed without changing ``layer``, as long as no tensor is written to."""
    other = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):  # states of convolutions and recurrences, by number
            setattr(other, name, dict(value))
    return other


def _select(layer: Any, rows: torch.Tensor) -> None:
    """Let the layer have these of its rows, in new tensors."""
    # Only keys and values know batch_select_indices; of a layer that has other states too it would select half.
    if hasattr(layer, "recurrent_states"):
        layer.reorder_cache(rows)
    else:
        layer.batch_select_indices(rows)


def can_append(cache: DynamicCache) -> bool:
    """Whether every layer is plain, so that rows of two caches of equal length can be put together."""
    return all(isinstance(layer, TreeLayer | PagedLayer) for layer in cache.layers)


def append_rows(cache: DynamicCache, other: DynamicCache, rows: Ints) -> None:
    """Put the given rows of ``other`` below those of ``cache``, in place; ``other`` stays as it was."""
    if (paged := _paged(cache)) is not None:
        added = _paged(other)
        assert added is not None
        assert added.pool is paged.pool
        paged.nodes = np.concatenate([paged.nodes, added.nodes[rows]])
        return
    chosen = torch.from_numpy(rows).to(cache.layers[0].device)
    for mine, theirs in zip(cache.layers, other.layers, strict=True):
        mine.append_rows(theirs, chosen)


def _paged(cache: DynamicCache) -> Rows | None:
    """The rows of a cache whose layers have their nodes in a pool."""
    layer = cache.layers[0]
    return layer.rows if isinstance(layer, PagedLayer) else None


def _rows(cache: DynamicCache) -> int:
    layer = cache.layers[0]
    states = [*getattr(layer, "conv_states", {}).values(), *getattr(layer, "recurrent_states", {}).values()]
    first = next((state for state in states if state is not None), None)
    return int((layer.keys if first is None else first).shape[0])
