"""One figure of a weight change: how concentrated it is, beside the null, and where the top updates sit."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from knowshift.files import file_beside
from knowshift.html.style import BASE, CONTROL, INK, PAPER_COLOUR, RUN, STYLE
from knowshift.parameters.change import Shares, WeightChange

#: Most bars that each have room for a name.
_NAMED = 12
#: Letters of a name that fit below a bar.
_SHORT = 6
#: Letters of a title that are no wider than its panel.
_TITLE = 42


def write_figure(path: Path, change: WeightChange) -> None:
    """Write the figure as SVG, the same bytes for the same measurement."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 4), layout="constrained")
        curve, layers, modules = figure.subplots(1, 3)
        for name, style, colour in (
            ("relative", "o-", RUN),
            ("absolute", "s-", CONTROL),
            ("squared", "^-", PAPER_COLOUR),
        ):
            _curve(curve, change.concentration[name], style, colour, name)
        _curve(curve, change.null["relative"], "--", BASE, "relative, no-signal null")
        curve.set(xlabel="top weights (%)", ylabel="of the summed change (%)", ylim=(0, 102), xlim=(0, None))
        curve.set_title(_title(change))
        if curve.get_lines():  # none where nothing changed
            curve.legend(loc="lower right")
        _bars(layers, change.layers, change.null_layers, change.layer_weights, "layer")
        _bars(modules, change.modules, change.null_modules, change.module_weights, "module")
        with file_beside(path) as beside:
            figure.savefig(beside, format="svg", metadata={"Date": None})


def _title(change: WeightChange) -> str:
    """The share that changed, and below it the share of that which rounding explains, where the dtypes differ."""
    title = f"{change.changed_share:.1%} of {change.eligible:,} weights changed"
    rounding = change.rounding
    if rounding is None or rounding.share_of_changed is None:
        return title
    told = f"{rounding.share_of_changed:.1%} of these by rounding to {' or '.join(rounding.to)}"
    if rounding.base_is_narrower:
        told = f"at most {told}, if it was trained from a wider original"
    return f"{title}\n{textwrap.fill(told, _TITLE)}"


def _curve(axes: Axes, shares: Shares, style: str, colour: str, label: str) -> None:
    points = [(100 * float(fraction), 100 * share) for fraction, share in shares.items() if share is not None]
    if points:
        axes.plot(*zip(*points, strict=True), style, color=colour, label=label)


def _bars(
    axes: Axes, held: Mapping[str, float], null: Mapping[str, float], chance: Mapping[str, float], what: str
) -> None:
    """What each layer or module holds of the top 20%, beside what it holds of the null's and of all weights."""
    names = list(held)
    axes.bar(names, [100 * held[name] for name in names], color=RUN, label="top 20%")
    width = max(4.0, 150 / max(1, len(names)))
    for shares, mark, colour, size, label in (
        (chance, "_", INK, width, "all weights"),
        (null, "D", BASE, 4.0, "the null's"),
    ):
        axes.plot(names, [100 * shares[name] for name in names], mark, color=colour, markersize=size, label=label)
    axes.set(xlabel=what, ylabel="%")
    axes.set_title(f"The top 20% by relative change, by {what}", pad=26)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2, columnspacing=1, handlelength=1.2)
    if max(map(len, names), default=0) > _SHORT:
        for name in axes.get_xticklabels():
            name.set(rotation=40, ha="right", rotation_mode="anchor")
    if what == "layer" and len(names) > _NAMED:
        axes.set_xticks(range(0, len(names), 4))
