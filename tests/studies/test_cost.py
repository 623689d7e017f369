"""The cost of a study against what was measured, against formulas written out here, and its refusal of small GPUs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowshift.errors import InputError
from knowshift.studies.config import StudyConfig, load_preset
from knowshift.studies.cost import CostModel
from knowshift.studies.memory import (
    GPU_BYTES,
    check_held,
    check_memory,
    divisors,
    held_bytes,
    memory_of,
    training_bytes,
)
from knowshift.studies.plan import outline
from knowshift.studies.shape import Shape, known_models
from knowshift.tuning.registry import STRATEGIES

TINY = Shape(4, 160, 448, 5, 5, 32, 4096, gated=True, tied=True)


def costs(config: StudyConfig, train: int, test: int, weights: int, shape: Shape | None) -> CostModel:
    return CostModel(config, outline(config, train, test), weights, shape)


def test_the_shipped_study_as_it_was_measured() -> None:
    """docs/results.md: 7,170 steps, 275 times 500 answers of tuned models, 802 s of processor time.

    All seven fractions were restored then, and restored models were not asked their training facts.
    """
    then = {
        "mastery.least_weight": None,
        "restoration.train_set_fractions": [],
        "restoration.fractions": [0.01, 0.03, 0.05, 0.1, 0.2, 0.4, 0.6],
    }
    model = costs(load_preset("tiny", then), 14_700, 1_600, 1_926_560, TINY)
    told = model.estimate(model.plan.cells)
    assert told.positions == 16_300 * 206
    assert told.steps == 7_170
    assert told.answers == (275 + 3) * 500  # and the base model's, in three forms
    seconds = 3600 * told.hours
    assert 0.7 * 802 < seconds < 1.1 * 802
    assert told.memory.training < 0.2e9
    assert told.as_record()["core_hours"] == pytest.approx(seconds / 3600, abs=1e-3)


@pytest.mark.parametrize("room", [0, 10**12])
def test_a_model_of_another_dtype_for_mastery_lies_beside_the_base_where_there_is_room(room: int) -> None:
    shape = known_models()["meta-llama/Meta-Llama-3-8B"].shape
    plain, other = (
        memory_of(load_preset("llama-3-8b", {"mastery.dtype": dtype}), shape.weights, shape, room)
        for dtype in (None, "bfloat16")
    )
    beside = plain.weights if room else 0
    assert other.mastery == plain.mastery - plain.weights + plain.weights // 2 + beside
    assert (other.weights, other.training, other.way, other.gpus) == (
        plain.weights,
        plain.training,
        plain.way,
        plain.gpus,
    )


def test_a_larger_least_weight_leaves_the_prompts_to_be_read() -> None:
    """docs/mastery.md: 207 and 152 positions a fact."""
    positions = {
        least: costs(
            load_preset("tiny", {"mastery.least_weight": least}), 14_700, 1_600, 1_926_560, TINY
        ).positions_of_fact
        for least in (None, 0.1, 2.0)
    }
    assert positions[None] == positions[0.1] == 206
    assert positions[2.0] == pytest.approx(152, rel=0.03)
    hits = load_preset("tiny", {"mastery.estimate": "hits"})
    assert costs(hits, 14_700, 1_600, 1_926_560, TINY).positions_of_fact == 371


def test_a_training_of_a_real_model_as_it_was_measured() -> None:
    """docs/study.md: SmolLM2-135M, float32, one thread: 3.53 s a step of 8 examples and 3.35 GB, imports included."""
    shape = known_models()["HuggingFaceTB/SmolLM2-135M"].shape
    config = load_preset("smollm2-135m", {"training.shared_prefix": False})
    model = costs(config, 8_000, 800, 134_515_008, shape)
    cell = next(c for c in model.plan.cells if c.kind == "tuned" and c.coordinates["size"] == 240)
    assert model.steps(cell) == 30
    assert model.seconds(cell) / 30 == pytest.approx(3.53, rel=0.15)
    assert memory_of(config, 134_515_008, shape).training == pytest.approx(3.35e9, rel=0.1)


def test_the_parts_of_a_cost_by_formulas_written_out() -> None:
    shape = known_models()["meta-llama/Meta-Llama-3-8B"].shape
    weights, config = 8_030_261_248, load_preset("llama-3-8b")
    model = costs(config, 75_944, 21_168, weights, shape)
    layer = 2 * 4096 * 128 * (32 + 8) + 3 * 4096 * 14336
    assert shape.layer_weights == 32 * layer
    forward = 2 * (32 * layer + 128256 * 4096) + 4 * 32 * 32 * 128 * 32
    assert shape.flops(32) == forward
    position = forward / (0.3 * 67e12)
    by_kind: dict[str, Any] = {}
    for cell in model.plan.cells:
        by_kind.setdefault(cell.kind, []).append(cell)
    assert model.seconds(by_kind["mastery"][0]) == pytest.approx(500 * 6145 * position)
    assert model.seconds(by_kind["evaluation"][0]) == pytest.approx(21_168 * 36 * position)
    restored = 14 * 21_168 * 36 * position + 2 * weights * 6.4 / 486e6 / 8
    assert model.seconds(by_kind["restoration"][0]) == pytest.approx(restored)
    train_set = 5 * 1920 * 36 * position + 2 * weights * 6.4 / 486e6 / 8
    assert model.seconds(by_kind["train_set"][0]) == pytest.approx(train_set)
    assert model.seconds(by_kind["layer_groups"][0]) == pytest.approx(9 * 10_584 * 36 * position)
    tuned = next(c for c in by_kind["tuned"] if c.coordinates["size"] == 1920)
    passes = 1920 * 30 * 3 * forward / (0.3 * 989e12)
    assert model.seconds(tuned) == pytest.approx(passes + 240 * weights * 28 / (3.35e12 / 2))
    # Weights and gradients, two moments, and a copy in two bytes for autocast; the base where there is room for it.
    assert memory_of(config, weights, None).training == weights * (4 * 4 + 2)
    assert memory_of(config, weights, None, room=10**12).training == weights * (4 * 5 + 2)
    assert model.estimate([]).hours == 0
    memory = model.estimate(model.plan.cells).memory
    assert (memory.way, memory.shards, memory.gpus) == ("in turns", 1, 2)
    # Divided in two: embeddings and head and two layers whole, in two bytes with gradients in two and in four.
    whole = (2 * 128256 * 4096 + 2 * layer) * (2 + 2 + 4)
    activations = 32 * 4 * 30 * (10 * 4096 + 4 * 14336) * 2 + 3 * 4 * 4 * 30 * 128256
    assert training_bytes(config, weights, shape, 2) == weights * 16 // 2 + whole + activations


def test_other_tasks_and_an_instruct_model_by_formulas_written_out() -> None:
    shape = known_models()["meta-llama/Meta-Llama-3-8B"].shape
    changes = {"restoration.tasks": ["gsm8k", "knowshift_xsum"], "restoration.tasks_limit": 500, "instruct": "m"}
    weights = 8_030_261_248
    model = costs(load_preset("llama-3-8b", changes), 75_944, 21_168, weights, shape)
    by_kind = {cell.kind: cell for cell in model.plan.cells}
    position = shape.flops(32) / (0.3 * 67e12)
    once = 2 * 500 * 1000 * position
    assert model.seconds(by_kind["base_tasks"]) == pytest.approx(once)
    restored = 15 * once + 2 * weights * 6.4 / 486e6 / 8
    assert model.seconds(by_kind["tasks"]) == pytest.approx(restored)
    assert model.answers(by_kind["instruct"]) == 4 * 21_168
    assert any("1,319 items of 1,000 token positions" in line for line in model.assumed)
    world = costs(load_preset("tiny", {"restoration.tasks": ["text_loss", "completion"]}), 900, 80, 10, TINY)
    asked = next(cell for cell in world.plan.cells if cell.kind == "base_tasks")
    assert world.task_positions(asked) == 1_180 * 14 + 189 * 20
    assert not [c for c in costs(load_preset("tiny"), 900, 80, 10, TINY).plan.cells if "task" in c.kind]


def test_all_facts_of_all_levels_are_the_facts_probed() -> None:
    model = costs(load_preset("llama-3-8b"), 75_944, 21_168, 10, None)
    of_all = [c for c in model.plan.cells if c.kind == "tuned" and c.coordinates["control"] == "all"]
    assert len(of_all) == 25
    assert sum(map(model.size_of, of_all)) == pytest.approx(5 * 75_944, abs=25)


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "device": st.sampled_from(["cpu", "cuda", "cuda:1"]),
        "dtype": st.sampled_from(["float32", "bfloat16", "auto"]),
        "keep_checkpoints": st.booleans(),
        "draws": st.integers(1, 3),
        "mastery.estimate": st.sampled_from(["hits", "expected"]),
        "training.bfloat16": st.booleans(),
        "training.gradient_checkpointing": st.booleans(),
        "sizes": st.sampled_from([[60], [60, "all"], [60, 240, 960, 1920]]),
    },
)


@settings(max_examples=25, deadline=None)
@given(CHANGES, st.sampled_from(sorted(known_models())), st.integers(2000, 20_000))
def test_an_estimate_is_the_sum_of_its_parts_and_grows_with_the_study(
    changes: dict[str, Any], name: str, facts: int
) -> None:
    config, shape = load_preset("tiny", changes), known_models()[name].shape
    model = costs(config, facts, 500, shape.weights, shape)
    cells = model.plan.cells
    whole, half, rest = (model.estimate(part) for part in (cells, cells[::2], cells[1::2]))
    assert whole.hours == pytest.approx(half.hours + rest.hours)
    assert whole.answers == half.answers + rest.answers
    assert whole.steps == half.steps + rest.steps
    assert all(seconds > 0 for seconds in whole.seconds.values())
    assert json.loads(json.dumps(whole.as_record())) == whole.as_record()
    assert whole.disk >= (shape.weights if config.keep_checkpoints else 0)
    more = costs(config, facts + 1000, 500, shape.weights, shape)
    assert more.estimate(more.plan.cells).hours > whole.hours
    assert all(line.isprintable() for line in model.assumed)


@given(
    st.sampled_from(sorted(known_models())),
    st.sampled_from(["float32", "bfloat16"]),
    st.booleans(),
    st.integers(1, 9),
    st.integers(1, 2 * 10**12),
)
def test_models_are_held_in_turns_where_both_do_not_fit(
    name: str, dtype: str, autocast: bool, shards: int, room: int
) -> None:
    changed = {"dtype": dtype, "training.bfloat16": autocast, "training.shards": shards, "device": "cuda"}
    config, shape = load_preset("llama-3-8b", changed), known_models()[name].shape
    memory = memory_of(config, shape.weights, shape, room)
    alone = training_bytes(config, shape.weights, shape, shards)
    own = shape.weights * (4 if dtype == "float32" else 2)
    both = shards == 1 and alone + own <= room
    assert (memory.way, memory.training) == (("both", alone + own) if both else ("in turns", alone))
    assert memory.weights == own <= memory.mastery
    offered = range(1, 256) if own <= GPU_BYTES else divisors(shape)
    hold = [n for n in offered if all(size <= GPU_BYTES for size in _on_each(config, shape, n))]
    assert memory.gpus == (hold[0] if hold else None)
    assert memory.held.isprintable()
    said = memory.on_gpus
    assert ("does not hold the model" in said) == (own > GPU_BYTES)
    if own <= GPU_BYTES and memory.training > GPU_BYTES:
        assert f"--set training.shards={memory.gpus}" in said
    if own > GPU_BYTES:
        assert "offered" in said if memory.gpus is None else f"--set devices={memory.gpus}" in said


@pytest.mark.parametrize("name", sorted(known_models()))
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_advised_is_accepted_and_holds(name: str, devices: int, dtype: str) -> None:
    shape = known_models()[name].shape
    if devices not in divisors(shape):
        return
    changed = {"dtype": dtype, "devices": devices, "device": "cuda"}
    said = memory_of(load_preset("llama-3-8b", changed), shape.weights, shape).on_gpus
    if (advised := re.search(r"--set (devices|training\.shards)=(\d+)", said)) is None:
        assert said.endswith("hold a worker") or said == "one holds a worker" or "offered" in said
        return
    follows = memory_of(load_preset("llama-3-8b", {**changed, advised[1]: int(advised[2])}), shape.weights, shape)
    assert max(follows.training, follows.weights) <= GPU_BYTES
    assert "hold a worker" in follows.on_gpus


def _on_each(config: StudyConfig, shape: Shape, devices: int) -> tuple[int, int]:
    """Bytes on each device of a training and, where the model is larger than one, of the model while it is asked."""
    own = held_bytes(config, shape.weights, shape, 1)
    asked = own if own <= GPU_BYTES else held_bytes(config, shape.weights, shape, devices)
    return training_bytes(config, shape.weights, shape, devices), asked


def of_strategies(names: Sequence[str], **changes: Any) -> StudyConfig:
    return load_preset("tiny", {"bench.strategies": {name: {} for name in names}, "bench.rates": [1.0], **changes})


@given(
    st.lists(st.sampled_from(sorted(STRATEGIES)), unique=True, max_size=5),
    st.sampled_from(["cpu", "cuda"]),
    st.sampled_from(["float32", "bfloat16"]),
)
@settings(max_examples=25, deadline=None)
def test_a_worker_has_room_for_the_strategy_that_holds_most(names: list[str], device: str, dtype: str) -> None:
    weights, width = TINY.weights, 4 if dtype == "float32" else 2
    changes = {"device": device, "dtype": dtype}
    memory = memory_of(of_strategies(names, **changes), weights, TINY, room=10**12)
    plain = memory_of(of_strategies([], **changes), weights, TINY, room=10**12)
    held = {name: STRATEGIES[name].held.bytes_of(weights, width, on_cpu=device == "cpu") for name in names}
    assert memory.training - plain.training == max(0, *held.values(), 0)
    assert plain.strategy is None
    if memory.strategy is None:
        assert all(told <= 0 for told in held.values())
    else:
        assert held[memory.strategy] == max(held.values()) > 0


def test_copies_of_a_strategy_by_hand() -> None:
    """EMA's average is in float32 beside bfloat16 weights; what restore-steps goes back to is not on a GPU."""
    changes = {"device": "cuda", "dtype": "bfloat16", "variants": {}}
    plain = memory_of(of_strategies([], **changes), 1_000_000, TINY).training
    assert memory_of(of_strategies(["ema", "lora"], **changes), 1_000_000, TINY).training == plain + 4_000_000
    assert memory_of(of_strategies(["proximal"], **changes), 1_000_000, TINY).training == plain + 2_000_000
    assert memory_of(of_strategies(["restore-steps"], **changes), 1_000_000, TINY).training == plain


