"""Running a plan: what is there is skipped, what is missing is done by one process, several, or a Ray cluster."""

from __future__ import annotations

import importlib.metadata
import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from knowshift.errors import InputError
from knowshift.facts.sources.load import load_facts
from knowshift.files import check_parent, read_json, write_json
from knowshift.models.finding import ModelFiles
from knowshift.models.loading import load_tokenizer, prepared, torch_device
from knowshift.parameters.files.checkpoint import StoredTensors
from knowshift.records import read_columns
from knowshift.studies.config import Executor, StudyConfig
from knowshift.studies.plan import PACKAGES, Plan, Unit, make_plan, probed_facts
from knowshift.studies.work import Worker, find_base
from knowshift.system.workers import cores, process_pool, results
from knowshift.training.draws import level_counts
from knowshift.training.precision import check_trainable, stored_dtype
from knowshift.version import __version__

#: Told after every unit: (units done, units in all, title of the unit, seconds it took, seconds left by its cost).
Progress = Callable[[int, int, str, float, float], None]


def plan_of(config: StudyConfig) -> tuple[Plan, dict[str, Any]]:
    """The plan of a study, and what its manifest says about facts and model.

    Raises:
        InputError: the source or the model cannot be read; the model would be trained in float16; a level cannot have
            the largest size at all.
    """
    source = load_facts(config.facts)
    files = find_base(config)
    model = describe_model(files, dtype=config.dtype, device=config.device)
    if config.dtype == "auto":
        check_trainable(config.model, stored_dtype(files.weights))
    plan = make_plan(config, source.facts, source.digest(), model["identity"])
    probed = [source.facts[index] for index in probed_facts(source.facts, config)]
    train = sum(1 for fact in probed if fact.split == "train")
    if train < max(config.sizes):
        raise InputError(
            f"{config.facts}: {train} training facts are probed, {max(config.sizes)} asked as one training set"
        )
    about = {
        "model": {"name": config.model, **model},
        "source": {"name": config.facts, "digest": source.digest(), "facts": len(source.facts), "probed": len(probed)},
    }
    return plan, about


def describe_model(files: ModelFiles, *, dtype: str, device: str) -> dict[str, Any]:
    """What a manifest says about a model, from its files alone: a plan for 70B weights loads none of them.

    Raises:
        InputError: there is no tokenizer, or this machine has no such device.
    """
    load_tokenizer(files)
    return {
        "identity": files.identity(),
        "dtype": dtype,
        "device": str(torch_device(device)),
        "weights": sum(math.prod(shape) for shape in StoredTensors(files.weights).shapes.values()),
    }


