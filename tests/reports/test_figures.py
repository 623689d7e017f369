"""Every point, bar, band and label of the figures, read back from the axes and from the SVG, by hand."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hand_run import FRACTIONS, KL, LEVELS, RESTORED, SIZES, TUNED, Right, answered, over_draws, pooled
from knowshift.html.style import BASE, CONTROL, PAPER_COLOUR, RUN
from knowshift.html.table import Table
from knowshift.reports.page import figures
from knowshift.reports.page.figures import LEVEL_COLOURS, LEVEL_MARKERS, build_figures, write_figures
from knowshift.reports.published import published_concentration
from knowshift.reports.tables.build import Tables

NAMES = (
    "accuracy_by_size",
    "accuracy_by_test_level",
    "level_4_by_size",
    "kl_by_size",
    "restoration",
    "restoration_by_level",
    "concentration",
    "mastery_by_exposures",
)
PANELS = ("In-domain", "Out-of-domain")


@pytest.fixture(scope="module")
def drawn(hand_tables: Tables) -> dict[str, Figure]:
    """The figures themselves, as they are before they are written as SVG."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "svg_text", lambda figure: figure)
        found: Any = build_figures(hand_tables)
        return dict(found)


@pytest.fixture(scope="module")
def svgs(hand_tables: Tables) -> dict[str, ET.Element]:
    return {name: ET.fromstring(text) for name, text in build_figures(hand_tables).items()}


def texts(svg: ET.Element) -> list[str]:
    return ["".join(element.itertext()).strip() for element in svg.iter("{http://www.w3.org/2000/svg}text")]


def near(values: Sequence[float]) -> list[Any]:
    return [pytest.approx(value, abs=2e-6, nan_ok=True) for value in values]


def points(line: Line2D) -> tuple[list[float], list[float]]:
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()


def lines(axes: Axes) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in axes.get_lines()}


def band(axes: Axes, index: int) -> list[tuple[float, float, float]]:
    """x, low and high of each point of a filled band."""
    found = [c for c in axes.collections if isinstance(c, PolyCollection)][index]
    ends: dict[float, list[float]] = {}
    for path in found.get_paths():
        for x, y in np.asarray(path.vertices).tolist():
            ends.setdefault(x, []).append(y)
    return [(x, min(y), max(y)) for x, y in sorted(ends.items())]


def accuracies(pairs: Sequence[tuple[Right, Right]], domain: int) -> list[float]:
    return [len(answered(pair[domain])) / 5 for pair in pairs]


def test_every_figure_is_drawn_in_this_order(drawn: dict[str, Figure]) -> None:
    assert tuple(drawn) == NAMES
    assert [len(figure.axes) for figure in drawn.values()] == [2, 10, 2, 1, 2, 2, 1, 1]


def test_accuracy_by_size(drawn: dict[str, Figure], svgs: dict[str, ET.Element]) -> None:
    for domain, axes in enumerate(drawn["accuracy_by_size"].axes):
        assert axes.get_title("left") == PANELS[domain]
        assert axes.get_xscale() == "log"
        assert axes.get_ylim()[0] == 0
        assert list(lines(axes)) == ["0", "2", "4"]
        for index, level in enumerate(LEVELS):
            line = lines(axes)[str(level)]
            each = {size: [accuracies(TUNED[other, size], domain) for other in LEVELS] for size in SIZES}
            own = {size: pooled(values[index], values) for size, values in each.items()}
            x, y = points(line)
            assert x == [60, 240, 1920]
            assert y == near([own[size][0] for size in SIZES])
            for (at, low, high), size in zip(band(axes, index), SIZES, strict=True):
                assert at == size
                assert [low, high] == near([max(own[size][1], 0), min(own[size][2], 1)])
            assert line.get_color() == LEVEL_COLOURS[level]
            assert line.get_marker() == LEVEL_MARKERS[level]
            assert line.get_linestyle() == "-"
    said = texts(svgs["accuracy_by_size"])
    assert [said.count(text) for text in ("60", "240", "1,920", *PANELS)] == [2, 2, 2, 1, 1]
    assert said.count("training samples (log scale)") == 2
    assert "accuracy, mean of test levels" in said
    assert said[-4:] == ["mastery level of the training facts", "0", "2", "4"]
    assert {"0%", "20%"} <= set(said)


