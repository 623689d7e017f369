"""A training that goes wrong ends in an error: float16, values that are not finite, a change that Adam cannot make."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from knowshift.errors import InputError
from knowshift.models.loading import LoadedModel, load_model
from knowshift.studies.config import parse_config
from knowshift.studies.run import plan_of, run_study
from knowshift.training import sft
from knowshift.training.guard import BETAS, LARGEST_STEP, SAMPLED, TrainingGuard, sample
from knowshift.training.precision import stored_dtype
from knowshift.training.sft import TrainingRecipe, finetune
from tiny_models import some_facts, tiny_checkpoint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(tiny_checkpoint(tmp_path_factory.mktemp("tiny"))))


def fresh(tiny: LoadedModel, dtype: str = "float32") -> LoadedModel:
    return replace(tiny, model=copy.deepcopy(tiny.model).to(DTYPES[dtype]), dtype=dtype)


def train(loaded: LoadedModel, steps: int = 3, **recipe: Any) -> dict[str, Any]:
    return finetune(loaded, some_facts(2 * steps), TrainingRecipe(batch_size=2, **recipe), seed=0)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    learning_rate=st.floats(-9, 0).map(lambda power: 10.0**power),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    weight_decay=st.sampled_from([0.0, 0.01, 0.5]),
    bfloat16=st.booleans(),
)
def test_an_honest_training_is_let_through(
    tiny: LoadedModel, learning_rate: float, dtype: str, schedule: str, weight_decay: float, bfloat16: bool
) -> None:
    loaded = fresh(tiny, dtype)
    record = train(loaded, learning_rate=learning_rate, schedule=schedule, weight_decay=weight_decay, bfloat16=bfloat16)
    assert record["steps"] == len(record["losses"]) == 3
    assert record["train_loss"] == pytest.approx(sum(record["losses"]) / 3)


class _Weights(torch.nn.Module):
    def __init__(self, weights: list[float], dtype: str) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weights, dtype=DTYPES[dtype]))


def adam(weights: list[float], gradients: list[list[float]], dtype: str, rate: float, decay: float) -> _Weights:
    """Weights after real AdamW on any gradients, one a step, watched and checked by the guard."""
    module = _Weights(weights, dtype)
    guard = TrainingGuard(module, "weights", weight_decay=decay)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, betas=BETAS, weight_decay=decay, fused=True)
    for step in gradients:
        module.weight.grad = torch.tensor(step, dtype=DTYPES[dtype])
        optimizer.step()
        guard.on_log(None, None, None, {"loss": 0.0, "learning_rate": rate})
    guard.check()
    return module


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    weights=st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4),
    powers=st.lists(st.lists(st.floats(-30, 9), min_size=4, max_size=4), min_size=1, max_size=40),
    growth=st.floats(0.5, 2),
    alternating=st.booleans(),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    rate=st.floats(-10, 0).map(lambda power: 10.0**power),
    decay=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_no_gradients_make_adam_pass_the_bound(
    weights: list[float],
    powers: list[list[float]],
    growth: float,
    alternating: bool,
    dtype: str,
    rate: float,
    decay: float,
) -> None:
    signs = [(-1) ** (step * alternating) for step in range(len(powers))]
    gradients = [
        [sign * 2.0**power * growth**step for power in row]
        for step, (row, sign) in enumerate(zip(powers, signs, strict=True))
    ]
    adam(weights, gradients, dtype, rate, decay)


def test_growing_gradients_pass_the_published_bound_and_keep_to_ours() -> None:
    published = (1 - BETAS[0]) / (1 - BETAS[1]) ** 0.5  # Kingma and Ba 2015, section 2.1: 3.16 learning rates
    gradients = [[1e-7 * (BETAS[1] / BETAS[0]) ** step] for step in range(570)]
    one_less, after = (adam([0.0], gradients[:steps], "float32", 1e-3, 0.0).weight.item() for steps in (569, 570))
    assert published < abs(after - one_less) / 1e-3 < LARGEST_STEP
    adam([0.0], gradients, "bfloat16", 1e-3, 0.0)


Fault = Callable[[Any, int], None]


def _nan_at_2(model: Any, step: int) -> None:
    if step == 2:
        model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")


def _nan_in_an_unread_row(model: Any, step: int) -> None:
    if step == 3:
        model.model.embed_tokens.weight.data[0] = float("nan")


def _infinite_at_the_end(model: Any, step: int) -> None:
    if step == 3:
        model.lm_head.weight.data[7, 3] = float("inf")


def _one_moved(model: Any, step: int) -> None:
    if step == 1:
        model.model.layers[0].self_attn.q_proj.weight.data[3, 5] += 1


def _one_shrunk(model: Any, step: int) -> None:
    if step == 3:
        model.model.norm.weight.data[4] *= 0.9


def _gradients_explode(model: Any, step: int) -> None:
    if step == 1:
        for parameter in model.parameters():
            parameter.register_hook(lambda gradient: torch.full_like(gradient, 1e25))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (_nan_at_2, r"step 3 of 3: the loss is nan"),
        (_nan_in_an_unread_row, r"after 3 steps: weights of 'model\.embed_tokens\.weight' are not finite"),
        (_infinite_at_the_end, r"after 3 steps: weights of 'lm_head\.weight' are not finite"),
        (_one_moved, r"after 3 steps: a weight of 'model\.layers\.0\.self_attn\.q_proj\.weight' changed by 1"),
        (_one_shrunk, r"after 3 steps: a weight of 'model\.norm\.weight' changed by 0\."),
        (_gradients_explode, r"step 2 of 3: the norm of the gradients is inf"),
    ],
)
def test_a_fault_in_training_is_an_error(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, fault: Fault, said: str
) -> None:
    class Faulty(TrainingGuard):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
            with torch.no_grad():
                fault(model, state.global_step)

    monkeypatch.setattr(sft, "TrainingGuard", Faulty)
    with pytest.raises(InputError, match=rf"training failed: {said}.*nothing is kept") as failure:
        train(fresh(tiny), learning_rate=1e-4)
    assert "\n" not in str(failure.value)


def test_a_learning_rate_beyond_reason_is_an_error(tiny: LoadedModel) -> None:
    with pytest.raises(InputError, match=r"step 2 of 3: the loss is nan.*Try a lower learning rate"):
        train(fresh(tiny), learning_rate=1e12)


def test_a_damaged_checkpoint_is_not_trained(tiny: LoadedModel) -> None:
    loaded = fresh(tiny)
    loaded.model.model.embed_tokens.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"embed_tokens\.weight' are not finite before training"):
        train(loaded)


@pytest.mark.parametrize("learning_rate", [1e-7, 1e-5])
def test_float16_is_refused_and_would_be_seen(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, learning_rate: float
) -> None:
    loaded = fresh(tiny, "float16")
    before = copy.deepcopy(loaded.model.state_dict())
    with pytest.raises(InputError, match=r"--dtype float32 or --dtype bfloat16") as failure:
        train(loaded, learning_rate=learning_rate)
    assert "\n" not in str(failure.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.model.state_dict().items())
    monkeypatch.setattr(sft, "check_trainable", lambda name, dtype: None)
    with pytest.raises(InputError, match=r"changed by .*, where learning rates that sum to"):
        train(loaded, learning_rate=learning_rate)


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"shared_prefix": True}, {"gradient_checkpointing": True}])
def test_the_guard_does_not_change_what_is_trained(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    class Blind(TrainingGuard):
        def check(self) -> None:
            pass

        def on_log(self, *args: Any, **more: Any) -> None:
            pass

    watched, unwatched = fresh(tiny), fresh(tiny)
    facts = some_facts(6)
    finetune(watched, facts, TrainingRecipe(**options), seed=0)
    monkeypatch.setattr(sft, "TrainingGuard", Blind)
    finetune(unwatched, facts, TrainingRecipe(**options), seed=0)
    pairs = zip(watched.model.parameters(), unwatched.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_the_sample_is_bounded_and_reaches_every_column() -> None:
    assert torch.equal(sample(torch.arange(SAMPLED)), torch.arange(SAMPLED))
    columns = torch.arange(1024).repeat(512)
    taken = sample(columns.view(512, 1024))
    assert SAMPLED // 2 < len(taken) <= SAMPLED
    assert len(taken.unique()) == 1024


STUDY = "{name: s, model: MODEL, facts: world:tiny, sizes: [8], mastery: {train_facts: 8, test_facts: 8}, dtype: DTYPE}"


def test_a_study_in_float16_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"s\.yaml: dtype: .*dtype: float32 or dtype: bfloat16"):
        parse_config(STUDY.replace("DTYPE", "float16"), "s.yaml")
    for dtype in DTYPES:
        folder = tiny_checkpoint(tmp_path / dtype, dtype=dtype)
        config = parse_config(STUDY.replace("DTYPE", "auto").replace("MODEL", str(folder)), "s.yaml")
        if dtype == "float16":
            with pytest.raises(InputError, match=r"float16: .*dtype: float32 or dtype: bfloat16"):
                run_study(config, tmp_path / "run", executor="here")
        else:
            assert plan_of(config)[0].tuned
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("says", ["dtype", "torch_dtype", "nothing", "another"])
def test_the_stored_dtype_is_the_one_that_auto_loads(stored: str, says: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m", dtype=stored)
    text = (folder / "config.json").read_text()
    line = f'"dtype": "{stored}"'
    assert line in text
    told = {
        "dtype": line,
        "torch_dtype": f'"torch_dtype": "{stored}"',
        "nothing": '"x": 1',
        "another": '"dtype": "bfloat16"',
    }
    (folder / "config.json").write_text(text.replace(line, told[says]))
    assert stored_dtype(folder) == load_model(str(folder), dtype="auto").dtype


def test_the_bound_is_the_derived_one_to_six_digits() -> None:
    """R = 2 * 1.1 * 7.27 * S, with S the sum of the rates; decay adds R + 2 S w (|p| + R), and float32's own error."""
    largest, moment, square = 0.0, 0.0, 0.0
    for step in range(1, 4000):  # gradients that grow by b2 / b1 a step, scaled so that the newest one is 1
        shrink = BETAS[0] / BETAS[1]
        moment, square = moment * BETAS[0] * shrink + (1 - BETAS[0]), square * BETAS[1] * shrink**2 + (1 - BETAS[1])
        if step > 100:
            largest = max(largest, moment / square**0.5)
    assert pytest.approx(largest, rel=1e-3) == LARGEST_STEP
    reach = 2 * 1.1 * LARGEST_STEP * (0.1 + 0.2)
    shrinking = 2 * 0.3 * 0.5 + 2 * 2.0**-21
    for decay, allowed in ((0.0, [reach, reach]), (0.5, [reach + shrinking * reach, reach + shrinking * (2 + reach)])):
        for number in range(2):
            for beyond, refused in ((1 - 1e-6, False), (1 + 1e-6, True)):
                module = _Weights([0.0, 2.0], "float32").double()
                guard = TrainingGuard(module, "weights", weight_decay=decay)  # type: ignore[arg-type]
                for rate in (0.1, 0.2):
                    guard.on_log(None, None, None, {"loss": 0.0, "learning_rate": rate})
                with torch.no_grad():
                    module.weight[number] += allowed[number] * beyond
                if refused:
                    with pytest.raises(InputError, match="after 2 steps: a weight of 'weight' changed by"):
                        guard.check()
                else:
                    guard.check()


def test_only_what_is_trained_is_looked_at() -> None:
    module = _Weights([1.0], "float32")
    module.frozen = torch.nn.Parameter(torch.tensor([float("nan")]), requires_grad=False)
    module.empty = torch.nn.Parameter(torch.empty(0))
    guard = TrainingGuard(module, "weights", weight_decay=0.0)  # type: ignore[arg-type]
    guard.on_log(None, None, None, {"loss": 0.0, "learning_rate": 0.1})
    guard.check()


def test_the_recipe_is_the_papers() -> None:
    assert TrainingRecipe().as_record() == {
        "learning_rate": 1e-5,
        "batch_size": 8,
        "epochs": 1,
        "schedule": "cosine",
        "weight_decay": 0.0,
        "bfloat16": False,
        "gradient_checkpointing": False,
        "shared_prefix": False,
        "report_to": "none",
    }
