"""A study whose models are divided between the two processes of a worker (gloo, on processors), to its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from knowshift.api.studies import report
from knowshift.errors import InputError
from knowshift.studies.config import load_preset, parse_config
from knowshift.studies.memory import GPU_BYTES, held_bytes, memory_of
from knowshift.studies.readiness import check_dividable
from knowshift.studies.run import run_study
from knowshift.studies.shape import known_models
from tiny_models import tiny_checkpoint

STUDY = """
name: divided
levels: [0]
sizes: [8]
draws: 1
control_rate: null
mastery: {draws_per_prompt: 1, train_facts: 24, test_facts: 8, facts_per_cell: 100, max_new_tokens: 3}
training: {learning_rate: 1.0e-3, gradient_checkpointing: true}
variants: {low-rank: {lora: {rank: 2, alpha: 4}, learning_rate: 1.0e-2, epochs: 2}}
evaluation: {facts_per_level: 4, few_shot: 0}
restoration: {fractions: [0.1, 0.5], train_set_fractions: [0.2], train_set_facts: 4, layer_group: 1}
"""


def test_two_devices_do_a_study_as_one_does(tmp_path: Path, small_world: Path) -> None:
    """A random Llama of four heads and two of keys; the tuned models differ by the rounding of their training."""
    model = tiny_checkpoint(tmp_path / "model", num_attention_heads=4, num_key_value_heads=2)
    asked = {"model": str(model), "facts": f"world:{small_world}"}
    runs = {}
    for devices in (1, 2):
        config = parse_config(STUDY, "divided", {**asked, "devices": devices})
        run_study(config, tmp_path / f"run-{devices}", executor="here")
        runs[devices] = _cells(tmp_path / f"run-{devices}")
    one, two = runs[1], runs[2]
    assert set(one) == set(two)
    for name, held in one.items():
        if name.endswith("mastery.parquet"):
            assert held["prompt_hits"] == two[name]["prompt_hits"]
        elif name.endswith(".parquet") and name.startswith(("base", "evaluation", "restoration", "layer_groups")):
            assert held["text"] == two[name]["text"], name
        elif name.endswith("restored.json"):
            assert held == two[name]
    for training in ("", " low-rank"):
        told = [run[f"tuned{training}/record.json"] for run in (one, two)]
        assert told[1]["shards"] == 2
        assert told[1]["losses"] == pytest.approx(told[0]["losses"], rel=1e-5)
        shares = [run[f"weight_change{training}/change.json"]["concentration"]["relative"]["0.2"] for run in (one, two)]
        assert shares[1] == pytest.approx(shares[0], abs=1e-3)
        kls = [run[f"token_shift{training}/token_shift.parquet"]["kl"] for run in (one, two)]
        assert kls[1] == pytest.approx(kls[0], abs=1e-4)
    assert Path(report(tmp_path / "run-2").output).is_file()


def _cells(run: Path) -> dict[str, Any]:
    """What each file of each cell holds, by kind, variant and name."""
    found: dict[str, Any] = {}
    cells = json.loads((run / "manifest.json").read_text())["cells"]
    variants = {cell["digest"]: cell["key"].get("control") for cell in cells}
    for file in sorted((run / "cells").glob("*/*/*")):
        variant = variants[file.parent.name]
        name = f"{file.parents[1].name}{'' if variant is None else f' {variant}'}/{file.name}"
        if file.suffix == ".parquet":
            found[name] = pq.read_table(file).to_pydict()
        elif file.suffix == ".json":
            found[name] = json.loads(file.read_text())
        else:
            found[name] = sorted(path.name for path in file.iterdir())
    return found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"devices": 0}, "--set devices: Input should be greater than or equal to 1"),
        ({"devices": 8, "device": "cuda:1"}, "devices: 8 processes .* expected device: cuda, found 'cuda:1'"),
        ({"devices": 8, "training.shards": 4}, "expected 8 or no value, found 4"),
    ],
)
def test_a_division_that_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_preset("llama-3-70b", changes)


def test_a_preset_says_among_how_many_devices_its_model_is_divided() -> None:
    """70.6 billion weights, of which embeddings and head are whole on each device."""
    shape = known_models()["meta-llama/Meta-Llama-3-70B"].shape
    config = load_preset("llama-3-70b", {"devices": 1})
    alone = memory_of(config, shape.weights, shape)
    most = "8 are the most offered: to train takes 172 GB each, 94 GB with --set dtype=bfloat16"
    assert alone.gpus is None
    assert alone.on_gpus == (f"one does not hold the model while it is asked (282 GB); {most}")
    whole = 2 * shape.vocabulary * shape.hidden
    assert held_bytes(config, shape.weights, shape, 8) == 4 * (whole + (shape.weights - whole) // 8)
    divided = load_preset("llama-3-70b")
    memory = memory_of(divided, shape.weights, shape)
    assert (memory.way, memory.shards, memory.devices) == ("in turns", 8, 8)
    assert memory.weights == held_bytes(config, shape.weights, shape, 8) < GPU_BYTES
    assert "divided among 8 devices" in memory.held
    check_dividable(divided)
    with pytest.raises(InputError, match=r"^devices: 16 do not divide the 8 key-value heads .* 1, 2, 4, 8$"):
        check_dividable(load_preset("llama-3-70b", {"variants": {}, "devices": 16}))