def test_accuracy_by_test_level(drawn: dict[str, Figure], svgs: dict[str, ET.Element]) -> None:
    """A model answers whole test levels or none of them: the mean over draws of ones and zeros."""
    places = [(domain, test_level) for domain in (0, 1) for test_level in range(5)]
    for (domain, test_level), axes in zip(places, drawn["accuracy_by_test_level"].axes, strict=True):
        assert axes.get_title("left") == f"{PANELS[domain]}, level {test_level}"
        assert list(lines(axes)) == ["0", "2", "4"]
        for index, level in enumerate(LEVELS):
            x, y = points(lines(axes)[str(level)])
            each = {size: [float(test_level in answered(p[domain])) for p in TUNED[level, size]] for size in SIZES}
            assert x == [60, 240, 1920]
            assert y == near([sum(each[size]) / 3 for size in SIZES])
            if domain == 0:  # out-of-domain the halves of level 4 have one fact each, and no interval
                assert [at for at, _, _ in band(axes, index)] == [60, 240, 1920]
    said = texts(svgs["accuracy_by_test_level"])
    assert [said.count(text) for text in ("accuracy", "samples", "240")] == [2, 5, 10]
    assert said[-4:] == ["mastery level of the training facts", "0", "2", "4"]


def test_level_4_by_size(drawn: dict[str, Figure], svgs: dict[str, ET.Element]) -> None:
    for domain, axes in enumerate(drawn["level_4_by_size"].axes):
        assert axes.get_title("left") == PANELS[domain]
        for level in LEVELS:
            _, y = points(lines(axes)[str(level)])
            each = [[float(4 in answered(p[domain])) for p in TUNED[level, size]] for size in SIZES]
            assert y == near([sum(values) / 3 for values in each])
    assert "accuracy on level-4 facts" in texts(svgs["level_4_by_size"])


def test_kl_by_size(drawn: dict[str, Figure], svgs: dict[str, ET.Element]) -> None:
    (axes,) = drawn["kl_by_size"].axes
    assert list(lines(axes)) == ["0", "2", "4"]
    for index, level in enumerate(LEVELS):
        # A quarter more than in-domain: of the common facts a third is out-of-domain, with 0.75 nats more.
        own = [over_draws([[kl + 0.25 for kl in KL[level, size]]]) for size in SIZES]
        assert points(lines(axes)[str(level)]) == ([60, 240, 1920], near([value for value, *_ in own]))
        found = [[low, high] for _, low, high in band(axes, index)]
        assert found == [near([max(low, 0), high]) for _, low, high, _ in own]
    assert axes.get_ylim()[0] == 0
    said = texts(svgs["kl_by_size"])
    assert {"mean KL to the base, nats", "training samples (log scale)", "60", "240", "1,920"} <= set(said)
    assert "mastery level of the training facts" in said


@pytest.mark.parametrize(
    ("sizes", "shown"),
    [
        ((960, 1280, 1920), {"1,920"}),
        ((1000, 1600, 1920), {"1,000", "1,920"}),
        ((60, 1200, 1920), {"60", "1,200", "1,920"}),
    ],
)
def test_a_size_within_three_fifths_of_a_larger_one_has_no_label(
    sizes: tuple[int, ...], shown: set[str], hand_tables: Tables
) -> None:
    table = hand_tables["token_shift_summary"]
    place = table.columns.index("size")
    moved = dict(zip(SIZES, sizes, strict=True))
    rows = tuple((*row[:place], moved[int(str(row[place]))], *row[place + 1 :]) for row in table.rows)
    svg = figures.kl_by_size(replace(table, rows=rows))
    assert svg is not None
    assert {f"{size:,}" for size in sizes} & set(texts(ET.fromstring(svg))) == shown


def test_a_narrow_panel_has_no_label_beside_a_size_twice_as_large(hand_tables: Tables) -> None:
    table = hand_tables["accuracy_summary"]
    place = table.columns.index("size")
    moved = dict(zip(SIZES, (60, 960, 1920), strict=True))
    rows = tuple((*row[:place], moved[int(str(row[place]))], *row[place + 1 :]) for row in table.rows)
    said = [
        texts(ET.fromstring(svg))
        for f in (figures.accuracy_by_size, figures.accuracy_by_test_level)
        if (svg := f(replace(table, rows=rows)))
    ]
    assert ["960" in words for words in said] == [True, False]
    assert all({"60", "1,920"} <= set(words) for words in said)