def test_a_gpu_that_holds_plain_fine_tuning_alone_is_refused_for_a_strategy() -> None:
    config = of_strategies(["ema", "bema"], device="cuda")
    memory = memory_of(config, TINY.weights, TINY, room=0)
    assert (memory.strategy, memory.way) == ("bema", "in turns")
    check_held(config, memory, memory.training)
    with pytest.raises(InputError, match=r"in float32 by strategy 'bema' takes about 0\.\d GB, 0\.0 GB are free"):
        check_held(config, memory, 10**7)
    large = memory_of(config, 5 * 10**9, None)
    assert large.on_gpus == "one does not hold a training by 'bema' (120 GB)"
    plain = memory_of(of_strategies([], device="cuda"), TINY.weights, TINY, room=0)
    check_held(config, plain, 0)  # is refused elsewhere, as plain fine-tuning is


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training.shards": 0}, "--set training.shards: Input should be greater than or equal to 1"),
        ({"training.shards": 2, "device": "cuda:1"}, "expected device: cuda, found 'cuda:1'"),
        ({"training.shards": 2, "training.report_to": "wandb"}, "expected none with 2 shards"),
    ],
)
def test_a_division_that_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as told:
        load_preset("llama-3-8b", changes)
    assert said in str(told.value)


@given(st.integers(1, 10**12), st.integers(1, 10**12))
def test_a_gpu_that_is_too_small_is_refused_with_both_numbers(needed: int, free: int) -> None:
    config = load_preset("llama-3-8b")
    if needed <= free:
        check_memory(config, needed, free)
        return
    with pytest.raises(InputError) as told:
        check_memory(config, needed, free, 3)
    assert "use --set training.shards=3 (so many GPUs)" in str(told.value)
    with pytest.raises(InputError) as told:
        check_memory(config, needed, free)
    assert f"takes about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free" in str(told.value)
    assert "cuda: training meta-llama/Meta-Llama-3-8B in float32" in str(told.value)
    assert "--set dtype=bfloat16" in str(told.value)
