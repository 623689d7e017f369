"""What strategies do at each step, against formulas in float64 on the weights that were there before and after."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import TrainerCallback
from trl import BEMACallback

from knowshift.errors import InputError
from knowshift.known_facts import KnownFacts
from knowshift.models.loading import LoadedModel
from knowshift.token_shift import token_shift
from knowshift.training.sft import TrainingRecipe, finetune
from knowshift.training.strategy import Strategy, Training
from knowshift.tuning.step.average import Bema, Ema
from knowshift.tuning.step.early_stop import EarlyStop, watched
from knowshift.tuning.step.proximal import Proximal, shrink
from knowshift.tuning.step.restore_steps import RestoreSteps

Knowing = tuple[LoadedModel, KnownFacts]
Weights = dict[str, NDArray[np.float64]]
RECIPE = TrainingRecipe(learning_rate=3e-3, epochs=3, shared_prefix=True)
HOOKS = ("on_optimizer_step", "on_step_end")


def weights_of(model: Any) -> Weights:
    return {name: one.detach().numpy().astype(np.float64) for name, one in model.named_parameters()}


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Weights and learning rate whenever a hook is called."""

    def __init__(self, model: Any, hook: str) -> None:
        self.seen: list[Weights] = []
        self.rates: list[float] = []

        def record(args: Any, state: Any, control: Any, optimizer: Any = None, **given: Any) -> None:
            self.seen.append(weights_of(model))
            self.rates.append(optimizer.param_groups[0]["lr"])

        setattr(self, hook, record)


@dataclass
class Run:
    """A training with recorders before and after a strategy's callbacks."""

    before: Recorder
    after: Recorder
    start: Weights
    end: Weights
    record: dict[str, Any]
    model: LoadedModel


def run(
    knowing: Knowing,
    strategy: Strategy,
    hook: str = "on_step_end",
    recipe: TrainingRecipe = RECIPE,
    more: Callable[[], list[TrainerCallback]] = list,
) -> Run:
    model = replace(knowing[0], model=copy.deepcopy(knowing[0].model))
    before, after = Recorder(model.model, hook), Recorder(model.model, hook)
    kind = type(strategy)

    @dataclass(frozen=True)
    class Watched(kind):  # type: ignore[misc, valid-type]
        def callbacks(self, training: Training) -> list[TrainerCallback]:
            return [before, *more(), *super().callbacks(training), after]

    start = weights_of(model.model)
    facts = knowing[1].of("train", 0)[:16]
    record = finetune(model, facts, recipe, seed=3, strategy=Watched(**strategy.settings), known=knowing[1])
    return Run(before, after, start, weights_of(model.model), record, model)


@pytest.mark.parametrize(
    ("strategy", "bias"),
    [(Ema(), None), (Ema(lag=4, power=0.7, every=3), None), (Bema(), 0.2), (Bema(lag=2, bias=0.5, every=2), 0.5)],
)
def test_averages_are_those_of_the_formula_and_of_trl(knowing: Knowing, strategy: Ema, bias: float | None) -> None:
    theirs = BEMACallback(
        update_freq=strategy.every,
        ema_power=strategy.power,
        bias_power=500.0 if bias is None else bias,  # 500: no correction
        lag=strategy.lag,
    )
    found = run(knowing, strategy, more=lambda: [theirs])
    steps = len(found.before.seen)
    assert steps == 6
    for name, start in found.start.items():
        average = start
        for step in range(strategy.every, steps + 1, strategy.every):
            new = (strategy.lag + step) ** -strategy.power
            average = (1 - new) * average + new * found.before.seen[step - 1][name]
        last = found.before.seen[-1][name]
        if bias is not None:
            average = average + (strategy.lag + steps) ** -bias * (last - start)
        np.testing.assert_allclose(found.end[name], average, atol=1e-6)
        assert np.abs(found.end[name] - last).max() > 1e-5
    trl = weights_of(theirs.running_model)
    for name, value in found.end.items():
        np.testing.assert_allclose(value, trl[name], atol=1e-6)


def test_an_average_of_the_last_step_alone_is_plain_fine_tuning(knowing: Knowing) -> None:
    plain, found = run(knowing, Strategy()), run(knowing, Ema(power=0.0))
    for name, value in plain.end.items():
        np.testing.assert_array_equal(found.end[name], value)


def shifts(knowing: Knowing, found: Run, strategy: EarlyStop) -> list[float]:
    """The token shift of the weights after each step, by the measure of evaluations."""
    training = Training(knowing[0], None, knowing[1].of("train", 0)[:16], 3, knowing[1])
    items = watched(training, strategy.count)
    model = replace(knowing[0], model=copy.deepcopy(knowing[0].model), name="then")
    values = []
    for weights in found.before.seen:
        with torch.no_grad():
            for name, one in model.model.named_parameters():
                one.copy_(torch.from_numpy(weights[name]))
        mean = token_shift(knowing[0], model, items).mean
        assert mean is not None
        values.append(mean)
    return values


