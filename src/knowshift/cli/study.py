"""`knowshift study`: the whole experiment, from facts to report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from knowshift.cli.output import JsonOption, PathArgument, PathOption, console, emit
from knowshift.errors import InputError, nearest


def register(app: typer.Typer) -> None:
    app.command()(study)


def study(
    config: Annotated[Path | None, PathArgument(help="A study's YAML file.", show_default=False)] = None,
    preset: Annotated[str | None, typer.Option(help="A shipped study instead of a file, e.g. tiny.")] = None,
    output_dir: Annotated[Path | None, PathOption(help="Run folder; runs/NAME where not given.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, run nothing, write nothing.")] = False,
    executor: Annotated[str, typer.Option(help="here, processes or ray.")] = "processes",
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; one per CPU where not given.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a study, or go on with one: mastery, fine-tuning, evaluation, token shift, weights, restoration, report."""
    from knowshift.studies import run as running
    from knowshift.studies.config import Executor, load_config, load_preset

    if (config is None) == (preset is None):
        raise InputError("study: give either a config file or --preset NAME")
    settings = load_config(config) if config is not None else load_preset(preset or "")
    if executor not in get_args(Executor):
        raise InputError(f"study: no executor {executor!r}{nearest(executor, get_args(Executor))}")
    run = output_dir or Path("runs") / settings.name
    running.check_folder(run, settings)
    if dry_run:
        _print_plan(run, settings, as_json)
        return

    began = time.monotonic()
    console.print(
        f"study {settings.name} in {run}: interrupt it when you like, the same command goes on",
        soft_wrap=True,
    )

    def tell(done: int, total: int, title: str, seconds: float, left: float) -> None:
        console.print(f"[{done}/{total}] {title} ({seconds:.1f} s), about {_minutes(left)} left", soft_wrap=True)

    running.run_study(settings, run, executor=cast(Executor, executor), workers=workers, progress=tell)
    from knowshift.reports.page.page import write_report

    page = write_report(run)
    console.print(f"report: {page}  (tables and figures beside it)", soft_wrap=True)
    emit({"run": str(run), "report": str(page), "seconds": round(time.monotonic() - began, 1)}, as_json)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _print_plan(run: Path, settings: object, as_json: bool) -> None:
    from collections import Counter

    from knowshift.studies.config import StudyConfig
    from knowshift.studies.run import plan_of

    assert isinstance(settings, StudyConfig)
    plan, about = plan_of(settings)
    cells = Counter(cell.kind for cell in plan.cells)
    missing = Counter(cell.kind for unit in plan.units for cell in unit.missing(run))
    console.print(f"{settings.name}: {about['source']['probed']} facts of {settings.facts} probed on {settings.model}")
    for kind, count in cells.items():
        console.print(f"  {kind}: {count} cells, {count - missing[kind]} done")
    restored = len(settings.restoration.fractions) * len(settings.restoration.criteria)
    console.print(f"  each restoration answers {restored} times; run folder: {run}")
    emit({"run": str(run), "cells": dict(cells), "missing": dict(missing), **about}, as_json)
