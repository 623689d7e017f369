"""A bench's tables and picture: the frontier by its definition, matched learning by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowshift.html.table import Table
from knowshift.reports.evidence.run_folder import MIXED, Setting
from knowshift.reports.page.strategies import _chosen, frontier, strategies_figure
from knowshift.reports.tables.bench.strategies import CHOSEN, MATCHED, SCOPES, _end, strategies_matched

COLUMNS = ("strategy", "plain", "learning_rate", "size", "in_domain", "out_of_domain", "kept", "learned", "learned_new")
MORE = ("kl_known", "text_loss", "moved")


def _table(*rows: tuple[Any, ...]) -> Table:
    return Table(
        "strategies",
        (*COLUMNS, *MORE),
        tuple((row[0], row[0].startswith("sft"), *row[1:], 1.0, 2.0, 0.1) for row in rows),
    )


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_frontier_holds_what_no_other_point_beats(points: list[tuple[int, int]]) -> None:
    found = frontier([(float(x), float(y)) for x, y in points])
    for index, (x, y) in enumerate(points):
        beaten = any((a, b) != (x, y) and a >= x and b >= y for a, b in points)
        assert (index in found) == (not beaten)
    assert bool(found) == bool(points)


def test_matched_learning_is_read_on_the_line_between_two_rates() -> None:
    told = _table(
        ("sft", "0.1", 4, 0.2, 0.3, 0.5, 0.4, 0.1),
        ("sft", "0.3", 4, 0.1, 0.2, 0.4, 0.9, 0.2),
        ("kl", "0.1", 4, 0.4, 0.4, 0.8, 0.2, 0.1),
        ("kl", "0.3", 4, 0.2, 0.2, 0.6, 0.6, 0.1),
        ("slow", "0.1", 4, 0.2, 0.2, 0.6, 0.3, 0.1),
        ("kl", "0.5", 4, 0.9, 0.9, 0.9, math.nan, 0.1),  # whose cell is missing yet
        ("sft-more", "0.1", 8, 0.9, 0.9, 0.9, 0.9, 0.9),  # of another size
    )
    found = strategies_matched(told)
    assert found.columns == MATCHED
    by = {row["strategy"]: row for row in found.where()}
    assert {row["learned"] for row in by.values()} == {0.4}  # of plain fine-tuning at its best
    assert [by["kl"][name] for name in ("in_domain", "out_of_domain", "kept")] == pytest.approx([0.3, 0.3, 0.7])
    assert by["sft"]["in_domain"] == pytest.approx(0.2)
    assert by["slow"]["in_domain"] is None  # it never learned as much


def test_the_picture_names_plain_fine_tuning_and_the_frontier() -> None:
    told = _table(
        ("sft", "0.1", 4, 0.2, 0.3, 0.5, 0.4, 0.1),
        ("kl", "0.1", 4, 0.4, 0.4, 0.8, 0.2, 0.2),
        ("bad", "0.1", 4, 0.4, 0.4, 0.1, 0.2, 0.0),
        ("<b>&$x", "0.1", 4, 0.4, 0.4, 0.9, 0.2, 0.1),
        ("sft-more", "0.1", 8, 0.2, 0.3, 0.5, 0.4, 0.1),
        ("lost", "0.1", 4, 0.2, 0.3, math.nan, 0.4, 0.1),
    )
    others = tuple((f"bad {n}", *told.rows[2][1:]) for n in range(5))
    drawn = strategies_figure(Table(told.name, told.columns, (*told.rows, *others)))
    few = strategies_figure(told)
    assert drawn is not None
    assert few is not None
    assert ">bad<" in few  # of few strategies all are named
    assert ">sft<" in drawn
    assert ">kl<" in drawn
    assert ">sft-more<" in drawn
    assert drawn.count("<path") > 5
    assert ">bad<" not in drawn
    assert "&lt;b&gt;&amp;$x" in drawn
    assert strategies_figure(None) is None
    unlearned = Table(told.name, told.columns, tuple((*row[:8], math.nan, *row[9:]) for row in told.rows))
    assert strategies_figure(replace(unlearned)) is None


def test_a_best_rate_that_none_was_tried_beyond_is_said() -> None:
    tried = [Setting(MIXED, 4, rate, f"kl@{rate}") for rate in (0.1, 0.3, 1.0)]
    alone = Setting(MIXED, 8, 3.0, "kl@3.0")  # of another size
    ends = ["lowest", "", "highest", "only"]
    assert [_end(one, [*tried, alone]) for one in (*tried, alone)] == ends
    numbers = (4, 0.5, 0.1, 0.0, 0.2, 0.04, 0.1, 0.0, 0.2)
    rows = [(str(place), scope, "0.1", end, *numbers) for place, end in enumerate(ends) for scope in SCOPES]
    grid = _chosen(Table("strategies_chosen", CHOSEN, tuple(rows)))
    assert [line[1].text for line in grid.rows] == ["0.1 ↓", "0.1", "0.1 ↑", "0.1"]
