"""Running a plan: what is there is skipped, what is missing is done by one process, several, or a Ray cluster."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knowshift.errors import InputError, KnowshiftWarning
from knowshift.facts.sources.load import load_facts
from knowshift.models.finding import ModelFiles
from knowshift.models.loading import load_tokenizer, prepared, torch_device
from knowshift.probing.measure import check_engine
from knowshift.remote import RemoteRun
from knowshift.studies.config import Executor, StudyConfig
from knowshift.studies.content import check_training_sets, protocol_of
from knowshift.studies.cost import CostModel, Estimate
from knowshift.studies.executors import EXECUTORS
from knowshift.studies.folder import (
    alone,
    check_folder,
    check_levels,
    known_of,
    levels_of,
    local_copy,
    no_longer_asked,
    remove_leftovers,
    write_manifest,
)
from knowshift.studies.memory import check_device
from knowshift.studies.plan import Cell, Plan, make_plan, outline, probed_facts
from knowshift.studies.readiness import (
    Readiness,
    check_dividable,
    find_base,
    held_out_texts,
    inputs_beside,
    other_tasks,
    probed_of,
    readiness,
    shape_at_hand,
    weights_of,
)
from knowshift.studies.work import servers_of
from knowshift.system.workers import cores
from knowshift.training.precision import check_trainable, stored_dtype

#: Called after every unit with (units done, units in all, its title, the seconds it took, the seconds left by cost).
Progress = Callable[[int, int, str, float, float], None]


def plan_of(config: StudyConfig, run: Path | None = None) -> tuple[Plan, dict[str, Any]]:
    """The plan of a study, and what its manifest says about facts and model.

    Where ``run`` holds all of mastery, training sets of all facts of a level have their size.

    Raises:
        InputError: the source or a model cannot be read; the model would be trained in float16; a level cannot have
            the largest size at all; what :func:`.readiness.inputs_beside` refuses.
    """
    source = load_facts(config.facts)
    files = find_base(config)
    model = describe_model(files, dtype=config.dtype, device=config.device)
    if config.dtype == "auto":
        check_trainable(config.model, stored_dtype(files.weights))
    described = (source.digest(), model["identity"])
    beside = inputs_beside(config)
    plan = make_plan(config, source.facts, *described, beside=beside)
    if run is not None and not plan.settled:
        plan = make_plan(config, source.facts, *described, levels=levels_of(run, plan), beside=beside)
    _check_sizes(config, plan)
    about = {
        "model": {"name": config.model, **model},
        "source": {
            "name": config.facts,
            "digest": described[0],
            "facts": len(source.facts),
            "probed": plan.train + plan.test,
        },
    }
    return plan, about


def _check_sizes(config: StudyConfig, plan: Plan) -> None:
    if plan.train < config.largest:
        raise InputError(
            f"{config.facts}: {plan.train} training facts are probed, {config.largest} asked as one training set"
        )


def _check_training_sets(config: StudyConfig, run: Path, plan: Plan) -> None:
    """Refuse what a strategy's own choice of facts would, of the trainings that are still to be done."""
    if config.variants or config.bench.strategies:
        cells = [cell for unit in plan.tuned for cell in unit.missing(run) if cell.kind == "tuned"]
        known = known_of(run, plan, load_facts(config.facts).facts)
        check_training_sets(known, ((cell.coordinates, cell.settings) for cell in cells))


@dataclass(frozen=True)
class Preview:
    """A study before it runs."""

    plan: Plan
    missing: list[Cell]  # what is not in the run folder yet
    about: dict[str, Any]  # model and source, as in the manifest where they are at hand
    estimate: Estimate | None  # of what is missing; None where nothing tells the size of the model
    ready: Readiness
    assumed: list[str]  # what the estimate takes for granted


def preview(config: StudyConfig, run: Path, executor: Executor) -> Preview:
    """What a study would do and take. Nothing is fetched: what is not at hand is replaced by known numbers.

    Raises:
        InputError: as :func:`plan_of`, of what is at hand.
    """
    check_dividable(config)
    ready, shape = readiness(config, executor), shape_at_hand(config)
    weights = None if shape is None else shape.weights
    if ready.all:
        plan, about = plan_of(config, run)
        weights = about["model"]["weights"]
    else:
        if ready.facts:
            facts = load_facts(config.facts).facts
            split = [facts[index].split for index in probed_facts(facts, config)]
            counts = (split.count("train"), split.count("test"))
        else:
            counts = probed_of(config)
        plan = outline(config, *counts)
        _check_sizes(config, plan)
        about = {"model": {"name": config.model}, "source": {"name": config.facts, "probed": sum(counts)}}
    missing = [cell for unit in plan.units for cell in unit.missing(run)] if ready.all else plan.cells
    if weights is None:
        return Preview(plan, missing, about, None, ready, [])
    costs = CostModel(config, plan, weights, shape)
    return Preview(plan, missing, about, costs.estimate(missing), ready, costs.assumed)


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
        "weights": weights_of(files),
    }


