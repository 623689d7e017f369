"""Every benchmark starts: what it imports is where it says, and its options can be read. One runs, on a small world."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from commands import Command
from knowshift.models.loading import load_model

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.py")))
def test_a_benchmark_tells_its_options(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, where what they import is at hand; the folder of a script is where it looks first."""
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.syspath_prepend(FOLDER)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FOLDER / name), run_name="__main__")
    assert ended.value.code == 0
    assert "usage:" in said.getvalue()


@pytest.mark.slow
def test_strategies_are_measured_beside_plain_fine_tuning(small_world: Path, tmp_path: Path) -> None:
    """Of the small world nothing outweighs chance, so only what cannot be otherwise is asked."""
    output = tmp_path / "costs.json"
    script = str(FOLDER / "strategies.py")
    given = ["--model", str(small_world), "--facts", f"world:{small_world}", "--strategies", "restore", "--size", "6"]
    given += ["--batch-size", "2", "--turns", "2", "--level", "0", "--output", str(output)]
    before = "import runpy, sys\n"
    before += f"sys.path.insert(0, {str(FOLDER)!r})\nsys.argv = {[script, *given]!r}\n"
    before += f"runpy.run_path({script!r}, run_name='__main__')\nraise SystemExit\n"
    command = Command([], before=before)
    out, err = command.communicate(300)
    assert command.returncode == 0, err
    told = json.loads(output.read_text())
    assert told["weights"] == sum(parameter.numel() for parameter in load_model(str(small_world)).model.parameters())
    assert (told["bytes"], told["size"], told["turns"], told["machine"]["threads"]) == (4, 6, 2, 1)
    assert list(told["strategies"]) == ["sft", "restore"]
    assert [line.split()[0] for line in out.splitlines()] == ["memory", "sft", "restore", "memory:"]
    assert told["strategies"]["sft"]["memory"] == 0
    for one in told["strategies"].values():
        assert one["updates"] == 3
        assert one["peak_bytes"] > 0
        for clock in ("wall", "processor"):
            ratio = one[clock]["ratio"]
            assert 0 < ratio["least"] <= ratio["median"] <= ratio["most"]
            assert one[clock]["update"] > 0
    assert told["strategies"]["restore"]["processor"]["after"] > told["strategies"]["sft"]["processor"]["after"]


@pytest.mark.slow
def test_a_reference_whose_hits_are_kept_file_by_file_is_the_same(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes measure it in turns, and the part "real" reads their files."""
    monkeypatch.syspath_prepend(FOLDER)
    shared = ["--model", str(small_world), "--facts", f"world:{small_world}", "--count", "24", "--candidates", "48"]

    def run(script: str, *given: str) -> None:
        monkeypatch.setattr(sys, "argv", [script, *shared, *given])
        with contextlib.redirect_stdout(io.StringIO()):
            runpy.run_path(str(FOLDER / script), run_name="__main__")

    counts = str(tmp_path / "counts")
    for turn in ("0/2", "1/2"):
        run("expected.py", "--counts", counts, "--turn", turn, "--folder", str(tmp_path / turn[0]))
    files = [f"hits-00{number}.json" for number in range(3)]
    assert sorted(path.name for path in Path(counts).iterdir()) == ["facts.json", *files]
    run("mastery.py", "--part", "real", "--counts", counts, "--folder", str(tmp_path / "kept"))
    run("mastery.py", "--part", "real", "--folder", str(tmp_path / "whole"))
    kept, whole = (json.loads((tmp_path / name / "expected.json").read_text()) for name in ("kept", "whole"))
    assert not (tmp_path / "kept" / "reference.parquet").exists()
    assert kept["levels"] == whole["levels"]
    for name in ("full, run 1", "expected"):
        assert {**kept[name], "seconds": 0} == {**whole[name], "seconds": 0}
    with pytest.raises(SystemExit, match="counts of another reference"):
        run("expected.py", "--counts", counts, "--draws", "50", "--folder", str(tmp_path / "other"))


def test_a_model_that_is_made_deeper_says_what_it_said(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    deeper = runpy.run_path(str(FOLDER / "strategies.py"))["deeper"]
    deeper(str(small_world), 6, tmp_path / "deeper")
    small, deep = load_model(str(small_world)), load_model(str(tmp_path / "deeper"))
    assert deep.model.config.num_hidden_layers == 6
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        usual, made = small.model(input_ids=ids).logits, deep.model(input_ids=ids).logits
    assert 0 < (usual - made).abs().max() < 1e-2 * usual.std()
    with pytest.raises(SystemExit, match="has 2; expected at least as many"):
        deeper(str(small_world), 1, tmp_path / "shallow")
