"""How figures look, in the report and elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle, product
from typing import Any

RUN, CONTROL, BASE, PAPER_COLOUR = "#31688e", "#b5533c", "#555555", "#8c6bb1"
#: Colours of further lines of one panel, told apart by the colour-blind too.
FURTHER = ("#7ab51d", "#d9a400", "#8c6bb1", "#1f9e89", "#e07b9a", "#7f5539")
INK, GRID = "#22252a", "#dfe2e6"

STYLE: Any = {
    "svg.hashsalt": "knowshift",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.edgecolor": "#8a9099",
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.facecolor": "white",
}


def line_styles(criteria: Iterable[str]) -> dict[str, tuple[str, str]]:
    """(colour, dashes) of the line of each criterion, the paper's solid and first, its random control second.

    However many there are, each has one; no two are alike among the first fourteen.
    """
    asked = set(criteria)
    others = sorted(asked - {"relative", "random"})
    further = cycle((colour, dashes) for dashes, colour in product(("--", ":"), FURTHER))
    found = {"relative": (RUN, "-"), "random": (CONTROL, "--"), **dict(zip(others, further, strict=False))}
    return {name: style for name, style in found.items() if name in asked}
