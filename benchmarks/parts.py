"""Processor seconds of the parts of the default study, in turns: as it is, and without one of what makes it fast.

    python benchmarks/parts.py [--without layers|keys|nodes|choice] [--part training --part evaluation --part mastery]
        [--turns 4] [--facts 408] [--trained 480] [--evaluations 4] [--results FILE.json]

In one thread, as a worker of the study has it. ``training``: one training of TRAINED facts in batches of 8 as one row;
``evaluation``: EVALUATIONS times the greedy answers of the tuned model to 500 test questions; ``mastery``: expected
hits of FACTS facts. Each turn does a part both ways; a first one of each is not counted. Also says whether both gave
the same bytes: weights, texts, values. Without ``layers``, layers, losses and the Trainer's steps are those of the
libraries; without ``keys``, PyTorch attends in a training; without ``nodes``, rows of the tree hold keys and values of
their own; without ``choice``, PyTorch chooses tokens.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from trl import SFTTrainer

from knowshift.evaluation import evaluate
from knowshift.facts.fact import Fact
from knowshift.facts.sources.load import limited, load_facts
from knowshift.files import digest
from knowshift.models.layers import loops
from knowshift.models.layers.llama import Layers
from knowshift.models.loading import LoadedModel, load_model
from knowshift.models.sampling import next_token
from knowshift.models.sampling.tree import Walk
from knowshift.probing.measure import Protocol, measure_mastery
from knowshift.system.allocator import steady_heap
from knowshift.training import sft

QUESTIONS = 500


@contextmanager
def usual_layers() -> Iterator[None]:
    """Within the block, layers, the loss and the Trainer's steps are those of the libraries."""
    found = loops.library
    own = {name: vars(sft._Trainer)[name] for name in ("training_step", "_clip_grad_norm", "_loss")}
    clear = sft.quick_zero_grad
    loops.library = lambda: None  # type: ignore[assignment]
    sft.quick_zero_grad = nullcontext  # type: ignore[assignment]
    for name in own:
        delattr(sft._Trainer, name)
    sft._Trainer._loss = SFTTrainer.compute_loss
    try:
        yield
    finally:
        loops.library, sft.quick_zero_grad = found, clear
        for name, method in own.items():
            setattr(sft._Trainer, name, method)


@contextmanager
def rows_that_hold_all() -> Iterator[None]:
    """Within the block, no row of the tree is a list of nodes."""
    with mock.patch.object(Walk, "_may_share", return_value=False):
        yield


@contextmanager
def choice_by_pytorch() -> Iterator[None]:
    """Within the block, PyTorch chooses tokens."""
    with mock.patch.object(next_token, "library", return_value=None):
        yield


@contextmanager
def attention_by_pytorch() -> Iterator[None]:
    """Within the block, PyTorch's attention looks at all tokens of a batch, in training."""
    with mock.patch.object(Layers, "few_keys", return_value=None):
        yield


WITHOUT = {
    "layers": usual_layers,
    "keys": attention_by_pytorch,
    "nodes": rows_that_hold_all,
    "choice": choice_by_pytorch,
}


def tuned(base: LoadedModel, facts: list[Fact]) -> LoadedModel:
    """A copy of the base, trained on these facts as the default study does."""
    model = replace(base, model=copy.deepcopy(base.model))
    sft.finetune(model, facts, sft.TrainingRecipe(learning_rate=1e-3, shared_prefix=True), seed=1)
    return model


def weights_of(model: LoadedModel) -> str:
    return digest([parameter.detach().numpy().tobytes().hex() for parameter in model.model.parameters()])


def main() -> None:
    """Print processor seconds of each part and turn, both ways, and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=("training", "evaluation", "mastery"))
    parser.add_argument("--without", choices=WITHOUT, default="layers")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--facts", type=int, default=408)
    parser.add_argument("--trained", type=int, default=480)
    parser.add_argument("--evaluations", type=int, default=4)
    parser.add_argument("--results", type=Path, help="JSON to write to")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    steady_heap()
    torch.set_num_threads(1)
    base = load_model("world:tiny", dtype="float32")
    facts = load_facts("world:tiny").facts
    train = limited([fact for fact in facts if fact.split == "train"], max(arguments.trained, arguments.facts), 0)
    asked = limited([fact for fact in facts if fact.split == "test"], QUESTIONS, 0)
    taught = list(train[: arguments.trained])
    model = tuned(base, taught)

    def training() -> Any:
        return weights_of(tuned(base, taught))

    def evaluation() -> Any:
        return [evaluate(model, asked, {}).columns["text"] for _ in range(arguments.evaluations)]

    def mastery() -> Any:
        return measure_mastery(base, train[: arguments.facts], Protocol(estimate="expected")).columns

    parts: dict[str, Callable[[], Any]] = {"training": training, "evaluation": evaluation, "mastery": mastery}
    results: dict[str, Any] = {}
    for part in arguments.part or parts:
        turns: list[dict[str, float]] = []
        for turn in range(arguments.turns + 1):
            seconds: dict[str, float] = {}
            found: dict[str, Any] = {}
            for way in ("without", "with") if turn % 2 else ("with", "without"):
                start = time.process_time()
                with WITHOUT[arguments.without]() if way == "without" else nullcontext():
                    found[way] = parts[part]()
                seconds[way] = time.process_time() - start
            if turn:
                turns.append(seconds)
                print(f"{part} {seconds['without']:.2f} s without, {seconds['with']:.2f} s with", flush=True)
        ratios = sorted(turn["with"] / turn["without"] for turn in turns)
        same = found["without"] == found["with"]
        print(f"{part}: median ratio {ratios[len(ratios) // 2]:.3f}, the same bytes: {same}", flush=True)
        results[part] = {"turns": turns, "same": same}
    if arguments.results:
        arguments.results.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
