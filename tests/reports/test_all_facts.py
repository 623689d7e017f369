"""Training sets of all facts of a level: one size beside the others, the last, in tables, grids and figures."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import golden_run
import golden_tables
from golden_compare import compare, rows_of
from golden_records import Records
from hand_run import LEVELS, SIZES, TUNED, accuracy
from knowshift.html.grid import Grid
from knowshift.reports.evidence.evidence import read_evidence
from knowshift.reports.evidence.sizes import in_order, size_words
from knowshift.reports.findings.build import findings_of
from knowshift.reports.findings.takeaways import takeaways
from knowshift.reports.page import figures
from knowshift.reports.page.figures import LEVEL_COLOURS, build_figures
from knowshift.reports.page.grids import accuracy_grid, word_grid
from knowshift.reports.page.page import ALL_NOTE, BY_SIZE, write_report
from knowshift.reports.page.paper import sections
from knowshift.reports.tables.build import Tables, build_tables
from page_text import compact

#: How many facts each level has in all, in :mod:`hand_run`.
FACTS = {0: 7000, 2: 2500, 4: 1920}
KINDS = ("tuned", "evaluation", "token_shift", "weight_change")


def with_all(run: Path, folder: Path, facts: Mapping[int, int], size: int) -> Path:
    """The run, where a training set of all facts of a level does what the one of ``size`` facts does."""
    shutil.copytree(run, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for cell in list(manifest["cells"]):
        key = cell["key"]
        if cell["kind"] in KINDS and key["size"] == size and not key["control"] and key["level"] in facts:
            digest = f"all{len(manifest['cells']):04}"
            shutil.copytree(*(folder / "cells" / cell["kind"] / name for name in (cell["digest"], digest)))
            its = {**key, "size": facts[key["level"]], "control": "all"}
            manifest["cells"].append({"kind": cell["kind"], "digest": digest, "key": its})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def run(hand_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_all(hand_run, tmp_path_factory.mktemp("all") / "run", FACTS, 240)


@pytest.fixture(scope="module")
def tables(run: Path) -> Tables:
    return build_tables(run)


@pytest.fixture(scope="module")
def drawn(tables: Tables) -> dict[str, Figure]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "svg_text", lambda figure: figure)
        found: Any = build_figures(tables)
        return dict(found)


def written(grid: Grid) -> list[list[str]]:
    return [[f"{entry.text} {entry.note}".strip() for entry in row] for row in grid.rows]


def test_sizes_ascend_and_all_is_the_last() -> None:
    assert in_order([1920, "all", 60, "all", 60]) == [60, 1920, "all"]
    assert [size_words(size) for size in (1920, "all")] == ["1,920", "all"]


def test_every_number_of_the_tables_with_all_facts(tmp_path: Path) -> None:
    run = with_all(golden_run.build(tmp_path / "golden"), tmp_path / "run", {0: 1000, 1: 2345, 2: 961}, 240)
    build_tables(run).write(tmp_path / "tables")
    records = Records(run)
    for name in ("accuracy", "accuracy_summary", "token_shift_summary", "paper_accuracy", "level_4"):
        assert compare(tmp_path / "tables" / f"{name}.csv", golden_tables.TABLES[name](records)) > 0, name
    for name in ("paper_accuracy", "level_4"):
        rows = [row for row in rows_of(tmp_path / "tables" / f"{name}.csv") if row["size"] == "all"]
        found = [(row["domain"], row["level"], row["samples"]) for row in rows]
        facts = [("0", "1000"), ("1", "2345"), ("2", "961")]
        assert found == [(domain, *its) for domain in ("in_domain", "out_of_domain") for its in facts]


def test_tables_in_the_papers_form_have_all_facts_as_the_last_size(tables: Tables) -> None:
    rows = tables["paper_accuracy"].where()
    assert list(dict.fromkeys(row["size"] for row in rows)) == [60, 240, 1920, "all"]
    assert {row["source"] for row in rows if row["size"] == "all"} == {"run"}  # the paper prints no numbers of it
    assert {row["level"]: row["samples"] for row in rows if row["size"] == "all"} == FACTS
    assert all(row["samples"] == row["size"] for row in rows if row["size"] != "all")
    for domain in ("in_domain", "out_of_domain"):
        lines = [row for row in tables["level_4"].where(domain=domain) if row["level"] == 0]
        assert [(row["size"], row["samples"]) for row in lines] == [(size, size) for size in SIZES] + [("all", 7000)]
        of_240, of_all = lines[1], lines[3]
        assert [of_all[name] for name in ("accuracy", "kl_mean")] == [of_240[name] for name in ("accuracy", "kl_mean")]


def test_findings_compare_equal_numbers_of_facts(run: Path, hand_run: Path) -> None:
    assert findings_of(run) == findings_of(hand_run)
    evidence = read_evidence(run)
    assert evidence.trained_on_all
    assert evidence.sizes == list(SIZES)
    assert list(evidence.trained_otherwise) == ["learning_rate"]
    assert evidence.controls == ["all", "learning_rate"]
    assert not read_evidence(hand_run).trained_on_all


def test_grids_have_a_column_of_all_facts_and_their_numbers(tables: Tables) -> None:
    grid = accuracy_grid(tables["accuracy_summary"], "in_domain")
    assert list(grid.head) == ["training level", "60", "240", "1,920", "all"]
    assert [row[0] for row in written(grid)] == [
        "level 0 7,000 facts in all",
        "level 2 2,500 facts in all",
        "level 4 1,920 facts in all",
    ]
    assert [row[4].text for row in grid.rows] == [row[2].text for row in grid.rows] == ["53.3", "93.3", "73.3"]
    assert all(row[4].note for row in grid.rows)
    words = word_grid(tables["accuracy_summary"])
    assert list(words.head) == list(grid.head)
    assert [row[4] for row in words.rows] == [row[2] for row in words.rows]


def points(axes: Axes, colour: str) -> dict[str, tuple[list[float], list[float]]]:
    """x and y of the lines of a colour, by their dashes."""
    found = [line for line in axes.get_lines() if line.get_color() == colour]
    return {str(line.get_linestyle()): tuple(np.asarray(line.get_data()).tolist()) for line in found}  # type: ignore[misc]


@pytest.mark.parametrize("name", BY_SIZE)
def test_figures_have_a_place_for_all_facts_behind_the_largest_number(name: str, drawn: dict[str, Figure]) -> None:
    figure = drawn[name]
    figure.canvas.draw()
    for axes in figure.axes:
        assert [text.get_text() for text in axes.get_xticklabels()] == ["60", "240", "1,920", "all"]
        end = axes.get_xticks()[-1]
        assert end > 2 * SIZES[-1]
        for level in LEVELS:
            found = points(axes, LEVEL_COLOURS[level])
            (x, y), (x_end, y_end) = found["-"], found[":"]
            assert x == list(SIZES)
            assert x_end == [SIZES[-1], end]
            assert y_end == pytest.approx([y[2], y[1]])  # of all facts as of 240
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "mastery level of the training facts (its facts in all)"
    assert [text.get_text() for text in legend.get_texts()] == ["0 (7,000)", "2 (2,500)", "4 (1,920)"]


def test_the_caption_names_all_facts_where_they_are_the_highest_point(tables: Tables) -> None:
    assert "lies at 240 samples for levels 0, 2 and 4." in takeaways(tables, [])["accuracy_by_size"]  # first of equals
    summary = tables["accuracy_summary"]
    place, control = summary.columns.index("accuracy"), summary.columns.index("control")
    rows = [
        (*row[:place], 0.99, *row[place + 1 :]) if (row[0], row[control]) == (2, "all") else row for row in summary.rows
    ]
    higher = {**tables, "accuracy_summary": type(summary)(summary.name, summary.columns, tuple(rows))}
    assert takeaways(higher, [])["accuracy_by_size"].endswith(
        "240 samples for levels 0 and 4; at all facts for level 2."
    )


def test_the_page_says_what_all_is(run: Path, tables: Tables) -> None:
    page = compact(write_report(run).read_text())
    assert "in 3 sizes and on all facts of a level, with 3 training draws each" in page
    captions = dict(re.findall(r'<figure id="(\w+)">.*?<figcaption>(.*?)</figcaption>', page, re.DOTALL))
    assert {name for name, caption in captions.items() if ALL_NOTE in caption} == set(BY_SIZE)
    (section,) = (section for section in sections(tables) if section.name == "paper_accuracy")
    assert "Size all: every training fact of the level" in section.note
    about = [row[:3] for row in written(section.grid)]
    assert about[-3:] == [[f"all {facts:,}", "out-of-domain", str(level)] for level, facts in FACTS.items()]
    assert len(about) == 2 * 3 * 4


def test_nothing_is_said_of_all_where_no_model_was_trained_so(hand_tables: Tables) -> None:
    (section,) = (section for section in sections(hand_tables) if section.name == "paper_accuracy")
    assert section.note.endswith("The paper prints test levels at 1,920 samples alone.")
    assert all(not row[0].note for row in accuracy_grid(hand_tables["accuracy_summary"], "in_domain").rows)


def test_a_run_whose_largest_trainings_alone_are_finished(run: Path, tmp_path: Path) -> None:
    """Training sets of all facts are the largest, and come first."""
    shutil.copytree(run, tmp_path / "run")
    for cell in json.loads((run / "manifest.json").read_text())["cells"]:
        if "size" in cell["key"] and cell["key"]["control"] != "all":
            shutil.rmtree(tmp_path / "run/cells" / cell["kind"] / cell["digest"])
    page = compact(write_report(tmp_path / "run").read_text())
    assert "in 0 sizes and on all facts of a level" in page
    tables = build_tables(tmp_path / "run")
    rows = [row for row in tables["paper_accuracy"].where(source="run") if row["domain"] == "in_domain"]
    assert [(row["size"], row["samples"]) for row in rows] == [("all", facts) for facts in FACTS.values()]
    mean = np.mean([accuracy(pair) for pair in TUNED[2, 240]])
    both = [row["mean"] for row in tables["paper_accuracy"].where(source="run", level=2)]
    assert np.mean(both) == pytest.approx(mean)
    assert (tmp_path / "run/figures/accuracy_by_size.svg").exists()
