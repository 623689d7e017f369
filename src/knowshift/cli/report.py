"""`knowshift report`: tables, figures and the page of a run folder, from its records, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from knowshift.cli.output import JsonOption, RunArgument, console, emit


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(report)


def report(
    run: Annotated[Path, RunArgument(help="A run folder of `knowshift study`, or its URL.", metavar="RUN")],
    as_json: JsonOption = False,
) -> None:
    """Write RUN/tables, RUN/figures and RUN/report.html anew from the run's records."""
    import knowshift

    done = knowshift.report(run)
    for finding in done.findings:
        title = f"{finding.number}. {finding.title}: {finding.verdict}."
        console.print(title, style="bold", highlight=False, soft_wrap=True)
        console.print(f"   {finding.sentence}", highlight=False, soft_wrap=True)
    console.print(f"Wrote {done.output}", highlight=False, soft_wrap=True)
    emit({"output": str(done.output), "findings": [finding.to_json() for finding in done.findings]}, as_json)
