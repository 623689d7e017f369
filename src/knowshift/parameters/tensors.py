"""Where weights are read from: one small interface, so that the same measures serve loaded and stored models.

A reader gives any stretch of a tensor as a flat piece: a numpy array, of ``ml_dtypes.bfloat16`` where that is stored.
Comparing checkpoints on disk thus needs no torch, whose import takes a second. Work is done piece by piece, in bounded
memory, by one or several threads (numpy, file reads and compiled loops release the interpreter's lock), and results
come back in order: they do not depend on the size of a piece or the number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from knowshift.system.threads import single_threaded
from knowshift.system.workers import cores

Array: TypeAlias = NDArray[Any]
BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)

#: Weights in a piece: few enough for a core's cache, enough that threads seldom wait for the interpreter's lock.
PIECE = 1 << 19

#: (tensor, start, stop): a stretch of the ``tensor``-th tensor of a region.
Stretch = tuple[int, int, int]
#: Runs a function over stretches and yields its results in order.
Runner = Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], Iterator[Any]]


class TensorReader(Protocol):
    """Tensors by name, a stretch at a time."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name to shape of every tensor."""

    def read(self, name: str, start: int, stop: int) -> Array:
        """Weights ``start:stop`` of the flattened tensor, in the dtype in which they are held. Not to be changed."""


class RenamedTensors:
    """Another reader's tensors under other names: new name -> old name."""

    def __init__(self, reader: TensorReader, origin: Mapping[str, str]) -> None:
        self._reader, self._origin = reader, origin
        self.shapes: Mapping[str, tuple[int, ...]] = {new: reader.shapes[old] for new, old in origin.items()}

    def read(self, name: str, start: int, stop: int) -> Array:
        return self._reader.read(self._origin[name], start, stop)


@dataclass(frozen=True)
class WeightPair:
    """Two readers and the tensors compared, in ranking order (sorted names)."""

    base: TensorReader
    tuned: TensorReader
    names: Sequence[str]
    strict: bool = True  # refuse weights that are NaN or infinite

    @property
    def sizes(self) -> list[int]:
        return [number_of(self.tuned.shapes[name]) for name in self.names]

    def read(self, tensor: int, start: int, stop: int) -> tuple[Array, Array]:
        """(base, tuned) of one stretch, flat, as stored."""
        name = self.names[tensor]
        return self.base.read(name, start, stop), self.tuned.read(name, start, stop)


def as_dtype(dtype: np.dtype[Any], values: Array) -> Array:
    """Rounded to a dtype; what it cannot hold is infinite."""
    with np.errstate(over="ignore"):
        return values.astype(dtype, copy=False)


def single(values: Array) -> NDArray[np.float32]:
    """Weights as float32, in which everything is compared; shape as given."""
    return as_dtype(np.dtype(np.float32), values)


def number_of(shape: Sequence[int]) -> int:
    """How many weights a shape holds."""
    number = 1
    for extent in shape:
        number *= extent
    return number


def stretches(sizes: Sequence[int], piece: int = PIECE) -> Iterator[Stretch]:
    """Every tensor cut into stretches of at most ``piece`` weights, in ranking order."""
    for tensor, size in enumerate(sizes):
        for start in range(0, size, piece):
            yield tensor, start, min(start + piece, size)


@contextmanager
def workers(threads: int | None = None) -> Iterator[Runner]:
    """Give ``run(function, items)``, which yields ``function(*item)`` in order, a few items ahead.

    ``threads`` is by default one for each core.
    """
    number = threads or cores()
    pool = ThreadPoolExecutor(number) if number > 1 else None

    def run(function: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        if pool is None:
            for item in items:
                yield function(*item)
            return
        ahead: deque[Future[Any]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(function, *item))
                if len(ahead) > 4 * number:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:  # left early: calls that have not begun are cancelled, the others are waited for
            for future in ahead:
                future.cancel()
            for future in ahead:
                if not future.cancelled():
                    future.exception()

    with single_threaded():
        try:
            yield run
        finally:
            if pool is not None:
                pool.shutdown(cancel_futures=True)
