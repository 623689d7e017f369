"""The plan of a study: cells, each a pure function of its digest, grouped so that a model is made or loaded once.

A cell's folder is ``cells/KIND/DIGEST``; the digest is over everything that its content depends on, the digests of
earlier cells among it. So a plan, with all digests, is known before anything runs.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from knowshift.facts.fact import Domain, Fact, Split, completion_prompts
from knowshift.files import digest
from knowshift.study.config import StudyConfig

#: What the numbers of a cell may depend on, and what a manifest names.
PACKAGES = ("torch", "transformers", "trl", "tokenizers", "numpy")

#: Raised when the content that a cell would have changes for the same inputs.
CONTENT_VERSION = 2


@dataclass(frozen=True)
class Cell:
    """One piece of work. ``key`` says which it is among its kind; ``inputs`` is all that its content depends on."""

    kind: str
    key: dict[str, Any]
    inputs: dict[str, Any]

    @cached_property
    def digest(self) -> str:
        return digest({"kind": self.kind, "version": CONTENT_VERSION, "inputs": self.inputs})

    def folder(self, run: Path) -> Path:
        return run / "cells" / self.kind / self.digest

    def as_record(self) -> dict[str, Any]:
        return {"kind": self.kind, "digest": self.digest, "key": self.key}


@dataclass(frozen=True)
class Unit:
    """Cells that one worker does one after the other, because they share a model."""

    title: str
    cells: tuple[Cell, ...]

    @property
    def cost(self) -> float:
        """How long it takes beside other units, roughly: one probed fact is 1."""
        first = self.cells[0]
        if first.kind == "mastery":
            return float(first.inputs["size"])
        if first.kind == "base":
            return 100.0
        answers = 1 + sum(
            len(cell.inputs["fractions"]) * len(cell.inputs["criteria"])
            for cell in self.cells
            if cell.kind == "restoration"
        )
        return 60.0 + 0.4 * float(first.key["size"]) + 40.0 * answers

    def missing(self, run: Path) -> list[Cell]:
        return [cell for cell in self.cells if not cell.folder(run).is_dir()]


@dataclass(frozen=True)
class Plan:
    """Units that need nothing but the base model, then units that need all of those."""

    probes: tuple[Unit, ...]
    tuned: tuple[Unit, ...]

    @property
    def units(self) -> tuple[Unit, ...]:
        return self.probes + self.tuned

    @property
    def cells(self) -> list[Cell]:
        return [cell for unit in self.units for cell in unit.cells]


def probed_facts(facts: Sequence[Fact], config: StudyConfig) -> list[int]:
    """Indices of the facts whose mastery is measured, ascending: the first of a seeded shuffle of each group."""
    groups: list[tuple[Split, Domain, int | None]] = [
        ("train", "in_domain", config.mastery.train_facts),
        ("test", "in_domain", config.mastery.test_facts),
        ("test", "out_of_domain", config.mastery.test_facts),
    ]
    chosen: list[int] = []
    for number, (split, domain, most) in enumerate(groups):
        members = [i for i, fact in enumerate(facts) if fact.split == split and fact.domain == domain]
        order = np.random.default_rng([config.seed, 5, number]).permutation(len(members))
        chosen.extend(members[i] for i in order[:most])
    return sorted(chosen)


def make_plan(config: StudyConfig, facts: Sequence[Fact], facts_digest: str, model_identity: str) -> Plan:
    """Every cell of a study, in the order of running."""
    probed = probed_facts(facts, config)
    base = {
        "model": model_identity,
        "facts": facts_digest,
        "prompts": digest([completion_prompts(facts[index]) for index in probed]),
        "dtype": config.dtype,
        "device": config.device,
        "threads": config.threads,
        # Other versions compute other last digits: a cell of theirs is another cell.
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    mastery = config.mastery.model_dump(exclude={"facts_per_cell", "train_facts", "test_facts"})
    size = config.mastery.facts_per_cell
    parts = [
        Cell(
            "mastery",
            {"part": start // size},
            {**base, **mastery, **_members(probed[start : start + size]), "seed": config.seed},
        )
        for start in range(0, len(probed), size)
    ]
    known = {**base, "mastery": [cell.digest for cell in parts], "seed": config.seed}
    evaluation = {**known, **config.evaluation.model_dump()}
    base_cell = Cell("base", {}, evaluation)
    tuned = [
        _tuned_unit(config, known, evaluation, level, size, draw, control)
        for level in config.levels
        for size, control, draws in _sizes(config)
        for draw in range(draws)
    ]
    # Larger training sets first: the longest work at the start leaves no worker waiting at the end.
    tuned.sort(key=lambda unit: -int(unit.cells[0].key["size"]))
    probes = [Unit(f"mastery, part {i + 1} of {len(parts)}", (cell,)) for i, cell in enumerate(parts)]
    return Plan(tuple(probes), (Unit("the base model's own answers", (base_cell,)), *tuned))


def _members(probed: Sequence[int]) -> dict[str, Any]:
    return {"members": digest(list(probed)), "size": len(probed)}


def _sizes(config: StudyConfig) -> list[tuple[int, bool, int]]:
    """(size, whether it is the learning-rate control, number of draws)."""
    control_draws = min(config.control_draws or config.draws, config.draws)
    control = [(max(config.sizes), True, control_draws)] if config.control_rate is not None else []
    return [(size, False, config.draws) for size in config.sizes] + control


def _tuned_unit(
    config: StudyConfig,
    known: dict[str, Any],
    evaluation: dict[str, Any],
    level: int,
    size: int,
    draw: int,
    control: bool,
) -> Unit:
    rate = config.training.learning_rate
    if control:
        assert config.control_rate is not None
        rate *= config.control_rate
    key = {
        "level": level,
        "size": size,
        "draw": draw,
        "learning_rate": rate,
        "control": "learning_rate" if control else None,
    }
    recipe = config.training.model_dump(exclude={"report_to", "learning_rate"})
    tuned = Cell("tuned", key, {**known, **key, "training": recipe})
    made = {"tuned": tuned.digest, **evaluation}
    cells = [
        tuned,
        Cell("evaluation", key, made),
        Cell("token_shift", key, {"tuned": tuned.digest, "asked": evaluation["facts_per_level"]}),
        Cell("weight_change", key, {"tuned": tuned.digest, "region": config.restoration.region}),
    ]
    if size in config.restored_sizes and not control:
        cells.append(
            Cell("restoration", key, {**made, **config.restoration.model_dump(mode="json", exclude={"sizes"})})
        )
    name = f"level {level}, {size} facts, draw {draw + 1}" + (f", rate {rate:.2g}" if control else "")
    return Unit(name, tuple(cells))
