"""A figure in the pages' style, as SVG text: no file written, no window opened."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from knowshift.html.style import STYLE


@contextmanager
def panels(
    width: float, height: float, columns: int = 1, rows: int = 1, share_y: bool = True
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of so many inches, and its panels from left to right, row by row."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, sharey=share_y, squeeze=False)
        yield figure, list(axes.flat)


def svg_text(figure: Figure) -> str:
    """SVG text without date, metadata or XML header, so that it can stand in a page."""
    out = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return text.replace("'DejaVu Sans'", "system-ui, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans'")


def legend_above(figure: Figure, axes: Axes, title: str | None = None, columns: int = 5) -> None:
    """A legend over the whole figure, of what one panel shows."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, title=title, columnspacing=1.4)
