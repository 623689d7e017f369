"""A pair of models from the shipped world, and its audit: ``make demo``.

The shipped model is fine-tuned on facts that it hardly knows, at a rate that costs it more than it gains. The audit
says what was lost, finds a repair that keeps what the tuning was for, and ends in a page.
"""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

import knowshift

#: The form that fine-tuning asks in.
FORMAT = "<|question|> {question} <|answer|>"


def main(folder: Path) -> None:
    """Make the pair in ``folder`` (anew), audit it, say where the page is."""
    shutil.rmtree(folder, ignore_errors=True)
    print("what the base knows of 1,500 facts ...", flush=True)
    known = knowshift.mastery("world:tiny", "world:tiny", limit=1500, estimate="expected")
    print("fine-tuning on what it hardly knows ...", flush=True)
    tuned = knowshift.finetune(
        "world:tiny", "world:tiny", known, level=1, learning_rate=1e-3, output_dir=folder / "tuned"
    )
    facts = {fact.id: fact for fact in knowshift.load_facts("world:tiny").facts}
    with (folder / "trained.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(facts[name].question, facts[name].answer) for name in tuned.facts]
        csv.writer(file).writerows([("question", "answer"), *rows])
    print(f"{tuned.steps} steps on {len(tuned.facts)} facts; the audit:", flush=True)
    found = knowshift.audit(
        "world:tiny",
        folder / "tuned",
        "world:tiny",
        output_dir=folder / "audit",
        budget="2m",
        keep=folder / "trained.csv",
        prompt_format=FORMAT,
    )
    print(f"\n{found.verdict.title}.")
    print(*found.verdict.sentences, found.repair_words, sep="\n")
    print(f"page: {found.page}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
