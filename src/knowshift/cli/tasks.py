"""`knowshift lm-eval-tasks`: the folder of the tasks for lm-eval."""

from __future__ import annotations

import typer

from knowshift.cli.output import JsonOption, emit


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""

    @app.command(name="lm-eval-tasks")
    def tasks(as_json: JsonOption = False) -> None:
        """Print the folder of the tasks for lm-eval, for its option --include_path."""
        from knowshift.lm_eval_tasks import FOLDER, names

        if not as_json:
            typer.echo(FOLDER)
        emit({"folder": str(FOLDER), "tasks": names()}, as_json)
