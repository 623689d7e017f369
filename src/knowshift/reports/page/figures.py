"""The report's figures as SVG text: the same bytes for the same tables, no file written, no window opened.

Colours are an ordered, colour-blind safe ramp for training levels 0 to 4 (dark violet to yellow-green, after viridis)
with a marker each, so that a grey print still reads. Every line is drawn with its 95% interval.

Training sets of all facts of a level have another size for each level. They share one place right of the sizes, behind
a break of the axis; the legend says how many facts they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from knowshift.facts.fact import DOMAINS, LEVELS, Domain
from knowshift.files import write_text
from knowshift.html.plotting import legend_above, panels, svg_text
from knowshift.html.style import BASE, CONTROL, GRID, PAPER_COLOUR, RUN, line_styles
from knowshift.html.table import Table, is_missing
from knowshift.html.words import DOMAIN_WORDS, signed
from knowshift.reports.evidence.run_folder import ALL
from knowshift.reports.evidence.sizes import Size, in_order, rows_by_size
from knowshift.reports.page.characteristics import characteristic_figures
from knowshift.reports.page.strategies import strategies_figure
from knowshift.reports.page.task_figure import other_tasks
from knowshift.reports.published import published_concentration

LEVEL_COLOURS = ("#3b1c5a", "#31688e", "#1f9e89", "#7ab51d", "#d9a400")
LEVEL_MARKERS = ("o", "s", "D", "^", "v")
Dict = dict[str, Any]


@contextmanager
def _by_domain(height: float) -> Iterator[tuple[Figure, Axes, list[tuple[Domain, Axes]]]]:
    """A panel for each domain beside each other: the figure, the left panel, and each domain's."""
    with panels(7.6, height, len(DOMAINS)) as (figure, axes):
        for domain, panel in zip(DOMAINS, axes, strict=True):
            panel.set_title(DOMAIN_WORDS[domain].capitalize())
        yield figure, axes[0], list(zip(DOMAINS, axes, strict=True))


def _numbers(rows: Sequence[Dict], key: str) -> list[float]:
    return [math.nan if row[key] is None else float(row[key]) for row in rows]


def _line(
    axes: Axes,
    x: Sequence[float],
    rows: Sequence[Dict],
    value: str,
    low: str,
    high: str,
    colour: str,
    marker: str,
    label: str,
    dashes: str = "-",
) -> None:
    axes.plot(x, _numbers(rows, value), color=colour, marker=marker, label=label, linestyle=dashes)
    axes.fill_between(x, _numbers(rows, low), _numbers(rows, high), color=colour, alpha=0.13, linewidth=0)


def _places(sizes: Sequence[Size]) -> dict[Size, float]:
    """Where each size stands on a log axis: all facts behind the largest number, by a fifth of the axis or more."""
    places: dict[Size, float] = {size: float(size) for size in sizes if size != ALL}
    if ALL in sizes:
        first, last = min(places.values(), default=1.0), max(places.values(), default=1.0)
        places[ALL] = last * max(2.0, (last / first) ** 0.25)
    return places


def _sizes_axis(axes: Axes, places: Mapping[Size, float], apart: float) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(places.values())))
    numbers = [place for size, place in places.items() if size != ALL]
    # Neighbours too close for two labels share the larger one's place: 960 beside 1,280 would be printed over it.
    crowded = {size for size in numbers for other in numbers if size < other < apart * size}
    names = {place: "" if place in crowded else f"{place:,.0f}" for place in numbers}
    axes.set_xlabel("training samples (log scale)")
    if ALL in places:
        names[places[ALL]] = ALL
        axes.set_xlabel("training samples (log scale), or all")
        axes.axvline(math.sqrt(max(numbers, default=places[ALL]) * places[ALL]), color=GRID, linewidth=0.8)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: names.get(value, "")))
    axes.xaxis.set_minor_locator(NullLocator())


def _percent_axis(axes: Axes, label: str, top: float | None = None) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(0, top)
    axes.set_ylabel(label)


def _named_steps(axes: Axes, names: Sequence[str]) -> None:
    """A name at each whole number from 0."""
    axes.xaxis.set_major_locator(FixedLocator(list(range(len(names)))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: names[round(v)] if 0 <= round(v) < len(names) else ""))


