"""A Ray cluster that does the units of a study, and does again what a worker or a node took with it.

Ray ends the process that is connected to a cluster when the cluster's head is gone. So a process of its own is
connected, and this one says in a line what became of it. A task has no retries of Ray's: it would also repeat, without
end, a unit that takes more memory than any node has.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import socket
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from knowshift.errors import InputError, KnowshiftWarning, border, cause_of
from knowshift.remote import RemoteRun
from knowshift.studies.config import StudyConfig
from knowshift.studies.plan import PACKAGES, Unit
from knowshift.studies.work import do_unit
from knowshift.system.patches import processes_of
from knowshift.system.workers import after_death, process_pool
from knowshift.tasks.other import OWN
from knowshift.version import __version__

Result = TypeVar("Result")

#: Seconds in which a head must take a connection, and in which Ray must then be connected, or started here.
ANSWER, CONNECT = 10.0, 120.0
#: Seconds until what one node has written must be seen by another: network file systems remember what was not there.
SEEN = 60.0


class RayCluster:
    """The cluster of ``RAY_ADDRESS``, or one that is started on this machine; a context, at whose end it is left.

    Raises:
        InputError: Ray is not installed, does not answer, or cannot be started; later, that it has ended.
    """

    def __init__(self, place: Path | str, config: StudyConfig) -> None:
        self._place, self._config = place.absolute() if isinstance(place, Path) else place, config
        self._open = ExitStack()
        self._address: str | None = None
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> RayCluster:
        if importlib.util.find_spec("ray") is None:
            raise InputError("--executor ray needs Ray: pip install 'knowshift[ray]'")
        self._address = _address()
        if self._address is not None:
            _check_answers(self._address)
        with ExitStack() as stack:
            self._pool = stack.enter_context(process_pool(1, imports=__name__))
            connecting = self._call(_connect, self._address, self._place, self._config)
            try:
                lacking = self._result(connecting, CONNECT)
            except TimeoutError:
                for process in processes_of(self._pool):
                    process.kill()  # Ray looks for an order to end once in a while
                raise InputError(
                    f"{self._where}: not connected in {CONNECT:.0f} s; `ray status` there may say why"
                ) from None
            if lacking:
                warnings.warn(KnowshiftWarning(f"{self._where}: {lacking}"), stacklevel=2)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._result(self._call(_disconnect), CONNECT)
        except (InputError, TimeoutError):  # all is done: how Ray ends changes nothing
            pass
        finally:
            self._open.__exit__(kind, error, trace)

    @property
    def _where(self) -> str:
        return f"Ray at {self._address}" if self._address else "Ray on this machine"

    def do(self, units: Sequence[Unit]) -> Iterator[tuple[str, float]]:
        """(title, seconds) of the units as they end.

        Raises:
            InputError: what the unit refuses, with the node's name; that workers died of one unit again and again;
                that what nodes have written is not seen here; that the cluster has ended.
        """
        self._result(self._call(_hand_out, list(range(len(units))), units))
        left, deaths = len(units), Counter[str]()
        while left:
            again: list[int] = []
            for number, seconds, death in self._result(self._call(_ended)):
                unit = units[number]
                if seconds is None:
                    deaths[unit.title] += 1
                    after_death(unit.title, death, deaths[unit.title])
                    again.append(number)
                    continue
                if not _comes_true(partial(_is_done, unit, self._place)):
                    raise InputError(
                        f"{self._place}: {unit.title} was done on another node, and is not seen here after "
                        f"{SEEN:.0f} s; expected a folder that all nodes share"
                    )
                left -= 1
                yield unit.title, seconds
            if again:
                self._result(self._call(_hand_out, again, [units[number] for number in again]))

    def _call(self, function: Callable[..., Result], *given: Any) -> Future[Result]:
        assert self._pool is not None
        try:
            return self._pool.submit(function, *given)
        except BrokenProcessPool:
            raise self._gone() from None

    def _result(self, future: Future[Result], seconds: float | None = None) -> Result:
        try:
            return future.result(seconds)
        except BrokenProcessPool:
            raise self._gone() from None

    def _gone(self) -> InputError:
        return InputError(
            f"{self._where}: ended, or the node that this process runs on was cut off from it; what is done stays, "
            "the same command goes on once it runs"
        )


def _address() -> str | None:
    """Of the cluster that this process is connected to, or was told of; None where one is to be started."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return str(ray.get_runtime_context().gcs_address)
    return os.environ.get("RAY_ADDRESS")


