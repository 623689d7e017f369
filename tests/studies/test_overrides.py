"""``--set KEY=VALUE``, ``--model`` and ``--facts``: every field of a config, and one line for what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import knowshift
from knowshift.errors import InputError
from knowshift.studies.config import StudyConfig, dotted_keys, load_preset, parse_config
from knowshift.studies.plan import field_of

SMALLEST: dict[str, Any] = {"name": "n", "model": "m", "facts": "f"}

#: A value of each field that is not the one of the preset tiny.
OTHER: dict[str, Any] = {
    "name": "other",
    "model": "m",
    "facts": "f",
    "revision": "main",
    "base": "b",
    "base_revision": "main",
    "instruct": "i",
    "instruct_revision": "main",
    "dtype": "bfloat16",
    "device": "cuda:1",
    "devices": 2,
    "threads": 3,
    "seed": 9,
    "levels": [1, 2],
    "draws": 4,
    "sizes": [60, 1920, "all"],
    "control_rate": 0.5,
    "control_draws": 2,
    "keep_checkpoints": True,
    "variants": {"mixed": {"levels": "mixed"}},
    "bench.strategies": {"sft": {}, "kl-strong": {"strategy": "kl", "weight": 1.0}},
    "bench.rates": [0.5],
    "bench.levels": [0],
    "bench.sizes": [60],
    "bench.draws": 1,
    "bench.train_facts": 5,
    "bench.texts": 6,
    "mastery.draws_per_prompt": 4,
    "mastery.temperature": 1.5,
    "mastery.max_new_tokens": 8,
    "mastery.stopping": "sequential",
    "mastery.estimate": "hits",
    "mastery.texts": 3,
    "mastery.least_weight": None,
    "mastery.train_facts": 7,
    "mastery.test_facts": 8,
    "mastery.facts_per_cell": 9,
    "mastery.dtype": "bfloat16",
    "mastery.servers": ["http://here:1"],
    "training.learning_rate": 3e-5,
    "training.batch_size": 2,
    "training.epochs": 2,
    "training.schedule": "linear",
    "training.bfloat16": True,
    "training.gradient_checkpointing": True,
    "training.shared_prefix": False,
    "training.shards": 2,
    "training.report_to": "wandb",
    "evaluation.levels": [0, 1],
    "evaluation.facts_per_level": 5,
    "evaluation.few_shot": 0,
    "restoration.fractions": [0.5],
    "restoration.criteria": ["absolute"],
    "restoration.region": "mlp",
    "restoration.sizes": [60],
    "restoration.train_set_fractions": [0.4],
    "restoration.train_set_facts": 30,
    "restoration.layer_group": 2,
    "restoration.tasks": ["text_loss"],
    "restoration.tasks_limit": 5,
    "restoration.texts": "t.txt",
}


def test_every_field_of_a_preset_can_be_set() -> None:
    assert set(dotted_keys()) == set(OTHER)
    before = load_preset("tiny")
    for key, value in OTHER.items():
        after = load_preset("tiny", {key: value})
        asked = StudyConfig.model_validate({**SMALLEST, key: value}).as_record()[key] if key == "variants" else value
        assert field_of(after, key) == asked != field_of(before, key), key
        changed = {other for other in OTHER if field_of(after, other) != field_of(before, other)}
        # Of hits, and of servers' texts, there is none.
        assert changed - ({"mastery.least_weight"} if key in ("mastery.estimate", "mastery.servers") else set()) == {
            key
        }


def test_values_are_yaml_and_the_last_counts(tmp_path: Path) -> None:
    config = tmp_path / "study.yaml"
    config.write_text("name: s\nmodel: world:tiny\nfacts: world:tiny\nrevision: main\ndraws: 1\nseed: 4\n")
    told = ["training.learning_rate=3e-5", "sizes=[8, all]", "control_rate=null", "draws=2", "draws=1"]
    plan = knowshift.plan_study(config, model="world:tiny", overrides=told, output_dir=tmp_path / "run")
    assert plan.cells["tuned"] == 5 * 2
    assert "revision" in config.read_text()  # of the other model: it is dropped, and nothing is written
    same = knowshift.plan_study(
        config, overrides={yaml.safe_load("model"): "world:tiny", "draws": 2}, output_dir=tmp_path / "run"
    )
    assert same.cells["tuned"] == 5 * 2 * 5


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("training.learning_rat=1", "--set training.learning_rat: unknown key; nearest: 'training.learning_rate'"),
        ("learning_rate=1", "--set learning_rate: unknown key; nearest: 'training.learning_rate'"),
        ("trainng.epochs=1", "unknown key; nearest: 'training.epochs'"),
        ("training=1", "--set training: unknown key"),
        ("training.learning_rate=fast", "--set training.learning_rate: Input should be a valid number"),
        ("training.learning_rate=-1", "--set training.learning_rate: Input should be greater than 0 (found -1)"),
        ("draws=many", "--set draws: Input should be a valid integer"),
        ("levels=[0, 7]", "--set levels.1: Input should be less than or equal to 4"),
        ("sizes=[60, al]", "--set sizes.1: expected a whole number, 1 or more, or 'all' (found 'al')"),
        ("sizes=[0]", "--set sizes.0: expected a whole number, 1 or more, or 'all' (found 0)"),
        ("sizes=[true]", "--set sizes.0: expected a whole number"),
        ("sizes=[all]", "sizes: expected at least one number beside 'all'"),
        ("sizes=[60, all, all]", "sizes: expected distinct values"),
        ("restoration.sizes=[all]", "--set restoration.sizes.0"),
        ("mastery.stopping=exact", "stopping rule 'exact' counts hits"),
        ("dtype=float16", "training in float16 destroys a model"),
        ("draws", "--set draws: expected KEY=VALUE"),
        ("variants={m: {level: mixed}}", "unknown key 'variants.m.level'; nearest: 'levels'"),
        ("variants={m: {lora: {rnk: 3}}}", "unknown key 'variants.m.lora.rnk'; nearest: 'rank'"),
        ("variants={m: {lora: {rank: 0}}}", "--set variants.m.lora.rank: Input should be greater than or equal to 1"),
        ("variants={m: {}}", "variants.m: is the grid itself"),
        ("variants={m: {strategy: lorra}}", "variants.m: no strategy 'lorra'; nearest: 'lora'"),
        ("variants={m: {strategy: lora, settings: {rnk: 2}}}", "variants.m: strategy 'lora' has no setting 'rnk'"),
        ("variants={m: {epochs: 2, settings: {rank: 2}}}", "variants.m.settings: are those of a strategy"),
        ("variants={m: {strategy: kl, dtype: bfloat16}}", "variants.m.dtype: a variant changes the strategy or this"),
        ("bench.strategies={kll: {}}", "bench.strategies.kll: no strategy 'kll'; nearest: 'kl'"),
        ("bench.strategies={kl: {weight: -1}}", "kl: weight: expected a number of at least 0, found -1"),
        ("bench.strategies={kl: {size: 0}}", "bench.strategies.kl.size: expected a number of training facts, found 0"),
        (
            "bench.strategies={kl: {rates: []}}",
            "bench.strategies.kl.rates: expected distinct numbers above 0, found []",
        ),
        ("bench.strategies={kl: {rates: 1}}", "bench.strategies.kl.rates: expected distinct numbers above 0, found 1"),
        ("bench.strategies={kl: {rates: [0.1, 0.1]}}", "kl.rates: expected distinct numbers above 0, found [0.1, 0.1]"),
        (
            "bench.strategies={kl: {weight: [0.5, 1]}}",
            "bench.strategies.kl.weight: expected one value, found [0.5, 1.0]",
        ),
        ("bench.strategies={kl: {rates: [1, -1]}}", "kl.rates: expected distinct numbers above 0, found [1.0, -1.0]"),
        ("bench.levels=[0, 4]", "bench.levels: expected 'mixed' or one level, found [0, 4]"),
        ("bench.rates=[1, 1]", "bench.rates: expected distinct values, found [1.0, 1.0]"),
        ("variants={m: {learning_rate: 1.0e-3}}", "variants.m: is the grid itself"),
        ("variants={all: {epochs: 2}}", "variants.all: 'all' names the training sets of all facts"),
        ("variants={M_: {epochs: 2}}", "--set variants.M_"),
        ("variants={m: {distinct_facts: 7}}", "7 facts cannot be repeated to 1920 evenly"),
        ("variants={m: {levels: [], epochs: 2}}", "variants.m.levels: expected some of the levels"),
        ("variants={m: {sizes: [60, 60], epochs: 2}}", "variants.m.sizes: expected distinct values"),
        ("variants={m: {dtype: float32}}", "--set variants.m.dtype"),
        ("variants={m: {epochs: 1, batch_size: 4}}", "variants.m.epochs: 1 is the grid's own; leave it out"),
        ("variants={m: {schedule: cosine, epochs: 2}}", "variants.m.schedule: 'cosine' is the grid's own"),
        ("variants=3", "--set variants: Input should be a valid dictionary"),
        ("=3", "--set =3: expected KEY=VALUE"),
        ("levels=[0", "--set levels=[0: the value is not YAML"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(told: str, said: str) -> None:
    with pytest.raises(InputError) as failure:
        knowshift.plan_study(preset="tiny", overrides=[told])
    assert said in str(failure.value)
    assert len(str(failure.value).splitlines()) == 1


def test_tasks_are_named_with_commas_and_unknown_ones_refused_before_anything_is_written(tmp_path: Path) -> None:
    plan = knowshift.plan_study(preset="tiny", tasks="text_loss, completion", output_dir=tmp_path / "run")
    assert (plan.cells["base_tasks"], plan.cells["tasks"]) == (1, plan.cells["restoration"])
    listed = knowshift.plan_study(preset="tiny", tasks=["completion"], output_dir=tmp_path / "run")
    assert listed.cells == plan.cells
    for asked, said in (
        ("completoin", "restoration.tasks 'completoin': lm-eval knows no such task; nearest: completion"),
        ("completion,completion", "restoration.tasks: expected distinct names"),
        ("completion,", "restoration.tasks: expected distinct names"),
    ):
        with pytest.raises(InputError) as failure:
            knowshift.study(preset="tiny", tasks=asked, output_dir=tmp_path / "run", executor="here")
        assert said in str(failure.value)
        assert len(str(failure.value).splitlines()) == 1
    overrides = {"restoration.texts": str(tmp_path / "none.txt")}
    with pytest.raises(InputError, match=r"restoration\.texts .*: no such file"):
        knowshift.study(preset="tiny", tasks="text_loss", overrides=overrides, output_dir=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_another_model_has_another_instruct_model(tmp_path: Path) -> None:
    plan = knowshift.plan_study(
        preset="llama-3-8b",
        model="world:tiny",
        facts="world:tiny",
        overrides=["device=cpu", "training.bfloat16=false"],
        output_dir=tmp_path / "run",
    )
    assert "instruct" not in plan.cells
    asked = {"instruct": "world:tiny"}
    assert knowshift.plan_study(preset="tiny", overrides=asked, output_dir=tmp_path / "run").cells["instruct"] == 1


def test_an_error_of_the_file_still_names_the_file() -> None:
    text = "name: s\nmodel: m\nfacts: f\ndraws: none\ntraining: 3\n"
    with pytest.raises(InputError, match=r"^s\.yaml: draws: Input should be a valid integer"):
        parse_config(text.replace("training: 3", ""), "s.yaml", {"training.epochs": 2})
    with pytest.raises(InputError, match=r"^s\.yaml: training: expected a mapping, found 3"):
        parse_config(text, "s.yaml", {"training.epochs": 2})
    with pytest.raises(InputError, match=r"--set 'draws=1': expected a list of texts such as"):
        knowshift.plan_study(preset="tiny", overrides="draws=1")


def test_a_configuration_in_memory_can_be_changed_too(tmp_path: Path) -> None:
    config = StudyConfig(name="s", model="world:tiny", facts="world:tiny", sizes=(8, "all"), draws=1)
    plan = knowshift.plan_study(config, overrides={"levels": [2], "control_rate": None}, output_dir=tmp_path / "run")
    assert plan.cells["tuned"] == 2


def test_a_least_weight_is_there_only_where_something_depends_on_it() -> None:
    assert load_preset("tiny").mastery.least_weight == 2.0
    for other in ({"mastery.estimate": "hits"}, {"mastery.servers": ["http://here:1"]}):
        assert load_preset("tiny", other).mastery.least_weight is None
    for wrong in (0, -1.0, float("inf"), float("nan"), 11.0, "much"):
        with pytest.raises(InputError, match=r"least.weight"):
            load_preset("tiny", {"mastery.least_weight": wrong})


def test_mastery_in_another_dtype_is_for_studies_in_float32_on_models_of_their_own() -> None:
    asked: dict[str, Any] = {"mastery.dtype": "bfloat16"}
    assert load_preset("tiny", asked).mastery.dtype == "bfloat16"
    with pytest.raises(
        InputError, match=r"mastery\.dtype: 'bfloat16' is for a study in float32, and this one is in bfl"
    ):
        load_preset("tiny", {**asked, "dtype": "bfloat16"})
    with pytest.raises(InputError, match=r"expected only one of mastery\.dtype and mastery\.servers"):
        load_preset("tiny", {**asked, "mastery.servers": ["http://here:1"]})
