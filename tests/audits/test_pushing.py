"""A confirmed repair goes to a hub and is loaded from there; what cannot be pushed is refused before the audit."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

import knowshift
from fake_hub import CUT, TOKEN, FakeHub, Fault, Repository
from knowshift.api.pushing import kept_repair
from knowshift.api.repairing import read_purposes
from knowshift.audits import candidates
from knowshift.cli import app

pytestmark = pytest.mark.slow

#: The form that fine-tuning asks in.
FORMAT = "<|question|> {question} <|answer|>"
NAME = "ann/repaired-model"
#: Facts asked: nearly all are lost, so a hundred tell it.
LIMIT = 104
#: What a failed upload ends with.
GOES_ON = "the same command goes on and pushes"


@pytest.fixture(scope="module")
def command(damaged: Path, keep: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """An audit that is finished, with a confirmed repair, as a command that has pushed nothing."""
    folder = tmp_path_factory.mktemp("audits") / "audit"
    options: dict[str, Any] = {"limit": LIMIT, "keep": keep, "budget": None, "workers": 1, "prompt_format": FORMAT}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "SWEEPS", (("interpolate", (0.5,), "layers"),))
        found = knowshift.audit("world:tiny", damaged, "world:tiny", output_dir=folder, **options)
    assert found.told["pushed"] is None
    assert found.output is not None
    words = ["audit", "world:tiny", str(damaged), "--facts", "world:tiny", "--output-dir", str(folder)]
    return [*words, *("--limit", str(LIMIT), "--keep", str(keep), "--budget", "none", "--prompt-format", FORMAT)]


def run(command: list[str], *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "knowshift", *command, *more]
    return subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def folder_of(command: list[str]) -> Path:
    return Path(command[command.index("--output-dir") + 1])


def stamps(folder: Path) -> dict[str, int]:
    """Of all that an audit has measured and written, but its page and results."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("audit.json", "audit.html")
    }


