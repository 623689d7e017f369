"""A pair of models for audits: the shipped one, and one that a tuning has harmed; what the tuning was for."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from knowshift.facts.fact import Fact
from knowshift.facts.sources.load import load_facts
from knowshift.models.loading import load_model
from knowshift.models.saving import save_model
from knowshift.training.sft import TrainingRecipe, finetune


@pytest.fixture(scope="session")
def trained() -> list[Fact]:
    """Facts that the shipped model has read often enough to know some of."""
    return [fact for fact in load_facts("world:tiny").facts if fact.split == "train" and (fact.exposures or 0) < 30][
        :480
    ]


@pytest.fixture(scope="session")
def damaged(trained: list[Fact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model tuned on them at a rate that costs it more than it gains."""
    loaded = load_model("world:tiny")
    finetune(loaded, trained, TrainingRecipe(learning_rate=1.6e-3, shared_prefix=True), seed=0)
    folder = tmp_path_factory.mktemp("models") / "damaged"
    folder.mkdir()
    save_model(loaded, folder)
    return folder


@pytest.fixture(scope="session")
def keep(trained: list[Fact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the tuning was for."""
    path = tmp_path_factory.mktemp("keep") / "keep.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["question", "answer"], *([fact.question, fact.answer] for fact in trained)])
    return path
