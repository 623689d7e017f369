"""Worker processes: as many as there are cores, ended with their parent, and their results as they come."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from knowshift.system.patches import processes_of

Result = TypeVar("Result")


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def process_pool(workers: int, begin: Callable[..., None] | None = None, *given: Any) -> Iterator[ProcessPoolExecutor]:
    """Processes that each call ``begin(*given, number)`` first, with a number of its own from 0.

    They are spawned: torch's threads do not survive a fork. When the block ends by an error or an interrupt, they are
    terminated and waiting calls are dropped.
    """
    context = multiprocessing.get_context("spawn")
    numbers = context.Value("i", 0)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(numbers, begin, given))
    try:
        yield pool
    except BaseException:
        for process in processes_of(pool):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _start(numbers: Any, begin: Callable[..., None] | None, given: tuple[Any, ...]) -> None:
    """A worker ignores interrupts, which its parent handles, and ends when the parent is gone, however that ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    if begin is not None:
        with numbers.get_lock():
            number = numbers.value
            numbers.value += 1
        begin(*given, number)


class Tally:
    """Whole numbers that processes add to and any of them reads; workers get it when they begin."""

    def __init__(self, size: int) -> None:
        self._counts = multiprocessing.get_context("spawn").Array("q", size)

    def add(self, *more: int) -> None:
        """Add to each of the numbers."""
        with self._counts.get_lock():
            for i, one in enumerate(more):
                self._counts[i] += one

    def read(self) -> tuple[int, ...]:
        with self._counts.get_lock():
            return tuple(self._counts[:])


def results(
    pool: ProcessPoolExecutor,
    function: Callable[..., Result],
    calls: Iterable[tuple[Any, ...]],
    ahead: int | None,
    *,
    meanwhile: Callable[[], None] = lambda: None,
    every: float | None = None,
) -> Iterator[Result]:
    """What ``function`` returns for each call, as they end.

    Args:
        ahead: bounds how many calls are handed out at once.
        meanwhile: is called after each wait of ``every`` seconds.
    """
    waiting = iter(calls)
    running: set[Future[Result]] = set()
    while True:
        room = None if ahead is None else ahead - len(running)
        running |= {pool.submit(function, *call) for call in islice(waiting, room)}
        if not running:
            return
        ended, running = wait(running, timeout=every, return_when=FIRST_COMPLETED)
        meanwhile()
        yield from (future.result() for future in ended)
