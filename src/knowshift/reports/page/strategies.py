"""A bench of strategies on the page: the picture of new facts learned against old facts kept, and its tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import PercentFormatter

from knowshift.html.grid import Entry, Grid, number
from knowshift.html.plotting import panels, svg_text
from knowshift.html.style import CONTROL, RUN
from knowshift.html.table import Table, is_missing
from knowshift.html.words import in_percent, p_value, signed

Row = Mapping[str, Any]

#: Marks of a rate that is the last of those tried.
_ENDS = {"lowest": " ↓", "highest": " ↑"}
_GREY = "#9aa1a9"
#: Strategies up to which every line is named.
_FEW = 8
#: Shares within which the names of two points would overlap.
_NEAR = (0.06, 0.04)


def strategies_figure(table: Table | None) -> str | None:
    """Share of new facts learned (x) against accuracy on facts that the base knows well (y); None without a bench.

    A line for each strategy and size through its rates. Plain fine-tuning is blue; a strategy with a point on the
    frontier, that no other point beats in both, is red and named; all others are grey, and named where there are few.

    Args:
        table: "strategies".
    """
    rows = [] if table is None else table.where()
    rows = [row for row in rows if not is_missing(row["learned_new"]) and not is_missing(row["kept"])]
    if not rows:
        return None
    few = len({row["strategy"] for row in rows}) <= _FEW
    best = frontier([(row["learned_new"], row["kept"]) for row in rows])
    front = {rows[index]["strategy"]: index for index in best}
    with panels(7.6, 4.6) as (figure, [axes]):
        named: list[tuple[float, float]] = []
        lines: dict[tuple[str, int], list[Row]] = {}
        for row in sorted(rows, key=lambda row: float(row["learning_rate"])):
            lines.setdefault((row["strategy"], row["size"]), []).append(row)
        for (label, _), own in sorted(lines.items(), key=lambda item: (item[1][0]["plain"], item[0][0] in front)):
            plain = own[0]["plain"]
            colour = RUN if plain else CONTROL if label in front else _GREY
            x, y = [row["learned_new"] for row in own], [row["kept"] for row in own]
            axes.plot(x, y, color=colour, marker="o", linewidth=1.2, markersize=4, alpha=0.9)
            if few or plain or label in front:
                index = front.get(label)
                place = own[y.index(max(y))] if index is None or rows[index] not in own else rows[index]
                at = place["learned_new"], place["kept"]
                below = any(abs(at[0] - x) < _NEAR[0] and abs(at[1] - y) < _NEAR[1] for x, y in named)
                named.append(at)
                axes.annotate(
                    label.replace("$", r"\$"),
                    at,
                    textcoords="offset points",
                    xytext=(5, -12 if below else 4),
                    color=colour,
                    fontsize=9,
                )
        axes.set_xlabel("new facts learned (training facts of levels 0 and 1 answered right)")
        axes.set_ylabel("known facts kept (levels 3 and 4)")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        return svg_text(figure)


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point equals or beats in both values while beating it in one."""
    return [
        index
        for index, (x, y) in enumerate(points)
        if not any(a >= x and b >= y and (a > x or b > y) for a, b in points)
    ]


def strategies_grids(tables: Mapping[str, Table]) -> list[Grid]:
    """Each strategy at its best rate against plain fine-tuning, all rates, and matched learning; [] without a bench."""
    if "strategies" not in tables:
        return []
    return [_chosen(tables["strategies_chosen"]), _matched(tables["strategies_matched"]), _all(tables["strategies"])]


def _chosen(table: Table) -> Grid:
    both = {row["strategy"]: row for row in table.where(scope="both")}
    body = []
    for label in sorted(both, key=lambda label: -_or_zero(both[label]["difference"])):
        row = both[label]
        rate = Entry(f"{_rate(row['learning_rate'])}{_ENDS.get(row['rate_is'], '')}")
        line = [Entry(label), rate, Entry(f"{row['size']:,}" if row["size"] else "")]
        for scope in ("in_domain", "out_of_domain"):
            [here] = table.where(strategy=label, scope=scope)
            line += [number(here["accuracy"], in_percent), _difference(here)]
        after = number(row["difference_after"], signed, row["low_after"], row["high_after"])
        line += [number(row["p_holm"], p_value), after]
        body.append(line)
    heads = ["strategy", "rate", "n", "in", "against sft", "out", "against sft", "Holm p"]
    caption = (
        "Each strategy at its best rate (n training facts): accuracy in %, in-domain and out-of-domain, at the rate "
        "chosen most often, on all facts; points against plain fine-tuning at its best rate and size, both chosen on "
        "other facts and draws; Holm’s p of the mean of both domains, and that mean against the best change after "
        "training. A rate with an arrow is the lowest (↓) or highest (↑) that was tried: a better one may lie beyond"
    )
    return Grid(caption, [*heads, "against after"], body, "dense")


def _matched(table: Table) -> Grid:
    body = [
        [
            Entry(row["strategy"]),
            *(number(row[name], in_percent) for name in ("in_domain", "out_of_domain", "kept")),
            *(number(row[name], "{:.2f}".format) for name in ("kl_known", "text_loss")),
            number(row["moved"], "{:.3f}".format),
        ]
        for row in table.where()
    ]
    share = next((in_percent(row["learned"]) for row in table.where()), "")
    heads = ["strategy", "in-domain", "out-of-domain", "levels 3 and 4", "KL, nats", "text loss", "moved"]
    return Grid(f"Where {share}% of the training facts are learned, as by plain fine-tuning at its best", heads, body)


def _all(table: Table) -> Grid:
    body = [
        [
            Entry(row["strategy"]),
            Entry(_rate(row["learning_rate"])),
            Entry(f"{row['size']:,}"),
            *(number(row[name], in_percent) for name in ("in_domain", "out_of_domain", "kept", "lost", "gained")),
            *(number(row[name], in_percent) for name in ("learned", "learned_new")),
            *(number(row[name], "{:.2f}".format) for name in ("kl_known", "text_loss")),
        ]
        for row in table.where()
    ]
    heads = ["strategy", "rate", "n", "in", "out", "3, 4", "lost", "gained", "learned", "new", "KL", "text"]
    caption = (
        "Every strategy at every rate (n training facts): accuracy in-domain, out-of-domain, on test levels 3 and 4; "
        "facts lost and gained; training facts learned, and of them new ones (levels 0 and 1), in %; KL on known facts "
        "and the loss of held-out texts, in nats"
    )
    return Grid(caption, heads, body, "dense")


def _difference(row: Row) -> Entry:
    return number(row["difference"], signed, row["low"], row["high"])


def _rate(rate: str | None) -> str:
    return "" if rate is None else f"{float(rate):.3g}"


def _or_zero(value: float | None) -> float:
    return 0.0 if value is None or math.isnan(value) else value
