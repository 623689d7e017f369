"""The figure of other tasks, read back from its axes: the points of the tables, and nothing without scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats

import golden_run
from knowshift.html.table import Table
from knowshift.reports.evidence.evidence import Evidence, read_evidence
from knowshift.reports.evidence.other import task_items
from knowshift.reports.page import task_figure
from knowshift.reports.page.figures import build_figures
from knowshift.reports.page.page import FIGURE_NOTES, FIGURE_TITLES
from knowshift.reports.page.task_figure import MOST, other_tasks
from knowshift.reports.tables.build import Tables
from knowshift.reports.tables.other import other_tasks as scores_of
from knowshift.reports.tables.other import other_tasks_summary
from knowshift.reports.tables.paper import paper_other_tasks

#: Accuracy and difference to the model as tuned, of the mean of training levels: as tuned it is 0.4 and 0.2.
SUMMARY = Table(
    "restoration_summary",
    ("level", "size", "control", "criterion", "fraction", "domain", "accuracy", "difference"),
    (
        ("mean", 960, "", "relative", "0.2", "in_domain", 0.5, 0.1),
        ("mean", 960, "", "relative", "0.2", "out_of_domain", 0.3, 0.1),
        ("mean", 960, "", "relative", "0.6", "in_domain", 0.0, -0.4),
        ("mean", 960, "", "relative", "0.6", "out_of_domain", 0.1, -0.1),
        ("mean", 240, "", "relative", "0.6", "in_domain", 0.9, 0.1),
        ("4", 960, "", "relative", "0.6", "in_domain", 0.8, 0.1),
    ),
)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return read_evidence(golden_run.build(tmp_path_factory.mktemp("golden") / "run"))


@pytest.fixture(scope="module")
def scores(evidence: Evidence) -> Table:
    return paper_other_tasks(scores_of(evidence), "0.0003")


@pytest.fixture(scope="module")
def changes(evidence: Evidence) -> Table:
    return other_tasks_summary(evidence)


def points(line: Line2D) -> list[Any]:
    values: Sequence[Any] = line.get_ydata()  # type: ignore[assignment]
    return [float(value) for value in values]


def test_every_point_is_that_of_the_tables(monkeypatch: pytest.MonkeyPatch, scores: Table, changes: Table) -> None:
    monkeypatch.setattr(task_figure, "svg_text", lambda figure: figure)
    figure: Any = other_tasks(scores, changes, SUMMARY)
    assert isinstance(figure, Figure)
    names = ["xsum_rouge1", "gsm8k_accuracy", "copy_em", "text_loss_nats_per_token"]
    titles = [panel.get_title(loc="left") or panel.get_title() for panel in figure.axes]
    assert titles == ["test facts", *(name.replace("_", " ") for name in names)]
    fractions = ["0", "0.01", "0.2", "0.6"]
    for panel, name in zip(figure.axes[1:], names, strict=True):
        lines = {str(line.get_label()): line for line in panel.get_lines()}
        assert list(lines) == ["most changed (relative)", "at random", "absolute", "base model"]
        for label, criterion in (("most changed (relative)", "relative"), ("absolute", "absolute")):
            rows = scores.where(source="run", size=960, criterion=criterion)
            rows += scores.where(source="run", size=960, criterion="")
            told = {row["fraction"]: row[name] for row in rows}
            expected = [told.get(fraction, float("nan")) for fraction in fractions]
            assert points(lines[label]) == pytest.approx(expected, nan_ok=True)
        (base,) = scores.where(source="run", criterion="base")
        assert points(lines["base model"]) == [base[name]] * 2
    nowhere = float("nan")
    (relative, *_) = figure.axes[0].get_lines()
    assert points(relative) == pytest.approx([0.3, nowhere, 0.4, 0.05], nan_ok=True)


def test_bars_are_the_intervals_of_the_differences_to_the_model_as_tuned(
    monkeypatch: pytest.MonkeyPatch, scores: Table, changes: Table
) -> None:
    monkeypatch.setattr(task_figure, "svg_text", lambda figure: figure)
    figure: Any = other_tasks(scores, changes, SUMMARY)
    rows = changes.where(control="", level="mean", task="gsm8k", criterion="relative")
    (tuned,) = scores.where(source="run", size=960, criterion="")
    (panel,) = (axes for axes in figure.axes if "gsm8k accuracy" in (axes.get_title(loc="left"), axes.get_title()))
    first = panel.containers[0]  # of the most changed weights
    drawn = [segment[:, 1].tolist() for segment in first[2][0].get_segments() if len(segment)]
    ends = [[tuned["gsm8k_accuracy"] + row[f"difference_{end}"] for end in ("low", "high")] for row in rows]
    assert [row["fraction"] for row in rows] == ["0.01", "0.2", "0.6"]
    known = [bar for bar in drawn if all(end == end for end in bar)]
    assert known == [pytest.approx(bar) for bar in ends]
    (score,) = (axes for axes in figure.axes if "copy em" in (axes.get_title(loc="left"), axes.get_title()))
    bars = [segment for held in score.containers for segment in held[2][0].get_segments()]
    assert not any((bar == bar).all() for bar in bars if len(bar))  # it is no mean of its items


def test_the_change_of_one_model_is_that_of_a_paired_t_test(evidence: Evidence) -> None:
    """With one draw only items vary: the interval of a mean of differences."""
    one = next(cell for cell in evidence.run.of("tasks") if (cell.setting.level, cell.draw) == (0, 0))
    alone = replace(evidence, run=replace(evidence.run, cells=(one,)))
    (row,) = other_tasks_summary(alone).where(level="0", task="gsm8k", criterion="relative", fraction="0.2")
    items = {place: own.values for place, own in task_items(one).items()}
    pair = (items["relative", "0.2", "gsm8k", "exact_match"], items["", "0", "gsm8k", "exact_match"])
    expected = stats.ttest_rel(*pair)
    assert row["draws"] == 1
    assert row["p"] == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((interval.low, interval.high))


def test_many_tasks_and_names_that_mean_something_to_a_drawing(scores: Table, changes: Table) -> None:
    more = tuple(f"${place}_<b>" for place in range(9))
    rows = tuple((*row, *([0.5] * 9)) for row in scores.rows)
    svg = other_tasks(Table("t", (*scores.columns, *more), rows), changes, SUMMARY)
    assert svg is not None
    assert "<b>" not in svg
    assert svg.count("weights restored") == 1 + MOST


def test_a_run_without_other_tasks_has_no_such_figure(hand_tables: Tables) -> None:
    assert other_tasks(hand_tables["paper_other_tasks"], hand_tables["other_tasks_summary"], SUMMARY) is None
    assert "other_tasks" not in build_figures(hand_tables)
    assert set(FIGURE_NOTES) == set(FIGURE_TITLES) > {"other_tasks"}
