"""An adapter in the place of a model, in every command: the same as the whole checkpoint that `restore` makes of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from commands import Command
from knowshift.cli.app import main
from knowshift.errors import InputError
from knowshift.models.finding import find_model
from knowshift.models.loading import load_model
from knowshift.records import ANSWERS, MASTERY, TOKEN_SHIFT, read_table
from knowshift.studies.config import parse_config
from knowshift.studies.run import describe_model, plan_of
from knowshift.studies.work import Worker


def run(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What a command prints with --json."""
    monkeypatch.setattr(sys, "argv", ["knowshift", *words, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    assert ended.value.code == 0, shown.err
    told: dict[str, Any] = json.loads(shown.out)
    return told


def make_adapter(world: Path, folder: Path, **options: Any) -> Path:
    model = AutoModelForCausalLM.from_pretrained(world)
    torch.manual_seed(3)
    adapted = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "up_proj"], **options)
    )
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["embed_tokens"]}], ids=str)
@pytest.mark.filterwarnings("default::knowshift.errors.KnowshiftWarning")
def test_commands_take_an_adapter(
    options: dict[str, Any],
    small_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world, adapter, whole = (
        f"world:{small_world}",
        make_adapter(small_world, tmp_path / "adapter", **options),
        tmp_path / "whole",
    )
    run(["restore", str(small_world), str(adapter), "--fraction", "0", "--output-dir", str(whole)], monkeypatch, capsys)
    base = tmp_path / "base.parquet"
    source = ["--facts", world]
    measured = ["--limit", "40", "--draws", "2", "--max-new-tokens", "6", "--workers", "1"]
    run(["mastery", world, "--output", str(base), *source, *measured], monkeypatch, capsys)
    kinds = (("mastery", measured, MASTERY, "prompt_hits"), ("evaluate", ["--mastery", str(base)], ANSWERS, "text"))
    for command, more, schema, column in kinds:
        seen = []
        for model in (str(adapter), str(whole), world):
            output = tmp_path / f"{command}-{len(seen)}.parquet"
            run([command, model, "--output", str(output), *source, *more], monkeypatch, capsys)
            table, about = read_table(output, schema, command)
            seen.append((table[column].to_pylist(), about["identity"]))
        assert seen[0][0] == seen[1][0]
        assert len({identity for _, identity in seen}) == 3
    shifts = []
    for model in (str(adapter), str(whole)):
        output = tmp_path / f"tokens-{len(shifts)}.parquet"
        run(["tokens", world, model, "--mastery", str(base), "--output", str(output), *source], monkeypatch, capsys)
        table, _ = read_table(output, TOKEN_SHIFT, "token shift")
        shifts.append(table.select(["fact", "kl", "ids", "tuned_logits"]).to_pylist())
    assert shifts[0] == shifts[1]
    assert any(row["kl"] for row in shifts[0]) or not shifts[0]


def test_the_base_of_an_adapter_may_be_named(small_world: Path, tmp_path: Path) -> None:
    adapter = make_adapter(small_world, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    named = load_model(str(adapter), base=f"world:{small_world}")
    found = load_model(str(adapter))
    assert named.identity == found.identity
    assert describe_model(find_model(str(adapter)), dtype="float32", device="cpu")["identity"] == found.identity
    for told, message in (
        (str(tmp_path / "gone"), r"adapter: made for '.*gone': .*: no such model folder; name its base with --base"),
        (None, r"adapter: an adapter that does not say which model it was made for; name it with --base"),
        (str(adapter), r"adapter: its base '.*adapter' is an adapter too; merge that first"),
    ):
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": told}))
        with pytest.raises(InputError, match=message):
            load_model(str(adapter))
    with pytest.raises(InputError, match="a whole model; a base is for an adapter only"):
        load_model(f"world:{small_world}", base="world:tiny")


@pytest.mark.parametrize(("whole", "options"), [("norm", {}), ("embed_tokens", {"use_dora": True})], ids=str)
@pytest.mark.parametrize("fault", ["nan", "inf", "saved whole"])
@pytest.mark.filterwarnings("default::knowshift.errors.KnowshiftWarning")
def test_weights_that_an_adapter_makes_infinite_are_refused(
    fault: str, whole: str, options: dict[str, Any], small_world: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(small_world, tmp_path / "adapter", modules_to_save=[whole], **options)
    assert load_model(str(adapter)).model
    weights = load_file(adapter / "adapter_model.safetensors")
    name = f"model.{whole}.weight" if fault == "saved whole" else "layers.1.self_attn.q_proj.lora_B.weight"
    [key] = [key for key in weights if key.endswith(name)]
    weights[key].view(-1)[-1] = float("inf" if fault == "inf" else "nan")
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError) as refused:
        load_model(str(adapter))
    if not options or fault == "saved whole":  # PEFT's merge refuses the others by their logits
        assert re.search(r"tensor '.*' has NaN or infinite weights in float32$", str(refused.value))


SMALL_PARTS = """
from knowshift.probing import engines
engines.PART = 4
"""


@pytest.mark.parametrize("options", [{"use_dora": True}], ids=str)  # which is merged into a folder first
def test_an_interrupted_run_of_an_adapter_leaves_no_temporary_folder(
    options: dict[str, Any], small_world: Path, tmp_path: Path
) -> None:
    """What PEFT merges is merged once, by the process that is interrupted, and a worker that is ended makes nothing."""
    adapter, scratch = make_adapter(small_world, tmp_path / "adapter", **options), tmp_path / "scratch"
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(small_world / file, adapter / file)
    scratch.mkdir()
    parts = tmp_path / "m.parquet.parts"
    words = ["mastery", str(adapter), "--facts", f"world:{small_world}", "--output", str(tmp_path / "m.parquet")]
    process = Command(
        [*words, "--draws", "2", "--max-new-tokens", "4", "--workers", "2"],
        before=SMALL_PARTS,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    until, seen = time.monotonic() + 120, set()
    while process.poll() is None and time.monotonic() < until:
        seen |= {path.name for path in scratch.iterdir() if path.name.startswith("knowshift-")}
        if list(parts.glob("part-*")):
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.005)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert list(scratch.iterdir()) == []
    assert sorted(name.rpartition("-")[0] for name in seen) == [
        *(["knowshift-merged"] if options else []),
        "knowshift-tokenizer",
    ]
    assert told.count("so PEFT merges it") == len(options)


def test_training_takes_an_adapter_and_its_base(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By name, where the adapter says nothing: in `finetune` and in a study's plan, workers included."""
    world, adapter = f"world:{small_world}", make_adapter(small_world, tmp_path / "adapter")
    named = load_model(str(adapter)).identity
    change = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": None}
    (adapter / "adapter_config.json").write_text(json.dumps(change))
    identity = load_model(str(adapter), base=world).identity
    assert identity != named
    text = f"name: a\nmodel: {adapter}\nfacts: {world}\nlevels: [0]\nsizes: [2]\ndraws: 1\n"
    with pytest.raises(InputError, match="name it with --base"):
        plan_of(parse_config(text, "config"))
    config = parse_config(f"{text}base: {world}\n", "config")
    plan, about = plan_of(config)
    assert about["model"]["identity"] == identity
    assert [cell.digest for cell in Worker(tmp_path / "run", config).plan.cells] == [c.digest for c in plan.cells]
    record = tmp_path / "m.parquet"
    source = ["--facts", world]
    measured = ["--draws", "1", "--max-new-tokens", "4", "--workers", "1"]
    run(["mastery", world, "--output", str(record), *source, *measured], monkeypatch, capsys)
    tuned = tmp_path / "tuned"
    more = ["--mastery", str(record), "--level", "0", "--size", "4", "--output-dir", str(tuned)]
    run(["finetune", str(adapter), "--base", world, *source, *more], monkeypatch, capsys)
    assert json.loads((tuned / "knowshift.json").read_text())["base"]["identity"] == identity
