"""`knowshift study`: the whole experiment, from facts to report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knowshift.cli.output import FACTS_FORMS, JsonOption, PathArgument, PathOption, console, emit
from knowshift.system.progress import duration

if TYPE_CHECKING:
    from knowshift.api.studies import StudyPlan
    from knowshift.studies.cost import Estimate


def register(app: typer.Typer) -> None:
    app.command()(study)


def study(
    config: Annotated[Path | None, PathArgument(help="A study's YAML file.", show_default=False)] = None,
    preset: Annotated[
        str | None, typer.Option(help="A shipped study instead of a file, e.g. tiny or llama-3-8b (docs/study.md).")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Another model than the config's: a folder or a hub id.")] = None,
    facts: Annotated[str | None, typer.Option(help=f"Another source of facts: {FACTS_FORMS}")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another value of a field, e.g. training.learning_rate=3e-5."),
    ] = None,
    output_dir: Annotated[Path | None, PathOption(help="Run folder; runs/NAME where not given.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and what it takes; run, write and fetch nothing.")
    ] = False,
    executor: Annotated[str, typer.Option(help="here, processes or ray.")] = "processes",
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; one per core where not given.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a study, or resume one: mastery, fine-tuning, evaluation, token shift, weights, restoration, report."""
    import knowshift

    asked: dict[str, Any] = {
        "config": config,
        "preset": preset,
        "model": model,
        "facts": facts,
        "overrides": overrides or (),
        "output_dir": output_dir,
        "executor": executor,
        "workers": workers,
    }
    if dry_run:
        _print_plan(knowshift.plan_study(**asked), as_json)
        return
    done = knowshift.study(**asked, progress=_UnitLines())
    console.print(f"report: {done.report.output}  (tables and figures beside it)", soft_wrap=True)
    emit({"run": str(done.run), "report": str(done.report.output), "seconds": round(done.seconds, 1)}, as_json)


class _UnitLines:
    """Prints a line after every unit; before the first one, that the study may be interrupted."""

    begun = False

    def __call__(self, done: int, total: int, title: str, seconds: float, left: float) -> None:
        if not self.begun:
            console.print("it may be interrupted at any moment: the same command goes on where it stopped")
        self.begun = True
        console.print(f"[{done}/{total}] {title} ({seconds:.1f} s), about {duration(left)} left", soft_wrap=True)


def _print_plan(plan: StudyPlan, as_json: bool) -> None:
    source, estimate = plan.about["source"], plan.estimate

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    say(f"{plan.name}: {source['probed']} facts of {source['name']} probed on {plan.about['model']['name']}")
    for kind, count in plan.cells.items():
        say(f"  {kind}: {count} cells, {count - plan.missing.get(kind, 0)} done")
    say(f"  each restoration cell answers the test facts {plan.restored} times; run folder: {plan.run}")
    if estimate is None:
        say("what it takes is not known: neither files nor a preset tell the size of the model")
    else:
        say("what is left takes about:")
        say(f"  time: {_time(estimate)}")
        say(f"  of it {', '.join(f'{kind} {_share(s, estimate)}' for kind, s in estimate.seconds.items())}")
        say(f"  disk: {estimate.disk / 1e9:,.1f} GB in the run folder")
        train, probe = estimate.memory.training / 1e9, estimate.memory.mastery / 1e9
        say(f"  memory of one worker: {train:,.1f} GB to train, up to {probe:,.1f} GB to probe")
        if estimate.on_gpu:
            gpus = estimate.memory.gpus
            one = "holds it" if gpus == 1 else "does not hold it, and a training is not divided among GPUs"
            say(f"  GPUs: a worker needs the memory of {gpus} of 80 GB; one {one}")
    for heading, lines in (("assumed:", plan.assumed), ("to have ready:", plan.have_ready)):
        for line in (heading, *(f"  {line}" for line in lines)) if lines else ():
            say(line)
    told = {"estimate": estimate and estimate.as_record(), "assumed": plan.assumed, "have_ready": plan.have_ready}
    emit({"run": str(plan.run), "cells": plan.cells, "missing": plan.missing, **plan.about, **told}, as_json)


def _time(estimate: Estimate) -> str:
    if estimate.on_gpu:
        return f"{estimate.hours:,.1f} GPU-hours"
    return f"{duration(3600 * estimate.hours * estimate.threads)} of one CPU core"


def _share(seconds: float, estimate: Estimate) -> str:
    return f"{seconds / (3600 * estimate.hours or 1):.0%}"
