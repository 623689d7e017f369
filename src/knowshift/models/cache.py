"""A key-value cache whose rows are the nodes of a prefix tree: rows are chosen, repeated and dropped at every step.

``DynamicCache`` copies everything twice a step, once to choose rows and once to append. Here a row keeps room for
the tokens to come, so appending writes in place, and choosing copies each row once, as one piece of memory.
Layers that are not plain (sliding windows, convolution states) keep the implementation of transformers.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

#: Rows grow by this many token positions at a time.
ROOM = 8


class TreeLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, stored as [rows, room, heads, width] and shown as [rows, heads, length, width]."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stored: list[torch.Tensor] = []
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        rows, heads, _, _ = key_states.shape
        self.stored = [new.new_empty((rows, 0, heads, new.shape[-1])) for new in (key_states, value_states)]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self.length, self.length + key_states.shape[-2]
        shown = []
        for which, new in enumerate((key_states, value_states)):
            old = self.stored[which]
            if end > old.shape[1]:
                grown = old.new_empty((old.shape[0], end + ROOM, *old.shape[2:]))
                grown[:, :start] = old[:, :start]
                self.stored[which] = old = grown
            old[:, start:end] = new.transpose(1, 2)
            shown.append(old[:, :end].transpose(1, 2))
        self.length = end
        self.keys, self.values = shown
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.stored = [old.index_select(0, indices) for old in self.stored]
        self._show()

    def append_rows(self, other: TreeLayer) -> None:
        """Put the rows of ``other``, whose length is the same, below these."""
        assert self.length == other.length
        kept = slice(0, self.length)
        self.stored = [torch.cat([a[:, kept], b[:, kept]]) for a, b in zip(self.stored, other.stored, strict=True)]
        self._show()

    def _show(self) -> None:
        self.keys, self.values = (old[:, : self.length].transpose(1, 2) for old in self.stored)


def tree_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for a model of this config, its plain layers replaced by :class:`TreeLayer`."""
    cache = DynamicCache(config=config)
    if cache.layers:
        cache.layers = [TreeLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    else:
        cache.layer_class_to_replicate = TreeLayer
    return cache


def pick_rows(cache: DynamicCache, rows: torch.Tensor) -> DynamicCache:
    """A cache of the given rows of ``cache``, in that order, repeats allowed; ``cache`` itself stays as it was."""
    picked = copy.copy(cache)
    picked.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in picked.layers:
        layer.batch_select_indices(rows)
    return picked


def can_append(cache: DynamicCache) -> bool:
    """Whether every layer is plain, so that rows of two caches of equal length can be put together."""
    return all(isinstance(layer, TreeLayer) for layer in cache.layers)


def append_rows(cache: DynamicCache, other: DynamicCache) -> None:
    """Put the rows of ``other`` below those of ``cache``, in place."""
    for mine, theirs in zip(cache.layers, other.layers, strict=True):
        mine.append_rows(theirs)