def _lines_by_level(axes: Axes, rows: Sequence[Dict], value: str, sizes: Sequence[Size], apart: float = 1.6) -> None:
    """A line against size for each training level, dotted from the largest number to all facts of the level.

    A size has a label where the next one is at least ``apart`` times as large.
    """
    places = _places(sizes)
    for level in sorted({int(r["level"]) for r in rows}):
        line = sorted((r for r in rows if r["level"] == level), key=lambda r: places[r["size"]])
        numbers, whole = [r for r in line if r["size"] != ALL], [r for r in line if r["size"] == ALL]
        label = f"{level} ({whole[0]['samples']:,})" if whole else str(level)
        for dashes, part in (("-", numbers), (":", [*numbers[-1:], *whole] if whole else [])):
            if part:
                x, style = [places[r["size"]] for r in part], (LEVEL_COLOURS[level], LEVEL_MARKERS[level])
                _line(axes, x, part, value, "low", "high", *style, label, dashes)
                label = "_"  # a legend leaves out what begins so
    _sizes_axis(axes, places, apart)


def _legend_of_levels(figure: Figure, axes: Axes, sizes: Sequence[Size]) -> None:
    number = " (its facts in all)" if ALL in sizes else ""
    legend_above(figure, axes, f"mastery level of the training facts{number}")


def accuracy_by_size(summary: Table) -> str | None:
    """Mean accuracy of test levels against size, a line for each training level, a panel for each domain."""
    return _accuracy_by_size(rows_by_size(summary, test_level="mean"), "accuracy, mean of test levels")


def _accuracy_by_size(rows: Sequence[Dict], label: str) -> str | None:
    if all(is_missing(row["accuracy"]) for row in rows):
        return None
    sizes = in_order(r["size"] for r in rows)
    with _by_domain(3.9) as (figure, left, panels):
        for domain, axes in panels:
            _lines_by_level(axes, [r for r in rows if r["domain"] == domain], "accuracy", sizes)
        _percent_axis(left, label)
        _legend_of_levels(figure, left, sizes)
        return svg_text(figure)


def accuracy_by_test_level(summary: Table) -> str | None:
    """Accuracy against size on the facts of each test level: a line for each training level, a row for each domain.

    Test levels of which no fact was asked have no panels.
    """
    asked = (row for row in rows_by_size(summary) if row["test_level"] != "mean")
    rows = [row for row in asked if not is_missing(row["accuracy"])]
    if not rows:
        return None
    sizes = in_order(r["size"] for r in rows)
    levels = [level for level in range(LEVELS) if any(r["test_level"] == str(level) for r in rows)]
    with panels(0.5 + 2.0 * max(2, len(levels)), 5.4, len(levels), len(DOMAINS)) as (figure, axes):
        places = [(domain, level) for domain in DOMAINS for level in levels]
        for (domain, level), panel in zip(places, axes, strict=True):
            here = [r for r in rows if r["domain"] == domain and r["test_level"] == str(level)]
            _lines_by_level(panel, here, "accuracy", sizes, apart=2.5)
            panel.set_title(f"{DOMAIN_WORDS[domain].capitalize()}, level {level}", fontsize=9)
            panel.tick_params(labelsize=8)
            panel.set_xlabel("samples" if domain == DOMAINS[-1] else "", fontsize=9)
            if level == levels[0]:
                _percent_axis(panel, "accuracy", top=1)
        _legend_of_levels(figure, max(axes, key=lambda panel: len(panel.get_lines())), sizes)
        return svg_text(figure)


def level_4_by_size(table: Table) -> str | None:
    """Accuracy on the best-known test facts against size, a line for each training level, a panel for each domain."""
    return _accuracy_by_size(table.where(), "accuracy on level-4 facts")


def kl_by_size(summary: Table) -> str | None:
    """Mean KL(tuned || base) against size, a line for each training level."""
    rows = rows_by_size(summary, domain="both")
    if not rows:
        return None
    sizes = in_order(r["size"] for r in rows)
    with panels(7.6, 3.7) as (figure, (axes,)):
        _lines_by_level(axes, rows, "kl_mean", sizes)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("mean KL to the base, nats")
        _legend_of_levels(figure, axes, sizes)
        return svg_text(figure)


