"""Every strategy: it trains a small model, is reproducible, restores what it touched, and refuses what it has not."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.facts.sources.load import load_facts
from knowshift.models.loading import LoadedModel
from knowshift.parameters.loaded import copy_of
from knowshift.strategies.registry import STRATEGIES, listed, strategy_of
from knowshift.strategies.run import reference_of, tune
from knowshift.training.sft import TrainingRecipe


def facts_of(world: Path) -> tuple[list[Fact], list[Fact]]:
    """Facts to train on, and others, for strategies that ask facts which the base knows."""
    facts = [fact for fact in load_facts(f"world:{world}").facts if fact.split == "train"]
    return facts[:16], facts[16:48]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_training_learns_is_reproducible_and_leaves_the_model_as_it_was_built(
    name: str, small_model: LoadedModel, small_world: Path
) -> None:
    facts, known = facts_of(small_world)
    recipe = TrainingRecipe(learning_rate=3e-3, epochs=3, shared_prefix=True)
    strategy = strategy_of(name)
    before = copy_of(small_model.model)
    found = []
    for seed in (3, 3):
        model = replace(small_model, model=copy.deepcopy(small_model.model))
        base = reference_of(model, strategy)
        record = tune(model, facts, recipe, strategy, before, seed=seed, base=base, known=known)
        found.append((record, model.model.state_dict()))
        assert [type(part) for part in model.model.modules()] == [type(part) for part in small_model.model.modules()]
        assert all(one.requires_grad and one.grad is None for one in model.model.parameters())
        assert not model.model.training
    (record, weights), (again, same) = found
    assert record == again
    assert record["losses"][-1] < record["losses"][0]
    assert all(torch.equal(weight, same[key]) for key, weight in weights.items())
    moved = [key for key, weight in small_model.model.state_dict().items() if not torch.equal(weight, weights[key])]
    assert moved
    assert all(weight.isfinite().all() for weight in weights.values())


def test_the_list_names_a_source_a_cost_and_every_setting() -> None:
    for one, kind in zip(listed(), STRATEGIES.values(), strict=True):
        assert all(one[key] for key in ("name", "kind", "about", "source", "cost", "rate"))
        assert [setting["name"] for setting in one["settings"]] == [field.name for field in fields(kind)]
        assert all(setting["about"] for setting in one["settings"])
        assert kind.__module__.rpartition(".")[0].endswith(f".{kind.kind}") or kind.__module__.endswith(".strategy")


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("lorra", {}, "no strategy 'lorra'; .*'lora'"),
        ("sft", {"rank": 2}, "strategy 'sft' has no setting 'rank'; it has no settings"),
        ("lora", {"rnak": 2}, "strategy 'lora' has no setting 'rnak'; .*'rank'"),
        ("lora", {"rank": 0}, "lora: rank: expected a whole number of at least 1, found 0"),
        ("lora", {"rank": True}, "found True"),
        ("lora", {"rank": "x"}, "found 'x'"),
        ("restore", {"fraction": 1.5}, "restore: fraction: expected a number of 0 to 1, found 1.5"),
        ("restore", {"fraction": float("nan")}, "found nan"),
    ],
)
def test_what_is_no_setting_is_refused(name: str, settings: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        strategy_of(name, settings)
