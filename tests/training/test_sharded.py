"""A training whose weights are divided between two processes (gloo, on processors) against one process."""

from __future__ import annotations

import copy
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from knowshift.errors import InputError
from knowshift.facts.sources.load import load_facts
from knowshift.models.finding import find_model
from knowshift.models.loading import LoadedModel
from knowshift.training import sft, sharded
from knowshift.training.one_row import IGNORED
from knowshift.training.sft import TrainingRecipe

pytestmark = pytest.mark.slow


def test_two_processes_train_as_one_and_one_that_dies_ends_both(small_model: LoadedModel, small_world: Path) -> None:
    """17 facts in batches of 8, twice: the last batch of an epoch leaves one process without an example."""
    facts = [fact for fact in load_facts(f"world:{small_world}").facts if fact.split == "train"][:17]
    recipe = TrainingRecipe(learning_rate=1e-3, epochs=2)
    files, before = find_model(str(small_world)), copy.deepcopy(small_model.model.state_dict())
    twin = replace(small_model, model=copy.deepcopy(small_model.model))
    alone = sft.finetune(small_model, facts, recipe, seed=3)
    together = sharded.finetune(twin, files, facts, recipe, seed=3, shards=2)
    assert together["steps"] == alone["steps"] == len(together["losses"]) == 6
    assert together["shards"] == 2
    assert {key: together[key] for key in ("load_dtype", "compute_dtype")} == {
        key: alone[key] for key in ("load_dtype", "compute_dtype")
    }
    assert together["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert together["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-5)
    for (name, mine), other in zip(
        small_model.model.state_dict().items(), twin.model.state_dict().values(), strict=True
    ):
        moved = (mine - before[name]).norm()
        assert moved > 0, name
        assert (mine - other).norm() < 1e-2 * moved, name

    kept = copy.deepcopy(twin.model.state_dict())
    threading.Thread(target=_kill_a_process, daemon=True).start()
    with pytest.raises(InputError, match=r"one of its 2 processes was ended by signal 9 .*; nothing is kept"):
        sharded.finetune(twin, files, facts, replace(recipe, epochs=100_000), seed=3, shards=2)
    assert all(torch.equal(kept[name], weight) for name, weight in twin.model.state_dict().items())
    assert not _processes()


def _processes() -> list[psutil.Process]:
    """Those that train: grandchildren of this process, below torchrun."""
    found = psutil.Process().children(recursive=True)
    return [process for process in found if "knowshift.training.sharded" in process.cmdline() and _is_rank(process)]


def _is_rank(process: psutil.Process) -> bool:
    return "torch.distributed.run" not in process.cmdline()


def _kill_a_process() -> None:
    """As soon as both are there."""
    while len(found := _processes()) < 2:
        time.sleep(0.05)
    found[0].kill()


def test_batches_are_those_of_the_trainer_and_padding_is_neither_seen_nor_scored() -> None:
    drawn = list(sharded.batches(5, 2, 2, seed=7))
    assert [len(batch) for batch in drawn] == [2, 2, 1, 2, 2, 1]
    for epoch in (drawn[:3], drawn[3:]):
        assert sorted(index for batch in epoch for index in batch) == [0, 1, 2, 3, 4]
    assert drawn == list(sharded.batches(5, 2, 2, seed=7))
    assert drawn[3:] == list(sharded.batches(5, 2, 1, seed=8))
    rows = sharded._Padded(9)([{"input_ids": [1, 2, 3], "labels": [IGNORED, 2, 3]}, {"input_ids": [4], "labels": [4]}])
    assert rows["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert rows["labels"].tolist() == [[IGNORED, 2, 3], [4, IGNORED, IGNORED]]
    assert rows["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
