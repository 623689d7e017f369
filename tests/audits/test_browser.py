"""The list of facts in a real browser: search, filter, sort, keys, links, CSV, hostile texts, 50,000 facts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fact_pages import CHROMIUM, HOSTILE, chromium, opened, shown
from hand_evidence import evidence, without
from knowshift.audits.evidence import Answered, Evidence
from knowshift.audits.page.compose import compose
from knowshift.audits.verdict import reach_verdict

pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")


def page_of(found: Evidence, folder: Path) -> Path:
    about = {"base": "before", "tuned": "after", "source": "hand", "facts": len(found.facts)}
    path = folder / "audit.html"
    path.write_text(compose(found, reach_verdict(found), None, "not asked", None, None, about), encoding="utf-8")
    return path


def named(found: Evidence) -> Evidence:
    """The same with questions and answers that differ."""
    facts = [
        replace(fact, question=f"Where was number {i} born?", answer=f"Town {i % 97}")
        for i, fact in enumerate(found.facts)
    ]
    texts = [f"Answer {i % 31}" for i in range(len(facts))]
    forms = [replace(form, before=texts, after=texts[::-1]) for form in found.forms]
    return replace(found, facts=facts, forms=forms)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """An open page of 400 facts, some lost; its requests are listed, and no error is passed over."""
    found = named(without(evidence(), 0.2, ("completion", "question"), sampled=True))
    context = browser.new_context(accept_downloads=True)
    it = opened(context, page_of(found, tmp_path).as_uri())
    yield it
    assert not it.errors
    context.close()


def test_search_filter_and_sort(page: Any) -> None:
    assert shown(page) == 400
    page.fill("#facts-search", "NUMBER 12")
    assert shown(page) == 11  # 12 and 120 to 129
    page.fill("#facts-search", "town 96")
    assert shown(page) == 4
    page.fill("#facts-search", "")
    page.select_option("#facts-move", label="lost")
    lost = shown(page)
    assert 10 < lost < 100
    page.select_option("#facts-relation", label="P3")
    assert 0 < shown(page) < lost
    page.select_option("#facts-move", label="all")
    page.select_option("#facts-relation", label="all")
    page.click("#facts-head button[data-key=before]")
    assert page.get_attribute("#facts-head [role=columnheader]:nth-child(4)", "aria-sort") == "ascending"
    rising = page.locator("#facts-room [role=row] > span:nth-child(4)").all_inner_texts()
    assert rising == sorted(rising)
    page.click("#facts-head button[data-key=before]")
    falling = page.locator("#facts-room [role=row] > span:nth-child(4)").all_inner_texts()
    assert falling == sorted(falling, reverse=True)


def test_keys_go_through_the_facts_and_show_their_answers(page: Any) -> None:
    page.focus("#facts-list")
    page.keyboard.press("ArrowDown")
    first = page.inner_text("#facts-one h3")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#facts-one h3") != first
    assert page.locator("#facts-one tbody tr").count() == 2
    page.keyboard.press("End")
    assert page.get_attribute("#facts-list", "aria-activedescendant") == "fact-399"
    assert page.get_attribute("#fact-399", "aria-selected") == "true"
    assert page.get_attribute("#facts-list", "aria-rowcount") == "400"
    page.keyboard.press("Home")
    assert page.inner_text("#facts-one h3") == first


def test_a_link_names_the_view(page: Any) -> None:
    page.fill("#facts-search", "number 3")
    page.select_option("#facts-move", label="lost")
    count, link = shown(page), page.get_attribute("#facts-link", "href")
    page.goto("about:blank")
    page.goto(page.address + link)
    page.wait_for_selector("#browser[data-ready=yes]")
    assert shown(page) == count
    assert page.input_value("#facts-search") == "number 3"


def test_the_view_as_csv(page: Any, tmp_path: Path) -> None:
    page.fill("#facts-search", "number 12")
    with page.expect_download() as waiting:
        page.click("#facts-csv")
    waiting.value.save_as(tmp_path / "facts.csv")
    lines = (tmp_path / "facts.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 12
    assert lines[0].startswith('"question","answer","relation","move"')
    assert any('"Where was number 12 born?","Town 12"' in line for line in lines)


def test_nothing_is_asked_of_a_network(page: Any) -> None:
    assert page.requests == [page.address]


def test_texts_with_markup_are_texts(browser: Any, tmp_path: Path) -> None:
    found = without(evidence(), 0.2, ("completion", "question"), sampled=True)
    facts = [replace(fact, question=HOSTILE + fact.id, answer="=1+1" + HOSTILE) for fact in found.facts]
    texts: list[str | None] = [HOSTILE] * len(facts)
    right = np.zeros(len(facts), dtype=bool)
    found = replace(found, facts=facts, forms=[Answered(HOSTILE, texts, texts, right, right)])
    it = opened(browser, page_of(found, tmp_path).as_uri())
    it.focus("#facts-list")
    it.keyboard.press("ArrowDown")
    assert HOSTILE in it.inner_text("#facts-one h3")
    assert it.title() != "taken"
    assert it.locator("#browser img").count() == 0
    it.close()


def test_without_a_script_the_verdict_and_tables_are_there(browser: Any, tmp_path: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    it = context.new_page()
    it.goto(page_of(named(without(evidence(), 0.2, ("completion", "question"), True)), tmp_path).as_uri())
    assert it.inner_text("h1") == "Knowledge was lost"
    assert it.locator("table").count() >= 5
    assert not it.is_visible("#browser")
    context.close()


def test_fifty_thousand_facts(browser: Any, tmp_path: Path) -> None:
    """At most 5 MB; the rows of the list that exist are those in sight. Times are measured by a benchmark."""
    found = named(without(evidence(count=50_000), 0.1, ("completion", "question"), sampled=True))
    path = page_of(found, tmp_path)
    assert path.stat().st_size < 5_000_000
    it = opened(browser, path.as_uri())
    assert shown(it) == 50_000
    it.fill("#facts-search", "number 4999")
    assert shown(it) == 11
    assert it.locator("#facts-room [role=row]").count() == 11
    it.fill("#facts-search", "")
    assert it.locator("#facts-room [role=row]").count() < 60
    it.close()