def run_study(
    config: StudyConfig,
    run: Path,
    *,
    executor: Executor = "processes",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Do all that is missing in ``run``. Interrupted at any moment, the same call goes on and ends in the same records.

    Raises:
        InputError: the folder holds the run of another config; a level has fewer facts than a size asks for.
    """
    plan, about = plan_of(config)
    check_folder(run, config)
    lock = FileLock(run.parent / f".{run.name}.lock")
    run.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"{run}: another process is working in it; wait for it or choose another --output-dir"
        ) from None
    seconds: dict[str, float] = {}
    try:
        _write_manifest(run, config, plan, about, seconds)
        _sweep(run)
        missing = {unit.title: unit.cost for unit in plan.units if unit.missing(run)}
        ahead, behind, began = sum(missing.values()), 0.0, time.monotonic()
        processes = min(workers or _workers(config), max(1, len(missing)))
        with _shared(config, executor, missing) as found, EXECUTORS[executor](run, config, found, processes) as do:
            for stage in (plan.probes, plan.tuned):
                if stage is plan.tuned:
                    check_levels(run, config, plan)
                for title, took in do([unit for unit in stage if unit.title in missing]):
                    seconds[title] = round(took, 2)
                    behind += missing[title]
                    ahead = max(0.0, ahead - missing[title])
                    if progress is not None:
                        done = len(plan.units) - len(missing) + len(seconds)
                        left = (time.monotonic() - began) / behind * ahead
                        progress(done, len(plan.units), title, took, left)
    finally:
        try:
            _write_manifest(run, config, plan, about, seconds)
        finally:
            lock.release()
    return plan


@contextmanager
def _shared(config: StudyConfig, executor: Executor, missing: Collection[str]) -> Iterator[ModelFiles | None]:
    """The model for all workers, merged once where PEFT merges an adapter; None where a cluster's find their own."""
    if executor == "ray" or not missing:
        yield None
        return
    with prepared(find_base(config)) as found:
        yield found


def _workers(config: StudyConfig) -> int:
    """One worker on an accelerator; else as many as the CPUs this process may use hold."""
    if config.device.split(":")[0] != "cpu":
        return 1
    return max(1, cores() // config.threads)


#: What may still be changed in a folder where nothing but mastery has been measured: sizes that the levels turned out
#: to be too small for, above all.
AFTER_MASTERY = frozenset(
    {
        "levels",
        "sizes",
        "draws",
        "control_rate",
        "control_draws",
        "keep_checkpoints",
        "training",
        "evaluation",
        "restoration",
    }
)


def check_folder(run: Path, config: StudyConfig) -> None:
    """Refuse a folder that is something else's: one line, before anything is written.

    Raises:
        InputError: a run of another config, or a folder with content that is no run.
    """
    manifest = run / "manifest.json"
    if manifest.exists():
        unreadable = "not a readable manifest; choose another --output-dir"
        try:
            found = read_json(manifest).get("config")
        except InputError as error:
            raise InputError(f"{manifest}: {unreadable} ({error})") from None
        if not isinstance(found, dict):
            raise InputError(f"{manifest}: {unreadable}")
        wanted = config.as_record()
        different = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        only_probed = not any(folder.name != "mastery" for folder in (run / "cells").glob("*"))
        if only_probed and AFTER_MASTERY.issuperset(different):
            return
        if different:
            key = different[0]
            raise InputError(
                f"{run}: holds the run of another config ({key}: {found.get(key)!r} there, {wanted.get(key)!r} asked); "
                "choose another --output-dir"
            )
    elif run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise InputError(f"{run}: is not empty and is not a run; choose another --output-dir")
    check_parent(run)


def check_levels(run: Path, config: StudyConfig, plan: Plan) -> None:
    """Refuse sizes that a level cannot fill, before the first training.

    Raises:
        InputError: the first such level, with what it has and what was asked.
    """
    files = [cell.folder(run) / "mastery.parquet" for unit in plan.probes for cell in unit.cells]
    tables = [read_columns(file, ["split", "level"]) for file in files]
    levels = [row["level"] for table in tables for row in table.to_pylist() if row["split"] == "train"]
    counts = level_counts(levels)
    for level in config.levels:
        if counts[level] < max(config.sizes):
            raise InputError(
                f"{config.facts}: level {level} has {counts[level]} training facts among the {len(levels)} probed, "
                f"{max(config.sizes)} asked (levels 0..4 have {counts})"
            )


def _sweep(run: Path) -> None:
    """Remove cells that were left half written, on other machines too: who holds the lock has no other beside it."""
    for leftover in run.glob("cells/*/.*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _write_manifest(
    run: Path, config: StudyConfig, plan: Plan, about: dict[str, Any], seconds: dict[str, float]
) -> None:
    path = run / "manifest.json"
    before = {}
    if path.exists():
        told = read_json(path).get("timings")
        before = told if isinstance(told, dict) else {}
    write_json(
        path,
        {
            "knowshift": __version__,
            "name": config.name,
            "config": config.as_record(),
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "git_revision": _git_revision(),
            **about,
            "cells": [cell.as_record() for cell in plan.cells],
            "timings": {**before, **seconds},
        },
    )


def _git_revision() -> str | None:
    """The revision of the code that runs, where it runs from a checkout."""
    here = Path(__file__).parent
    try:
        said = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()


# Executors: each gives a way to do units, which yields (title, seconds) as they end, in any order.

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
def _here(run: Path, config: StudyConfig, found: ModelFiles | None, workers: int) -> Iterator[Do]:
    yield lambda units: (_do(run, config, found, unit) for unit in units)


@contextmanager
def _processes(run: Path, config: StudyConfig, found: ModelFiles | None, workers: int) -> Iterator[Do]:
    # One pool for all stages: a worker starts for seconds.
    with process_pool(workers) as pool:
        yield lambda units: results(pool, _do, [(run, config, found, unit) for unit in units], ahead=None)


@contextmanager
def _ray(run: Path, config: StudyConfig, found: ModelFiles | None, workers: int) -> Iterator[Do]:
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
    "here": _here,
    "processes": _processes,
    "ray": _ray,
}
