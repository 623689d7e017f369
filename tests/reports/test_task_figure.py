"""The figure of other tasks, read back from its axes: the points of the tables, and nothing without scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import golden_run
from knowshift.html.table import Table
from knowshift.reports.page import task_figure
from knowshift.reports.page.figures import build_figures
from knowshift.reports.page.page import FIGURE_NOTES, FIGURE_TITLES
from knowshift.reports.page.task_figure import MOST, other_tasks
from knowshift.reports.tables.build import Tables, build_tables


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return build_tables(golden_run.build(tmp_path_factory.mktemp("golden") / "run"))


def drawn(monkeypatch: pytest.MonkeyPatch, scores: Table, summary: Table) -> Figure:
    monkeypatch.setattr(task_figure, "svg_text", lambda figure: figure)
    found: Any = other_tasks(scores, summary)
    assert isinstance(found, Figure)
    return found


def points(line: Line2D) -> list[Any]:
    values: Sequence[Any] = line.get_ydata()  # type: ignore[assignment]
    return [pytest.approx(float(value), nan_ok=True) for value in values]


def test_every_point_is_that_of_the_tables(monkeypatch: pytest.MonkeyPatch, tables: Tables) -> None:
    scores = tables["paper_other_tasks"]
    figure = drawn(monkeypatch, scores, tables["restoration_summary"])
    names = ["xsum_rouge1", "gsm8k_accuracy", "copy_em", "text_loss_nats_per_token"]
    assert [panel.get_title(loc="left") for panel in figure.axes] == [
        "test facts",
        *(name.replace("_", " ") for name in names),
    ]
    fractions = ["0", "0.01", "0.2", "0.6"]
    for panel, name in zip(figure.axes[1:], names, strict=True):
        lines = {str(line.get_label()): line for line in panel.get_lines()}
        assert list(lines) == ["most changed (relative)", "absolute", "at random", "base model"]
        for label, criterion in (("most changed (relative)", "relative"), ("absolute", "absolute")):
            rows = {r["fraction"]: r[name] for r in scores.where(source="run", size=960, criterion=criterion)}
            rows |= {r["fraction"]: r[name] for r in scores.where(source="run", size=960, criterion="")}
            assert points(lines[label]) == [rows.get(fraction, float("nan")) for fraction in fractions]
        (base,) = scores.where(source="run", criterion="base")
        assert points(lines["base model"]) == [base[name]] * 2
    (relative, *_) = figure.axes[0].get_lines()
    told = tables["restoration_summary"].where(size=960, level="mean", criterion="relative", fraction="0.2")
    assert points(relative)[2] == sum(row["accuracy"] for row in told) / 2
    assert points(relative)[0] == sum(row["accuracy"] - row["difference"] for row in told) / 2


def test_many_tasks_and_names_that_mean_something_to_a_drawing(tables: Tables) -> None:
    scores = tables["paper_other_tasks"]
    more = tuple(f"${place}_<b>" for place in range(9))
    rows = tuple((*row, *([0.5] * 9)) for row in scores.rows)
    svg = other_tasks(Table("t", (*scores.columns, *more), rows), tables["restoration_summary"])
    assert svg is not None
    assert "<b>" not in svg
    assert svg.count("weights restored") == 1 + MOST


def test_a_run_without_other_tasks_has_no_such_figure(hand_tables: Tables, tables: Tables) -> None:
    assert "other_tasks" not in build_figures(hand_tables)
    found = build_figures(tables)
    assert list(found) == [name for name in FIGURE_TITLES if name in found]
    assert "other_tasks" in found
    assert set(FIGURE_NOTES) == set(FIGURE_TITLES)


def test_the_page_shows_it(tables: Tables, tmp_path: Path) -> None:
    from knowshift.reports.page.page import compose

    page = compose(tables, build_figures(tables))
    assert FIGURE_TITLES["other_tasks"] in page
    assert "Table 5: other tasks after restoring" in page
