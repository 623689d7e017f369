"""Worker processes: as many as there are cores, ended with their parent, and their results as they come."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, TypeVar

from knowshift.errors import InputError, KnowshiftWarning
from knowshift.system import patches

Result = TypeVar("Result")

#: Workers that one piece of work may take with it before it is refused.
MOST_DEATHS = 3

#: What the process that is forked imports before and after all else.
_BEFORE, _AFTER = "knowshift.system.forked.before", "knowshift.system.forked.after"

_opened = [0]  # pools, in this process

#: Where Linux shows GPUs: NVIDIA's, AMD's, those of Windows below it.
_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_context() -> BaseContext:
    """How workers are started: never as a fork of this process, whose threads would be missing.

    Importing torch and transformers takes seconds. Where there is no GPU, a process is kept that has only imported
    them, and workers are forks of that one, for all pools of this process. With a GPU they are spawned: what looks for
    GPUs while it is imported leaves forks without them. So they are where a library of the system may have started
    threads (macOS), and where nothing forks (Windows). Libraries keep in forks what they read from the environment when
    they were imported.
    """
    forks = sys.platform == "linux" and not any(map(os.path.exists, _GPUS))
    return patches.processes_as("forkserver" if forks else "spawn")


@contextmanager
def process_pool(
    workers: int, begin: Callable[..., None] | None = None, *given: Any, imports: str = __name__
) -> Iterator[ProcessPoolExecutor]:
    """Processes that each call ``begin(*given, number)`` first, with a number of its own from 0.

    When the block ends by an error or an interrupt, they are terminated and waiting calls are dropped.

    Args:
        imports: the module that workers need, whose import takes long.
    """
    context = worker_context()
    _opened[0] += 1
    if context.get_start_method() == "forkserver":
        import_once(imports)
    numbers = context.Value("i", 0)
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start, initargs=(numbers, dict(os.environ), begin, given)
    )
    try:
        yield pool
    except BaseException:
        for process in patches.processes_of(pool):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def import_once(module: str) -> None:
    """Start the process that is forked, if none has been, with a module imported from where this process would.

    Python does not tell it the path of this process, and another installation would be imported. What a program that
    forks workers of its own has asked to be imported stays as it is.
    """
    from multiprocessing import forkserver  # where there are forks

    if patches.preloaded() == ["__main__"]:
        forkserver.set_forkserver_preload([_BEFORE, module, _AFTER])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextmanager
def imported_beside(module: str) -> Iterator[None]:
    """Within the block, the process that is forked imports a module while this one does other things.

    So a command waits once for imports that both need. Where no pool has been opened by the end of the block, the
    process is ended if it was started here: it has this one's output open, and who reads that would wait for it.
    """
    forks = worker_context().get_start_method() == "forkserver"
    begins = forks and cores() > 1 and patches.forked_process() is None
    opened = _opened[0]
    if begins:
        import_once(module)
    try:
        yield
    finally:
        if begins and _opened[0] == opened and (process := patches.forked_process()) is not None:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(process, signal.SIGKILL)
                os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)  # the next pool must see that it is gone


def _start(
    numbers: Any, environment: Mapping[str, str], begin: Callable[..., None] | None, given: tuple[Any, ...]
) -> None:
    """A worker ignores interrupts, which its parent handles, and ends when the parent is gone, however that ended.

    Its environment is the parent's of now, and not of when the process was started that it is a fork of.
    """
    if dict(os.environ) != environment:
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None  # what it says of it is asked again
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
        self._counts = worker_context().Array("q", size)

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


def after_death(what: str, how: str, deaths: int) -> None:
    """Say that the worker of a piece of work died and another does it; refuse it after :data:`MOST_DEATHS`.

    Raises:
        InputError: it has taken so many workers with it.
    """
    if deaths >= MOST_DEATHS:
        raise InputError(
            f"{what}: {deaths} workers died of it, the last one {how}; what is done stays, the same command goes on"
        )
    warnings.warn(KnowshiftWarning(f"{what}: its worker {how}; it is done again"), stacklevel=3)


class LastingPool:
    """Processes with one call each at a time. One that dies costs its call alone, which another process repeats.

    In one pool of several processes the death of one ends all of them, and does not tell whose call it was. Use it as
    a context; :func:`process_pool` says what happens at its end.

    Args:
        imports: the module that workers need, whose import takes long.
    """

    def __init__(self, workers: int, imports: str) -> None:
        self._imports = imports
        self._pools: list[ProcessPoolExecutor | None] = [None] * workers
        self._open = ExitStack()

    def __enter__(self) -> LastingPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def results(
        self, function: Callable[..., Result], calls: Sequence[tuple[Any, ...]], names: Sequence[str]
    ) -> Iterator[Result]:
        """What ``function`` returns for each call, as they end; ``names`` tell calls apart in messages.

        Raises:
            InputError: a call that :data:`MOST_DEATHS` processes died of. What ``function`` raises passes as it is.
        """
        waiting = deque(zip(names, calls, strict=True))
        free = list(range(len(self._pools)))
        running: dict[Future[Result], tuple[int, list[BaseProcess], str, tuple[Any, ...]]] = {}
        deaths: Counter[str] = Counter()
        while waiting or running:
            while free and waiting:
                place, (name, call) = free.pop(0), waiting.popleft()
                future = self._submit(place, function, call)
                running[future] = place, self._processes(place), name, call
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                place, processes, name, call = running.pop(future)
                free.append(place)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    self._pools[place] = None
                    deaths[name] += 1
                    after_death(name, how_ended(processes), deaths[name])
                    waiting.appendleft((name, call))
                else:
                    yield result

    def _submit(self, place: int, function: Callable[..., Result], call: tuple[Any, ...]) -> Future[Result]:
        """Hand a call to the process of this place, or to a new one where that has died since its last call."""
        if (pool := self._pools[place]) is not None:
            try:
                return pool.submit(function, *call)
            except BrokenProcessPool:
                pass
        pool = self._pools[place] = self._open.enter_context(process_pool(1, imports=self._imports))
        return pool.submit(function, *call)

    def _processes(self, place: int) -> list[BaseProcess]:
        pool = self._pools[place]
        return [] if pool is None else patches.processes_of(pool)


def how_ended(processes: Sequence[BaseProcess]) -> str:
    """How a worker ended."""
    for process in processes:
        process.join(10)
        code = process.exitcode
        if code == -signal.SIGKILL:
            return "was killed, as the system does where memory runs out"
        if code is not None and code < 0:
            return f"was ended by signal {-code}"
        if code is not None:
            return f"ended with status {code}"
    return "died"
