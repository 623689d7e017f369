"""Tables of other tasks once more, from a run folder's records and the formulas of docs/measures.md."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from golden_records import NAN, Interval, Model, Records, crossed, holm, mean_of, model_of, rows_of
from golden_tables import ONE_DRAW, SETTING, Golden, one_draw, published, setting, within


def told_scores(records: Records) -> Iterable[tuple[dict[str, Any] | None, Any, dict[str, Any]]]:
    """Coordinates (None of the base), eligible weights and score of every model on every other task."""
    for kind in ("base_tasks", "tasks"):
        for key, folder in records.cells[kind]:
            told = json.loads((folder / "scores.json").read_text())
            for score in told["scores"]:
                yield key or None, NAN if told["eligible"] is None else told["eligible"], score


def other_tasks(records: Records) -> Golden:
    rows = []
    for key, eligible, score in told_scores(records):
        where = ("",) * 5 if key is None else one_draw(model_of(key), key["draw"])
        criterion = "base" if key is None else score["criterion"]
        restored = NAN if score["restored"] is None else score["restored"]
        better = "yes" if score["higher_is_better"] else "no"
        place = (*where, criterion, score["fraction"], score["task"], score["metric"], better)
        rows.append((*place, restored, eligible, score["items"], score["score"]))
    columns = ("criterion", "fraction", "task", "metric", "higher_is_better", "restored", "eligible", "items", "score")
    return Golden((*ONE_DRAW, *columns), 10, rows)


class OtherTask(NamedTuple):
    """One model on one task: its score, and what its items came to."""

    score: float
    better: str
    items: list[dict[str, Any]]


def other_tasks_summary(records: Records) -> Golden:
    held: dict[Model, dict[int, dict[tuple[str, ...], OtherTask]]] = {}
    places = ("criterion", "fraction", "task", "metric")
    for key, folder in records.cells["tasks"]:
        items = rows_of(folder / "items.parquet")
        for score in json.loads((folder / "scores.json").read_text())["scores"]:
            at = tuple(score[name] for name in places)
            mine = [row for row in items if tuple(row[name] for name in places) == at]
            better = "yes" if score["higher_is_better"] else "no"
            held.setdefault(model_of(key), {}).setdefault(key["draw"], {})[at] = OtherTask(score["score"], better, mine)
    rows: list[tuple[Any, ...]] = []
    for grid in sorted({model[1:4] for model in held}):
        models = sorted(model for model in held if model[1:4] == grid)
        asked = {at for model in models for own in held[model].values() for at in own if at[0]}
        for criterion, task, metric in sorted({(at[0], *at[2:]) for at in asked}):
            fractions = sorted({at[1] for at in asked if (at[0], *at[2:]) == (criterion, task, metric)}, key=float)
            for batch in ([([m], f) for m in models for f in fractions], [(models, f) for f in fractions]):
                alike = models if len(batch) > len(fractions) else []
                found = [scored(held, its, alike, (criterion, f, task, metric)) for its, f in batch]
                told = [row for row in found if row]
                adjusted = holm([row[14] for row in told])
                rows += [(*row[:15], p, *row[15:]) for row, p in zip(told, adjusted, strict=True)]
    measured = ("draws", "score", "difference", "difference_low", "difference_high", "p", "p_holm")
    versus = ("minus_random", "minus_random_low", "minus_random_high", "minus_random_p")
    return Golden((*SETTING, *places, "higher_is_better", *measured, *versus), 9, rows)


def scored(
    held: dict[Model, dict[int, dict[tuple[str, ...], OtherTask]]],
    models: Sequence[Model],
    alike: Sequence[Model],
    at: tuple[str, ...],
) -> tuple[Any, ...]:
    """A row without Holm's p. Empty where one of the models was not asked."""
    tuned, random = ("", "0", *at[2:]), ("random", *at[1:])
    asked = {model: [own[at] for own in held[model].values() if at in own] for model in models}
    if not all(asked.values()):
        return ()
    difference = of_items(held, models, alike, at, tuned)
    versus = Interval() if at[0] == "random" else of_items(held, models, alike, at, random)
    level, *rest = setting(models[0])
    where = (level if alike else "mean", *rest, *at, asked[models[0]][0].better)
    score = mean_of(mean_of(one.score for one in own) for own in asked.values())
    return (*where, difference.draws, score, *within(difference), difference.p, *within(versus), versus.p)


