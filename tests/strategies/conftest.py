"""One small training for each strategy that tests ask for, and the model that it began with."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from knowshift.facts.sources.load import load_facts
from knowshift.models.loading import LoadedModel, load_model
from knowshift.strategies.registry import strategy_of
from knowshift.training.sft import TrainingRecipe, finetune
from small_trainings import Trained, Weights


@pytest.fixture(scope="session")
def base(small_world: Path) -> LoadedModel:
    """For reading only."""
    return load_model(str(small_world))


@pytest.fixture(scope="session")
def trained(base: LoadedModel, small_world: Path) -> Trained:
    facts = [fact for fact in load_facts(f"world:{small_world}").facts if fact.split == "train"]

    @cache
    def of(name: str, **settings: float) -> tuple[Weights, Weights]:
        model = replace(base, model=copy.deepcopy(base.model))
        recipe = TrainingRecipe(learning_rate=1e-2, shared_prefix=True)
        finetune(model, facts[:16], recipe, seed=3, strategy=strategy_of(name, settings), known=facts[16:48])
        return base.model.state_dict(), model.model.state_dict()

    return of