def test_a_repair_is_pushed_from_a_finished_audit_and_loads_by_its_name(
    command: list[str], hub: FakeHub, damaged: Path, tmp_path: Path
) -> None:
    folder = folder_of(command)
    before = stamps(folder)
    done = run(command, "--push-to-hub", NAME, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pushed"] == f"{hub.url}/{NAME}"
    assert f"pushed: {hub.url}/{NAME}" in done.stderr
    assert stamps(folder) == before  # what was recorded is read, and what was repaired is pushed
    there = hub.repositories[NAME]
    assert there.private
    assert len(there.commits) == 1
    local = {path.name for path in (folder / "repaired").iterdir()}
    assert set(there.files) == local | {"audit.html", "audit.json"}
    assert {"README.md", "knowshift.json", "model.safetensors", "tokenizer.json"} <= local
    results = json.loads(there.files["audit.json"])
    assert results["verdict"] == "knowledge-lost"
    assert results["chosen"] == "interpolate 0.5 (layers)"
    assert f'from_pretrained("{NAME}")' in there.files["audit.html"].decode()
    texts = [*there.files.values(), *(path.read_bytes() for path in folder.rglob("*") if path.is_file())]
    assert not any(TOKEN.encode() in text for text in [*texts, done.stdout.encode(), done.stderr.encode()])
    for path, content in there.files.items():
        assert str(folder.parent).encode() not in content, path
        assert str(damaged.parent).encode() not in content, path

    (block,) = re.findall(r"```python\n(.*?)```", there.files["README.md"].decode(), flags=re.S)
    assert len(block.splitlines()) == 3
    weights = ["knowshift", "weights", str(folder / "repaired"), NAME, "--json"]
    check = f"{block}\nimport torch; torch.save(model.state_dict(), 'weights.pt'); assert tokenizer.vocab_size\n"
    check += f"import sys; sys.argv = {weights}\nfrom knowshift.cli.app import main; main()"
    fresh = {"HF_HOME": str(tmp_path / "home")}
    loaded = subprocess.run(
        [sys.executable, "-c", check], cwd=tmp_path, env={**os.environ, **fresh}, capture_output=True, text=True
    )
    assert loaded.returncode == 0, loaded.stderr
    theirs = torch.load(tmp_path / "weights.pt")
    ours = AutoModelForCausalLM.from_pretrained(folder / "repaired").state_dict()
    assert set(theirs) == set(ours)
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert json.loads(loaded.stdout)["changed_share"] == 0


def test_the_card_says_what_the_hub_asks_for(command: list[str]) -> None:
    folder = folder_of(command)
    told = json.loads((folder / "audit.json").read_text())
    card = ModelCard.load(folder / "repaired" / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.tags == ["knowshift", "interpolate"]
    assert card.data.base_model is None  # the shipped model is not on the hub
    known, kept = card.data.eval_results
    assert (known.verified, kept.verified) == (False, False)
    assert (known.metric_value + kept.metric_value) / 2 == pytest.approx(told["held_out"]["repaired"], abs=1e-4)
    assert "# `damaged`, repaired by knowshift" in card.text
    assert "Not measured" in card.text
    assert '("repaired")' in card.text


FAULTS: dict[str, tuple[str, Fault, str]] = {
    "no right to make it": ("/api/repos/create", 403, "403 Forbidden"),
    "a right withdrawn": (f"/api/models/{NAME}/commit/main", 403, "403 Forbidden"),
    "a token withdrawn": (f"/api/models/{NAME}/commit/main", 401, "the token is not valid"),
    "a hub that fails": (f"/api/models/{NAME}/commit/main", 500, "500 Internal Server Error"),
    "a hub that fails early": (f"/api/models/{NAME}/preupload/main", 503, "503 Service Unavailable"),
    "a storage that fails": ("/lfs/", 500, "model.safetensors' to the Hub. 500"),
    "a connection lost": ("/lfs/", CUT, "model.safetensors' to the Hub. "),
    "a connection lost at the end": (f"/api/models/{NAME}/commit/main", CUT, "127.0.0.1"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_upload_that_fails_is_one_line_and_goes_on(
    name: str, command: list[str], hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    start, fault, words = FAULTS[name]
    hub.fault = lambda method, path: fault if path.startswith(start) and method in ("POST", "PUT") else None
    folder = folder_of(command)
    before = stamps(folder)
    monkeypatch.setattr(sys, "argv", ["knowshift", *command, "--push-to-hub", NAME])
    with pytest.raises(SystemExit) as ended:
        app.main()
    said = capfd.readouterr().err
    assert ended.value.code == 2
    (line,) = said.splitlines()
    assert line.startswith(f"knowshift: {NAME}: not pushed: ")
    assert words in line
    assert line.endswith(GOES_ON)
    assert TOKEN not in line
    assert "signature" not in line
    assert stamps(folder) == before
    assert json.loads((folder / "audit.json").read_text())["pushed"] is None
    assert NAME not in hub.repositories or not hub.repositories[NAME].files
    if fault != CUT:
        return
    hub.fault = lambda method, path: None
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 0
    assert stamps(folder) == before
    assert "model.safetensors" in hub.repositories[NAME].files


def test_weights_of_an_earlier_push_do_not_stay(command: list[str], hub: FakeHub, damaged: Path, keep: Path) -> None:
    """A loader would take them in place of the new ones; what somebody has added beside them stays."""
    old = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter_config.json")
    files = dict.fromkeys((*old, "knowshift.json", "notes.md"), b"{}")
    hub.repositories[NAME] = Repository(True, files)
    found = knowshift.audit(
        *("world:tiny", damaged, "world:tiny"),
        output_dir=folder_of(command),
        limit=LIMIT,
        keep=keep,
        budget=None,
        prompt_format=FORMAT,
        push_to_hub=NAME,
    )
    assert found.told["pushed"] == f"{hub.url}/{NAME}"
    assert not set(old) & set(hub.repositories[NAME].files)
    assert "notes.md" in hub.repositories[NAME].files
    assert len(hub.repositories[NAME].commits) == 1


def test_only_the_model_that_was_confirmed_for_this_purpose_is_taken_up_again(
    command: list[str], keep: Path, tmp_path: Path
) -> None:
    kept = read_purposes(keep, None, 100, 0, None).items
    folder = tmp_path / "audit"
    shutil.copytree(folder_of(command), folder)
    assert kept_repair(folder, kept) is not None
    assert kept_repair(folder, [kept[0][1:], kept[1]]) is None
    assert kept_repair(folder, ["a text", []]) is None
    assert kept_repair(folder, [kept[0], ["gsm8k"]]) is None
    with (folder / "repaired" / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    assert kept_repair(folder, kept) is None
    shutil.rmtree(folder / "repaired")
    assert kept_repair(folder, kept) is None


def test_without_a_confirmed_repair_nothing_is_pushed(
    small_world: Path,
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    keep = tmp_path / "keep.csv"
    keep.write_text("question,answer\n" + "".join(f"What is {i}?,zzqx\n" for i in range(24)))
    words = ["audit", str(small_world), str(small_world), "--facts", f"world:{small_world}", "--budget", "none"]
    words += ["--limit", "40", "--keep", str(keep), "--output-dir", str(tmp_path / "audit"), "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["knowshift", *words, "--push-to-hub", NAME, "--public", "--json"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    out, said = capfd.readouterr()
    assert not ended.value.code
    assert json.loads(out)["pushed"] is None
    assert "nothing was pushed: no repair is confirmed" in said.splitlines()
    assert hub.paths("POST") == []
    assert NAME not in hub.repositories


def test_offline_is_said(command: list[str], hub: FakeHub) -> None:
    done = run(command, "--push-to-hub", NAME, HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "HF_HUB_OFFLINE" in line
    assert hub.asked == []
