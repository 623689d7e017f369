"""All that a report is computed from, read once: answers, token shifts, weight changes, mastery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from knowshift.facts.fact import DOMAINS, LEVELS
from knowshift.reports.evidence.answers import Column, RecordedAnswers, read_answers
from knowshift.reports.evidence.leaks import Leaks, read_leaks
from knowshift.reports.evidence.run_folder import (
    ALL,
    AT,
    RATE_CONTROL,
    RecordedCell,
    Run,
    Setting,
    open_run,
    read_cell_json,
    read_mastery,
    read_token_shift,
)
from knowshift.reports.evidence.scores import Model, Scores
from knowshift.statistics.resampling import Integers

#: A level counts as nearly used up when a training set takes this share of its facts.
USED_UP = 0.75

#: KL in nats is rounded to this before it is averaged, so that sums do not depend on the order of adding.
KL_STEP = 2.0**-24


@dataclass(frozen=True)
class Change:
    """What one fine-tuning did to the weights, as its record says."""

    cell: RecordedCell
    concentration: Mapping[str, Mapping[str, float | None]]
    null: Mapping[str, Mapping[str, float | None]]
    record: Mapping[str, Any]


@dataclass(frozen=True)
class TokenShifts:
    """KL of every fact that all token-shift cells could score; ``unscored`` counts reasons for each cell."""

    scores: Scores
    facts: int
    unscored: tuple[Mapping[str, int], ...]
    cells: tuple[RecordedCell, ...]


@dataclass(frozen=True)
class Evidence:
    """The run and its scores. Both graders, and the substring grader again with relations as clusters."""

    run: Run
    mastery: pa.Table
    answers: RecordedAnswers
    substring: Scores
    word: Scores
    by_relation: Scores
    changes: tuple[Change, ...]

    @cached_property
    def token_shifts(self) -> TokenShifts | None:
        """None where no token-shift cell is finished or no fact is scored by all of them."""
        return _token_shifts(self.run)

    @cached_property
    def leaks(self) -> Leaks:
        """What of the test facts the models were trained on."""
        return read_leaks(self.run, self.answers)

    # -- what the run holds ---------------------------------------------------------------------------------------

    @cached_property
    def main(self) -> dict[tuple[int, int], Model]:
        """Models of the main grid, by training level and size."""
        return {
            (s.level, s.size): Model(s) for s in self.substring.settings() if s.learning_rate == self.run.learning_rate
        }

    @cached_property
    def controlled(self) -> dict[tuple[int, int], Model]:
        """The learning-rate control, by training level and size."""
        return self.trained_otherwise.get(RATE_CONTROL, {})

    @cached_property
    def trained_otherwise(self) -> dict[str, dict[tuple[int, int], Model]]:
        """Models of each control of the training, by training level and size: the learning-rate control, variants."""
        names = {name for name in self._controls if AT not in name and name != ALL}
        return {
            name: {(s.level, s.size): Model(s) for s in self.substring.settings(name)}
            for name in sorted(names, key=lambda name: (name != RATE_CONTROL, name))
        }

    @cached_property
    def benched(self) -> dict[str, dict[Setting, Model]]:
        """Models of a bench by strategy, as the config lists them, then by setting: rates, and sizes where several."""
        told: Any = (self.run.config.get("bench") or {}).get("strategies")
        order = list(told) if isinstance(told, dict) else []
        found: dict[str, dict[Setting, Model]] = {}
        for name in sorted(name for name in self._controls if AT in name):
            models = found.setdefault(name.partition(AT)[0], {})
            models |= {setting: Model(setting) for setting in self.substring.settings(name)}
        ranked = sorted(found, key=lambda label: (order.index(label) if label in order else len(order), label))
        return {label: dict(sorted(found[label].items())) for label in ranked}

    @cached_property
    def _controls(self) -> set[str]:
        return {c.setting.control for c in self.substring.columns if c.setting} - {""}

    @property
    def controls(self) -> list[str]:
        """The names of all trainings beside the grid: on all facts of a level first, those of a bench last."""
        whole = [ALL] if self.trained_on_all else []
        return [*whole, *self.trained_otherwise, *sorted(name for name in self._controls if AT in name)]

    @property
    def trained_on_all(self) -> bool:
        """Whether a model was tuned on all facts of a level."""
        return ALL in self._controls

    @property
    def levels(self) -> list[int]:
        return sorted({level for level, _ in self.main})

    @property
    def sizes(self) -> list[int]:
        return sorted({size for _, size in self.main})

    def used_up(self) -> list[tuple[int, int, int]]:
        """(level, its largest size, its training facts) where that size takes most of what the level has."""
        train = self.mastery.filter(pc.equal(self.mastery["split"], "train"))["level"].to_pylist()
        largest = {level: max(s for its, s in self.main if its == level) for level in self.levels}
        there = {level: train.count(level) for level in self.levels}
        return [
            (level, size, there[level])
            for level, size in largest.items()
            if USED_UP * there[level] < size <= there[level]
        ]

    @property
    def criteria(self) -> list[str]:
        """Criteria that were restored by; the paper's first."""
        found = {c.criterion for c in self.answers.columns if c.criterion}
        return sorted(found, key=lambda c: (c != "relative", c))

    def fractions(self, criterion: str) -> list[float]:
        return sorted({c.fraction for c in self.answers.columns if c.criterion == criterion})

    def base_column(self, prompt: str = "zero_shot") -> int | None:
        """The column of the base model's own answers to one of ``BASE_PROMPTS``; None where it was not asked so."""
        return self.substring.lookup.get(Column(None, 0, prompt=prompt))


