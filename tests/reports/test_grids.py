"""Every table of the page of the hand-made run, to the letter."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from knowshift.html.grid import DASH, Entry, Grid
from knowshift.html.rendering import environment
from knowshift.html.table import Table
from knowshift.reports.evidence.samples import Sample
from knowshift.reports.findings.claims import Claim, Finding
from knowshift.reports.page.grids import (
    accuracy_grid,
    base_table,
    claims_table,
    controls_tables,
    mastery_table,
    restoration_grid,
    sample_table,
    word_grid,
)
from knowshift.reports.tables.build import Tables, build_tables
from knowshift.statistics import estimates
from knowshift.statistics.estimates import Estimate
from page_text import compact

Cells = Sequence[Sequence[str]]


def written(grid: Grid) -> str:
    """A table as the template writes it."""
    return compact(str(environment().get_template("parts.html.jinja").module.table(grid)))


def read(grid: Grid) -> tuple[str, list[str], list[list[str]]]:
    """Caption, head and rows of the HTML of a table, as text."""
    table = written(grid)

    def text(html: str) -> str:
        return unescape(re.sub(r"<[^>]*>", "", html))

    caption = re.search(r"<caption>(.*?)</caption>", table)
    head = re.findall(r'<th scope="col">(.*?)</th>', table)
    rows = [
        [text(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)]
        for row in re.findall(r"<tr>(<td.*?)</tr>", table)
    ]
    assert caption is not None
    return text(caption[1]), [text(name) for name in head], rows


ACCURACY = {
    "in_domain": (
        "in-domain",
        [
            ["level 0", "26.7 7.8…45.5", "53.3 37.0…69.6", "13.3 0.0…29.6"],
            ["level 2", "60.0 41.2…78.8", "93.3 77.0…100.0", "73.3 57.0…89.6"],
            ["level 4", "60.0 41.2…78.8", "73.3 57.0…89.6", "46.7 30.4…63.0"],
        ],
    ),
    "out_of_domain": (
        "out-of-domain",
        [
            ["level 0", "20.0 0.0…46.6", "40.0 40.0…40.0", "6.7 0.0…23.0"],
            ["level 2", "46.7 20.0…73.3", "80.0 80.0…80.0", "46.7 30.4…63.0"],
            ["level 4", "53.3 26.7…80.0", "60.0 60.0…60.0", "33.3 17.0…49.6"],
        ],
    ),
}


@pytest.mark.parametrize("domain", ACCURACY)
def test_accuracy(domain: str, hand_tables: Tables) -> None:
    words, rows = ACCURACY[domain]
    caption, head, found = read(accuracy_grid(hand_tables["accuracy_summary"], domain))
    assert caption == f"Accuracy in %, {words}, mean of test levels, with 95% interval"
    assert head == ["training level", "60", "240", "1,920"]
    assert found == rows


def test_both_graders(hand_tables: Tables) -> None:
    caption, head, rows = read(word_grid(hand_tables["accuracy_summary"]))
    assert caption == (
        "Accuracy in % graded by substring / at word boundaries, mean of both domains; small: share of empty answers"
    )
    assert head == ["training level", "60", "240", "1,920"]
    assert rows == [
        ["level 0", "23.3 / 23.3 20%", "46.7 / 36.7 20%", "10.0 / 10.0 20%"],
        ["level 2", "53.3 / 53.3 20%", "86.7 / 76.7 14%", "60.0 / 60.0 20%"],  # in two draws of 240 none of 4 is empty
        ["level 4", "56.7 / 46.7 20%", "66.7 / 56.7 20%", "40.0 / 30.0 20%"],
    ]


def test_the_learning_rate_control(hand_tables: Tables) -> None:
    (grid,) = controls_tables(hand_tables["controls"], hand_tables["accuracy"], {})
    caption, head, rows = read(grid)
    assert caption == "The learning-rate control: both rates over the training draws that the control has"
    assert head == ["training level", "samples", "grid's rate", "control's rate", "difference"]
    assert rows == [
        ["level 0, in-domain", "1,920", "20.0% at 0.0003", "40.0% at 0.0001", "+20.0 −21.1…+61.1"],
        ["level 0, out-of-domain", "1,920", "10.0% at 0.0003", "30.0% at 0.0001", "+20.0 +1.6…+38.4"],
        ["level 2, in-domain", "1,920", "70.0% at 0.0003", "80.0% at 0.0001", "+10.0 −31.1…+51.1"],
        ["level 2, out-of-domain", "1,920", "40.0% at 0.0003", "70.0% at 0.0001", "+30.0 +11.6…+48.4"],
        ["level 4, in-domain", "1,920", "50.0% at 0.0003", "70.0% at 0.0001", "+20.0 −21.1…+61.1"],
        ["level 4, out-of-domain", "1,920", "40.0% at 0.0003", "60.0% at 0.0001", "+20.0 +1.6…+38.4"],
        ["mean, in-domain", "1,920", "46.7% at 0.0003", "63.3% at 0.0001", "+16.7 −29.5…+62.8"],
        ["mean, out-of-domain", "1,920", "30.0% at 0.0003", "53.3% at 0.0001", "+23.3 −19.0…+65.7"],
    ]


@pytest.mark.parametrize("gone", [[], [(0, 0)], [(0, 0), (0, 1), (2, 1)]])
def test_columns_of_the_control_add_up(gone: list[tuple[int, int]], hand_run: Path, tmp_path: Path) -> None:
    """Whichever models of the grid (level, draw) are not finished: all columns are over the same draws."""
    shutil.copytree(hand_run, tmp_path / "run")
    for cell in json.loads((hand_run / "manifest.json").read_text())["cells"]:
        key, of_grid = cell["key"], cell["kind"] == "evaluation" and not cell["key"]["control"]
        if of_grid and key["size"] == 1920 and (key["level"], key["draw"]) in gone:
            shutil.rmtree(tmp_path / "run/cells/evaluation" / cell["digest"])
    tables = build_tables(tmp_path / "run")
    (grid,) = controls_tables(tables["controls"], tables["accuracy"], {})
    assert len(grid.rows) == len(tables["controls"].rows) == 8
    for row, numbers in zip(grid.rows, tables["controls"].where(), strict=True):
        if row[4] == DASH:  # no draw at both rates
            assert (row[2], row[3]) == (DASH, DASH)
            assert gone[1:]
            continue
        before, after = (float(entry.text.removesuffix("%")) for entry in row[2:4])
        assert after - before == pytest.approx(100 * numbers["difference"], abs=0.11)


def test_the_base_model(hand_tables: Tables) -> None:
    caption, head, rows = read(base_table(hand_tables["base"]))
    assert caption == "The base model before tuning: accuracy by test level"
    assert head == ["prompt", *(f"level {level}" for level in range(5)), "mean", "empty"]
    none, all_ = "0.0%", "100.0%"
    assert rows == [
        ["fine-tuning prompt, in-domain", none, none, none, none, none, none, "18.2%"],
        ["fine-tuning prompt, out-of-domain", none, none, none, none, all_, "20.0%", "22.2%"],
        ["after solved examples, in-domain", none, none, none, all_, all_, "40.0%", "18.2%"],
        ["after solved examples, out-of-domain", none, none, none, none, all_, "20.0%", "22.2%"],
        ["asked plainly, in-domain", none, none, all_, all_, all_, "60.0%", "18.2%"],
        ["asked plainly, out-of-domain", none, none, none, none, none, none, "22.2%"],
    ]


def test_mastery(hand_tables: Tables) -> None:
    caption, head, rows = read(mastery_table(hand_tables["mastery"]))
    assert caption == "How many facts the base model knows how well"
    assert head == ["facts", *(f"level {level}" for level in range(5))]
    assert rows == [
        ["train, in-domain", "2", "3", "4", "4", "4"],
        ["test, in-domain", "4", "4", "4", "4", "6"],
        ["test, out-of-domain", "4", "4", "4", "4", "2"],
    ]
    many = Table("mastery", hand_tables["mastery"].columns, (("test", "in_domain", "1", 12345, 1.0),))
    assert read(mastery_table(many))[2] == [["test, in-domain", "–", "12,345", "–", "–", "–"]]


def test_restoration_by_level_and_fraction(hand_tables: Tables) -> None:
    caption, head, rows = read(restoration_grid(hand_tables["restoration_summary"], "relative"))
    assert caption == (
        "Restoring the most changed weights after 1,920 samples: points against as tuned, with 95% interval"
    )
    assert head == ["training level", "1%", "20%", "60%"]
    assert rows == [
        ["level 0, in-domain", "0.0 0.0…0.0", "+20.0 +6.7…+33.3", "−13.3 −22.8…−3.9"],
        ["level 2, in-domain", "0.0 0.0…0.0", "+13.3 0.0…+26.7", "−60.0 −69.4…−50.6"],
        ["level 4, in-domain", "0.0 0.0…0.0", "+13.3 0.0…+26.7", "−40.0 −49.4…−30.6"],
        ["mean, in-domain", "0.0 0.0…0.0", "+15.6 +6.8…+24.3", "−37.8 −47.3…−28.2"],
        ["level 0, out-of-domain", "0.0 −13.3…+13.3", "+26.7 +17.2…+36.1", "−6.7 −20.0…+6.7"],
        ["level 2, out-of-domain", "+6.7 −6.7…+20.0", "+20.0 +10.6…+29.4", "−40.0 −53.3…−26.7"],
        ["level 4, out-of-domain", "+6.7 −6.7…+20.0", "+20.0 +10.6…+29.4", "−33.3 −46.7…−20.0"],
        ["mean, out-of-domain", "+4.4 −4.3…+13.2", "+22.2 +12.7…+31.8", "−26.7 −35.4…−17.9"],
    ]
    other = read(restoration_grid(hand_tables["restoration_summary"], "random"))
    assert other[0].startswith("Restoring weights at random after")
    assert other[2][4][3] == "−6.7 −23.0…+9.6"
    assert written(restoration_grid(hand_tables["restoration_summary"], "absolute")) == ""


def test_every_contrast(hand_tables: Tables) -> None:
    caption, head, rows = read(claims_table(hand_tables.findings))
    assert caption == "Every contrast behind the verdicts"
    assert head == ["", "claim", "verdict", "estimate", "95% interval", "Holm p", "word grader", "by relation"]
    assert len(rows) == sum(len(f.claims) + len(f.controls) for f in hand_tables.findings)
    interval = "+10.2…+40.9"
    assert rows[0] == [
        "1",
        "the best smaller size beats the largest (mean of training levels, both domains)",
        *("shown", "+25.6 points", interval, "–", "+3.5…+34.3", interval),
    ]
    by_claim = {(row[0], row[1]): row[2:] for row in rows}
    level_4 = "the best smaller size beats the largest (training level 4, both domains)"
    assert by_claim["1", level_4] == ["undecided", "+13.3 points", "−10.2…+36.9", "0.215", "–", "–"]
    level_0 = "KL rises from its lowest size to the largest (training level 0)"
    assert by_claim["3", level_0] == ["undecided", "+1.58 nats", "+0.63…+2.53", "0.057", "–", "–"]
    top = "the relative change is more concentrated than its no-signal null (top 20% of weights)"
    assert by_claim["4", top] == ["not shown", "−1.00 points", "−1.82…−0.18", "–", "–", "–"]


def test_claims_that_are_missing_or_very_sure() -> None:
    sure = Claim("a", "a", "b", "points", Estimate(0.1, 0.05, 0.15, 0.01, 4, 1e-5, 3), "a.", p_holm=0.0009)
    missing = Claim("a", "a", "b", "nats", estimates.MISSING, "a.", p_holm=0.001)
    rows = read(claims_table([Finding(1, "t", "p", "s", (sure, missing))]))[2]
    assert rows[0][5] == "<0.001"
    assert rows[1] == ["1", "a (b)", "undecided", "–", "–", "0.001", "–", "–"]


def test_cells_without_a_number(hand_tables: Tables) -> None:
    summary = hand_tables["accuracy_summary"]
    place = summary.columns.index
    rows = [list(row) for row in summary.rows if not (row[0] == 4 and row[1] == 240)]
    for row in rows:
        if row[0] == 0 and row[1] == 60:
            row[place("accuracy")] = math.nan
        if row[0] == 0 and row[1] == 240:
            row[place("low")] = row[place("high")] = math.nan
    gaps = replace(summary, rows=tuple(map(tuple, rows)))
    assert read(accuracy_grid(gaps, "in_domain"))[2] == [
        ["level 0", "–", "53.3", "13.3 0.0…29.6"],
        ACCURACY["in_domain"][1][1],
        ["level 4", "60.0 41.2…78.8", "–", "46.7 30.4…63.0"],
    ]
    both = read(word_grid(gaps))[2]
    assert (both[0][1], both[2][2]) == ("–", "–")


def test_a_table_escapes_its_texts_and_is_nothing_without_rows() -> None:
    assert written(Grid("nothing", ["a"], [])) == ""
    entry = Entry("<i>1</i>", '"', "words")
    assert written(Grid("<b>", ["<a>"], [[entry, Entry("", "&"), DASH]])) == (
        '<div class="scroll"><table class="numbers"><caption>&lt;b&gt;</caption><thead><tr>'
        '<th scope="col">&lt;a&gt;</th></tr></thead><tbody><tr>'
        '<td class="words">&lt;i&gt;1&lt;/i&gt; <small>&#34;</small></td><td><small>&amp;</small></td><td>–</td>'
        "</tr></tbody></table></div>"
    )


def test_samples_as_a_table() -> None:
    sample = Sample("Who?", "She & he", "spouse", ((" yes\n", True), (" \n", False)))
    table = sample_table([sample], ["as tuned", "20% restored"])
    assert read(table) == (
        "Answers as written",
        ["question", "gold answer", "as tuned", "20% restored"],
        [["Who? spouse", "She & he", "yes", "(empty)"]],
    )
    assert re.findall(r'<td class="answer ?(\w*)"', written(table)) == ["", "", "hit", "miss"]
