"""Tables of mastery and of accuracy: base model, tuned models, the learning-rate control."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from knowshift.facts.fact import DOMAINS, LEVELS
from knowshift.html.table import Row, Table, bounds
from knowshift.reports.evidence.answers import BASE_PROMPTS
from knowshift.reports.evidence.evidence import Evidence
from knowshift.reports.evidence.scores import Model
from knowshift.reports.tables.settings import DRAW_COLUMNS, SETTING_COLUMNS, draw_values, setting_values
from knowshift.statistics.accuracy import domain_accuracy
from knowshift.statistics.estimates import mean_interval, proportion_interval
from knowshift.statistics.resampling import Integers

#: Bins of how often a fact was written in pre-training: (name, first, last).
EXPOSURE_BINS: tuple[tuple[str, int, float], ...] = (
    ("never", 0, 0),
    ("1", 1, 1),
    ("2", 2, 2),
    ("3-4", 3, 4),
    ("5-7", 5, 7),
    ("8-12", 8, 12),
    ("13-20", 13, 20),
    ("21-50", 21, 50),
    (">50", 51, math.inf),
)

#: Rows of a domain: the five test levels, then their plain mean.
TEST_LEVELS: tuple[int | None, ...] = (*range(LEVELS), None)


def level_name(level: int | None) -> str:
    return "mean" if level is None else str(level)


def mastery(evidence: Evidence) -> Table:
    """How many facts of each split and domain the base model knows how well."""
    table = evidence.mastery
    counts = Counter(
        zip(table["split"].to_pylist(), table["domain"].to_pylist(), table["level"].to_pylist(), strict=True)
    )
    rows: list[Row] = []
    for split in ("train", "test"):
        for domain in DOMAINS:
            total = sum(n for (s, d, _), n in counts.items() if (s, d) == (split, domain))
            for level in (*range(LEVELS), None):
                facts = counts.get((split, domain, level), 0)
                if total and (level is not None or facts):
                    rows.append((split, domain, "unscored" if level is None else str(level), facts, facts / total))
    return Table("mastery", ("split", "domain", "level", "facts", "share"), tuple(rows))


def exposures(evidence: Evidence) -> Table:
    """Mastery against how often a fact was written; empty where the facts are not of a world."""
    table = evidence.mastery
    seen = table["exposures"].to_numpy(zero_copy_only=False).astype(np.float64)
    rate = table["rate"].to_numpy(zero_copy_only=False).astype(np.float64)
    level = table["level"].to_numpy(zero_copy_only=False).astype(np.float64)
    scored = np.isfinite(seen) & np.isfinite(rate)
    rows: list[Row] = []
    for name, first, last in EXPOSURE_BINS if scored.any() else ():
        inside = scored & (seen >= first) & (seen <= last)
        count = int(inside.sum())
        mean = mean_interval(rate[inside])
        shares = [float((level[inside] == lv).mean()) if count else None for lv in range(LEVELS)]
        rows.append((name, count, *bounds(mean, 0.0, 1.0), *shares))
    columns = ("exposures", "facts", "mean_rate", "low", "high", *(f"share_level_{lv}" for lv in range(LEVELS)))
    return Table("exposures", columns, tuple(rows))


@dataclass(frozen=True)
class Counts:
    """Facts, hits of both graders and empty answers of every column on every domain and test level."""

    facts: Integers  # D x L
    hits: NDArray[np.int64]  # D x L x C
    word_hits: NDArray[np.int64]
    empty: NDArray[np.int64]


def count(evidence: Evidence) -> Counts:
    """Count once for all tables."""
    answers = evidence.answers
    group = answers.domain * LEVELS + answers.level
    inside = (group[:, None] == np.arange(len(DOMAINS) * LEVELS)[None, :]).astype(np.float64)

    def total(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
        sums: NDArray[np.int64] = (inside.T @ flags.astype(np.float64)).round().astype(np.int64)
        return sums.reshape(len(DOMAINS), LEVELS, -1)

    facts = inside.sum(axis=0).astype(np.int64).reshape(len(DOMAINS), LEVELS)
    return Counts(facts, total(answers.substring), total(answers.word), total(answers.empty))


COUNT_COLUMNS = (
    "domain",
    "test_level",
    "facts",
    "correct",
    "accuracy",
    "word_correct",
    "word_accuracy",
    "empty_rate",
)


def count_rows(counts: Counts, column: int) -> list[Row]:
    """One column's rows for both domains: each test level, then the plain mean of the levels' accuracies.

    A level without facts has no accuracy; the mean is :func:`domain_accuracy`; ``empty_rate`` is over facts.
    """
    rows: list[Row] = []
    for d, domain in enumerate(DOMAINS):
        facts = counts.facts[d]
        if not facts.any():
            continue
        hits, words, empty = (a[d, :, column] for a in (counts.hits, counts.word_hits, counts.empty))
        for level in TEST_LEVELS:
            if level is None:
                means = [domain_accuracy(x, facts) for x in (hits, words)]
                n, h, w, e = (int(x.sum()) for x in (facts, hits, words, empty))
                rows.append((domain, "mean", n, h, means[0], w, means[1], e / n))
            elif facts[level]:
                n, h, w, e = (int(x[level]) for x in (facts, hits, words, empty))
                rows.append((domain, str(level), n, h, h / n, w, w / n, e / n))
            else:
                rows.append((domain, str(level), 0, 0, None, 0, None, None))
    return rows


def base(evidence: Evidence) -> Table:
    """The base model before any tuning: on the fine-tuning prompt, after solved examples, and asked plainly."""
    counts = count(evidence)
    rows: list[Row] = []
    for prompt in BASE_PROMPTS:
        column = evidence.base_column(prompt)
        for row in count_rows(counts, column) if column is not None else ():
            n, hits = row[2], row[3]
            assert isinstance(n, int)
            assert isinstance(hits, int)
            low, high = proportion_interval(hits, n) if row[1] != "mean" else (math.nan, math.nan)
            rows.append((prompt, *row[:5], low, high, *row[5:]))
    return Table("base", ("prompt", *COUNT_COLUMNS[:5], "low", "high", *COUNT_COLUMNS[5:]), tuple(rows))


def accuracy(evidence: Evidence) -> Table:
    """Every tuned model as it was tuned, by domain and test level, with counts and both graders."""
    counts = count(evidence)
    rows: list[Row] = []
    for index, column in enumerate(evidence.answers.columns):
        if column.setting and not column.criterion:
            rows.extend((*draw_values(column.setting, column.draw), *row) for row in count_rows(counts, index))
    return Table("accuracy", (*DRAW_COLUMNS, *COUNT_COLUMNS), tuple(rows))


def accuracy_summary(evidence: Evidence) -> Table:
    """Mean over training draws with its 95% interval (facts and draws), and the draws' standard deviation."""
    counts = count(evidence)
    substring, word = evidence.substring, evidence.word
    rows: list[Row] = []
    settings = [setting for name in ("", *evidence.controls) for setting in substring.settings(name)]
    for setting in settings:
        model = Model(setting)
        alike = [Model(replace(setting, level=other)) for other in sorted({s.level for s in settings})]
        draws = substring.draws(model)
        columns = [substring.column(model, draw) for draw in draws]
        for d, domain in enumerate(DOMAINS):
            for level in TEST_LEVELS:
                facts = int(counts.facts[d].sum() if level is None else counts.facts[d][level])
                weights = substring.over([d], level)
                values = [substring.value(c, weights) for c in columns]
                deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
                empty = counts.empty[d][:, columns] if level is None else counts.empty[d][level, columns]
                rows.append(
                    (
                        *setting_values(setting),
                        domain,
                        level_name(level),
                        len(draws),
                        facts,
                        *bounds(substring.mean([model], weights, alike), 0.0, 1.0),
                        deviation,
                        *bounds(word.mean([model], weights, alike), 0.0, 1.0),
                        float(empty.sum()) / (facts * len(draws)) if facts else None,
                    )
                )
    places = (*SETTING_COLUMNS, "domain", "test_level", "draws", "facts")
    measured = ("accuracy", "low", "high", "deviation", "word_accuracy", "word_low", "word_high", "empty_rate")
    return Table("accuracy_summary", (*places, *measured), tuple(rows))
