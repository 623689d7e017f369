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


def results(
    pool: ProcessPoolExecutor, function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], ahead: int | None
) -> Iterator[Result]:
    """What ``function`` returns for each call, as they end; ``ahead`` bounds how many are handed out at once."""
    waiting = iter(calls)
    running: set[Future[Result]] = set()
    while True:
        room = None if ahead is None else ahead - len(running)
        running |= {pool.submit(function, *call) for call in islice(waiting, room)}
        if not running:
            return
        ended, running = wait(running, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in ended)
