"""The plan of a study: cells, each a pure function of its digest, grouped so that a model is made or loaded once.

A cell's folder is ``cells/KIND/DIGEST``; the digest is over everything that its content depends on, the digests of
earlier cells among it. So a plan, with all digests, is known before anything runs. What a kind depends on is declared
in :data:`CONTENT`; what computes a cell (:mod:`knowshift.studies.content`) is given no other field of a configuration
but ``training.report_to``.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from knowshift.facts.fact import Domain, Fact, Split, completion_prompts
from knowshift.files import digest
from knowshift.studies.config import ALL, MIXED, RATE_CONTROL, StudyConfig, VariantConfig

#: What the numbers of a cell may depend on, and what a manifest names.
PACKAGES = ("torch", "transformers", "trl", "peft", "tokenizers", "numpy")

#: Increased when the content that cells would have changes for the same inputs; where that is the content of one kind,
#: the kind's ``revision`` is, and cells of the other kinds keep their digests.
CONTENT_VERSION = 3


@dataclass(frozen=True)
class Content:
    """What one kind of cell depends on, beside its coordinates and the ``common`` inputs of :func:`make_plan`."""

    fields: tuple[str, ...]  # of the configuration, "section.field"
    earlier: tuple[str, ...] = ()  # kinds of cells that it reads: all of mastery, and the tuned model of its unit
    revision: int = 0  # of the content of this kind alone


ASKED = ("seed", "evaluation.levels", "evaluation.facts_per_level")
_TASKS = ("seed", "restoration.tasks", "restoration.tasks_limit")

#: Every kind of cell, and the one place that says what its content depends on.
CONTENT: Mapping[str, Content] = {
    "mastery": Content(
        (
            "seed",
            "mastery.draws_per_prompt",
            "mastery.temperature",
            "mastery.max_new_tokens",
            "mastery.stopping",
            "mastery.estimate",
            "mastery.texts",
            "mastery.least_weight",
            "mastery.dtype",
        )
    ),
    "base": Content((*ASKED, "evaluation.few_shot"), ("mastery",)),
    "tuned": Content(
        (
            "seed",
            "training.batch_size",
            "training.epochs",
            "training.schedule",
            "training.bfloat16",
            "training.gradient_checkpointing",
            "training.shared_prefix",
            "training.shards",
        ),
        ("mastery",),
    ),
    "evaluation": Content(ASKED, ("mastery", "tuned")),
    "token_shift": Content(ASKED, ("mastery", "tuned")),
    # 1: the null by layer and by module.
    "weight_change": Content(("seed", "restoration.region"), ("tuned",), revision=1),
    "restoration": Content(
        (*ASKED, "restoration.fractions", "restoration.criteria", "restoration.region"), ("mastery", "tuned")
    ),
    # 1: random weights as a control, here and of groups of layers.
    "train_set": Content(
        ("seed", "restoration.train_set_fractions", "restoration.train_set_facts", "restoration.region"),
        ("mastery", "tuned"),
        revision=1,
    ),
    "learned": Content(("seed", "bench.train_facts", "bench.texts"), ("mastery", "tuned")),
    "learned_own": Content(("seed", "bench.train_facts"), ("mastery", "tuned")),
    "layer_groups": Content(
        (*ASKED, "restoration.layer_group", "restoration.region"), ("mastery", "tuned"), revision=1
    ),
    "instruct": Content((*ASKED, "evaluation.few_shot"), ("mastery",)),
    "base_tasks": Content(_TASKS),
    "tasks": Content(
        (*_TASKS, "restoration.fractions", "restoration.criteria", "restoration.region"), ("mastery", "tuned")
    ),
}

#: Fields that came after cells had been made: at this value, which is what was done before, a cell does not have them
#: among its settings or inputs, and keeps its digest.
LATER: Mapping[str, Any] = {
    "training.shards": 1,
    "devices": 1,
    "evaluation.levels": None,
    "mastery.least_weight": None,
    "mastery.dtype": None,
}

#: Fields that are among the inputs of every cell.
EVERYWHERE = ("dtype", "device", "threads", "devices")

#: The other fields of a configuration, and why no cell's content depends on them.
HARMLESS: Mapping[str, str] = {
    "name": "names the run folder",
    "model": "its identity, over configuration, tokenizer and weights, is an input of every cell",
    "revision": "the same",
    "base": "of an adapter, whose identity is over that of its base",
    "base_revision": "the same",
    "facts": "their digest, over every field of every fact, is an input of every cell",
    "levels": "says which cells there are; the level is a coordinate of a cell",
    "sizes": "says which cells there are; the size is a coordinate of a cell",
    "draws": "says which cells there are; the draw is a coordinate of a cell",
    "control_rate": "the learning rate that it gives is a coordinate of a cell",
    "control_draws": "says which cells there are",
    "keep_checkpoints": "a model from its checkpoint gives the same records as one that is made again",
    "mastery.train_facts": "the facts probed are an input of every mastery cell",
    "mastery.test_facts": "the same",
    "mastery.facts_per_cell": "the same",
    "mastery.servers": "that servers answer is an input of a mastery cell; which of them do changes no level",
    "training.learning_rate": "is a coordinate of a cell",
    "training.report_to": "names a service that logs the training",
    "restoration.sizes": "says which cells there are",
    "bench.strategies": "says which cells there are; a strategy and its settings are coordinates of a cell",
    "bench.rates": "says which cells there are; the learning rate that it gives is a coordinate of a cell",
    "bench.levels": "says which cells there are",
    "bench.sizes": "says which cells there are",
    "bench.draws": "says which cells there are",
    "variants": "says which cells there are; what a variant changes are coordinates of a cell",
    "restoration.texts": "the digest of what the file holds is an input of the cells that read it",
    "instruct": "its identity is an input of its cell",
    "instruct_revision": "the same",
}


@dataclass(frozen=True)
class Cell:
    """One piece of work: its place in the study's grid, and all that its content depends on.

    ``coordinates`` are level, size, draw, learning rate and control of a tuned model's cell, and the part of a mastery
    cell; a manifest and a digest have them under the name "key". Where the training set is all of a level (control
    "all"), the size is the number of its facts, and None as long as mastery does not tell it. Of a variant the control
    is its name, "training" has what it changes beside the rate, and of mixed levels, which "training" names, the level
    is None.
    """

    kind: str
    coordinates: dict[str, Any]
    inputs: dict[str, Any]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The fields of the configuration that its kind depends on: all that may reach what computes it."""
        settings: Mapping[str, Any] = self.inputs["settings"]
        return settings

    @cached_property
    def digest(self) -> str:
        revision = CONTENT[self.kind].revision
        version = f"{CONTENT_VERSION}.{revision}" if revision else CONTENT_VERSION
        return digest({"kind": self.kind, "version": version, "inputs": self.inputs})

    @property
    def name(self) -> str:
        """Its folder in a run folder, with slashes."""
        return f"cells/{self.kind}/{self.digest}"

    def folder(self, run: Path) -> Path:
        return run / self.name

    def as_record(self) -> dict[str, Any]:
        return {"kind": self.kind, "digest": self.digest, "key": self.coordinates}


