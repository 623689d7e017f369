"""Figures of the page, as SVG text drawn from numbers alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from knowshift.audits.evidence import Evidence
from knowshift.audits.repair import Repair
from knowshift.facts.fact import LEVELS
from knowshift.html.plotting import legend_above, panels, svg_text
from knowshift.html.style import BASE, CONTROL, INK, PAPER_COLOUR, RUN
from knowshift.html.table import is_missing

#: How the criteria of repairs are drawn: name, colour, line, marker. Controls are dashed.
DRAWN = {
    "interpolate": ("interpolation", RUN, "-", "o"),
    "lines": ("LiNeS", PAPER_COLOUR, "-", "v"),
    "relative": ("most changed", "#35b779", "-", "^"),
    "random": ("random", CONTROL, "--", "o"),
    "least": ("least changed", BASE, "--", "^"),
    "fapm": ("FAPM", "#8a6d1d", "-", "D"),
    "dg-hard": ("DG-Hard", "#21908d", "-", "P"),
}
#: The one chosen.
RING: Any = {"color": INK, "markersize": 13, "fillstyle": "none", "markeredgewidth": 1.6}


def levels_figure(evidence: Evidence) -> str:
    """SVG text: mean R of the facts of each level, asked again and tuned; levels are the first measurement's."""
    levels = [level for level in range(LEVELS) if (evidence.level == level).any()]
    found = evidence.by_level()
    with panels(6.4, 2.9) as (figure, (axes,)):
        again = [float(evidence.second.rate[evidence.level == level].mean()) for level in levels]
        tuned = [before + found[level][1].by_fact.value for level, before in zip(levels, again, strict=True)]
        errors = [found[level][1].by_fact for level in levels]
        spread = [0.0 if is_missing(one.low) else (one.high - one.low) / 2 for one in errors]
        axes.plot(levels, again, "s", color=BASE, label="base, asked again", markersize=7)
        axes.errorbar(levels, tuned, yerr=spread, fmt="o", color=RUN, capsize=3, label="tuned")
        for level, before, after in zip(levels, again, tuned, strict=True):
            axes.annotate("", (level, after), (level, before), arrowprops={"arrowstyle": "->", "color": CONTROL})
        axes.set_xticks(levels, [f"level {level}\n{int((evidence.level == level).sum()):,} facts" for level in levels])
        axes.set_ylim(-0.03, 1.03)
        axes.set_ylabel("mean R")
        legend_above(figure, axes)
        return svg_text(figure)


def repair_figure(repair: Repair | None) -> str:
    """SVG text: known facts by the share undone, and, where it is known, what the tuning was for against them.

    Empty where no candidate was tried, or nothing known was there to score.
    """
    if repair is None or len(repair.curve) < 2 or not len(repair.curve[0][1].known):
        return ""
    tuned = repair.curve[0][1]
    kept = len(tuned.kept) > 0
    tried = [(candidate, scores) for candidate, scores in repair.curve if candidate is not None]
    with panels(7.4 if kept else 4.6, 3.3, 2 if kept else 1) as (figure, axes):
        whole, trade = axes[0], axes[-1]
        whole.axhline(100 * tuned.known.mean(), color=BASE, linewidth=1, linestyle=":", label="as tuned")
        for criterion, (name, colour, line, marker) in DRAWN.items():
            own = [(one, scores) for one, scores in tried if one.criterion == criterion]
            curve = [(one.fraction, scores.known.mean()) for one, scores in own if one.region == "layers"]
            if curve:
                whole.plot(*(100 * np.array(curve).T), line, color=colour, marker=marker, label=name)
            if own and kept:
                points = np.array([(scores.kept.mean(), scores.known.mean()) for _, scores in own])
                trade.plot(*(100 * points.T), marker, color=colour, alpha=0.8)
        whole.set_xlabel("undone (%)")
        whole.set_ylabel("known facts there (%)")
        if kept:
            trade.plot(100 * tuned.kept.mean(), 100 * tuned.known.mean(), "s", color=BASE, markersize=8)
            trade.set_xlabel("what the tuning was for (%)")
        for candidate, scores in tried:
            if candidate == repair.chosen:
                if candidate.region == "layers":
                    whole.plot(100 * candidate.fraction, 100 * scores.known.mean(), "o", **RING)
                if kept:
                    trade.plot(100 * scores.kept.mean(), 100 * scores.known.mean(), "o", **RING)
        legend_above(figure, whole, columns=4)
        return svg_text(figure)
