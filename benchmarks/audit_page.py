"""The page of an audit with many invented facts in a real browser: size, first paint, seconds of a search.

    python benchmarks/audit_page.py [--facts 50000] [--runs 5] [--screenshots FOLDER]

Needs Chromium and the package playwright. First paint is the browser's own "first-contentful-paint"; a search is from
the input event until the rows are in the document, for searches that find everything, some and nothing.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

from knowshift.audits.evidence import Answered, Evidence
from knowshift.audits.moves import Rates
from knowshift.audits.page.compose import compose
from knowshift.audits.verdict import reach_verdict
from knowshift.facts.fact import Fact

SEARCHES = ("a", "river", "number 4999", "nothing like this")
SEARCH = """(text) => {
  const box = document.getElementById("facts-search");
  box.value = text;
  const start = performance.now();
  box.dispatchEvent(new Event("input"));
  return performance.now() - start;
}"""
WORDS = "river town hill lake stone wood north south old new upper lower great little saint mount".split()


def invented(count: int, seed: int = 0) -> Evidence:
    """Facts with names of their own, a third known, a tenth of them lost; three forms of answers."""
    rng = np.random.default_rng(seed)
    first_words, second_words, kinds = rng.integers(len(WORDS), size=(3, count))
    names = [
        f"{WORDS[a]} {WORDS[b]} {i}".title() for i, (a, b) in enumerate(zip(first_words, second_words, strict=True))
    ]
    answers = [
        f"{WORDS[kind].title()}{number}" for kind, number in zip(kinds, rng.integers(2000, size=count), strict=True)
    ]
    facts = [
        Fact(f"f{i}", f"P{i % 24}", "test", "in_domain", name, f"In which country is {name}?", answer)
        for i, (name, answer) in enumerate(zip(names, answers, strict=True))
    ]
    truth = np.where(rng.random(count) < 0.33, rng.beta(4, 2, count), rng.beta(0.3, 6, count))
    later = np.where(rng.random(count) < 0.1, 0.0, truth)
    first, second, after = (_rates(rng.binomial(210, values)) for values in (truth, truth, later))
    right = truth > 0.5
    forms = [
        Answered(name, answers, [answers[i] for i in rng.integers(count, size=count)], right, right & (later > 0))
        for name in ("completion", "question", "few-shot")
    ]
    return Evidence(facts, first, second, after, np.ceil(4 * first.rate).astype(np.int64), forms)


def _rates(hits: np.ndarray) -> Rates:
    held = hits.astype(float)
    return Rates(held / 210, held, 210 - held)


def main() -> None:
    """Take the options, print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=50_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--screenshots", type=Path, help="desktop, phone and dark, as PNG")
    arguments = parser.parse_args()
    found = invented(arguments.facts)
    about = {"base": "base", "tuned": "tuned", "source": "invented", "facts": arguments.facts}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        path = Path(folder) / "audit.html"
        path.write_text(compose(found, reach_verdict(found), None, "invented", None, None, about), encoding="utf-8")
        print(f"{path.stat().st_size / 1e6:.2f} MB")
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        paints, ready = [], []
        searches: dict[str, list[float]] = {text: [] for text in SEARCHES}
        for _ in range(arguments.runs):
            page = browser.new_page()
            page.goto(path.as_uri())
            page.wait_for_selector("#browser[data-ready=yes]")
            ready.append(page.evaluate("performance.now()"))
            paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN"))
            for text in SEARCHES:
                searches[text].append(page.evaluate(SEARCH, text))
            page.close()
        print(f"first paint {statistics.median(paints):.0f} ms, list ready {statistics.median(ready):.0f} ms")
        for text, took in searches.items():
            print(f"search {text!r}: {statistics.median(took):.0f} ms, at most {max(took):.0f}")
        if arguments.screenshots:
            arguments.screenshots.mkdir(parents=True, exist_ok=True)
            for name, width, scheme in (("desktop", 1000, "light"), ("phone", 390, "light"), ("dark", 1000, "dark")):
                context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
                page = context.new_page()
                page.goto(path.as_uri())
                page.wait_for_selector("#browser[data-ready=yes]")
                page.focus("#facts-list")
                page.keyboard.press("ArrowDown")
                page.locator("#browser").scroll_into_view_if_needed()
                page.screenshot(path=arguments.screenshots / f"{name}.png")
                context.close()
        browser.close()


if __name__ == "__main__":
    main()