def training_of(cell: Cell, field: str) -> Any:
    """A field of a training's settings: the variant's own, else the study's."""
    changed = cell.coordinates.get("training", {})
    return changed.get(field, cell.settings.get(f"training.{field}"))


@dataclass(frozen=True)
class Unit:
    """Cells that one worker does one after the other, because they share a model."""

    title: str
    cells: tuple[Cell, ...]

    def missing(self, run: Path) -> list[Cell]:
        return [cell for cell in self.cells if not cell.folder(run).is_dir()]


@dataclass(frozen=True)
class Plan:
    """Units that need nothing but the base model, then units that need all of those."""

    probes: tuple[Unit, ...]
    tuned: tuple[Unit, ...]
    train: int = 0  # training facts that are probed
    test: int = 0  # likewise test facts

    @property
    def units(self) -> tuple[Unit, ...]:
        return self.probes + self.tuned

    @property
    def cells(self) -> list[Cell]:
        return [cell for unit in self.units for cell in unit.cells]

    @property
    def settled(self) -> bool:
        """Whether the size of every training set is known."""
        return all(unit.cells[0].coordinates.get("size", 0) is not None for unit in self.tuned)


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


def make_plan(
    config: StudyConfig,
    facts: Sequence[Fact],
    facts_digest: str,
    model_identity: str,
    levels: Sequence[int] | None = None,
    beside: Mapping[str, Mapping[str, Any]] | None = None,
) -> Plan:
    """Every cell of a study, in the order of running.

    ``levels`` are the numbers of training facts of levels 0..4, once mastery has told them: they are the sizes of the
    training sets that hold all facts of a level. ``beside`` are inputs that cells of one kind alone have, by kind
    (:func:`knowshift.studies.readiness.inputs_beside`).
    """
    probed = probed_facts(facts, config)
    common = {
        "model": model_identity,
        "facts": facts_digest,
        "prompts": digest([completion_prompts(facts[index]) for index in probed]),
        # Other versions compute other last digits, so their cells have other digests.
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    size = config.mastery.facts_per_cell
    groups = [probed[start : start + size] for start in range(0, len(probed), size)]
    parts = [{"count": len(part), "members": digest(part)} for part in groups]
    train = sum(1 for index in probed if facts[index].split == "train")
    return replace(_plan(config, common, parts, levels, beside), train=train, test=len(probed) - train)


def outline(config: StudyConfig, train: int, test: int) -> Plan:
    """The plan of a study whose model or facts are not at hand: all its cells, with digests that name nothing.

    ``train`` and ``test`` are the numbers of facts that are probed.
    """
    size, probed = config.mastery.facts_per_cell, train + test
    parts = [{"count": min(size, probed - start)} for start in range(0, probed, size)]
    return replace(_plan(config, {}, parts, None), train=train, test=test)


def _plan(
    config: StudyConfig,
    inputs: Mapping[str, Any],
    parts: Sequence[dict[str, Any]],
    levels: Sequence[int] | None,
    beside: Mapping[str, Mapping[str, Any]] | None = None,
) -> Plan:
    """The grid of a study; ``parts`` are the inputs of each part of mastery."""
    beside = beside or {}
    common = {**inputs, **_given(config, EVERYWHERE)}
    # Servers draw with numbers of their own: the same levels up to sampling, so another cell.
    asked = {**common, "engine": "completions"} if config.mastery.servers else common
    probes = [_cell("mastery", {"part": i}, config, {**asked, "probed": part}) for i, part in enumerate(parts)]
    made: dict[str, Any] = {"mastery": [cell.digest for cell in probes]}
    others = [Unit("the base model's own answers", (_cell("base", {}, config, common, made),))]
    if config.instruct is not None:
        inputs = {**common, **beside.get("instruct", {})}
        others.append(Unit("the instruct model's answers", (_cell("instruct", {}, config, inputs, made),)))
    tasks = {**common, **beside.get("tasks", {})}
    if config.restoration.tasks:
        others.append(Unit("the base model's other tasks", (_cell("base_tasks", {}, config, tasks, made),)))
    tuned = [
        _tuned_unit(config, common, tasks, made, level, size, draw, control)
        for level in config.levels
        for size, control in _sizes(config, None if levels is None else levels[level])
        for draw in range(config.draws)
    ]
    tuned += [
        _variant_unit(config, common, tasks, made, name, variant, level, size, draw)
        for name, variant in {**config.trained_otherwise, **config.benched}.items()
        for level in ([None] if variant.levels == MIXED else variant.levels or config.levels)
        for size in config.sizes_of(variant)
        for draw in range(min(variant.draws or config.draws, config.draws))
    ]
    # Larger training sets first: the longest work at the start leaves no worker waiting at the end.
    tuned.sort(key=lambda unit: -float(unit.cells[0].coordinates["size"] or math.inf))
    return Plan(
        tuple(Unit(f"mastery, part {i + 1} of {len(probes)}", (cell,)) for i, cell in enumerate(probes)),
        (*others, *tuned),
    )


def field_of(config: StudyConfig, field: str) -> Any:
    """The value of "field" or "section.field", as plain JSON."""
    value: Any = config.as_record()
    for part in field.split("."):
        value = value[part]
    return value


def _cell(
    kind: str,
    coordinates: dict[str, Any],
    config: StudyConfig,
    common: Mapping[str, Any],
    made: Mapping[str, Any] | None = None,
) -> Cell:
    """A cell with the inputs that :data:`CONTENT` declares; ``made`` has the digests of earlier cells by kind."""
    content = CONTENT[kind]
    settings = _given(config, content.fields)
    earlier = {name: made[name] for name in content.earlier} if made else {}
    return Cell(kind, coordinates, {**common, "key": coordinates, "settings": settings, "earlier": earlier})


def _given(config: StudyConfig, fields: Sequence[str]) -> dict[str, Any]:
    given = {field: field_of(config, field) for field in fields}
    return {field: value for field, value in given.items() if field not in LATER or value != LATER[field]}


def _sizes(config: StudyConfig, whole: int | None) -> list[tuple[int | None, str | None]]:
    """(size, its name among the coordinates where it is none of the grid) of one level.

    ``whole`` is the number of the level's training facts, None where that is not known yet.
    """
    sizes: list[tuple[int | None, str | None]] = [(size, None) for size in config.numbers]
    return [*sizes, (whole, ALL)] if ALL in config.sizes else sizes


def _tuned_unit(
    config: StudyConfig,
    common: Mapping[str, Any],
    tasks: Mapping[str, Any],
    made: Mapping[str, Any],
    level: int,
    size: int | None,
    draw: int,
    control: str | None,
) -> Unit:
    coordinates = {
        "level": level,
        "size": size,
        "draw": draw,
        "learning_rate": config.training.learning_rate,
        "control": control,
    }
    name = f"level {level}, {ALL if control == ALL else size} facts, draw {draw + 1}"
    restored = size in config.restored_sizes and not control
    return _unit(name, config, common, made, coordinates, restored=restored, tasks=tasks)


def _variant_unit(
    config: StudyConfig,
    common: Mapping[str, Any],
    tasks: Mapping[str, Any],
    made: Mapping[str, Any],
    name: str,
    variant: VariantConfig,
    level: int | None,
    size: int,
    draw: int,
) -> Unit:
    changed = variant.changed()
    if level is None:
        changed["levels"] = list(config.levels)
    rate = variant.learning_rate or config.training.learning_rate
    coordinates: dict[str, Any] = {"level": level, "size": size, "draw": draw, "learning_rate": rate, "control": name}
    if changed:
        coordinates["training"] = changed
    where = "mixed levels" if level is None else f"level {level}"
    told = f"rate {rate:.2g}" if name == RATE_CONTROL else name
    title = f"{where}, {size} facts, draw {draw + 1}, {told}"
    asked = _learned(variant) if name in config.benched else ()
    return _unit(title, config, common, made, coordinates, learned=asked, tasks=tasks)


def _learned(variant: VariantConfig) -> tuple[str, ...]:
    """The kinds of cells that ask a benched model training facts.

    All are asked those of plain fine-tuning, so that what was learned of the same facts can be compared; where a
    strategy trains on others, its own too, since only these say whether its training succeeded.
    """
    from knowshift.tuning.registry import STRATEGIES  # imports torch

    assert variant.strategy is not None
    return ("learned", "learned_own") if STRATEGIES[variant.strategy].has_own_facts() else ("learned",)


def _unit(
    title: str,
    config: StudyConfig,
    common: Mapping[str, Any],
    made: Mapping[str, Any],
    coordinates: dict[str, Any],
    *,
    restored: bool = False,
    learned: Sequence[str] = (),
    tasks: Mapping[str, Any] | None = None,
) -> Unit:
    """One training and all that is measured of its model; ``tasks`` are the inputs of other tasks than facts.

    ``learned`` are the kinds of cells that a bench has beside the grid's.
    """
    tuned = _cell("tuned", coordinates, config, common, made)
    made = {**made, "tuned": tuned.digest}
    kinds = ["evaluation", "token_shift", "weight_change"]
    if restored:
        kinds.append("restoration")
        kinds += ["train_set"] if config.restoration.train_set_fractions else []
        kinds += ["layer_groups"] if config.restoration.layer_group else []
        kinds += ["tasks"] if config.restoration.tasks else []
    kinds += learned
    inputs = {"tasks": tasks or {}, "learned": tasks or {}}
    return Unit(title, (tuned, *(_cell(kind, coordinates, config, inputs.get(kind, common), made) for kind in kinds)))