def read_evidence(path: Path) -> Evidence:
    """Read a run folder whole; a second or two for hundreds of models on thousands of facts."""
    run = open_run(path)
    answers = read_answers(run)
    cluster: Integers = np.unique(np.asarray(answers.relation, dtype=np.str_), return_inverse=True)[1].astype(np.int64)
    shared = {"domain": answers.domain, "level": answers.level, "columns": answers.columns}
    return Evidence(
        run=run,
        mastery=read_mastery(run),
        answers=answers,
        substring=Scores(values=answers.substring, relation=cluster, **shared),  # type: ignore[arg-type]
        word=Scores(values=answers.word, **shared),  # type: ignore[arg-type]
        by_relation=Scores(values=answers.substring, cluster=cluster, **shared),  # type: ignore[arg-type]
        changes=tuple(_changes(run)),
    )


def _changes(run: Run) -> list[Change]:
    found = []
    for cell in run.of("weight_change"):
        record = read_cell_json(cell, "change.json")
        found.append(Change(cell, dict(record.get("concentration") or {}), dict(record.get("null") or {}), record))
    return found


def _token_shifts(run: Run) -> TokenShifts | None:
    cells = run.of("token_shift")
    if not cells:
        return None
    tables = [read_token_shift(cell) for cell in cells]
    first = tables[0]
    facts = first["fact"].combine_chunks()
    kl = np.full((len(facts), len(cells)), np.nan)
    unscored = []
    for index, table in enumerate(tables):
        reasons = table.filter(pc.is_null(table["kl"]))["reason"].to_pylist()
        counts: dict[str, int] = {}
        for reason in reasons:
            counts[str(reason)] = counts.get(str(reason), 0) + 1
        unscored.append(dict(sorted(counts.items())))
        aligned = table.take(pc.index_in(facts, value_set=table["fact"].combine_chunks()))["kl"]
        kl[:, index] = pc.fill_null(pc.cast(aligned, pa.float64()), float("nan")).to_numpy()
    kept = np.isfinite(kl).all(axis=1)
    if not kept.any():
        return None
    domain = np.asarray([DOMAINS.index(d) for d in first["domain"].to_pylist()], dtype=np.int64)[kept]
    scores = Scores(
        values=np.round(kl[kept] / KL_STEP) * KL_STEP,
        domain=domain,
        level=np.full(len(domain), LEVELS - 1, dtype=np.int64),
        columns=tuple(Column(cell.setting, cell.draw) for cell in cells),
    )
    return TokenShifts(scores, int(kept.sum()), tuple(unscored), cells)
