"""Who measures a run: this process, or several that each open the engine once and stay until the run ends."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from types import TracebackType

from knowshift.errors import InputError, said_before
from knowshift.models.loading import LoadedModel
from knowshift.probing.engines import EngineSpec
from knowshift.probing.measure import Engine
from knowshift.system.workers import Tally, process_pool


class Crew:
    """This process and, from when they are needed, ``workers`` others; a context, at whose end they are gone."""

    def __init__(self, spec: EngineSpec, engine: LoadedModel | Engine | None, workers: int) -> None:
        """``engine`` is what this process has opened; None where it is to open one only if it measures itself."""
        self.spec, self.workers = spec, workers
        self._opened = engine
        self._pool: tuple[ProcessPoolExecutor, Tally] | None = None
        self._open = ExitStack()

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    @property
    def engine(self) -> LoadedModel | Engine:
        """That of this process."""
        if self._opened is None:
            self._opened = _open_again(self.spec)
        return self._opened

    def pool(self, pieces: int) -> tuple[ProcessPoolExecutor, Tally] | None:
        """Processes for so many pieces of work, and what they count; None where this process does it alone."""
        if self._pool is None and (processes := min(self.workers, pieces)) > 1:
            tally = Tally(2)
            self._pool = (
                self._open.enter_context(process_pool(processes, _begin, self.spec, tally, imports=__name__)),
                tally,
            )
        return self._pool


def _open_again(spec: EngineSpec, worker: int = 0) -> LoadedModel | Engine:
    """Open an engine that this run has opened before, and warned of."""
    with said_before():
        return spec.open(worker)


_engine: LoadedModel | Engine | InputError | None = None  # in a worker: its engine, or why it could not be opened
_tally: Tally | None = None  # in a worker: what all of them have done


def _begin(spec: EngineSpec, tally: Tally, worker: int) -> None:
    global _engine, _tally
    _tally = tally
    try:
        _engine = _open_again(spec, worker)
    except InputError as error:  # raised here, it would only say that the pool is broken
        _engine = error


def of_worker() -> tuple[LoadedModel | Engine, Tally]:
    """In a worker: the engine that it opened, or the :class:`InputError` of one that could not be; and the count."""
    assert _engine is not None
    assert _tally is not None
    if isinstance(_engine, InputError):
        raise _engine
    return _engine, _tally
