"""A pair of models for audits, the shipped one and one that a tuning has harmed; what that was for; a hub."""

from __future__ import annotations

import csv
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from fake_hub import TOKEN, FakeHub, serve_hub
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
def damaged(trained: list[Fact], once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The shipped model tuned on them at a rate that costs it more than it gains."""

    def tune(folder: Path) -> None:
        loaded = load_model("world:tiny")
        finetune(loaded, trained, TrainingRecipe(learning_rate=1.6e-3, shared_prefix=True), seed=0)
        save_model(loaded, folder)

    return once("damaged", tune)


@pytest.fixture(scope="session")
def keep(trained: list[Fact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the tuning was for."""
    path = tmp_path_factory.mktemp("keep") / "keep.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["question", "answer"], *([fact.question, fact.answer] for fact in trained)])
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub for this process and its children, with a token for it; retries do not wait."""
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # its protocol is not that of a small server
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        hasty = types.SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
        monkeypatch.setattr("huggingface_hub.utils._http.time", hasty)
        yield hub
