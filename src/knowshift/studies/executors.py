"""Executors: ways to do the units of a plan, in this process, in several, or on a Ray cluster.

Each yields (title, seconds) of the units as they end, in any order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from knowshift.errors import InputError
from knowshift.models.finding import ModelFiles
from knowshift.studies.config import StudyConfig
from knowshift.studies.plan import Unit
from knowshift.studies.work import Worker
from knowshift.system.workers import process_pool, results

Do = Callable[[Sequence[Unit]], Iterator[tuple[str, float]]]

_WORKER: Worker | None = None


def _worker(run: Path, config: StudyConfig, found: ModelFiles | None) -> Worker:
    """This process's worker: made once, so that a base model is loaded once."""
    global _WORKER
    if _WORKER is None or (_WORKER.run, _WORKER.config, _WORKER.found) != (run, config, found):
        _WORKER = Worker(run, config, found)
    return _WORKER


def _do(run: Path, config: StudyConfig, found: ModelFiles | None, unit: Unit) -> tuple[str, float]:
    return unit.title, _worker(run, config, found).do(unit)


@contextmanager
def here(run: Path, config: StudyConfig, found: ModelFiles | None, workers: int) -> Iterator[Do]:
    yield lambda units: (_do(run, config, found, unit) for unit in units)


@contextmanager
def processes(run: Path, config: StudyConfig, found: ModelFiles | None, workers: int) -> Iterator[Do]:
    # One pool for all stages: starting a worker takes seconds.
    with process_pool(workers, imports=__name__) as pool:
        yield lambda units: results(pool, _do, [(run, config, found, unit) for unit in units], ahead=None)


@contextmanager
def on_ray(run: Path, config: StudyConfig, found: ModelFiles | None, workers: int) -> Iterator[Do]:
    try:
        import ray
    except ImportError:
        raise InputError("--executor ray needs Ray: pip install 'knowshift[ray]'") from None
    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False)
    gpus = 0 if config.device.split(":")[0] == "cpu" else 1
    task = ray.remote(num_cpus=config.threads, num_gpus=gpus, max_calls=0)(_do)
    pending: list[Any] = []

    def do(units: Sequence[Unit]) -> Iterator[tuple[str, float]]:
        nonlocal pending
        pending = [task.remote(run.absolute(), config, found, unit) for unit in units]
        while pending:
            finished, pending = ray.wait(pending)
            yield from ray.get(finished)

    try:
        yield do
    except ray.exceptions.RayTaskError as failure:
        raise failure.cause from None
    finally:
        for left in pending:
            ray.cancel(left)


EXECUTORS: dict[str, Callable[[Path, StudyConfig, ModelFiles | None, int], AbstractContextManager[Do]]] = {
    "here": here,
    "processes": processes,
    "ray": on_ray,
}
