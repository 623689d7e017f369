"""The list of facts of a study's page, with many models: its size, and how quick it is in a real browser.

    python benchmarks/fact_list.py [--facts 1600] [--models 70] [--texts 30] [--runs 5]

Needs Chromium and the package playwright. Invented facts; a right answer is the gold one, a wrong one is any of 2,000
names, so texts repeat as they do in a study. A comparison is from the choice of another model until the rows and the
counts are in the document.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

from knowshift.html.facts import MOVES, Answered, AnswerRow, Column, FactList, packed
from knowshift.html.rendering import environment

PAGE = """{% extends "document.html.jinja" %}{% block title %}facts{% endblock %}
{% block style %}{% include "facts.css" %}{% endblock %}{% set without_script = "" %}
{% block main %}{% include "facts.html.jinja" %}{% endblock %}"""
COMPARE = """(place) => {
  const box = document.getElementById("facts-to");
  box.value = String(place);
  const start = performance.now();
  box.dispatchEvent(new Event("change"));
  return performance.now() - start;
}"""
SYLLABLES = "ba da fe gi ho ju ka la mo nu pi re so tu va ze".split()


def invented(count: int, models: int, texts: int, seed: int = 0) -> FactList:
    """Facts of 24 relations and five levels; the first ``texts`` models with the texts of their answers."""
    rng = np.random.default_rng(seed)
    names = ["".join(rng.choice(SYLLABLES, size=3)).title() for _ in range(2000 + count)]
    gold = rng.integers(2000, size=count)
    level = np.arange(count) % 5
    rows = []
    for number in range(models):
        right = rng.random(count) < 0.05 + 0.2 * level
        answers = np.where(right, gold, rng.integers(2000, size=count))
        kept = [names[place] for place in answers] if number < texts else None
        rows.append(AnswerRow(f"model {number}", [Answered(right.tolist(), kept)], "models"))
    return FactList(
        question=[f"Where was {names[2000 + i]} {names[(7 * i) % 2000]} born?" for i in range(count)],
        answer=[names[place] for place in gold],
        columns=[
            Column("relation", "relation", (np.arange(count) % 24).tolist(), [f"P{i}" for i in range(24)], width=8),
            Column("level", "level", level.tolist(), [str(i) for i in range(5)], width=3),
            Column("rate", "R", rng.integers(1001, size=count).tolist(), digits=3, width=3, narrow=3),
            Column("written", "written", rng.integers(100, size=count).tolist(), width=4),
            Column("move", "move", (), MOVES, width=4, narrow=4),
            Column("id", "fact", texts=[f"P{i % 24}.test.{i}" for i in range(count)]),
        ],
        filters=("move", "level", "relation"),
        heads=("model", "answer"),
        rows=rows,
        said="{answer}",
        sort="move",
        compared=(0, 1),
        groups=("level", "relation"),
    )


def main() -> None:
    """Take the options, print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=1600)
    parser.add_argument("--models", type=int, default=70)
    parser.add_argument("--texts", type=int, default=30, help="models with the texts of their answers")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    data = packed(invented(arguments.facts, arguments.models, arguments.texts))
    print(f"{len(data) / 1e6:.2f} MB of data")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        path = Path(folder) / "facts.html"
        path.write_text(environment().from_string(PAGE).render(data=data), encoding="utf-8")
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        ready, compared = [], []
        for _ in range(arguments.runs):
            page = browser.new_page()
            page.goto(path.as_uri())
            page.wait_for_selector("#browser[data-ready=yes]")
            ready.append(page.evaluate("performance.now()"))
            compared += [page.evaluate(COMPARE, place) for place in range(2, min(12, arguments.models))]
            page.close()
        print(f"list ready {statistics.median(ready):.0f} ms")
        print(f"another model {statistics.median(compared):.0f} ms, at most {max(compared):.0f}")
        browser.close()


if __name__ == "__main__":
    main()
