"""Every preset: its settings, its model's size, its plan without network, and a small study on its architecture."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import knowshift
from knowshift.errors import InputError
from knowshift.facts.sources import fetching
from knowshift.models import finding
from knowshift.reports.evidence.run_folder import open_run
from knowshift.reports.published import published
from knowshift.studies import readiness
from knowshift.studies.config import load_preset, presets
from knowshift.studies.run import run_study
from knowshift.studies.shape import Shape, known_models
from knowshift.training.draws import level_counts
from tiny_models import byte_tokenizer

PAPER = ("llama-2-7b", "llama-2-13b", "llama-2-70b", "llama-3-8b", "llama-3-70b")
#: Weights as the publishers of the models count them.
WEIGHTS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "qwen3": 8_190_735_360,
    "gemma-3": 999_885_952,
    "olmo-2": 7_298_617_344,
    "pythia": 6_857_302_016,
    "smollm2-135m": 134_515_008,
}


def architecture(name: str) -> dict[str, Any]:
    return dict(known_models()[load_preset(name).model].config)


def model_of(config: dict[str, Any]) -> torch.nn.Module:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))  # type: ignore[no-any-return]


def test_the_presets() -> None:
    assert presets() == sorted([*WEIGHTS, "data", "recipe", "strategies", "tiny", "tiny-full"])


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_settings(name: str) -> None:
    config = load_preset(name)
    assert config.name == name
    assert config.facts == "entity-questions"
    assert (config.levels, config.sizes, config.draws) == ((0, 1, 2, 3, 4), (60, 240, 960, 1920, "all"), 5)
    mastery, training, restoration = config.mastery, config.training, config.restoration
    assert (mastery.draws_per_prompt, mastery.temperature, mastery.max_new_tokens) == (10, 0.7, 32)
    assert (mastery.estimate, mastery.stopping, mastery.train_facts, mastery.test_facts) == ("hits", "full", None, None)
    assert (training.learning_rate, training.batch_size, training.epochs) == (1e-5, 8, 1)
    assert training.schedule == "cosine"
    assert restoration.fractions == (0.01, 0.03, 0.05, 0.1, 0.2, 0.4, 0.6)
    assert {"relative", "random"} <= set(restoration.criteria)
    assert (restoration.region, config.restored_sizes) == ("layers", (240, 1920))
    assert config.evaluation.facts_per_level is None
    assert config.instruct is not None
    assert config.instruct.removesuffix("-Instruct").replace("-chat-hf", "-hf") == config.model != config.instruct
    assert sum(readiness.ENTITY_QUESTIONS) == sum(
        int(row["facts"]) for row in published("mastery_distribution") if row["model"].lower() == name.replace("_", "-")
    )


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_shape_of_a_preset_s_model_counts_its_weights(name: str) -> None:
    config = architecture(name)
    with torch.device("meta"):
        counted = sum(weight.numel() for weight in model_of(config).parameters())
    assert counted == WEIGHTS[name]
    shape = Shape.of(config)
    assert shape is not None
    assert shape.weights == pytest.approx(counted, rel=1e-3)
    assert shape.weights <= counted


def test_a_configuration_that_does_not_tell_a_shape() -> None:
    assert Shape.of({}) is None
    assert Shape.of({**architecture("qwen3"), "num_experts": 8}) is None
    assert Shape.of({**architecture("qwen3"), "hidden_size": "4096"}) is None
    assert Shape.of({"text_config": architecture("gemma-3")}) == Shape.of(architecture("gemma-3"))


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a cache nor a network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        readiness, "snapshot_download", lambda *a, **more: _offline(*a, **more, cache_dir=tmp_path / "hub")
    )

    def refuse(*given: object, **more: object) -> None:
        raise AssertionError("a plan asked the network")

    monkeypatch.setattr(finding, "_from_hub", refuse)
    monkeypatch.setattr(fetching, "_download", refuse)


_offline = readiness.snapshot_download


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("name", presets())
def test_a_preset_is_planned_without_network_model_and_facts(name: str, tmp_path: Path) -> None:
    plan = knowshift.plan_study(preset=name, output_dir=tmp_path / "run")
    config = load_preset(name)
    control = min(config.control_draws or config.draws, config.draws) if config.control_rate else 0
    variants = sum(
        (1 if variant.levels == "mixed" else len(variant.levels or config.levels))
        * len(variant.sizes or (config.largest,))
        * (variant.draws or config.draws)
        for variant in (*config.variants.values(), *config.benched.values())
    )
    assert plan.cells["tuned"] == len(config.levels) * (config.draws * len(config.sizes) + control) + variants
    assert plan.cells["restoration"] == len(config.levels) * config.draws * len(config.restored_sizes)
    assert plan.cells == plan.missing
    assert plan.estimate is not None
    assert plan.estimate.hours > 0
    assert not (tmp_path / "run").exists()
    told = "\n".join(plan.have_ready)
    if name in ("tiny", "tiny-full", "strategies", "data", "recipe"):
        assert plan.have_ready == ()
        return
    assert f"model: {config.model} is fetched" in told
    assert ("gated: accept its licence" in told) == known_models()[config.model].gated
    assert "--facts entity-questions:PATH" in told
    assert (f"model: {config.instruct} is fetched" in told) == (config.instruct is not None)
    assert plan.cells["mastery"] == -(-plan.about["source"]["probed"] // config.mastery.facts_per_cell)
    if name in PAPER:
        assert plan.about["source"]["probed"] == 97_112


def test_another_model_and_other_facts_than_the_preset_s(tmp_path: Path) -> None:
    changed = {"model": "world:tiny", "facts": "world:tiny", "overrides": ["device=cpu", "training.bfloat16=false"]}
    plan = knowshift.plan_study(preset="llama-3-8b", output_dir=tmp_path / "run", **changed)
    assert plan.about["model"]["weights"] == 1_926_560
    assert plan.about["source"]["name"] == "world:tiny"
    assert plan.have_ready == ()
    with pytest.raises(InputError, match=r"no/such: no such model folder|no such model"):
        knowshift.plan_study(preset="llama-3-8b", model="./no/such", facts="world:tiny")


#: Sizes of a model that is tuned in a moment; of what its family has beside them, the family's own values stay.
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 260}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def shrunk(config: dict[str, Any]) -> dict[str, Any]:
    grouped = config.get("num_key_value_heads", config["num_attention_heads"]) < config["num_attention_heads"]
    small = {**config, **SMALL, **IDS, "num_attention_heads": 2}
    if "num_key_value_heads" in config:
        small["num_key_value_heads"] = 1 if grouped else 2
    if "head_dim" in config:
        small["head_dim"] = 16
    if "sliding_window" in config:
        small |= {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    return small


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Facts whose long answers a random model never says: all of level 0."""
    path = tmp_path_factory.mktemp("facts") / "facts.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["question", "answer", "relation", "subject", "split", "domain"])
        for i in range(16):
            split, domain = ("train", "in_domain") if i < 12 else ("test", ("in_domain", "out_of_domain")[i % 2])
            relation = "P19" if domain == "in_domain" else "P26"
            rows.writerow([f"Where was Ann{i} born?", f"Zwartemeer{i}", relation, f"Ann{i}", split, domain])
    return path


