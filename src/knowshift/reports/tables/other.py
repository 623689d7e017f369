"""Tables of what a study asks beside its grid: an instruct model's answers, and other tasks under restoration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from knowshift.html.table import Row, Table, bounds
from knowshift.reports.evidence.evidence import Evidence
from knowshift.reports.evidence.other import Place, TaskItems, instruct_answers, task_items, task_scores
from knowshift.reports.evidence.run_folder import Setting
from knowshift.reports.findings.claims import mean_of
from knowshift.reports.tables.settings import (
    CONTRAST_COLUMNS,
    DRAW_COLUMNS,
    SETTING_COLUMNS,
    draw_values,
    level_of,
    setting_values,
)
from knowshift.statistics.accuracy import domain_accuracy
from knowshift.statistics.crossed import interval_of_covariance, pooled_noise
from knowshift.statistics.estimates import MISSING, Estimate, Floats, without_interval
from knowshift.statistics.holm import holm

#: What stands for the base model, and for a model as it was tuned, where a criterion says what was restored.
BASE, AS_TUNED = "base", ""
SCORED = ("task", "metric", "higher_is_better", "items", "score")


def instruct(evidence: Evidence) -> Table:
    """An instruct model on the test facts, by form and domain; accuracies are the plain means of the test levels'."""
    rows: list[Row] = []
    for one in instruct_answers(evidence.run):
        facts, hits, words = (int(x.sum()) for x in (one.facts, one.hits, one.word_hits))
        means = [domain_accuracy(x, one.facts) for x in (one.hits, one.word_hits)]
        rows.append((one.prompt, one.domain, facts, hits, means[0], words, means[1], one.empty / facts))
    columns = ("facts", "correct", "accuracy", "word_correct", "word_accuracy", "empty_rate")
    return Table("instruct", ("prompt", "domain", *columns), tuple(rows))


def other_tasks(evidence: Evidence) -> Table:
    """Every score of another task: of the base model, of each model as tuned and restored (paper, Table 5)."""
    rows: list[Row] = []
    for score in task_scores(evidence.run):
        row = score.row
        head: Row = (None,) * len(DRAW_COLUMNS)
        if not score.of_base:
            head = draw_values(score.cell.setting, score.cell.draw)
        criterion = BASE if score.of_base else row["criterion"]
        put_back = (criterion, row["fraction"], row["restored"], score.eligible)
        rows.append((*head, *put_back, *(row[name] for name in SCORED)))
    columns = ("criterion", "fraction", "restored", "eligible", *SCORED)
    return Table("other_tasks", (*DRAW_COLUMNS, *columns), tuple(rows))


SUMMARY_COLUMNS = (
    *SETTING_COLUMNS,
    "criterion",
    "fraction",
    "task",
    "metric",
    "higher_is_better",
    "draws",
    "score",
    *CONTRAST_COLUMNS,
)


@dataclass(frozen=True)
class _Asked:
    """One model on one task by one metric."""

    score: float
    higher_is_better: bool
    items: TaskItems | None


#: What the models of one setting came to, draw by draw.
_Draws = Mapping[int, Mapping[Place, _Asked]]


def other_tasks_summary(evidence: Evidence) -> Table:
    """Scores of other tasks restored minus as tuned, and minus random at the same fraction: paired by item and draw.

    The levels of a grid each, and their mean. ``p_holm`` adjusts the differences over all fractions and training
    levels of one size, criterion and score, those of the mean over fractions. A score that is no mean of its items has
    no interval.
    """
    asked: dict[Setting, dict[int, dict[Place, _Asked]]] = {}
    for cell in evidence.run.of("tasks"):
        asked.setdefault(cell.setting, {})[cell.draw] = {}
    items: dict[str, dict[Place, TaskItems]] = {}
    for score in task_scores(evidence.run):
        if not score.of_base:
            cell, row = score.cell, score.row
            place = (row["criterion"], row["fraction"], row["task"], row["metric"])
            if cell.digest not in items:
                items[cell.digest] = task_items(cell)
            one = _Asked(row["score"], row["higher_is_better"], items[cell.digest].get(place))
            asked[cell.setting][cell.draw][place] = one
    rows: list[Row] = []
    for _, settings in groupby(sorted(asked, key=_grid_of), key=_grid_of):
        rows.extend(_of_grid({setting: asked[setting] for setting in settings}))
    return Table("other_tasks_summary", SUMMARY_COLUMNS, tuple(rows))


