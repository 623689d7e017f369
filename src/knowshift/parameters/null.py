"""The no-signal null of a change: each tensor's own |p| with its own |s - p| of other places, paired at random."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from knowshift.parameters.selection import criteria
from knowshift.parameters.tensors import WeightPair, single

#: Weights within which the null pairs at random; larger tensors also have their blocks paired at random.
NULL_BLOCK = 1 << 20


def null_relative(pair: WeightPair, seed: int, tensor: int, start: int, stop: int) -> NDArray[np.float32]:
    """r of the null for one piece: its own |p| with the |s - p| of other places of the same tensor.

    Full blocks of ``NULL_BLOCK`` weights are permuted among each other, and positions inside a block are permuted, in
    all full blocks of a tensor alike; the last, shorter block is permuted in itself. All seeded, and independent of
    the piece size.
    """
    parts = []
    size = pair.sizes[tensor]
    while start < stop:
        block = start // NULL_BLOCK
        first = block * NULL_BLOCK
        end = min(stop, first + NULL_BLOCK)
        length = min(NULL_BLOCK, size - first)
        source = _partner(seed, pair.names[tensor], block, size // NULL_BLOCK) * NULL_BLOCK
        order = _order(seed, pair.names[tensor], length)[start - first : end - first]
        p, s = pair.read(tensor, source, source + length)
        change = criteria.keys("absolute", p, s).view(np.float32)
        own, _ = pair.read(tensor, start, end)
        parts.append(criteria.ratio(change.take(order), np.abs(single(own))))
        start = end
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@lru_cache(maxsize=4)
def _order(seed: int, name: str, length: int) -> NDArray[np.int64]:
    return _generator(seed, name, 1).permutation(length)


@lru_cache(maxsize=64)
def _partners(seed: int, name: str, blocks: int) -> list[int]:
    return [int(block) for block in _generator(seed, name, 0).permutation(blocks)]


def _partner(seed: int, name: str, block: int, blocks: int) -> int:
    return block if block >= blocks else _partners(seed, name, blocks)[block]


def _generator(seed: int, name: str, part: int) -> np.random.Generator:
    word = hashlib.sha256(f"null\0{seed}\0{name}\0{part}".encode()).digest()
    return np.random.default_rng(int.from_bytes(word, "little"))
