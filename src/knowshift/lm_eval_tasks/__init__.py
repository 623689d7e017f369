"""Facts and summaries as tasks of lm-eval: the YAML files, and the functions that they name."""

from __future__ import annotations

from pathlib import Path

#: What ``lm_eval --include_path`` takes.
FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The tasks and groups of the folder, each in a file of its name."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))
