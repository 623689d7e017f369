"""One figure of a weight change: how concentrated it is, beside the null, and where the top updates sit."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from knowshift.weights.change import WeightChange

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def write_figure(path: Path, change: WeightChange) -> None:
    """Write the figure as SVG, the same bytes for the same measurement."""
    with plt.rc_context({"svg.hashsalt": "knowshift", "svg.fonttype": "none", "font.size": 9}):
        figure, (curve, layers, modules) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
        for name, style in (("relative", "o-"), ("absolute", "s-"), ("squared", "^-")):
            points = [(float(f), s) for f, s in change.concentration[name].items() if s is not None]
            if points:
                curve.plot(*zip(*points, strict=True), style, label=name, markersize=4)
        points = [(float(f), s) for f, s in change.null["relative"].items() if s is not None]
        if points:
            curve.plot(*zip(*points, strict=True), "k--", label="relative, no-signal null")
        curve.set(xlabel="top share of weights", ylabel="share of the summed change", ylim=(0, 1.02), xlim=(0, None))
        curve.legend(frameon=False)
        for axis, held, chance, what in (
            (layers, change.layers, change.layer_weights, "layer"),
            (modules, change.modules, change.module_weights, "module"),
        ):
            names = list(held)
            axis.bar(names, [100 * held[name] for name in names], color="tab:blue", label="of the top 20%")
            axis.plot(names, [100 * chance[name] for name in names], "k_", markersize=12, label="of all weights")
            axis.set(xlabel=what, ylabel="%")
            axis.legend(frameon=False)
            if what == "layer" and len(names) > 12:
                axis.set_xticks(range(0, len(names), 4))
        figure.suptitle(
            f"{change.changed_share:.1%} of {change.eligible:,} weights changed; "
            "right: where the top 20% by relative change sit"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)
