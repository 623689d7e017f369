"""The figure of other tasks: each score against the restored fraction, beside what becomes of the facts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, PercentFormatter

from knowshift.html.plotting import legend_above, panels, svg_text
from knowshift.html.style import BASE, line_styles
from knowshift.html.table import Table, is_missing
from knowshift.reports.findings.claims import mean_of
from knowshift.reports.tables.other import AS_TUNED
from knowshift.reports.tables.paper import RELATIVE, score_name

#: Scores that are drawn at most, in the order of the table's columns; the table has all.
MOST = 5
#: Between the lines of two criteria, in steps from one fraction to the next.
_APART = 0.09
_WORDS = {RELATIVE: "most changed (relative)", "random": "at random"}

#: Criterion and fraction.
_Place = tuple[str, float]


def other_tasks(scores: Table, changes: Table, summary: Table) -> str | None:
    """A panel for test facts and for each score: a line for each criterion, at the largest size; None without scores.

    Bars are intervals of the difference to the model as tuned, around the score.

    Args:
        scores: "paper_other_tasks".
        changes: "other_tasks_summary".
        summary: "restoration_summary".
    """
    rows = [row for row in scores.where(source="run") if row["criterion"] != "base"]
    if not rows:
        return None
    size = max(row["size"] for row in rows)
    rows = [row for row in rows if row["size"] == size]
    names = [name for name in scores.columns[4:] if any(not is_missing(row[name]) for row in rows)][:MOST]
    criteria = sorted({row["criterion"] for row in rows} - {AS_TUNED}, key=lambda c: (c != RELATIVE, c))
    fractions = sorted({float(row["fraction"]) for row in rows})
    base = next(iter(scores.where(source="run", criterion="base")), {})
    with panels(2.5 * (1 + len(names)), 3.4, 1 + len(names), share_y=False) as (figure, axes):
        knowledge, *others = axes
        knowledge.set_title("test facts")
        _lines(knowledge, criteria, fractions, _of_facts(summary, size, criteria), {})
        _percent(knowledge)
        for panel, name in zip(others, names, strict=True):
            panel.set_title(name.replace("_", " ").replace("$", r"\$"))  # which begins a formula
            found = {(row["criterion"], float(row["fraction"])): row[name] for row in rows}
            _lines(panel, criteria, fractions, found, _reaches(changes, size, name))
            if not is_missing(base.get(name)):
                panel.axhline(base[name], color=BASE, linewidth=1, linestyle="-.", label="base model")
            if name in scores.percent:
                _percent(panel)
        legend_above(figure, others[0], columns=3)
        return svg_text(figure)


def _reaches(changes: Table, size: int, name: str) -> dict[_Place, float]:
    """Half the width of the interval of each difference to the model as tuned, of the mean of training levels."""
    rows = [row for row in changes.where(control="", size=size, level="mean") if score_name(row) == name]
    return {(row["criterion"], float(row["fraction"])): row["difference_high"] - row["difference"] for row in rows}


def _of_facts(summary: Table, size: int, criteria: Sequence[str]) -> dict[_Place, float]:
    """Accuracy of the mean of training levels, mean of both domains; the domains have their intervals elsewhere."""
    found: dict[_Place, list[float]] = {}
    for row in summary.where(control="", size=size, level="mean"):
        if row["criterion"] in criteria:
            found.setdefault((row["criterion"], float(row["fraction"])), []).append(row["accuracy"])
            found.setdefault((AS_TUNED, 0.0), []).append(row["accuracy"] - row["difference"])
    return {place: mean_of(values) for place, values in found.items()}


def _lines(
    axes: Axes,
    criteria: Sequence[str],
    fractions: Sequence[float],
    found: Mapping[_Place, float | None],
    reaches: Mapping[_Place, float],
) -> None:
    """Each criterion's scores from the model as tuned on; a fraction without a score is a gap."""
    for position, (criterion, (colour, dashes)) in enumerate(line_styles(criteria).items()):
        shift = _APART * (position - (len(criteria) - 1) / 2)  # or bars would hide each other
        values = [found.get((criterion if fraction else AS_TUNED, fraction)) for fraction in fractions]
        places = [place + shift for place in range(len(fractions))]
        heights = [math.nan if value is None else value for value in values]
        axes.plot(
            places,
            heights,
            color=colour,
            marker="o" if criterion == RELATIVE else "s",
            linestyle=dashes,
            label=_WORDS.get(criterion, criterion),
        )
        reach = [reaches.get((criterion, fraction), math.nan) for fraction in fractions]
        axes.errorbar(places, heights, yerr=reach, fmt="none", ecolor=colour, elinewidth=1)
    axes.xaxis.set_major_locator(FixedLocator(list(range(len(fractions)))))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{100 * fractions[round(x)]:g}" if 0 <= round(x) < len(fractions) else "")
    )
    axes.set_xlabel("weights restored, %")


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(0, None)
