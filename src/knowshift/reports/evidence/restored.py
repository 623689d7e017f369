"""Answers of restored models outside the aligned test answers: to their training questions, or with layers restored."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from knowshift.errors import InputError
from knowshift.facts.fact import LEVELS
from knowshift.parameters.selection.select import fraction_name
from knowshift.records import ANSWERS, read_table
from knowshift.reports.evidence.run_folder import RecordedCell, Run, read_cell_json
from knowshift.statistics.resampling import Integers

_TRAINED = re.compile(r"answers-(?P<criterion>relative|random)-(?P<name>[0-9]+(?:\.[0-9]+)?(?:e-[0-9]+)?)\.parquet")
_LAYERS = re.compile(r"answers-(?P<name>[0-9]{1,9}-[0-9]{1,9}|random)\.parquet")
#: In place of layers: as many weights at random as the largest group of layers has.
RANDOM = "random"


@dataclass(frozen=True)
class RestoredAnswers:
    """One restored model's graded answers, counted by the mastery level of the fact."""

    cell: RecordedCell
    criterion: str  # by which it was restored; "" for layers
    name: str  # of what was restored: a fraction, or layers as "0-3", or RANDOM
    restored: int | None  # weights
    eligible: int | None  # weights
    facts: Integers  # L
    hits: Integers  # L
    word_hits: Integers  # L


def train_set_answers(run: Run) -> list[RestoredAnswers]:
    """To the questions that the model was trained on: as tuned ("0"), and restored by each criterion."""
    found = []
    for cell in run.of("train_set"):
        record = read_cell_json(cell, "restored.json")
        counts = record.get("criteria") or {}
        read = _read(cell, _TRAINED, "answers-CRITERION-FRACTION.parquet", counts, record.get("eligible"))
        for answers in read:
            if fraction_name(float(answers.name)) != answers.name:
                raise InputError(f"{cell.folder}: {answers.name} is not how a fraction is written")
        found += sorted(read, key=lambda answers: (answers.criterion == "random", float(answers.name)))
    return found


def layer_group_answers(run: Run) -> list[RestoredAnswers]:
    """To the in-domain test questions, with one group of layers restored, and last with random weights."""
    found = []
    for cell in run.of("layer_groups"):
        counts = {"": read_cell_json(cell, "restored.json").get("layers") or {}}
        read = _read(cell, _LAYERS, "answers-FIRST-LAST.parquet or answers-random.parquet", counts, None)
        found += sorted(read, key=lambda answers: first_layer(answers.name))
    return found


def first_layer(name: str) -> float:
    """The first layer of a group: 4 of "4-7"; beyond all of them for :data:`RANDOM`."""
    return math.inf if name == RANDOM else int(name.partition("-")[0])


def _read(
    cell: RecordedCell, form: re.Pattern[str], expected: str, counts: Mapping[str, Any], eligible: int | None
) -> list[RestoredAnswers]:
    found = []
    for file in cell.folder.glob("answers-*.parquet"):
        match = form.fullmatch(file.name)
        if match is None:
            raise InputError(f"{file}: expected {expected}")
        table, _ = read_table(file, ANSWERS, "answers")
        levels = pc.fill_null(table["level"], -1).to_numpy().astype(np.int64)
        graded = pc.and_(pc.is_valid(table["substring_hit"]), pc.is_valid(table["word_hit"])).to_numpy()
        inside = graded & (levels >= 0) & (levels < LEVELS)
        hit, word = (pc.fill_null(table[name], False).to_numpy() for name in ("substring_hit", "word_hit"))
        counted = [np.bincount(levels[inside & kept], minlength=LEVELS) for kept in (inside, hit, word)]
        criterion, name = match.groupdict().get("criterion", ""), match["name"]
        put_back = (counts.get(criterion) or {}).get(name)
        found.append(RestoredAnswers(cell, criterion, name, put_back, eligible, *counted))
    return found