def test_restoration(drawn: dict[str, Figure], svgs: dict[str, ET.Element]) -> None:
    words = {"relative": "most changed (relative)", "random": "at random"}
    for domain, axes in enumerate(drawn["restoration"].axes):
        assert axes.get_title("left") == PANELS[domain]
        found = lines(axes)
        assert list(found) == [*words.values(), "as tuned, nothing restored", "base model, same prompt"]
        tuned = float(np.mean([accuracies(TUNED[level, 1920], domain) for level in LEVELS]))
        for index, (criterion, label) in enumerate(words.items()):
            own = [over_draws([accuracies(RESTORED[criterion, lv, f], domain) for lv in LEVELS]) for f in FRACTIONS]
            line = found[label]
            assert points(line) == ([0, 1, 2, 3], near([tuned, *(value for value, *_ in own)]))
            expected = [near([max(low, 0), min(high, 1)]) for _, low, high, _ in own]
            assert [[low, high] for x, low, high in band(axes, index) if x > 0] == expected
            assert line.get_linestyle() == ("-" if criterion == "relative" else "--")
            assert line.get_marker() == ("o" if criterion == "relative" else "s")
            assert line.get_color() == (RUN if criterion == "relative" else CONTROL)
        assert points(found["as tuned, nothing restored"])[1] == near([tuned] * 2)
        assert points(found["base model, same prompt"])[1] == near([(0.0, 0.2)[domain]] * 2)  # levels 0 and 1 of 5
        assert axes.get_ylim()[0] == 0
    said = texts(svgs["restoration"])
    assert said[: said.index("weights restored, %")] == ["0", "1", "20", "60"]
    assert {"accuracy, mean of test levels", *words.values(), "as tuned, nothing restored"} <= set(said)


def test_restoration_by_level(drawn: dict[str, Figure], svgs: dict[str, ET.Element]) -> None:
    for domain, axes in enumerate(drawn["restoration_by_level"].axes):
        assert axes.get_title("left") == PANELS[domain]
        bars = [c for c in axes.containers if isinstance(c, ErrorbarContainer)]
        assert [c.get_label() for c in bars] == ["0", "2", "4"]
        for index, (level, container) in enumerate(zip(LEVELS, bars, strict=True)):
            line, _, (segments,) = container.lines
            own = []
            for f in FRACTIONS:
                each = [
                    [
                        a - b
                        for a, b in zip(
                            accuracies(RESTORED["relative", lv, f], domain),
                            accuracies(TUNED[lv, 1920], domain),
                            strict=True,
                        )
                    ]
                    for lv in LEVELS
                ]
                own.append(pooled(each[index], each))
            x, y = points(line)
            assert x == near([place + 0.11 * (index - 1) for place in range(3)])
            assert y == near([value for value, *_ in own])
            ends = [np.asarray(segment)[:, 1].tolist() for segment in segments.get_segments()]
            assert ends == [near([low, high]) for _, low, high, _ in own]
            assert line.get_color() == LEVEL_COLOURS[level]
            assert line.get_marker() == LEVEL_MARKERS[level]
        (zero,) = [line for line in axes.get_lines() if line.get_color() == BASE]
        assert points(zero)[1] == [0, 0]
    said = texts(svgs["restoration_by_level"])
    assert said[: said.index("weights restored, %")] == ["1", "20", "60"]
    assert {"points against as tuned", "mastery level of the training facts", "+20", "−20", "0"} <= set(said)


def test_concentration(drawn: dict[str, Figure], svgs: dict[str, ET.Element]) -> None:
    (axes,) = drawn["concentration"].axes
    bars = [c for c in axes.containers if isinstance(c, BarContainer)]
    paper = published_concentration(1920)
    expected = {
        "this run, relative change": ([0.72, 0.91, 0.98], RUN),
        "its no-signal null": ([0.62, 0.92, 0.97], CONTROL),
        "LLaMA-3-8B, relative change (published)": ([paper["0.01"], paper["0.2"], paper["0.6"]], PAPER_COLOUR),
        "this run, absolute change": ([0.06, 0.42, 0.86], "#b8bec6"),
    }
    assert [c.get_label() for c in bars] == list(expected)
    for index, (container, (shares, colour)) in enumerate(zip(bars, expected.values(), strict=True)):
        assert [patch.get_height() for patch in container] == near(shares)
        middles = [patch.get_x() + patch.get_width() / 2 for patch in container]
        assert middles == near([place + 0.2 * (index - 1.5) for place in range(3)])
        assert {to_hex(patch.get_facecolor()) for patch in container} == {colour}
    assert axes.get_ylim() == (0, 1)
    said = texts(svgs["concentration"])
    assert said[:4] == ["1", "20", "60", "top weights, %"]
    assert {"share of summed change", "100%", *expected} <= set(said)


