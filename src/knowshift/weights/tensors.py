"""Where weights are read from: one small interface, so that the same measures serve loaded and stored models.

A reader gives any stretch of a tensor as a flat piece. Work is done piece by piece, in bounded memory, by one or
several threads (torch, numpy and file reads release the interpreter's lock), and results come back in order: they do
not depend on the size of a piece or the number of threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

#: Weights in a piece: its working set stays near a core's cache, and what threads wait for the interpreter small.
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

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Weights ``start:stop`` of the flattened tensor, in the dtype in which they are held. Not to be changed."""


class LoadedTensors:
    """Tensors that are in memory: a state dict, or :func:`parameters_of` a model."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.shapes: Mapping[str, tuple[int, ...]] = {name: tuple(t.shape) for name, t in tensors.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return self._tensors[name].detach().reshape(-1)[start:stop]


class RenamedTensors:
    """Another reader's tensors under other names: new name -> its own."""

    def __init__(self, reader: TensorReader, origin: Mapping[str, str]) -> None:
        self._reader, self._origin = reader, origin
        self.shapes: Mapping[str, tuple[int, ...]] = {new: reader.shapes[old] for new, old in origin.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return self._reader.read(self._origin[name], start, stop)


def parameters_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """A model's parameters by name, tied ones once; they share memory with the model."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def copy_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of a model's parameters on the CPU: what a base leaves behind before it is fine-tuned."""
    return {name: parameter.to("cpu", copy=True) for name, parameter in parameters_of(model).items()}


@dataclass(frozen=True)
class WeightPair:
    """Two readers and the tensors compared, in ranking order (sorted names)."""

    base: TensorReader
    tuned: TensorReader
    names: Sequence[str]
    device: torch.device | None = None  # where scores are computed; None: where the tuned tensor lies
    strict: bool = True  # refuse weights that are NaN or infinite

    @property
    def sizes(self) -> list[int]:
        return [number_of(self.tuned.shapes[name]) for name in self.names]

    def read(self, tensor: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(base, tuned) of one stretch, flat, as stored, on one device."""
        name = self.names[tensor]
        tuned = self.tuned.read(name, start, stop)
        if self.device is not None:
            tuned = tuned.to(self.device)
        return self.base.read(name, start, stop).to(tuned.device), tuned


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


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def workers(threads: int | None = None) -> Iterator[Runner]:
    """Give ``run(function, items)``, which yields ``function(*item)`` in order, a few items ahead.

    ``threads`` is by default one for each core. torch computes each piece on one core while this is open, and as
    before afterwards.
    """
    number = threads or cores()
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(number, initializer=torch.set_num_threads, initargs=(1,)) if number > 1 else None
    torch.set_num_threads(1)  # here too: OpenMP's idle threads would spin and take the workers' cores

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
        finally:  # left early: what has not begun is dropped, what has is waited for
            for future in ahead:
                future.cancel()
            for future in ahead:
                if not future.cancelled():
                    future.exception()

    try:
        yield run
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
