"""A small training by each strategy that tests ask for; a model that knows facts, for strategies that watch them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from knowshift.facts.fact import Fact, completion_prompts
from knowshift.facts.sources.load import load_facts
from knowshift.known_facts import KnownFacts
from knowshift.models.loading import LoadedModel, load_model
from knowshift.training.sft import TrainingRecipe, finetune
from knowshift.training.strategy import Strategy
from knowshift.tuning.registry import strategy_of
from small_trainings import Trained, Weights, known_by_heart

#: Facts that the model is taught.
TAUGHT = 8


@dataclass(frozen=True)
class Completed(Strategy):
    """The facts to be completed, as pre-training has them."""

    def examples(self, loaded: LoadedModel, members: Sequence[Fact], usual: Callable[..., Any]) -> Any:
        return usual([completion_prompts(fact)[0] for fact in members], [fact.answer for fact in members], ask=str)


@pytest.fixture(scope="session")
def knowing(small_world: Path) -> tuple[LoadedModel, KnownFacts]:
    """For reading only: the small world's model, taught to complete eight facts, and all training facts.

    Those eight are of level 4, the others of level 0.
    """
    facts = [fact for fact in load_facts(f"world:{small_world}").facts if fact.split == "train"]
    model = load_model(str(small_world))
    finetune(
        model,
        facts[:TAUGHT],
        TrainingRecipe(learning_rate=1e-2, epochs=60, schedule="constant"),
        seed=0,
        strategy=Completed(),
    )
    rows = [
        {"fact": fact.id, "level": 4 if place < TAUGHT else 0, "prompt_hits": [9, 1], "prompt_draws": [10, 10]}
        for place, fact in enumerate(facts)
    ]
    return model, KnownFacts({fact.id: fact for fact in facts}, rows)


@pytest.fixture(scope="session")
def base(small_world: Path) -> LoadedModel:
    """For reading only."""
    return load_model(str(small_world))


@pytest.fixture(scope="session")
def trained(base: LoadedModel, small_world: Path) -> Trained:
    facts = [fact for fact in load_facts(f"world:{small_world}").facts if fact.split == "train"]
    known = known_by_heart(facts[16:48])

    @cache
    def of(name: str, **settings: float) -> tuple[Weights, Weights]:
        model = replace(base, model=copy.deepcopy(base.model))
        recipe = TrainingRecipe(learning_rate=1e-2, shared_prefix=True)
        finetune(model, facts[:16], recipe, seed=3, strategy=strategy_of(name, settings), known=known)
        return base.model.state_dict(), model.model.state_dict()

    return of
