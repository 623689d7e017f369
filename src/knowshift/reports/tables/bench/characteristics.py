"""What one characteristic of the training does: labels of a bench that differ in one number, each at its best rate."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from knowshift.html.table import Row, Table, bounds
from knowshift.records import ANSWERS, read_table
from knowshift.reports.evidence.choices import chosen
from knowshift.reports.evidence.evidence import Evidence
from knowshift.reports.evidence.run_folder import RecordedCell
from knowshift.reports.evidence.scores import Model
from knowshift.reports.evidence.series import Series, series_of
from knowshift.reports.findings.claims import mean_of
from knowshift.reports.tables.bench.strategies import PLAIN, SCOPES, by_setting, numbered, turned_of
from knowshift.reports.tables.settings import rate_name
from knowshift.statistics.holm import holm

CHARACTERISTICS = (
    *("series", "strategy", "setting", "settings", "value", "label", "learning_rate"),
    *("in_domain", "in_domain_low", "in_domain_high", "out_of_domain", "out_of_domain_low", "out_of_domain_high"),
    *("difference", "low", "high", "p_holm", "lost", "gained", "learned", "learned_own"),
)
ENDS = ("series", "strategy", "setting", "settings", "scope", "first", "last", "difference", "low", "high", "p_holm")

Options = Mapping[float, Model]


def characteristics(evidence: Evidence) -> Table:
    """Every label of a series at its best rate, and plain fine-tuning at its own (series 0).

    The rate is the one chosen most often, as in ``strategies_chosen``; accuracy there on all facts and draws. The
    difference to plain fine-tuning, mean of both domains, has both bests chosen on other facts and draws; it is
    adjusted by Holm over the labels of all series. ``learned`` is the share of plain fine-tuning's training facts that
    are answered right, ``learned_own`` of the label's own.
    """
    series = all_series(evidence)
    if not series:
        return Table("characteristics", CHARACTERISTICS, ())
    plain = numbered(evidence, "strategy", PLAIN)
    labels = list(dict.fromkeys(label for one in series for label in one.labels.values()))
    against = {
        label: chosen(evidence.substring, [_options(evidence, label)], [plain], SCOPES["both"]) for label in labels
    }
    adjusted = dict(zip(labels, holm([against[label].estimate.p for label in labels]), strict=True))
    rows: list[Row] = []
    if plain:
        usual = chosen(evidence.substring, [plain], [plain], SCOPES["both"]).usual
        rows.append((0, PLAIN, "", "", None, PLAIN, *_at(evidence, plain, usual, (math.nan,) * 4)))
    for number, one in enumerate(series, 1):
        for value, label in one.labels.items():
            found = against[label]
            difference = (*bounds(found.estimate), adjusted[label])
            about = (number, one.strategy, one.setting, one.others, value, label)
            rows.append((*about, *_at(evidence, _options(evidence, label), found.usual, difference)))
    shares = {name for name in CHARACTERISTICS if name.startswith(("in_domain", "out_of_domain"))}
    return Table("characteristics", CHARACTERISTICS, tuple(rows), frozenset({*shares, *CHARACTERISTICS[-4:]}))


def characteristics_ends(evidence: Evidence) -> Table:
    """The last label of each series minus its first, each at its best rate, chosen on other facts and draws.

    Adjusted by Holm over series, for each scope.
    """
    series = all_series(evidence)
    rows: dict[tuple[int, str], Row] = {}
    for scope, domains in SCOPES.items():
        found = [
            chosen(evidence.substring, [_options(evidence, last)], [_options(evidence, first)], domains).estimate
            for first, *_, last in (tuple(one.labels.values()) for one in series)
        ]
        for number, (one, estimate, p) in enumerate(zip(series, found, holm([e.p for e in found]), strict=True), 1):
            about = (number, one.strategy, one.setting, one.others, scope)
            rows[number, scope] = (*about, min(one.labels), max(one.labels), *bounds(estimate), p)
    places = [(number, scope) for number in range(1, len(series) + 1) for scope in SCOPES]
    return Table("characteristics_ends", ENDS, tuple(rows[place] for place in places))


def all_series(evidence: Evidence) -> list[Series]:
    """The series of a study's bench."""
    return series_of(evidence.run.config, evidence.benched)


def _options(evidence: Evidence, label: str) -> Options:
    return {float(number): model for number, model in enumerate(evidence.benched[label].values())}


def _at(evidence: Evidence, own: Options, usual: float | None, difference: tuple[float, ...]) -> Row:
    """The values of a row from ``learning_rate`` on, at the rate that is chosen most often."""
    if usual is None:
        return (None, *(math.nan,) * 6, *difference, *(math.nan,) * 4)
    model, scores = own[int(usual)], evidence.substring
    cells = [by_setting(evidence, kind).get(model.setting, []) for kind in ("learned", "learned_own")]
    return (
        rate_name(model.setting.learning_rate),
        *(
            one
            for scope in ("in_domain", "out_of_domain")
            for one in bounds(scores.mean([model], scores.over(SCOPES[scope])), 0, 1)
        ),
        *difference,
        *turned_of(evidence, model),
        *(mean_of([share for cell in those if (share := _right(cell)) is not None]) for those in cells),
    )


def _right(cell: RecordedCell) -> float | None:
    """The share of the facts asked in a cell that are answered right; None of none."""
    table, _ = read_table(cell.folder / "answers.parquet", ANSWERS, "answers")
    hits = [hit for hit in table["substring_hit"].to_pylist() if hit is not None]
    return float(np.mean(hits)) if hits else None
