"""`knowshift study`: the whole experiment, from facts to report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knowshift.cli.output import JsonOption, PathArgument, PathOption, console, emit
from knowshift.system.progress import duration

if TYPE_CHECKING:
    from knowshift.api.studies import StudyPlan


def register(app: typer.Typer) -> None:
    app.command()(study)


def study(
    config: Annotated[Path | None, PathArgument(help="A study's YAML file.", show_default=False)] = None,
    preset: Annotated[str | None, typer.Option(help="A shipped study instead of a file, e.g. tiny.")] = None,
    output_dir: Annotated[Path | None, PathOption(help="Run folder; runs/NAME where not given.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, run nothing, write nothing.")] = False,
    executor: Annotated[str, typer.Option(help="here, processes or ray.")] = "processes",
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; one per core where not given.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a study, or resume one: mastery, fine-tuning, evaluation, token shift, weights, restoration, report."""
    import knowshift

    asked: dict[str, Any] = {
        "config": config,
        "preset": preset,
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
    console.print(f"{plan.name}: {source['probed']} facts of {source['name']} probed on {plan.about['model']['name']}")
    for kind, count in plan.cells.items():
        console.print(f"  {kind}: {count} cells, {count - plan.missing.get(kind, 0)} done")
    console.print(f"  each restoration cell answers the test facts {plan.restored} times; run folder: {plan.run}")
    emit({"run": str(plan.run), "cells": plan.cells, "missing": plan.missing, **plan.about}, as_json)
