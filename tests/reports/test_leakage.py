"""Accuracy without what was trained: where the facts are read from, what a page says, and why there may be nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import golden_run
from knowshift.html.table import Table
from knowshift.reports.evidence import leaks
from knowshift.reports.page.leakage import leakage_section, what_follows
from knowshift.reports.tables.build import Tables, build_tables


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden_run.build(tmp_path_factory.mktemp("golden") / "run")


@pytest.fixture(scope="module")
def tables(run: Path) -> Tables:
    return build_tables(run)


def test_all_facts_have_the_accuracy_of_the_report_and_the_others_are_parts_of_them(tables: Tables) -> None:
    summary = {
        tuple(row[name] for name in ("level", "size", "learning_rate", "control", "domain")): row
        for row in tables["accuracy_summary"].where(test_level="mean")
    }
    rows = tables["leakage"].where()
    of_all = [row for row in rows if row["asked"] == "all"]
    assert len(of_all) == 2 * 9  # domains, models of the grid with a record of what they were trained on
    for row in of_all:
        told = summary[tuple(row[name] for name in ("level", "size", "learning_rate", "control", "domain"))]
        assert row["accuracy"] == pytest.approx(told["accuracy"])
        assert row["word_accuracy"] == pytest.approx(told["word_accuracy"])
        assert (row["facts"], row["draws"]) == (told["facts"], told["draws"])
    trained = {
        size: [r["facts"] for r in rows if (r["asked"], r["size"]) == ("answer_trained", size)] for size in (60, 960)
    }
    assert max(trained[60]) < min(trained[960])  # a larger training set has more of the answers


def test_the_page_says_what_follows_and_shows_both_tables(tables: Tables) -> None:
    section = leakage_section(tables["leakage"], tables["leakage_sizes"], tables.evidence.leaks.unknown)
    assert "That a smaller training set beats the largest (finding 1) is" in section.sentence
    sizes, models = section.grids
    assert list(sizes.head)[2:] == list(models.head)[3:]
    assert [[row[0].text, row[1].text] for row in sizes.rows[:2]] == [
        ["60 minus 960", "both domains"],
        ["240 minus 960", "both domains"],
    ]
    assert len(models.rows) == 9 * 2


def compared(clean: tuple[float, float, float], p_holm: float = 0.001) -> Table:
    """Size 240 minus 960: 5 points [2 to 8] on all facts; (value, low, high) without trained answers."""
    rows = [("all", 90, 0.05, 0.02, 0.08, 0.01), ("answer_not_trained", 60, *clean, p_holm)]
    columns = ("level", "domain", "size", "against", "asked", "facts", "difference", "low", "high", "p_holm")
    return Table("leakage_sizes", columns, tuple(("mean", "both", 240, 960, *row) for row in rows))


@pytest.mark.parametrize(
    ("clean", "p_holm", "told"),
    [
        ((0.04, 0.01, 0.07), 0.001, "is shown on them, as on all"),
        (
            *((0.04, 0.01, 0.07), 0.06),
            "is shown on all test facts and undecided on them. Excluded is an effect above +7.0 points on them",
        ),
        (
            *((-0.02, -0.04, 0.005), 0.1),
            "is shown on all test facts and not shown on them. Excluded is an effect above +0.5 points on them",
        ),
        (
            *((0.01, -0.04, 0.05), 0.9),
            "is shown on all test facts and undecided on them. Excluded is an effect above +5.0 points on them",
        ),
        (
            *((0.01, math.nan, math.nan), math.nan),
            "is shown on all test facts and undecided on them. No effect is excluded on them: nothing was repeated, so "
            "there is no interval",
        ),
        # What was not measured is not judged either, and neither is a claim.
        ((math.nan, math.nan, math.nan), math.nan, "is shown on all test facts and undecided on them"),
    ],
)
def test_whether_finding_1_holds_without_trained_answers_and_what_is_excluded(
    clean: tuple[float, float, float], p_holm: float, told: str
) -> None:
    sentence = what_follows(compared(clean, p_holm))
    assert sentence.startswith(
        "On the test facts whose answer neither model was trained on (at least 60 of 90 in each draw) 240 minus 960"
    )
    assert "on all test facts +5.0 points [+2.0 to +8.0]" in sentence
    assert sentence.endswith(f"(finding 1) {told}.")


def test_an_excluded_effect_is_that_of_every_smaller_size() -> None:
    columns = compared((0, 0, 0)).columns
    rows = [
        ("mean", "both", size, 960, asked, 90, *found, 0.5)
        for size, asked, *found in (
            (60, "all", 0.0, -0.02, 0.02),
            (240, "all", 0.01, -0.01, 0.03),
            (60, "answer_not_trained", -0.03, -0.05, 0.008),
            (240, "answer_not_trained", -0.04, -0.07, -0.01),
        )
    ]
    sentence = what_follows(Table("leakage_sizes", columns, tuple(rows)))
    assert sentence.endswith(
        "is undecided on all test facts and not shown on them. Excluded is an effect above +3.0 points on all test "
        "facts. Excluded is an effect above +0.8 points on them."
    )
    # A size without an interval may differ by any effect, so nothing is said to be not shown.
    rows[3] = (*rows[3][:7], math.nan, math.nan, math.nan)
    sentence = what_follows(Table("leakage_sizes", columns, tuple(rows)))
    assert "(finding 1) is undecided on them, as on all. Excluded is an effect above +3.0" in sentence
    assert sentence.endswith("No effect is excluded on them: nothing was repeated, so there is no interval.")


def edited(run: Path, folder: Path, **fields: Any) -> Tables:
    """The tables of the run with other fields in its manifest."""
    (folder / "cells").symlink_to(run / "cells")
    manifest: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    for name, value in fields.items():
        manifest[name] = {**manifest[name], **value} if isinstance(value, Mapping) else value
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return build_tables(folder)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"source": None}, "the manifest names no source of facts with its digest"),
        ({"source": {"digest": "0123"}}, "facts.csv holds other facts now"),
        ({"config": {"facts": "gone.csv"}}, "the facts gone.csv are not at hand"),
        ({"config": {"facts": "entity-questions"}}, "entity-questions is not in the cache of this machine"),
    ],
)
def test_without_the_studys_facts_there_are_no_rows_and_a_reason(
    monkeypatch: pytest.MonkeyPatch, run: Path, tmp_path: Path, fields: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr(leaks, "cached_entity_questions", lambda: None)
    found = edited(run, tmp_path, **fields)
    assert not found["leakage"].rows
    assert not found["leakage_sizes"].rows
    section = leakage_section(found["leakage"], found["leakage_sizes"], found.evidence.leaks.unknown)
    assert section.sentence.startswith("Not told: ")
    assert told in section.sentence
    assert not section.grids
