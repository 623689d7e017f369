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
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from knowshift.cli.app import main
from weights_pairs import loaded, save_pair, tiny_llama


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


@pytest.mark.parametrize("option", ["--figure", "--output"])
def test_files_that_cannot_be_written_are_refused_before_any_work(tmp_path: Path, run: Run, option: str) -> None:
    base, tuned = save_pair(tmp_path)
    (tuned / "model.safetensors").write_bytes(b"")  # what would be found only once the pair is opened
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for path, message in (
        (tmp_path / "folder", "folder: is a folder; expected a file to write"),
        (tmp_path / "file" / "deep" / "f", f"{tmp_path / 'file'} is a file, not a folder"),
        (base / "config.json", "lies in one of the inputs"),
        (tuned / "deep" / "f", "lies in one of the inputs"),
    ):
        done = run("weights", base, tuned, option, path)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    both = ("--figure", tmp_path / "new", "--output", tmp_path / "." / "new")
    assert "expected two files" in run("weights", base, tuned, *both).stderr
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "new").exists()


def test_hub_ids_are_looked_up_and_their_links_followed(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, folder in zip(("base", "tuned"), save_pair(tmp_path / "pair"), strict=True):
        held = tmp_path / "cache" / f"models--someone--{name}"
        snapshot = held / "snapshots" / ("0" * 40)
        for needed in (held / "refs", held / "blobs", snapshot):
            needed.mkdir(parents=True)
        (held / "refs" / "main").write_text("0" * 40)
        for path in folder.iterdir():
            path.rename(held / "blobs" / path.name)
            (snapshot / path.name).symlink_to(held / "blobs" / path.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = run(
        "restore", "someone/base", "someone/tuned", "--fraction", "0.2", "--output-dir", tmp_path / "o", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "o" / "model.safetensors").is_symlink()
    assert (
        loaded(tmp_path / "o").keys() == loaded(tmp_path / "cache/models--someone--tuned/snapshots" / ("0" * 40)).keys()
    )
    made = json.loads((tmp_path / "o" / "knowshift.json").read_text())
    assert (made["base_name"], made["tuned_name"]) == ("someone/base", "someone/tuned")
    done = run("weights", "someone/base", "someone/other")
    assert done.returncode == 2
    assert "someone/other: no such folder, and the hub did not give it" in done.stderr


def test_an_unknown_architecture_gets_all_and_a_clear_message(tmp_path: Path, run: Run) -> None:
    base, tuned = save_pair(tmp_path)
    for folder in (base, tuned):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "novel"}))
    for command in (
        ("weights", base, tuned),
        ("restore", base, tuned, "--fraction", "1", "--output-dir", tmp_path / "o"),
    ):
        done = run(*command)
        assert done.returncode == 2
        assert "architecture 'novel' has no known layout, so only the region 'all' is available" in done.stderr
        done = run(*command, "--region", "all", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["eligible"] == sum(
            t.numel() for t in load_file(base / "model.safetensors").values()
        )
    assert (tmp_path / "o" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_an_adapter_is_measured_and_restored(tmp_path: Path, run: Run) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    pair = (tmp_path / "base", tmp_path / "adapter")
    result = json.loads(run("weights", *pair, "--json").stdout)
    changed = {tensor["name"] for tensor in result["tensors"] if tensor["changed"]}
    assert changed == {f"model.layers.{i}.self_attn.{x}_proj.weight" for i in (0, 1) for x in "qv"}
    done = run("restore", *pair, "--fraction", "1", "--output-dir", tmp_path / "o", "--json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o" / "model.safetensors").read_bytes() == (tmp_path / "base/model.safetensors").read_bytes()


def test_bad_input_is_one_line_and_status_2(tmp_path: Path, run: Run) -> None:
    base, tuned = save_pair(tmp_path)
    (tmp_path / "file").write_text("mine")
    out = ("--output-dir", tmp_path / "out")
    for arguments, message in (
        (("restore", base, tuned, *out), "--fraction is missing"),
        (("restore", base, tuned, "--fraction", "1.2", *out), "fraction 1.2: expected a number from 0 to 1"),
        (("restore", base, tuned, "--fraction", "x", *out), "--fraction 'x'"),
        (("restore", base, tuned, "--fraction", "0.2", "--fraction", "0.20", *out), "given twice"),
        (("restore", base, tuned, "--fraction", "0.2", "--output-dir", base), "one of the inputs"),
        (("restore", base, tuned, "--layers", "a-b", *out), "--layers 'a-b'"),
        (("restore", base, tuned, "--layers", "1-", *out), "--layers '1-'"),
        (("weights", base, tmp_path / "nowhere"), "nowhere"),
        (("weights", base, tuned, "--region", "nowhere"), "region 'nowhere' is not known"),
        (("weights", base, tuned, "--fraction", "nan"), "fraction nan: expected a number from 0 to 1"),
        (("weights", base, tuned, "--fraction", "0.2", "--fraction", "2e-1"), "--fraction 2e-1: given twice"),
        (("restore", base, tuned, "--fraction", "nan", *out), "fraction nan: expected a number from 0 to 1"),
        (("restore", base, tuned, "--fraction", "0.2", "--output-dir", tmp_path / "file" / "a"), "file is a file, not"),
        (("weights", base, tuned, "--threads", "0"), "--threads"),
    ):
        done = run(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert done.stdout == ""
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "out").exists()
