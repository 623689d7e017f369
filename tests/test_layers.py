"""Layers: imports run one way (the contracts of pyproject.toml), and no folder has more than a dozen files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import knowshift

ROOT = Path(__file__).parents[1]
SOURCE = Path(knowshift.__file__).parent
#: Files of a folder at most.
DOZEN = 12


def lint(source: Path) -> tuple[int, str]:
    """Exit status and words of import-linter on the package below ``source``."""
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports('pyproject.toml', no_cache=True))"
    environment = {**os.environ, "PYTHONPATH": str(source), "COLUMNS": "200"}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    return said.returncode, said.stdout + said.stderr


def test_imports_run_one_way() -> None:
    status, said = lint(SOURCE.parent)
    assert status == 0, said
    assert "0 broken" in said


def test_an_import_that_runs_the_other_way_is_found(tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / "knowshift", ignore=shutil.ignore_patterns("tiny", "__pycache__"))
    with (tmp_path / "knowshift" / "facts" / "fact.py").open("a") as file:
        file.write("\nimport knowshift.models.loading\n")
    status, said = lint(tmp_path)
    assert status == 1
    assert "knowshift.facts.fact -> knowshift.models.loading" in said


def test_a_folder_holds_a_dozen_files_at_most_and_says_what_it_is() -> None:
    for folder in {path.parent for path in SOURCE.rglob("*.py")}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= DOZEN, (folder, len(modules))
        first = (folder / "__init__.py").read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith('"""'), folder