def of_items(
    held: dict[Model, dict[int, dict[tuple[str, ...], OtherTask]]],
    models: Sequence[Model],
    alike: Sequence[Model],
    one: tuple[str, ...],
    other: tuple[str, ...],
) -> Interval:
    """One minus other: units are draws, their covariance is that of the weighted differences of items."""

    def pairs_of(model: Model) -> list[tuple[OtherTask, OtherTask]]:
        return [(own[one], own[other]) for own in held[model].values() if one in own and other in own]

    units = [(place, *pair) for place, model in enumerate(models) for pair in pairs_of(model)]
    strata = [[i for i, (place, *_) in enumerate(units) if place == mine] for mine in range(len(models))]
    if not all(strata):
        return Interval()
    values = [(a.score - b.score) / len(models) for _, a, b in units]
    if any(row["value"] is None for _, a, b in units for row in a.items):
        value = math.fsum(mean_of(values[i] for i in inside) for inside in strata)
        return Interval(value, draws=min(map(len, strata)))
    apart = []
    for (_, a, b), value in zip(units, values, strict=True):
        total = math.fsum(row["weight"] for row in a.items)
        by_item = [(x["value"] - y["value"]) / len(models) for x, y in zip(a.items, b.items, strict=True)]
        apart.append([row["weight"] / total * (d - value) for row, d in zip(a.items, by_item, strict=True)])
    count = len(apart[0])
    covariance = np.array(
        [[math.fsum(x * y for x, y in zip(u, v, strict=True)) * count / (count - 1) for v in apart] for u in apart]
    )
    contrasts = [[a.score - b.score for a, b in pairs_of(model)] for model in alike]
    freedom = sum(len(its) - 1 for its in contrasts if its)
    squares = math.fsum(statistics.variance(its) * (len(its) - 1) for its in contrasts if len(its) > 1)
    return crossed(values, strata, covariance, (squares / freedom, freedom) if freedom else None, count - 1)


def paper_other_tasks(records: Records) -> Golden:
    names = {"gsm8k exact_match": "gsm8k_accuracy", "knowshift_xsum rouge1": "xsum_rouge1"}
    held: dict[tuple[str, ...], dict[str, dict[Any, list[float]]]] = {}
    for key, _, score in told_scores(records):
        if key is not None and model_of(key) not in records.grid.values():
            continue
        at = ("", "base", "", "run")
        if key is not None:
            at = (str(key["size"]), score["criterion"], score["fraction"], "run")
        about = f"{score['task']} {score['metric']}"
        name = names.get(about, about.replace(" ", "_"))
        level = None if key is None else key["level"]
        held.setdefault(at, {}).setdefault(name, {}).setdefault(level, []).append(score["score"])
    columns = ("xsum_rouge1", "xsum_rouge2", "xsum_rougeL", "gsm8k_accuracy")
    own = sorted({name for by_name in held.values() for name in by_name} - set(columns))
    rows: list[tuple[Any, ...]] = []
    for at, by_name in held.items():
        means = {name: mean_of(mean_of(x) for x in by_level.values()) for name, by_level in by_name.items()}
        rows.append((*at, *(means.get(name, NAN) for name in (*columns, *own))))
    for row in published("restoration_other_tasks"):
        fraction = row["restored_fraction"]
        shares = [float(row[f"{c}_percent" if c.startswith("gsm8k") else c]) / 100 for c in columns]
        where = ("", "" if fraction == "0" else "relative", fraction, row["model"])
        rows.append((*where, *shares, *(NAN for _ in own)))
    return Golden(("size", "criterion", "fraction", "source", *columns, *own), 4, rows)


TABLES: dict[str, Callable[[Records], Golden]] = {
    "other_tasks": other_tasks,
    "other_tasks_summary": other_tasks_summary,
    "paper_other_tasks": paper_other_tasks,
}
