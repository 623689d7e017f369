"""Executors: ways to do the units of a plan, in this process, in several, or on a Ray cluster.

``place`` is the run folder, or its URL. Each yields (title, seconds) of the units as they end, in any order. What dies
with a worker process is done again by another, up to :data:`knowshift.system.workers.MOST_DEATHS` times; what a unit
raises ends the study.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from knowshift.models.finding import ModelFiles
from knowshift.studies.cluster import RayCluster
from knowshift.studies.config import StudyConfig
from knowshift.studies.plan import Unit
from knowshift.studies.work import do_unit, end_group
from knowshift.system.workers import LastingPool

Do = Callable[[Sequence[Unit]], Iterator[tuple[str, float]]]


@contextmanager
def here(place: Path | str, config: StudyConfig, found: ModelFiles | None, workers: int) -> Iterator[Do]:
    try:
        yield lambda units: (do_unit(place, config, found, unit) for unit in units)
    finally:
        end_group()


@contextmanager
def processes(place: Path | str, config: StudyConfig, found: ModelFiles | None, workers: int) -> Iterator[Do]:
    # One pool for all stages: starting a worker takes seconds.
    with LastingPool(workers, imports=__name__) as pool:
        yield lambda units: pool.results(
            do_unit, [(place, config, found, unit) for unit in units], [unit.title for unit in units]
        )


@contextmanager
def on_ray(place: Path | str, config: StudyConfig, found: ModelFiles | None, workers: int) -> Iterator[Do]:
    with RayCluster(place, config) as cluster:
        yield cluster.do


EXECUTORS: dict[str, Callable[[Path | str, StudyConfig, ModelFiles | None, int], AbstractContextManager[Do]]] = {
    "here": here,
    "processes": processes,
    "ray": on_ray,
}
