"""Every strategy: it trains a small model, is reproducible, restores what it touched, and refuses what it has not."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.known_facts import KnownFacts
from knowshift.models.loading import LoadedModel, load_model
from knowshift.parameters.loaded import copy_of
from knowshift.training.sft import TrainingRecipe, encode_examples
from knowshift.tuning.loss.stm import perplexities
from knowshift.tuning.registry import STRATEGIES, listed, strategy_of
from knowshift.tuning.run import reference_of, tune
from tiny_models import tiny_checkpoint

#: Where the defaults would do nothing in six steps of a model that knows little.
SETTINGS = {"stm": {"threshold": 300.0}, "restore-steps": {"every": 2}, "early-stop": {"every": 1}}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_training_learns_is_reproducible_and_leaves_the_model_as_it_was_built(
    name: str, knowing: tuple[LoadedModel, KnownFacts]
) -> None:
    small_model, known = knowing
    facts = known.of("train", 0)[:16]
    strategy = strategy_of(name, SETTINGS.get(name))
    # Every step on the same batch, in steps that are small beside the KL to a teacher.
    recipe = TrainingRecipe(learning_rate=3e-4 * strategy.rate, batch_size=16, epochs=6, shared_prefix=True)
    before = copy_of(small_model.model)
    found = []
    for seed in (3, 3):
        model = replace(small_model, model=copy.deepcopy(small_model.model))
        base = reference_of(model, strategy)
        record = tune(model, facts, recipe, strategy, before, seed=seed, base=base, known=known)
        found.append((record, model.model.state_dict()))
        tuned = model
        assert [type(part) for part in model.model.modules()] == [type(part) for part in small_model.model.modules()]
        assert all(one.requires_grad and one.grad is None for one in model.model.parameters())
        assert not model.model.training
    (record, weights), (again, same) = found
    assert record == again
    # What is minimised falls: the strategy's loss, or that of the answers where its weights rise with what is learnt.
    assert record["losses"][-1] < record["losses"][0] or answer_loss(tuned, facts) < answer_loss(small_model, facts)
    assert all(torch.equal(weight, same[key]) for key, weight in weights.items())
    moved = [key for key, weight in small_model.model.state_dict().items() if not torch.equal(weight, weights[key])]
    assert moved
    assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.parametrize("name", [name for name in STRATEGIES if STRATEGIES[name].needs_base])
def test_a_reference_of_another_vocabulary_is_refused(name: str, base: LoadedModel, tmp_path: Path) -> None:
    strategy = strategy_of(name)
    assert reference_of(base, strategy, base) is base
    other = load_model(str(tiny_checkpoint(tmp_path / "other")))
    with pytest.raises(InputError, match=r"has a vocabulary of 260 rows and .* expected the same tokens and as many"):
        reference_of(base, strategy, other)
    longer = load_model(str(tmp_path / "other"))
    longer.tokenizer.add_tokens(["<new>"])
    with pytest.raises(InputError, match=r"token '<new>' is number 260 of the reference .* and number none of"):
        reference_of(other, strategy, longer)


def test_a_reference_that_no_strategy_asks_is_refused(base: LoadedModel) -> None:
    with pytest.raises(InputError, match="strategy 'sft' asks no reference model"):
        reference_of(base, strategy_of("sft"), base)


def answer_loss(model: LoadedModel, facts: list[Fact]) -> float:
    """Mean -log p of the tokens of the facts' answers, in nats."""
    examples = encode_examples(model, [fact.question for fact in facts], [fact.answer for fact in facts])
    return float(np.mean([np.log(value) for values in perplexities(model, examples) for value in values]))


def test_the_list_names_a_source_a_cost_and_every_setting() -> None:
    for one, kind in zip(listed(), STRATEGIES.values(), strict=True):
        assert all(one[key] for key in ("name", "kind", "about", "source", "cost", "rate"))
        assert [setting["name"] for setting in one["settings"]] == [field.name for field in fields(kind)]
        assert all(setting["about"] for setting in one["settings"])
        assert kind.__module__.rpartition(".")[0].endswith(f".{kind.kind}") or kind.__module__.endswith(".strategy")


def test_settings_have_the_type_of_their_default() -> None:
    """YAML takes 8.0 for a number and 1e-2 for a text; PEFT and slices take whole numbers alone."""
    assert type(strategy_of("lora", {"rank": 8.0}).settings["rank"]) is int
    assert strategy_of("kl", {"weight": "1e-2"}).settings["weight"] == 0.01
    assert type(strategy_of("kl", {"weight": 1}).settings["weight"]) is float
    assert strategy_of("kl", {"weight": 1}) == strategy_of("kl", {"weight": 1.0})


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