def _fraction_axis(axes: Axes, fractions: Sequence[float]) -> Callable[[float], float]:
    """Fractions at equal steps: 1% to 60% on a linear axis would crush the small ones."""
    order = sorted(fractions)
    _named_steps(axes, [f"{100 * fraction:g}" for fraction in order])
    return lambda fraction: float(order.index(fraction))


def restoration_by_fraction(summary: Table, base: Table, accuracy: Table) -> str | None:
    """Accuracy against restored fraction for each training level, mean of the domains' panels, beside its control."""
    sizes = sorted({int(r["size"]) for r in summary.where(control="")})
    if not sizes:
        return None
    rows = list(summary.where(control="", size=sizes[-1], level="mean"))
    styles = line_styles(str(r["criterion"]) for r in rows)
    fractions = sorted({float(r["fraction"]) for r in rows})
    tuned = accuracy.where(control="", size=sizes[-1], test_level="mean")
    words = {"relative": "most changed (relative)", "random": "at random"}
    with _by_domain(4.1) as (figure, left, panels):
        for domain, axes in panels:
            place = _fraction_axis(axes, [0.0, *fractions])
            start = [r["accuracy"] for r in tuned if r["domain"] == domain]
            before = sum(start) / len(start) if start else math.nan
            for criterion, (colour, dashes) in styles.items():
                line = sorted(
                    (r for r in rows if r["criterion"] == criterion and r["domain"] == domain),
                    key=lambda r: float(r["fraction"]),
                )
                zero: Dict = {"accuracy": before, "low": math.nan, "high": math.nan}
                x = [0.0, *(place(float(r["fraction"])) for r in line)]
                _line(
                    axes,
                    x,
                    [zero, *line],
                    "accuracy",
                    "low",
                    "high",
                    colour,
                    "o" if criterion == "relative" else "s",
                    words.get(criterion, criterion),
                    dashes,
                )
            axes.axhline(before, color=BASE, linewidth=1, linestyle=":", label="as tuned, nothing restored")
            plain = [r["accuracy"] for r in base.where(prompt="zero_shot", domain=domain, test_level="mean")]
            if plain:
                axes.axhline(plain[0], color=BASE, linewidth=1, linestyle="-.", label="base model, same prompt")
            axes.set_xlabel("weights restored, %")
        _percent_axis(left, "accuracy, mean of test levels")
        legend_above(figure, left, columns=2)
        return svg_text(figure)


def restoration_by_level(summary: Table) -> str | None:
    """Change of accuracy against restored fraction by training level: paired differences to the tuned model."""
    sizes = sorted({int(r["size"]) for r in summary.where(control="")})
    if not sizes:
        return None
    rows = [r for r in summary.where(control="", size=sizes[-1], criterion="relative") if r["level"] != "mean"]
    fractions = sorted({float(r["fraction"]) for r in rows})
    with _by_domain(3.9) as (figure, left, panels):
        for domain, axes in panels:
            place = _fraction_axis(axes, fractions)
            levels = sorted({int(r["level"]) for r in rows})
            for position, level in enumerate(levels):
                line = sorted(
                    (r for r in rows if r["level"] == str(level) and r["domain"] == domain),
                    key=lambda r: float(r["fraction"]),
                )
                shift = 0.11 * (position - (len(levels) - 1) / 2)
                x = [place(float(r["fraction"])) + shift for r in line]
                value = _numbers(line, "difference")
                reach = [
                    [v - lo for v, lo in zip(value, _numbers(line, "difference_low"), strict=True)],
                    [hi - v for v, hi in zip(value, _numbers(line, "difference_high"), strict=True)],
                ]
                axes.errorbar(
                    x,
                    value,
                    yerr=reach,
                    color=LEVEL_COLOURS[level],
                    marker=LEVEL_MARKERS[level],
                    label=str(level),
                    linestyle="-",
                    linewidth=1.2,
                    elinewidth=1,
                )
            axes.axhline(0, color=BASE, linewidth=1)
            axes.set_xlabel("weights restored, %")
        left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value, digits=0)))
        left.set_ylabel("points against as tuned")
        legend_above(figure, left, "mastery level of the training facts")
        return svg_text(figure)


