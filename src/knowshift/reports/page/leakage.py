"""The page's section on leakage from training into test: does accuracy against size hold without trained answers?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from knowshift.html.grid import DASH, Entry, Grid, number
from knowshift.html.table import Table, is_missing
from knowshift.html.words import DOMAIN_WORDS, in_percent, signed
from knowshift.reports.evidence.leaks import ASKED
from knowshift.reports.findings.certainty import excluded
from knowshift.reports.findings.claims import POINT
from knowshift.reports.page.places import SIGNIFICANT
from knowshift.reports.tables.settings import level_words

_HEADS = dict(zip(ASKED, ("all", "answer new", "answer trained", "question new"), strict=True))


@dataclass(frozen=True)
class LeakageSection:
    """What follows, in a sentence, and the tables; without tables the sentence says why there are none."""

    sentence: str
    grids: tuple[Grid, ...] = ()


def leakage_section(accuracy: Table, sizes: Table, unknown: str) -> LeakageSection:
    """The section of a run's two tables of leakage."""
    if not accuracy.rows:
        return LeakageSection(f"Not told: {unknown}." if unknown else "Not told: no model of this run is tuned yet.")
    return LeakageSection(
        what_follows(sizes), tuple(grid for grid in (sizes_grid(sizes), by_model(accuracy)) if grid.rows)
    )


def what_follows(sizes: Table) -> str:
    """Whether finding 1 holds on all test facts, and on those whose answer the models were not trained on."""
    by_asked = {asked: sizes.where(level="mean", domain="both", asked=asked) for asked in ASKED}
    every, clean = by_asked["all"], by_asked["answer_not_trained"]
    known = [row for row in every if not is_missing(row["difference"])]
    if not known:
        return "The models of this run have one size, so there is nothing to compare."
    best = max(known, key=lambda row: row["difference"])
    (same,) = (row for row in clean if row["size"] == best["size"])
    before, after = _verdict(every), _verdict(clean)
    said = f"is {after} on them, as on all" if before == after else f"is {before} on all test facts and {after} on them"
    beyond = [*_excluded(every, before, "on all test facts"), *_excluded(clean, after, "on them")]
    verdict = (
        f"On the test facts whose answer neither model was trained on (at least {same['facts']:,} of {best['facts']:,} "
        "in each draw) "
        f"{best['size']:,} minus {best['against']:,} samples is {_points(same)}, on all test facts {_points(best)} "
        f"(mean of training levels, both domains). That a smaller training set beats the largest (finding 1) {said}."
    )
    return " ".join([verdict, *beyond])


def _verdict(rows: list[dict[str, Any]]) -> str:
    """As for claims: shown where a whole interval lies above 0 (Holm's p over sizes), not shown where all lie low."""
    if any(row["low"] > 0 and row["p_holm"] < SIGNIFICANT for row in rows if not is_missing(row["low"])):
        return "shown"
    return "not shown" if _highest_end(rows) < POINT else "undecided"


def _highest_end(rows: list[dict[str, Any]]) -> float:
    """By no more than this does a smaller size beat the largest; NaN where one that was compared has no interval."""
    ends = [row["high"] for row in rows if not is_missing(row["difference"])]
    return math.nan if not ends or any(map(is_missing, ends)) else float(max(ends))


def _excluded(rows: list[dict[str, Any]], verdict: str, where: str) -> list[str]:
    """The effect that a verdict excludes, in the words of claims; none where it is shown, or nothing was measured."""
    if verdict == "shown" or all(is_missing(row["difference"]) for row in rows):
        return []
    return [excluded(_highest_end(rows), "points", where)]


def _points(row: Mapping[str, Any]) -> str:
    if is_missing(row["difference"]):
        return "not known"
    ends = [row["low"], row["high"]]
    interval = "no interval" if any(map(is_missing, ends)) else " to ".join(map(signed, ends))
    return f"{signed(row['difference'])} points [{interval}]"


def sizes_grid(sizes: Table) -> Grid:
    """Smaller sizes minus the largest, mean of training levels, in points with intervals, by what was asked."""
    rows = []
    found = sizes.where(level="mean")
    for size, domain in dict.fromkeys((row["size"], row["domain"]) for row in found):
        here = {row["asked"]: row for row in found if (row["size"], row["domain"]) == (size, domain)}
        against = next(iter(here.values()))["against"]
        shown = [number(row["difference"], signed, row["low"], row["high"]) for row in (here[name] for name in ASKED)]
        rows.append([Entry(f"{size:,} minus {against:,}"), Entry(DOMAIN_WORDS[domain]), *shown])
    caption = (
        "Accuracy of a smaller size minus that of the largest, in points, with 95% interval; mean of training levels"
    )
    return Grid(caption, ["samples", "test facts", *_HEADS.values()], rows)


def by_model(accuracy: Table) -> Grid:
    """Models of the grid down, what was asked across: both graders, and small the facts of the draw that has fewest."""
    rows = []
    found = accuracy.where(control="")
    for level, size, domain in dict.fromkeys((row["level"], row["size"], row["domain"]) for row in found):
        here = {r["asked"]: r for r in found if (r["level"], r["size"], r["domain"]) == (level, size, domain)}
        shown = [_graded(here[asked]) for asked in ASKED]
        rows.append([Entry(level_words(level)), Entry(f"{size:,}"), Entry(DOMAIN_WORDS[domain]), *shown])
    caption = "Accuracy in %, mean of test levels and draws: substring / at word boundaries; small: facts"
    return Grid(caption, ["trained on", "samples", "test facts", *_HEADS.values()], rows, "dense")


def _graded(row: Mapping[str, Any]) -> Entry:
    if is_missing(row["accuracy"]):
        return DASH
    return Entry(f"{in_percent(row['accuracy'])} / {in_percent(row['word_accuracy'])}", f"{row['facts']:,}")
