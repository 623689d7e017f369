"""The notebook of the documentation runs from top to bottom."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # what is checked in is what a reader runs
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in said if output["output_type"] == "error"]
    shown = [output["data"]["text/plain"] for output in said if output["output_type"] == "execute_result"]
    assert len(shown) == 6
    assert sum(eval(shown[0])) == 250
    assert list(tmp_path.iterdir()) == []