def _check_answers(address: str) -> None:
    """Refuse at once an address where nothing listens: Ray would wait for minutes, and without end behind a proxy."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():  # "auto", "local"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"RAY_ADDRESS {address}: no Ray head answers there ({cause_of(error)}); expected HOST:PORT of "
            "`ray start --head`"
        ) from None


def _is_done(unit: Unit, place: Path | str) -> bool:
    if isinstance(place, Path):
        return not unit.missing(place)
    remote = RemoteRun(place)
    remote.follow(cell.name for cell in unit.cells)
    return not unit.missing(remote.local)


def _is_begun(place: Path | str) -> bool:
    """Whether the manifest is seen, which is written before any unit is handed out."""
    if isinstance(place, Path):
        return (place / "manifest.json").is_file()
    return RemoteRun(place).fetch_file("manifest.json")


def _comes_true(seen: Callable[[], bool]) -> bool:
    """Whether something is seen on a file system that may remember for a while what was not there."""
    until = time.monotonic() + SEEN
    while not seen():
        if time.monotonic() > until:
            return False
        time.sleep(1)
    return True


# -- in the process that is connected -----------------------------------------------------------------------------

_task: Callable[[Unit], Any] | None = None
_pending: dict[Any, int] = {}  # numbers of units by the references of their results


def _connect(address: str | None, place: Path | str, config: StudyConfig) -> str:
    """Connect, or start Ray; what the cluster lacks for a unit as it is now, or an empty text."""
    global _task
    nowhere = os.open(os.devnull, os.O_WRONLY)  # what libraries of Ray write when they end this process
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    with border(f"{f'Ray at {address}' if address else 'Ray on this machine'}: cannot be used"):
        import ray

        ray.init(address=address, log_to_driver=False)
        shards = config.shards  # of one unit: it holds their devices while it measures too
        gpus, cpus = (0 if config.device.split(":")[0] == "cpu" else shards), config.threads * shards
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    versions = _versions(config)
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_calls=0, max_retries=0)(_on_node)
    _task = lambda unit: remote.remote(place, config, unit, versions)  # noqa: E731
    if any(node.get("GPU", 0) >= gpus and node.get("CPU", 0) >= cpus for node in nodes):
        return ""
    wanted = f"{cpus} CPU" + (f" and {gpus} GPU" if gpus else "")
    return f"no node has {wanted} for a unit now; the study waits for one"


def _hand_out(numbers: Sequence[int], units: Sequence[Unit]) -> None:
    assert _task is not None
    for number, unit in zip(numbers, units, strict=True):
        _pending[_task(unit)] = number


def _ended() -> list[tuple[int, float | None, str]]:
    """Wait for units to end: (number, seconds, "") of each, or (number, None, how its worker died)."""
    import ray

    ended: list[tuple[int, float | None, str]] = []
    for reference in ray.wait(list(_pending))[0]:
        number = _pending.pop(reference)
        try:
            ended.append((number, ray.get(reference), ""))
        except ray.exceptions.RayTaskError as failure:
            cause: BaseException = failure.cause
            if not isinstance(cause, InputError):
                cause.add_note(str(failure))  # the lines of the node, which no traceback here would show
            raise cause from None
        except ray.exceptions.OutOfMemoryError:
            ended.append((number, None, "was ended by Ray, because its node ran out of memory"))
        except ray.exceptions.NodeDiedError:
            ended.append((number, None, "was on a node that left the cluster"))
        except ray.exceptions.WorkerCrashedError:
            ended.append((number, None, "was killed, or its node left the cluster"))
        except ray.exceptions.RayError as failure:
            ended.append((number, None, f"was lost: {cause_of(failure)}"))
    return ended


def _disconnect() -> None:
    import ray

    ray.shutdown()


# -- on a node ----------------------------------------------------------------------------------------------------


def _versions(config: StudyConfig) -> dict[str, str]:
    """What must be the same on all nodes, for their records to be those of one process."""
    names = [*PACKAGES, *([] if set(config.restoration.tasks) <= set(OWN) else ["lm_eval"])]
    versions = {"knowshift": __version__}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none"
    return versions


def _on_node(place: Path | str, config: StudyConfig, unit: Unit, versions: dict[str, str]) -> float:
    """Do a unit; seconds taken. What is refused names the node."""
    try:
        for name, here in _versions(config).items():
            if here != versions[name]:
                raise InputError(f"{name} {here}, but {versions[name]} where the study was started; expected the same")
        if not _comes_true(partial(_is_begun, place)):
            raise InputError(f"{place}: no manifest.json is seen there; expected a run folder that all nodes share")
        return do_unit(place, config, None, unit)[1]
    except InputError as error:
        raise InputError(f"node {platform.node()}: {error}") from None