def test_bars_of_the_svg_are_as_high_as_their_shares(svgs: dict[str, ET.Element]) -> None:
    """The picture itself: heights of the bars beside the distance of the lines at 0% and 100%."""
    svg = "{http://www.w3.org/2000/svg}"
    root = svgs["concentration"]
    labels = {"".join(t.itertext()).strip(): t for t in root.iter(f"{svg}text")}

    def height_of(label: str) -> float:
        moved = re.search(r"translate\(\S+ ([\d.]+)\)|y=\"", labels[label].get("transform") or "")
        return float(labels[label].get("y") or (moved[1] if moved else math.nan))

    scale = height_of("0%") - height_of("100%")
    assert scale > 50
    found: dict[str, list[float]] = {}
    for path in root.iter(f"{svg}path"):
        style = path.get("style") or ""
        colour = re.search(r"fill: (#\w+)", style)
        corners = [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path.get("d") or "")]
        if colour and path.get("clip-path") and len(corners) == 4:
            tops = [y for _, y in corners]
            found.setdefault(colour[1], []).append((max(tops) - min(tops)) / scale)
    assert [pytest.approx(v, abs=0.002) for v in (0.72, 0.91, 0.98)] == found[RUN]
    assert [pytest.approx(v, abs=0.002) for v in (0.62, 0.92, 0.97)] == found[CONTROL]


def test_mastery_by_exposures(drawn: dict[str, Figure], svgs: dict[str, ET.Element]) -> None:
    (axes,) = drawn["mastery_by_exposures"].axes
    bars = [c for c in axes.containers if isinstance(c, BarContainer)]
    assert [c.get_label() for c in bars] == [f"level {level}" for level in range(5)]
    heights = [[patch.get_height() for patch in container] for container in bars]
    bottoms = [[patch.get_y() for patch in container] for container in bars]
    assert heights == [
        [0.5, 0, 0, 0, 0, 0, 0, 0, 0],
        [0.5, 1, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1, 1],
    ]
    assert bottoms == np.cumsum([[0] * 9, *heights[:-1]], axis=0).tolist()
    line = lines(axes)["mean rate R"]
    assert points(line) == (list(range(9)), near([0.05, 0.2, 0.3, 0.45, 0.5, 0.65, 0.75, 0.95, 0.95]))
    reach = 12.7062047 * 0.05  # Student's t of one degree of freedom; the rates of a bin differ by a tenth
    ends = {x: [low, high] for x, low, high in band(axes, 0)}
    assert ends[5] == near([0.65 - reach, 1.0])
    assert ends[0] == near([0.0, 0.05 + reach])
    assert axes.get_ylim() == (0, 1)
    assert [to_hex(container[0].get_facecolor()) for container in bars] == list(LEVEL_COLOURS)
    said = texts(svgs["mastery_by_exposures"])
    assert said[:9] == ["never", "1", "2", "3-4", "5-7", "8-12", "13-20", "21-50", ">50"]
    assert {"times the fact was written in pre-training", "share of facts; mean rate", "mean rate R", "level 4"} <= set(
        said
    )


def test_the_ramp_of_levels_is_fixed() -> None:
    assert LEVEL_COLOURS == ("#3b1c5a", "#31688e", "#1f9e89", "#7ab51d", "#d9a400")
    assert len(set(LEVEL_MARKERS)) == 5


def test_without_rows_there_is_no_figure(hand_tables: Tables) -> None:
    empty = {name: replace(table, rows=()) for name, table in hand_tables.items()}
    assert build_figures(empty) == {}


def without_levels(table: Table, asked: int, missing: float | None) -> Table:
    """The table of a study that asked facts of the lowest levels alone: the others have a row, and no accuracy."""
    names = table.columns
    level, accuracy = names.index("test_level"), names.index("accuracy")
    rows = [
        tuple(
            None if i == accuracy and row[level] in {str(k) for k in range(asked, 5)} else v for i, v in enumerate(row)
        )
        for row in table.rows
    ]
    return replace(table, rows=tuple(rows))


@pytest.mark.parametrize("missing", [None, math.nan])
def test_levels_that_were_not_asked_have_no_panels(hand_tables: Tables, missing: float | None) -> None:
    summary = without_levels(hand_tables["accuracy_summary"], 3, missing)
    svg = figures.accuracy_by_test_level(summary)
    assert svg is not None
    said = texts(ET.fromstring(svg))
    assert [text for text in said if text.startswith("In-domain, level")] == [f"In-domain, level {k}" for k in range(3)]
    table = hand_tables["level_4"]
    place = table.columns.index("accuracy")
    rows = tuple(tuple(missing if i == place else v for i, v in enumerate(row)) for row in table.rows)
    assert figures.level_4_by_size(replace(table, rows=rows)) is None


def test_files_of_figures(hand_tables: Tables, tmp_path: Path) -> None:
    svg = figures.concentration(hand_tables["concentration"])
    assert svg is not None
    paths = write_figures({"concentration": svg}, tmp_path / "figures")
    assert paths == [tmp_path / "figures/concentration.svg"]
    assert paths[0].read_text(encoding="utf-8") == f'<?xml version="1.0" encoding="utf-8"?>\n{svg}'
    assert svg.startswith("<svg ")
    assert "<metadata>" not in svg
    assert "system-ui" in svg