def run_study(
    config: StudyConfig,
    place: Path | str,
    *,
    executor: Executor = "processes",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Do all that is missing in a run folder, or at a URL of one. After an interrupt, the same call resumes and ends in
    the same records.

    Raises:
        InputError: the folder holds the run of another config; a level has fewer facts than a size asks for.
    """
    run, remote = local_copy(place)
    check_folder(run, config, place)
    check_dividable(config)
    plan, about = plan_of(config, run)
    costs = CostModel(config, plan, about["model"]["weights"], shape_at_hand(config))
    if config.mastery.servers and any(unit.missing(run) for unit in plan.probes):
        check_engine(servers_of(config), protocol_of(plan.probes[0].cells[0].settings))
    if executor != "ray" and any(unit.missing(run) for unit in plan.units):
        check_device(config, costs.weights, costs.shape)
    if any(cell.kind in ("base_tasks", "tasks") for unit in plan.units for cell in unit.missing(run)):
        other_tasks(config, load_facts(config.facts).facts)  # what cannot be asked is refused before hours of work
    if config.bench.strategies and any(cell.kind == "learned" for unit in plan.units for cell in unit.missing(run)):
        held_out_texts(config, load_facts(config.facts).facts)
    with alone(run, place):
        check_folder(run, config, place)  # of another config meanwhile
        return _run(config, run, remote, plan, about, costs, executor, workers, progress)


def _run(
    config: StudyConfig,
    run: Path,
    remote: RemoteRun | None,
    plan: Plan,
    about: dict[str, Any],
    costs: CostModel,
    executor: Executor,
    workers: int | None,
    progress: Progress | None,
) -> Plan:
    seconds: dict[str, float] = {}
    place = run if remote is None else remote.url

    def tell() -> None:
        if remote is not None and remote.fetch_file("manifest.json"):
            check_folder(run, config, place)  # of another config meanwhile, on another machine
        write_manifest(run, config, plan, about, seconds)
        if remote is not None:
            remote.publish("manifest.json")

    if plan.settled and (gone := no_longer_asked(run, plan)):
        warnings.warn(
            KnowshiftWarning(
                f"{place}: finished cells that the config does not ask for are left out: {', '.join(gone)}"
            ),
            stacklevel=2,
        )
    try:
        tell()
        remove_leftovers(run)
        missing = {unit.title: sum(map(costs.seconds, cells)) for unit in plan.units if (cells := unit.missing(run))}
        ahead, behind, began = sum(missing.values()), 0.0, time.monotonic()
        processes = min(workers or _workers(config), max(1, len(missing)))
        with _shared(config, executor, missing) as found, EXECUTORS[executor](place, config, found, processes) as do:
            for tuning in (False, True):
                if tuning:
                    if remote is not None:
                        remote.fetch(cell.name for unit in plan.probes for cell in unit.cells)
                    counts, tested = levels_of(run, plan), levels_of(run, plan, "test")
                    assert counts is not None
                    assert tested is not None
                    check_levels(config, counts, tested)
                    plan = plan if plan.settled else plan_of(config, run)[0]
                    _check_training_sets(config, run, plan)
                stage = plan.tuned if tuning else plan.probes
                for title, took in do([unit for unit in stage if unit.title in missing]):
                    seconds[title] = round(took, 2)
                    behind += missing[title]
                    ahead = max(0.0, ahead - missing[title])
                    if progress is not None:
                        done = len(plan.units) - len(missing) + len(seconds)
                        left = (time.monotonic() - began) / behind * ahead if behind else 0.0
                        progress(done, len(plan.units), title, took, left)
    except BaseException:
        with suppress(InputError, OSError):  # of a full disk above all, which is what has ended the run
            tell()
        raise
    tell()
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
    """One worker on an accelerator; else the CPUs of this process divided by those of a worker."""
    if config.device.split(":")[0] != "cpu":
        return 1
    return max(1, cores() // (config.threads * config.shards))