FAMILIES = ("llama-2-7b", "llama-3-8b", "qwen3", "gemma-3", "olmo-2", "pythia", "smollm2-135m")


def test_a_family_stands_for_every_preset() -> None:
    kinds = {
        name: (architecture(name)["model_type"], architecture(name).get("tie_word_embeddings")) for name in WEIGHTS
    }
    assert {kinds[name] for name in FAMILIES} == set(kinds.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_small_study_on_the_architecture_of_a_preset(name: str, facts: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model_of(shrunk(architecture(name))).save_pretrained(tmp_path / "model")  # type: ignore[operator]
    byte_tokenizer().save_pretrained(tmp_path / "model")
    small: dict[str, Any] = {
        "model": str(tmp_path / "model"),
        "instruct": None,
        "facts": str(facts),
        "device": "cpu",
        "threads": 1,
        "levels": [0],
        "sizes": [4, "all"],
        "draws": 1,
        "control_rate": None,
        "variants": {"adapted": {"levels": "mixed", "lora": {"rank": 2}, "sizes": [4], "learning_rate": 1e-2}},
        "mastery.draws_per_prompt": 1,
        "mastery.max_new_tokens": 2,
        "mastery.train_facts": None,
        "mastery.test_facts": None,
        "restoration.sizes": None,
        "restoration.fractions": [0.2],
        "restoration.criteria": ["relative"],
    }
    run = tmp_path / "run"
    plan = run_study(load_preset(name, small), run, executor="here")
    manifest = json.loads((run / "manifest.json").read_text())
    assert [cell.as_record() for cell in plan.cells] == manifest["cells"]
    assert all(cell.folder(run).is_dir() for cell in plan.cells)
    tuned = {str(c.coordinates["control"]): c for c in plan.cells if c.kind == "tuned"}
    sizes = {control: cell.coordinates["size"] for control, cell in tuned.items()}
    assert sizes == {"None": 4, "all": 12, "adapted": 4}
    # Adapters sit on every linear layer of the transformer, whatever the family calls it.
    (change,) = (c for c in plan.cells if c.kind == "weight_change" and c.coordinates["control"] == "adapted")
    assert json.loads((change.folder(run) / "change.json").read_text())["changed_share"] > 0.9
    record = json.loads((tuned["all"].folder(run) / "record.json").read_text())
    assert (record["steps"], len(set(record["facts"]))) == (2, 12)
    assert record["compute_dtype"] == ("bfloat16" if load_preset(name).training.bfloat16 else "float32")
    (restored,) = run.glob("cells/restoration/*/restored.json")
    told = json.loads(restored.read_text())
    shape = Shape.of(shrunk(architecture(name)))
    assert shape is not None
    assert told["eligible"] == shape.layer_weights
    assert told["criteria"] == {"relative": {"0.2": told["eligible"] // 5}}
    assert len(open_run(run).cells) == len(plan.cells)


@pytest.mark.slow
def test_a_training_set_of_all_facts_of_each_level(tmp_path: Path) -> None:
    small = {
        "model": "world:tiny",
        "facts": "world:tiny",
        "levels": [0, 1],
        "draws": 1,
        "sizes": ["all", 4],
        "control_rate": None,
        "keep_checkpoints": False,
        "evaluation.facts_per_level": 3,
        "mastery.train_facts": 40,
        "mastery.test_facts": 20,
        "mastery.texts": 2,
        "mastery.max_new_tokens": 6,
        "restoration.fractions": [0.2],
        "restoration.criteria": ["relative"],
    }
    config, run = load_preset("tiny", small), tmp_path / "run"
    run_study(config, run, executor="here")
    known = open_run(run)
    sizes = {c.setting.level: c.setting.size for c in known.of("evaluation") if c.setting.control == "all"}
    rows = [row for file in run.glob("cells/mastery/*/*.parquet") for row in pq.read_table(file).to_pylist()]
    counts = level_counts([row["level"] for row in rows if row["split"] == "train"])
    assert sizes == {0: counts[0], 1: counts[1]}
    # Done again, nothing is missing, and nothing is another cell.
    again = knowshift.plan_study(config, output_dir=run)
    assert again.missing == {}
    assert sum(again.cells.values()) == known.planned
    frame = knowshift.report(run).to_pandas("accuracy")
    of_all = frame[frame["control"] == "all"]
    assert {int(row["level"]): int(row["size"]) for _, row in of_all.iterrows()} == sizes
