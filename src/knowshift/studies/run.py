"""Running a plan: what is there is skipped, what is missing is done by one process, several, or a Ray cluster."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from knowshift.errors import InputError
from knowshift.facts.sources.load import load_facts
from knowshift.models.finding import ModelFiles
from knowshift.models.loading import load_tokenizer, prepared, torch_device
from knowshift.parameters.files.checkpoint import StoredTensors
from knowshift.studies.config import Executor, StudyConfig
from knowshift.studies.executors import EXECUTORS
from knowshift.studies.folder import check_folder, check_levels, remove_leftovers, write_manifest
from knowshift.studies.plan import Plan, make_plan, probed_facts
from knowshift.studies.work import find_base
from knowshift.system.workers import cores
from knowshift.training.precision import check_trainable, stored_dtype

#: Called after every unit with (units done, units in all, its title, the seconds it took, the seconds left by cost).
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
    """Do all that is missing in ``run``. After an interrupt, the same call resumes and ends in the same records.

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
        write_manifest(run, config, plan, about, seconds)
        remove_leftovers(run)
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
            write_manifest(run, config, plan, about, seconds)
        finally:
            lock.release()
    return plan


@contextmanager
def _shared(config: StudyConfig, executor: Executor, missing: Collection[str]) -> Iterator[ModelFiles | None]:
    """The model for all workers, merged once where PEFT merges an adapter; None where workers of a cluster find it."""
    if executor == "ray" or not missing:
        yield None
        return
    with prepared(find_base(config)) as found:
        yield found


def _workers(config: StudyConfig) -> int:
    """One worker on an accelerator; else the CPUs of this process divided by ``threads``."""
    if config.device.split(":")[0] != "cpu":
        return 1
    return max(1, cores() // config.threads)
