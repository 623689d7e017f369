"""A group of processes that do the same work together, each with a device of its own.

Every process of a group runs the same code on the same inputs and meets the others wherever they add up parts of a
result. So whatever decides what comes next must be the same in all: :func:`decided` gives all of them the value of the
first. Outside of a group all functions here are those of a process that is alone.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from knowshift.errors import InputError
from knowshift.system.patches import processes_of
from knowshift.system.workers import how_ended, process_pool

Value = TypeVar("Value")

#: How long a process waits for the others: one of them may compare weights for hours meanwhile.
PATIENCE = timedelta(days=365)
#: Seconds in which the others tell what they have seen, after one has failed.
TOLD = 5.0

_number, _size = 0, 1  # of this process in its group, and of the group


# In a process of a group.


def size() -> int:
    """Processes of this one's group; 1 outside of a group."""
    return _size


def number() -> int:
    """This process's number in its group, from 0."""
    return _number


def is_first() -> bool:
    """Whether this process is the one that decides and writes."""
    return _number == 0


def own_device(device: str) -> str:
    """The device of this process: the GPU of its number."""
    return f"cuda:{_number}" if _size > 1 and device == "cuda" else device


def decided(value: Value) -> Value:
    """The first process's value, in all of them, which wait for it. It must be pickled; None for a mere meeting."""
    if _size == 1:
        return value
    import torch.distributed as dist

    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def _join(number: int, processes: int, kind: str, meeting: str) -> None:
    """Make this process one of a group; the others are met by a file."""
    global _number, _size
    import torch
    import torch.distributed as dist

    if kind == "cuda":
        torch.cuda.set_device(number)
    if number:
        # What is said of the work is said once.
        warnings.simplefilter("ignore")
        from transformers.utils import logging

        logging.set_verbosity_error()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{meeting}",
        rank=number,
        world_size=processes,
        timeout=PATIENCE,
    )
    _number, _size = number, processes


def _leave() -> None:
    import torch.distributed as dist

    dist.destroy_process_group()


# In the process that has work for a group.


class ProcessGroup:
    """Processes that do each piece of work together. Where one of them fails or dies, all are ended.

    Args:
        device: "cpu" or "cuda"; on GPUs the n-th process has the n-th GPU that this process sees.
        imports: the module that they need, whose import takes long.
    """

    def __init__(self, processes: int, device: str, imports: str) -> None:
        self._stack = ExitStack()
        self._pools: list[ProcessPoolExecutor] = []
        self.size, self._device, self._imports = processes, device, imports

    def do(self, what: str, function: Callable[..., Value], *given: Any) -> Value:
        """What ``function(*given)`` returns in the first process, when all have returned; ``what`` names it.

        Raises:
            InputError: what it raises; that a process was killed. The next call starts the group anew.
        """
        if not self._pools:
            self._start(what)
        results: list[Value] = self._all(what, function, [given] * self.size)
        return results[0]

    def end(self) -> None:
        """End the processes, which are idle."""
        if self._pools:
            with suppress(RuntimeError):  # this process ends, and its pools have
                self._all("the group", _leave, [()] * self.size)
        self._pools = []
        self._stack.close()

    def _start(self, what: str) -> None:
        scratch = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="knowshift-group-"))
        before = os.environ.get("PYTHONHASHSEED")
        os.environ["PYTHONHASHSEED"] = before or "0"  # sets have one order in all
        try:
            for _ in range(self.size):
                self._pools.append(self._stack.enter_context(process_pool(1, imports=self._imports)))
            meeting = str(Path(scratch) / "meeting")
            kind = self._device.split(":")[0]
            self._all(what, _join, [(number, self.size, kind, meeting) for number in range(self.size)])
        finally:
            if before is None:
                del os.environ["PYTHONHASHSEED"]

    def _all(self, what: str, function: Callable[..., Any], given: list[tuple[Any, ...]]) -> list[Any]:
        """Results of the processes, in their order."""
        try:
            futures = [pool.submit(function, *own) for pool, own in zip(self._pools, given, strict=True)]
            processes = [processes_of(pool) for pool in self._pools]  # a pool that is broken does not tell
            if any(future.exception() for future in wait(futures, return_when=FIRST_EXCEPTION).done):
                wait(futures, timeout=TOLD)
                raise self._failure(what, futures, processes)
        except BaseException as error:
            self._pools, stack, self._stack = [], self._stack, ExitStack()
            stack.__exit__(type(error), error, error.__traceback__)
            raise
        return [future.result() for future in futures]

    def _failure(self, what: str, futures: list[Future[Any]], processes: list[list[BaseProcess]]) -> BaseException:
        """Of all failures the one that the others follow from."""
        failed = [(n, error) for n, one in enumerate(futures) if one.done() and (error := one.exception())]
        for number, error in failed:
            if isinstance(error, BrokenProcessPool):
                return InputError(
                    f"{what}: one of its {self.size} processes {how_ended(processes[number])}; "
                    "what is done stays, the same command goes on"
                )
        return next((error for _, error in failed if isinstance(error, InputError)), failed[0][1])
