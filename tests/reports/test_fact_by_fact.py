"""The list of facts of a study's page in a real browser: two models compared, counts of moves, hostile texts."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fact_pages import CHROMIUM, HOSTILE, chromium, opened, shown
from knowshift.reports.evidence.evidence import Evidence
from knowshift.reports.page.page import compose
from knowshift.reports.tables.build import Tables, build_tables
from report_run import Planted, Shape, build_run

pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")

SHAPE = Shape(facts_per_level=4, sizes=(60, 240), levels=(0, 2), draws=2)
PLANTED = Planted(by_size=(0.7, 1.0), kl=(0.9, 0.4))
BASE, TUNED = "base, asked plainly", "level 2, 240 facts, draw 1"


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """A run whose questions, answers, texts and relations are markup."""
    run = build_run(tmp_path_factory.mktemp("runs") / "facts", PLANTED, SHAPE)
    for file in (run / "cells").glob("*/*/answers*.parquet"):
        table = pq.read_table(file)
        for name in ("question", "answer", "text", "relation"):
            values = [HOSTILE + str(value) for value in table[name].to_pylist()]
            table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), pa.array(values))
        pq.write_table(table, file)
    return build_tables(run)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def address(tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(compose(tables, {}), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    context = browser.new_context(accept_downloads=True)
    it = opened(context, address)
    yield it
    assert not it.errors
    assert not [url for url in it.requests if not url.startswith((address, "blob:"))]
    assert it.title() == "facts: what fine-tuning did to what the model knows"
    assert it.locator("img").count() == 0
    context.close()


def moved(evidence: Evidence, before: str, after: str) -> dict[str, int]:
    """Counts of moves between two columns, from the records."""
    found = dict.fromkeys(("lost", "gained", "kept", "never"), 0)
    kinds = {(True, True): "kept", (True, False): "lost", (False, True): "gained", (False, False): "never"}
    for pair in zip(*(hits(evidence, name) for name in (before, after)), strict=True):
        found[kinds[pair]] += 1
    return found


def hits(evidence: Evidence, name: str) -> list[bool]:
    """Right or wrong, of the base asked plainly or of a model "level L, S facts, draw D"."""
    (index,) = [
        index
        for index, column in enumerate(evidence.answers.columns)
        if (column.setting is None and (name, column.prompt) == (BASE, "plain"))
        or (
            column.setting
            and not (column.setting.control or column.criterion)
            and name == f"level {column.setting.level}, {column.setting.size} facts, draw {column.draw + 1}"
        )
    ]
    found: list[bool] = evidence.answers.substring[:, index].tolist()
    return found


def said(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def test_two_models_are_compared_fact_by_fact(page: Any, tables: Tables) -> None:
    evidence = tables.evidence
    count = len(evidence.answers.facts)
    assert page.inner_text("#facts-from option:checked") == BASE
    assert page.inner_text("#facts-to option:checked") == TUNED
    first = moved(evidence, BASE, TUNED)
    assert page.inner_text("#facts-count") == f"{count} of {count} facts: {said(first)}"
    assert min(first["kept"], first["lost"]) > 0
    other = "level 0, 240 facts, draw 2"
    page.select_option("#facts-to", label=other)
    then = moved(evidence, BASE, other)
    assert page.inner_text("#facts-count") == f"{count} of {count} facts: {said(then)}"
    page.select_option("#facts-from", label=TUNED)
    page.select_option("#facts-move", label="lost")
    lost = moved(evidence, TUNED, other)["lost"]
    assert page.inner_text("#facts-count") == f"{lost} of {count} facts: {lost} lost"
    # The view has a name; another page that opens it shows the same.
    link = page.get_attribute("#facts-link", "href")
    again = opened(page.context, page.address + link)
    assert again.inner_text("#facts-count") == page.inner_text("#facts-count")
    assert again.inner_text("#facts-to option:checked") == other


def test_counts_by_level_follow_the_view(page: Any, tables: Tables) -> None:
    answers = tables.evidence.answers
    page.select_option("#facts-level", label="4")
    assert shown(page) == sum(answers.level == 4)
    page.select_option("#facts-move", label="kept")  # counts are over every move
    (line,) = page.locator("#facts-sums table").nth(0).locator("tbody tr").all_inner_texts()
    inside = [i for i, level in enumerate(answers.level) if level == 4]
    pairs = [(hits(tables.evidence, BASE)[i], hits(tables.evidence, TUNED)[i]) for i in inside]
    each = [pairs.count(kind) for kind in ((True, False), (False, True), (True, True), (False, False))]
    assert line.split() == ["4", str(len(inside)), *map(str, each)]
    page.select_option("#facts-level", label="all")
    page.select_option("#facts-move", label="all")
    for table in page.locator("#facts-sums table").all():
        assert sum(int(text) for text in table.locator("td:nth-child(2)").all_inner_texts()) == len(answers.facts)
    page.select_option("#facts-times", label="1")
    column = page.locator("#facts-room [role=row] > span:nth-child(5)").all_inner_texts()
    assert column
    assert set(column) == {"1"}
    page.fill("#facts-search", "nothing like this")
    assert shown(page) == 0
    assert page.locator("#facts-sums tbody tr").count() == 0


def test_keys_show_the_answers_as_they_were_written(page: Any, tables: Tables) -> None:
    page.focus("#facts-list")
    page.keyboard.press("End")
    assert HOSTILE in page.inner_text("#facts-one h3")
    rows = page.locator("#facts-one tbody tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows[:2]] == [BASE, TUNED]
    assert HOSTILE in rows[0]
    assert not any("draw 2" in row for row in rows)
    page.select_option("#facts-to", label="level 0, 60 facts, draw 2")  # of which no texts are kept
    page.focus("#facts-list")
    page.keyboard.press("ArrowDown")
    assert page.locator("#facts-one tbody tr").nth(1).inner_text().split("\t")[1] in ("right", "wrong")
    assert "models of the grid" in page.inner_text("#facts-one p")


def test_the_view_as_csv_has_every_models_grades(page: Any, tables: Tables, tmp_path: Path) -> None:
    with page.expect_download() as waiting:
        page.click("#facts-csv")
    waiting.value.save_as(tmp_path / "facts.csv")
    with (tmp_path / "facts.csv").open(encoding="utf-8", newline="") as lines:
        rows = {row["id"]: row for row in csv.DictReader(lines)}
    answers = tables.evidence.answers
    assert set(rows) == set(answers.facts)
    for name in (BASE, TUNED, "level 0, 60 facts, draw 2"):
        right = {fact: str(int(hit)) for fact, hit in zip(answers.facts, hits(tables.evidence, name), strict=True)}
        assert {fact: row[f"{name}, right"] for fact, row in rows.items()} == right
    assert all(row[f"{TUNED}, answer"].startswith(HOSTILE) for row in rows.values())


def test_without_a_script_the_tables_are_there(browser: Any, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert not page.is_visible("#browser")
    assert "against the base asked plainly" in page.inner_text("main")
    assert "needs a script" in page.inner_text("main")
    context.close()


def test_another_anchor_of_the_page_is_left_alone(browser: Any, address: str) -> None:
    page = opened(browser.new_context(), address + "#fact-by-fact")
    assert page.evaluate("location.hash") == "#fact-by-fact"
    page.fill("#facts-search", "Who")
    assert "q=Who" in page.evaluate("location.hash")
    page.context.close()
