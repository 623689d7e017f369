"""`knowshift study`: the whole experiment, from facts to report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knowshift.cli.output import FACTS_FORMS, JsonOption, PathArgument, RunOption, console, emit
from knowshift.system.progress import duration

if TYPE_CHECKING:
    from knowshift.api.studies import StudyPlan


def register(app: typer.Typer) -> None:
    app.command()(study)


def study(
    config: Annotated[Path | None, PathArgument(help="A study's YAML file.", show_default=False)] = None,
    preset: Annotated[
        str | None, typer.Option(help="A shipped study instead of a file, e.g. tiny or llama-3-8b (docs/study.md).")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Another model than the config's: a folder or a hub id.")] = None,
    facts: Annotated[str | None, typer.Option(help=f"Another source of facts: {FACTS_FORMS}")] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Other tasks for base, tuned and restored models, with commas between them: text_loss, completion, "
            "and those of lm-eval, e.g. gsm8k (docs/study.md)."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another value of a field, e.g. training.learning_rate=3e-5."),
    ] = None,
    output_dir: Annotated[
        Path | None, RunOption(help="Run folder, or its URL (s3://BUCKET/NAME); runs/NAME where not given.")
    ] = None,
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
        "tasks": tasks,
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
    source = plan.about["source"]
    lines = [f"{plan.name}: {source['probed']} facts of {source['name']} probed on {plan.about['model']['name']}"]
    lines += [f"  {kind}: {n} cells, {n - plan.missing.get(kind, 0)} done" for kind, n in plan.cells.items()]
    lines.append(f"  each restoration cell answers the test facts {plan.restored} times; run folder: {plan.run}")
    lines += _costs(plan)
    for heading, told in (("assumed:", plan.assumed), ("to have ready:", plan.have_ready)):
        lines += [heading, *(f"  {line}" for line in told)] if told else []
    for line in lines:
        console.print(line, soft_wrap=True)
    estimate = plan.estimate and plan.estimate.as_record()
    more = {"estimate": estimate, "assumed": plan.assumed, "have_ready": plan.have_ready}
    emit({"run": str(plan.run), "cells": plan.cells, "missing": plan.missing, **plan.about, **more}, as_json)


def _costs(plan: StudyPlan) -> list[str]:
    estimate = plan.estimate
    if estimate is None:
        return ["what it takes is not known: neither files nor a preset tell the size of the model"]
    hours, memory = estimate.hours, estimate.memory
    time = (
        f"{hours:,.1f} GPU-hours" if estimate.on_gpu else f"{duration(3600 * hours * estimate.threads)} of one CPU core"
    )
    shares = [f"{kind} {seconds / (3600 * hours):.0%}" for kind, seconds in estimate.seconds.items()]
    lines = [
        "what is left takes about:",
        f"  time: {time}" + (f" ({', '.join(shares)})" if shares else ""),
        f"  disk: {estimate.disk / 1e9:,.2f} GB in the run folder",
        f"  memory of one worker: {memory.training / 1e9:,.1f} GB to train"
        + (f" by {memory.strategy}" if memory.strategy is not None else "")
        + (f" on each of {memory.shards} devices" if memory.shards > 1 else "")
        + f", up to {memory.mastery / 1e9:,.1f} GB to probe",
        f"  models: {memory.held}",
    ]
    if estimate.on_gpu:
        lines.append(f"  GPUs of 80 GB: {memory.on_gpus}")
    return lines