def concentration(table: Table) -> str | None:
    """Share of summed change held by the top fraction: this run, its no-signal null, LLaMA-3-8B; by absolute change."""
    runs = table.where(source="run", control="")
    if not runs:
        return None
    names = sorted({str(r["top_fraction"]) for r in runs}, key=float)

    def mean(source: str, measure: str) -> list[float]:
        out = []
        for name in names:
            shares = [
                float(r["share"])
                for r in table.where(source=source, control="", measure=measure, top_fraction=name)
                if r["share"] is not None
            ]
            out.append(sum(shares) / len(shares) if shares else math.nan)
        return out

    paper = published_concentration(1920)
    bars: list[tuple[str, list[float], str]] = [
        ("this run, relative change", mean("run", "relative"), RUN),
        ("its no-signal null", mean("null", "relative"), CONTROL),
        ("LLaMA-3-8B, relative change (published)", [paper.get(n, math.nan) for n in names], PAPER_COLOUR),
        ("this run, absolute change", mean("run", "absolute"), "#b8bec6"),
    ]
    with panels(7.6, 3.9) as (figure, (axes,)):
        width = 0.2
        for index, (label, values, colour) in enumerate(bars):
            x = [i + (index - 1.5) * width for i in range(len(names))]
            axes.bar(x, values, width=width * 0.9, color=colour, label=label)
        _named_steps(axes, [f"{100 * float(name):g}" for name in names])
        axes.set_xlabel("top weights, %")
        _percent_axis(axes, "share of summed change", top=1)
        legend_above(figure, axes, columns=2)
        return svg_text(figure)


def mastery_by_exposures(table: Table) -> str | None:
    """Mean mastery against how often a fact was written, over the share of facts at each level."""
    rows = [row for row in table.where() if row["facts"]]
    if not rows:
        return None
    with panels(7.6, 3.7) as (figure, (axes,)):
        x = list(range(len(rows)))
        bottom = [0.0] * len(rows)
        for level in range(LEVELS):
            shares = _numbers(rows, f"share_level_{level}")
            axes.bar(
                x, shares, bottom=bottom, width=0.82, color=LEVEL_COLOURS[level], alpha=0.55, label=f"level {level}"
            )
            bottom = [b + s for b, s in zip(bottom, shares, strict=True)]
        _line(axes, x, rows, "mean_rate", "low", "high", "#111111", "o", "mean rate R")
        _named_steps(axes, [str(row["exposures"]) for row in rows])
        axes.set_xlabel("times the fact was written in pre-training")
        _percent_axis(axes, "share of facts; mean rate", top=1)
        legend_above(figure, axes, columns=6)
        return svg_text(figure)


def build_figures(tables: Mapping[str, Table]) -> dict[str, str]:
    """Every figure that this run has data for, by name, as SVG text."""
    drawn = {
        "accuracy_by_size": accuracy_by_size(tables["accuracy_summary"]),
        "accuracy_by_test_level": accuracy_by_test_level(tables["accuracy_summary"]),
        "level_4_by_size": level_4_by_size(tables["level_4"]),
        "kl_by_size": kl_by_size(tables["token_shift_summary"]),
        "restoration": restoration_by_fraction(tables["restoration_summary"], tables["base"], tables["accuracy"]),
        "restoration_by_level": restoration_by_level(tables["restoration_summary"]),
        "other_tasks": other_tasks(
            tables["paper_other_tasks"], tables["other_tasks_summary"], tables["restoration_summary"]
        ),
        "strategies": strategies_figure(tables.get("strategies")),
        "concentration": concentration(tables["concentration"]),
        "mastery_by_exposures": mastery_by_exposures(tables["exposures"]),
    }
    found = {name: svg for name, svg in drawn.items() if svg is not None}
    return {**found, **characteristic_figures(tables.get("characteristics"))}


def write_figures(figures: Mapping[str, str], folder: Path) -> list[Path]:
    """Write every figure as ``folder/NAME.svg``; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    header = '<?xml version="1.0" encoding="utf-8"?>\n'
    paths = []
    for name, svg in figures.items():
        path = folder / f"{name}.svg"
        write_text(path, header + svg)
        paths.append(path)
    return paths
