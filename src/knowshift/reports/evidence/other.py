"""What a study asks beside its grid: another model's answers to the test facts, and scores of other tasks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow.compute as pc

from knowshift.errors import InputError
from knowshift.facts.fact import DOMAINS, LEVELS
from knowshift.records import ANSWERS, TASKS, read_table
from knowshift.reports.evidence.answers import BASE_PROMPTS
from knowshift.reports.evidence.run_folder import RecordedCell, Run, read_cell_json
from knowshift.statistics.estimates import Floats
from knowshift.statistics.resampling import Integers

#: How an instruct model was asked, and the record of each: as the base, and in its own chat template.
INSTRUCT_PROMPTS = {**BASE_PROMPTS, "chat": "answers_chat.parquet"}


@dataclass(frozen=True)
class InstructAnswers:
    """Graded answers of an instruct model in one form and domain, counted by the mastery level of the fact."""

    prompt: str
    domain: str
    facts: Integers  # L
    hits: Integers  # L
    word_hits: Integers  # L
    empty: int


@dataclass(frozen=True)
class TaskScore:
    """One model on one task by one metric. ``cell`` is of kind "tasks", or "base_tasks" for the base model."""

    cell: RecordedCell
    eligible: int | None  # weights
    row: Mapping[str, Any]  # as scores.json has it

    @property
    def of_base(self) -> bool:
        return self.cell.kind == "base_tasks"


#: A model and what it was asked, within a cell: criterion, fraction, task, metric.
Place = tuple[str, str, str, str]


@dataclass(frozen=True)
class TaskItems:
    """What one model came to on each item of a task; its score is the mean, but for a metric that is none."""

    values: Floats  # [items], NaN where an item has no number by itself
    weights: Floats  # [items]


def instruct_answers(run: Run) -> Iterator[InstructAnswers]:
    """Of every form that the instruct model was asked in; a fact without a grade or a level is left out."""
    for cell in run.of("instruct")[:1]:
        for prompt, name in INSTRUCT_PROMPTS.items():
            if not (cell.folder / name).exists():
                continue
            table, _ = read_table(cell.folder / name, ANSWERS, "answers")
            levels = pc.fill_null(table["level"], -1).to_numpy().astype(np.int64)
            graded = pc.and_(pc.is_valid(table["substring_hit"]), pc.is_valid(table["word_hit"])).to_numpy()
            hit, word = (pc.fill_null(table[rule], False).to_numpy() for rule in ("substring_hit", "word_hit"))
            blank = pc.equal(pc.utf8_trim_whitespace(pc.fill_null(table["text"], "")), "").to_numpy()
            for domain in DOMAINS:
                inside = graded & (levels >= 0) & (levels < LEVELS) & pc.equal(table["domain"], domain).to_numpy()
                if inside.any():
                    counted = [np.bincount(levels[inside & kept], minlength=LEVELS) for kept in (inside, hit, word)]
                    yield InstructAnswers(
                        prompt, domain, counted[0], counted[1], counted[2], int((inside & blank).sum())
                    )


def task_scores(run: Run) -> Iterator[TaskScore]:
    """Of the base model, then of every tuned and restored model, in the order of their records."""
    for kind in ("base_tasks", "tasks"):
        for cell in run.of(kind):
            record = read_cell_json(cell, "scores.json")
            for row in record["scores"]:
                if kind == "tasks" and not row["fraction"]:
                    raise InputError(f"{cell.folder / 'scores.json'}: a score without a fraction; expected 0, or to 1")
                yield TaskScore(cell, record.get("eligible"), row)


def task_items(cell: RecordedCell) -> dict[Place, TaskItems]:
    """The items of every model and score of a cell of other tasks."""
    table, _ = read_table(cell.folder / "items.parquet", TASKS, "tasks")
    names = ("criterion", "fraction", "task", "metric")
    codes = [table[name].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False) for name in names]
    changes = np.any(np.diff(np.stack(codes), axis=1) != 0, axis=0) if len(table) else np.zeros(0, dtype=bool)
    edges = [0, *(np.flatnonzero(changes) + 1).tolist(), len(table)]
    values, weights = (table[name].to_numpy().astype(np.float64) for name in ("value", "weight"))
    found: dict[Place, TaskItems] = {}
    for start, end in itertools.pairwise(edges):
        if start < end:
            place = tuple(str(table[name][start]) for name in names)
            found[cast(Place, place)] = TaskItems(values[start:end], weights[start:end])
    return found
