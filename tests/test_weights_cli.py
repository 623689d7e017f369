"""`knowshift weights` and `knowshift restore` as a script would call them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from knowshift.cli.app import main
from weights_pairs import loaded, save_pair


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command as `knowshift` runs it, in this process."""

    def call(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["knowshift", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return call


def test_the_installed_command_answers() -> None:
    command = [sys.executable, "-c", "from knowshift.cli.app import main; main()", "restore", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--fraction" in done.stdout


def test_weights_prints_one_json_object_and_writes_record_and_figure(tmp_path: Path, run: Run) -> None:
    base, tuned = save_pair(tmp_path)
    files = ("--figure", tmp_path / "f.svg", "--output", tmp_path / "w.parquet")
    done = run("weights", base, tuned, "--json", *files)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["eligible"] == 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)
    assert 0.5 < result["changed_share"] < 0.7
    fractions = ["0.01", "0.03", "0.05", "0.1", "0.2", "0.4", "0.6"]
    for table in (result["concentration"], result["null"]):
        assert list(table) == ["relative", "absolute", "squared"]
        assert all(list(shares) == fractions for shares in table.values())
    assert list(result["layers"]) == ["0", "1"]
    assert list(result["modules"]) == ["q", "k", "v", "o", "gate", "up", "down"]
    assert "no-signal" in (tmp_path / "f.svg").read_text()
    table = pq.read_table(tmp_path / "w.parquet")
    assert table.num_rows == 14
    assert sum(table.column("size").to_pylist()) == result["eligible"]
    svg = (tmp_path / "f.svg").read_bytes()
    assert run("weights", base, tuned, *files).stdout == ""
    assert (tmp_path / "f.svg").read_bytes() == svg


def test_restore_writes_one_folder_a_fraction(tmp_path: Path, run: Run) -> None:
    base, tuned = save_pair(tmp_path)
    done = run(
        "restore", base, tuned, "--fraction", "0.2", "--fraction", "0.40", "--output-dir", tmp_path / "o", "--json"
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["restored"] == {"0.2": result["eligible"] // 5, "0.40": result["eligible"] * 2 // 5}
    assert result["threshold"]["0.2"] > result["threshold"]["0.40"]
    assert set(result["output"]) == {"0.2", "0.40"}
    for folder in result["output"].values():
        assert loaded(Path(folder)).keys() == loaded(tuned).keys()
    done = run("restore", base, tuned, "--layers", "1", "--output-dir", tmp_path / "l", "--json")
    result = json.loads(done.stdout)
    assert result["restored"]["1"] == result["eligible"]
    assert result["output"] == {"1": str(tmp_path / "l")}


def test_bad_input_is_one_line_and_status_2(tmp_path: Path, run: Run) -> None:
    base, tuned = save_pair(tmp_path)
    out = ("--output-dir", tmp_path / "out")
    for arguments, message in (
        (("restore", base, tuned, *out), "--fraction is missing"),
        (("restore", base, tuned, "--fraction", "1.2", *out), "fraction 1.2: expected a number from 0 to 1"),
        (("restore", base, tuned, "--fraction", "x", *out), "--fraction 'x'"),
        (("restore", base, tuned, "--fraction", "0.2", "--fraction", "0.20", *out), "given twice"),
        (("restore", base, tuned, "--fraction", "0.2", "--output-dir", base), "one of the inputs"),
        (("restore", base, tuned, "--layers", "a-b", *out), "--layers 'a-b'"),
        (("weights", base, tmp_path / "nowhere"), "nowhere"),
        (("weights", base, tuned, "--region", "nowhere"), "region 'nowhere' is not known"),
    ):
        done = run(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert done.stdout == ""
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "out").exists()