def _grid_of(setting: Setting) -> tuple[int, float, str]:
    return setting.size, setting.learning_rate, setting.control


def _of_grid(models: Mapping[Setting, _Draws]) -> Iterator[Row]:
    """The rows of the models of one grid: those of each score and criterion together."""
    places = {place for draws in models.values() for own in draws.values() for place in own if float(place[1])}
    for criterion, task, metric in sorted({(place[0], *place[2:]) for place in places}):
        fractions = sorted(
            {place[1] for place in places if (place[0], *place[2:]) == (criterion, task, metric)}, key=float
        )
        none: dict[Setting, _Draws] = {}
        each = [({setting: models[setting]}, models, fraction) for setting in models for fraction in fractions]
        for batch in (each, [(models, none, fraction) for fraction in fractions]):
            compared = (_compare(own, alike, (criterion, fraction, task, metric)) for own, alike, fraction in batch)
            found = [row for row in compared if row is not None]
            adjusted = holm([difference.p for _, difference, _ in found])
            yield from ((*head, p, *tail) for (head, _, tail), p in zip(found, adjusted, strict=True))


def _compare(
    models: Mapping[Setting, _Draws], alike: Mapping[Setting, _Draws], place: Place
) -> tuple[Row, Estimate, Row] | None:
    """The row of some models at one place, before and after its Holm p; None where one of them was not measured."""
    criterion, fraction, task, metric = place
    tuned, random = (AS_TUNED, "0", task, metric), ("random", fraction, task, metric)
    scored = [[own[place] for own in draws.values() if place in own and tuned in own] for draws in models.values()]
    if not all(scored):
        return None
    difference = _difference(models, alike, place, tuned)
    setting = next(iter(models))
    head: Row = (
        str(level_of(setting)) if alike else "mean",
        *setting_values(setting)[1:],
        *place,
        scored[0][0].higher_is_better,
        difference.draws,
        mean_of([mean_of([one.score for one in own]) for own in scored]),
        *bounds(difference),
        difference.p,
    )
    if criterion == "random":
        return head, difference, (math.nan,) * 4
    versus = _difference(models, alike, place, random)
    return head, difference, (*bounds(versus), versus.p)


def _difference(
    models: Mapping[Setting, _Draws], alike: Mapping[Setting, _Draws], one: Place, other: Place
) -> Estimate:
    """One minus the other, mean over settings of the mean over draws that have both; draws' noise is that of ``alike``.

    Items and draws are crossed as facts and draws are (:mod:`knowshift.statistics.crossed`). The covariance of units u
    and v over I items with weights w is, for differences d and their weighted means,
    I / (I - 1) sum of w_i^2 (d_iu - mean_u) (d_iv - mean_v) / (sum of w)^2.
    """
    pairs = {setting: _pairs(draws, one, other) for setting, draws in models.items()}
    if not all(pairs.values()):
        return MISSING
    values = np.array([a.score - b.score for own in pairs.values() for a, b in own]) / len(models)
    strata = [place for place, own in enumerate(pairs.values()) for _ in own]
    differences = [_of_items(a, b) for own in pairs.values() for a, b in own]
    known = [found for found in differences if found is not None]
    if len(known) < len(differences) or len({len(found) for found in known}) > 1 or len(known[0]) < 2:
        return without_interval(float(values @ (1 / np.bincount(strata)[strata])), min(map(len, pairs.values())))
    away_IU = np.stack(known, axis=1) / len(models)
    count = len(away_IU)
    others = [np.array([a.score - b.score for a, b in _pairs(draws, one, other)]) for draws in alike.values()]
    noise = pooled_noise([own for own in others if len(own)])
    return interval_of_covariance(values, count / (count - 1) * away_IU.T @ away_IU, strata, noise, count - 1.0)


def _pairs(draws: _Draws, one: Place, other: Place) -> list[tuple[_Asked, _Asked]]:
    return [(own[one], own[other]) for own in draws.values() if one in own and other in own]


def _of_items(one: _Asked, other: _Asked) -> Floats | None:
    """What each item adds to the difference of two scores, less its share of the mean [I]; None where it is unknown."""
    if one.items is None or other.items is None or not np.array_equal(one.items.weights, other.items.weights):
        return None
    difference = one.items.values - other.items.values
    total = float(one.items.weights.sum())
    if not total > 0 or np.isnan(difference).any():
        return None
    share = one.items.weights / total
    away: Floats = share * (difference - share @ difference)
    return away
