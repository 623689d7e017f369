"""Characteristics of the training facts on the page: a figure and a sentence for each series, and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from knowshift.facts.fact import DOMAINS
from knowshift.html.grid import Entry, Grid, number
from knowshift.html.plotting import legend_above, panels, svg_text
from knowshift.html.style import BASE, RUN
from knowshift.html.table import Table, is_missing
from knowshift.html.words import DOMAIN_WORDS, in_percent, p_value, signed

Row = Mapping[str, Any]

#: Figures are numbered, since strategies and settings are texts of a config.
NAME = "characteristic_"
NOTE = (
    "Each point is at its own best learning rate, accuracy on test facts, plain mean of test levels; bars and "
    "the band are 95% intervals over facts and training draws, not adjusted. The line is plain fine-tuning at its best "
    "rate. The difference of the ends is between rates chosen on other facts and draws, adjusted by Holm over series."
)


def characteristic_figures(table: Table | None) -> dict[str, str]:
    """Accuracy against the setting that a series varies, a panel for each domain, by the figure's name.

    Args:
        table: "characteristics".
    """
    rows = [] if table is None else table.where()
    plain = next((row for row in rows if row["series"] == 0), None)
    return {
        f"{NAME}{series}": _figure([row for row in rows if row["series"] == series], plain)
        for series in sorted({row["series"] for row in rows} - {0})
    }


def _figure(rows: Sequence[Row], plain: Row | None) -> str:
    places = list(range(len(rows)))  # equal steps: shares, parts and doublings have no scale in common
    with panels(7.6, 3.6, len(DOMAINS)) as (figure, axes):
        for domain, panel in zip(DOMAINS, axes, strict=True):
            panel.set_title(DOMAIN_WORDS[domain].capitalize())
            if plain is not None and not is_missing(plain[domain]):
                panel.axhline(plain[domain], color=BASE, linewidth=1.2, linestyle="--", label="plain fine-tuning")
                if not is_missing(plain[f"{domain}_low"]):
                    panel.axhspan(plain[f"{domain}_low"], plain[f"{domain}_high"], color=BASE, alpha=0.1, linewidth=0)
            shown = [(place, row) for place, row in zip(places, rows, strict=True) if not is_missing(row[domain])]
            reach = [[_reach(row, domain, end) for _, row in shown] for end in ("low", "high")]
            panel.errorbar(
                [place for place, _ in shown],
                [row[domain] for _, row in shown],
                yerr=reach,
                color=RUN,
                marker="o",
                capsize=3,
                elinewidth=1.2,
                label=_safe(rows[0]["strategy"]),
            )
            panel.set_xlim(-0.4, len(rows) - 0.6)
            panel.xaxis.set_major_locator(FixedLocator(places))
            panel.xaxis.set_minor_locator(NullLocator())
            names = [f"{row['value']:g}" for row in rows]
            panel.xaxis.set_major_formatter(
                FuncFormatter(lambda at, _, names=names: names[round(at)] if 0 <= round(at) < len(names) else "")
            )
            panel.set_xlabel(_safe(_varied(rows[0])))
        axes[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes[0].set_ylim(bottom=0)
        axes[0].set_ylabel("accuracy, mean of test levels")
        legend_above(figure, axes[0])
        return svg_text(figure)


def _reach(row: Row, domain: str, end: str) -> float:
    bound = row[f"{domain}_{end}"]
    return 0.0 if is_missing(bound) else abs(float(bound) - float(row[domain]))


def _safe(text: str) -> str:
    """A text without matplotlib's formulas."""
    return text.replace("$", r"\$")


def _varied(row: Row) -> str:
    others = f" ({row['settings']})" if row["settings"] else ""
    return f"{row['setting']}{others}"


def characteristic_titles(table: Table | None) -> dict[str, str]:
    """The title of each figure, by its name; ``table`` is "characteristics_ends"."""
    rows = [] if table is None else table.where(scope="both")
    return {f"{NAME}{row['series']}": f"Accuracy by {row['strategy']}: {_varied(row)}" for row in rows}


def characteristic_sentences(table: Table | None) -> dict[str, str]:
    """What moves between the ends of each series, and what does not, by the figure's name."""
    found: dict[str, str] = {}
    for number_of in sorted({row["series"] for row in table.where()}) if table is not None else ():
        assert table is not None
        rows = [row for row in table.where(series=number_of) if row["scope"] in DOMAINS]
        known = [row for row in rows if not is_missing(row["difference"])]
        if known:
            first, last = (f"{known[0][end]:g}" for end in ("first", "last"))
            said = "; ".join(_moved(row) for row in known)
            found[f"{NAME}{number_of}"] = f"From {known[0]['setting']} {first} to {last}, {said}."
    return found


def _moved(row: Row) -> str:
    """One domain's difference in words: it moves where it is significant after Holm's adjustment."""
    domain, value = DOMAIN_WORDS[row["scope"]], row["difference"]
    if is_missing(row["low"]) or is_missing(row["p_holm"]):
        return f"{domain} accuracy changes by {signed(value)} points, of which the noise is not known"
    told = f"{signed(value)} points [{signed(row['low'])} to {signed(row['high'])}], Holm p {p_value(row['p_holm'])}"
    if row["p_holm"] < 0.05:
        return f"{domain} accuracy {'rises' if value > 0 else 'falls'}: {told}"
    return f"no change of {domain} accuracy is shown: {told}"


def characteristics_grids(tables: Mapping[str, Table]) -> list[Grid]:
    """The table of all series; [] where a bench has none."""
    table = tables.get("characteristics")
    if table is None or not table.rows:
        return []
    body = []
    for row in table.where():
        places = ("in_domain", "out_of_domain")
        body.append(
            [
                Entry(row["label"], "" if row["series"] == 0 else f"{row['strategy']}, {_varied(row)}"),
                Entry("" if row["value"] is None else f"{row['value']:g}"),
                Entry("" if row["learning_rate"] is None else f"{float(row['learning_rate']):.3g}"),
                *(number(row[one], in_percent, row[f"{one}_low"], row[f"{one}_high"]) for one in places),
                number(row["difference"], signed, row["low"], row["high"]),
                number(row["p_holm"], p_value),
                *(number(row[one], in_percent) for one in ("lost", "gained", "learned", "learned_own")),
            ]
        )
    heads = ["training", "value", "rate", "in", "out", "against sft", "Holm p", "lost", "gained", "learned", "own"]
    caption = (
        "Trainings that differ in one number, each at its best rate: accuracy in %, in-domain and out-of-domain; "
        "points against plain fine-tuning at its best, mean of both domains, both chosen on other facts and draws; "
        "facts lost and gained; training facts of plain fine-tuning learned, and of its own, in %"
    )
    return [Grid(caption, heads, body, "dense")]