def test_the_weights_of_the_smallest_shift_are_kept(knowing: Knowing) -> None:
    strategy = EarlyStop(every=2, patience=100)
    found = run(knowing, strategy, recipe=replace(RECIPE, learning_rate=1e-2, epochs=5, schedule="constant"))
    assert found.record["steps"] == 10
    looked = shifts(knowing, found, strategy)[1::2]
    best = int(np.argmin(looked))
    assert found.record["noted"] == {"kept_step": 2 * best + 2, "kl": pytest.approx(looked[best], rel=1e-4)}
    for name, value in found.end.items():
        np.testing.assert_array_equal(value, found.before.seen[2 * best + 1][name])


def test_the_training_stops_once_the_shift_has_not_fallen(knowing: Knowing) -> None:
    recipe = replace(RECIPE, learning_rate=1e-2, epochs=10, schedule="constant")
    found = run(knowing, EarlyStop(every=1, patience=2), recipe=recipe)
    looked = shifts(knowing, found, EarlyStop())
    assert len(looked) == found.record["steps"] < 20
    best = int(np.argmin(looked))
    assert best == len(looked) - 3
    assert found.record["noted"]["kept_step"] == best + 1
    for name, value in found.end.items():
        np.testing.assert_array_equal(value, found.before.seen[best][name])


def test_without_known_facts_to_watch_it_is_refused(knowing: Knowing) -> None:
    model, known = knowing
    with pytest.raises(InputError, match="early-stop: watches facts that the base model knows; expected its mastery"):
        finetune(model, known.of("train", 0)[:8], RECIPE, seed=0, strategy=EarlyStop())
    with pytest.raises(InputError, match="early-stop: of 0 training facts of level 4 that are not trained on"):
        finetune(model, known.of("train", 4), RECIPE, seed=0, strategy=EarlyStop(), known=known)


def in_layers(name: str) -> bool:
    return ".layers." in name and "norm" not in name


def test_the_most_changed_return_every_so_many_steps(knowing: Knowing) -> None:
    found = run(knowing, RestoreSteps(every=2, fraction=0.3))
    assert len(found.before.seen) == 6
    for step, (before, after) in enumerate(zip(found.before.seen, found.after.seen, strict=True), start=1):
        if step % 2:
            for name, value in before.items():
                np.testing.assert_array_equal(after[name], value)
            continue
        names = [name for name in before if in_layers(name)]
        p, s, then = (np.concatenate([w[name].ravel() for name in names]) for w in (found.start, before, after))
        score = np.where(s == p, 0, np.abs(s - p) / np.abs(p))
        count = int(0.3 * len(p))
        returned = then != s
        assert abs(int(returned.sum()) - count) <= 2  # of equal scores in float32
        assert score[returned].min() >= np.sort(score)[-count] * (1 - 1e-5)
        np.testing.assert_array_equal(then[returned], p[returned])
        for name in before:
            if not in_layers(name):
                np.testing.assert_array_equal(after[name], before[name])


@pytest.mark.parametrize("strategy", [RestoreSteps(every=1, fraction=0.0), Proximal(share=0.0, threshold=0.0)])
def test_nothing_taken_back_is_plain_fine_tuning_bit_for_bit(knowing: Knowing, strategy: Strategy) -> None:
    plain, found = run(knowing, Strategy()), run(knowing, strategy)
    assert plain.record == found.record
    for name, value in plain.end.items():
        np.testing.assert_array_equal(found.end[name], value)


def test_everything_taken_back_leaves_the_layers_as_they_were(knowing: Knowing) -> None:
    found = run(knowing, RestoreSteps(every=1, fraction=1.0))
    for name, value in found.end.items():
        assert np.array_equal(value, found.start[name]) == in_layers(name)


@pytest.mark.parametrize("strategy", [Proximal(share=0.2), Proximal(share=0.0, threshold=0.5), Proximal(0.1, 0.3)])
def test_the_change_shrinks_after_each_step(knowing: Knowing, strategy: Proximal) -> None:
    found = run(knowing, strategy, hook="on_optimizer_step")
    assert found.before.rates[0] == RECIPE.learning_rate
    assert found.before.rates[-1] < RECIPE.learning_rate
    for before, after, rate in zip(found.before.seen, found.after.seen, found.before.rates, strict=True):
        for name, p in found.start.items():
            change = (before[name] - p) * (1 - strategy.share * rate / RECIPE.learning_rate)
            change = np.sign(change) * np.maximum(np.abs(change) - strategy.threshold * rate, 0)
            np.testing.assert_allclose(after[name], p + change, atol=1e-6)
    for name, value in found.after.seen[-1].items():
        np.testing.assert_array_equal(found.end[name], value)


def test_a_change_does_not_shrink_beyond_the_base() -> None:
    base, weight = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([1.1, -2.3, 0.5])
    shrink(weight, base, 0.0, 0.2)
    assert weight.tolist() == [1.0, pytest.approx(-2.1), 0.5]
    shrink(weight, base, 1.0, 0.0)
    assert torch.equal(weight, base)
