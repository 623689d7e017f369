"""`knowshift facts SOURCE`: what is in a source of facts, and what of its test set stands in its training set."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knowshift.cli.output import FACTS_FORMS, JsonOption, console, emit
from knowshift.terminal import Terminal

if TYPE_CHECKING:
    from knowshift.facts.sources.load import FactSource

_GROUPS = (
    ("train_in_domain", "train", "in_domain", "in-domain training"),
    ("test_in_domain", "test", "in_domain", "in-domain test"),
    ("test_out_of_domain", "test", "out_of_domain", "out-of-domain test"),
    ("train_out_of_domain", "train", "out_of_domain", "out-of-domain training"),
)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""

    @app.command()
    def facts(
        source: Annotated[str, typer.Argument(help=FACTS_FORMS)],
        drop_leaks: Annotated[
            bool, typer.Option("--without-leaks", help="Leave out test facts whose question is asked in training.")
        ] = False,
        as_json: JsonOption = False,
    ) -> None:
        """Count facts by split, domain and relation, and the leakage from training into test."""
        from knowshift.facts.sources.load import load_facts, without_leaks

        loaded = load_facts(source)
        clean = without_leaks(loaded)
        counts = summary(clean if drop_leaks else loaded)
        if drop_leaks:
            counts["dropped_test_facts"] = len(loaded.facts) - len(clean.facts)
        else:
            counts["leaked_test_facts"] = len(loaded.facts) - len(clean.facts)
        _show(counts, console if as_json else Terminal())
        emit(counts, as_json)


def summary(source: FactSource) -> dict[str, Any]:
    """The counts of the command's JSON object.

    ``leaked_test_questions`` and ``answer_overlap`` are those of the files before the filter where the source knows
    them (EntityQuestions), else those of the facts; docs/facts.md says what is compared.
    """
    from knowshift.facts.leakage import leakage

    groups: Counter[tuple[str, str]] = Counter((fact.split, fact.domain) for fact in source.facts)
    relations: dict[str, dict[str, int]] = {}
    for fact in source.facts:
        relations.setdefault(fact.relation, {"train": 0, "test": 0})[fact.split] += 1
    found = source.published or leakage(source.facts)
    return {
        "source": source.name,
        "digest": source.digest(),
        **{key: groups[split, domain] for key, split, domain, _ in _GROUPS},
        "relations": relations,
        "leaked_test_questions": found.questions,
        "answer_overlap": found.answer_overlap,
    }


def _show(counts: dict[str, Any], out: Terminal) -> None:
    from rich.table import Table

    from knowshift.facts.relations import RELATIONS

    out.print(f"{counts['source']}, digest {counts['digest']}", highlight=False)
    for key, _, _, label in _GROUPS:
        if counts[key] or not key.startswith("train_out"):
            out.print(f"{label:>24} {counts[key]:>9,}", highlight=False)
    table = Table("relation", "name", box=None)
    for split in ("train", "test"):
        table.add_column(split, justify="right")
    for name, found in counts["relations"].items():
        known = RELATIONS.get(name)
        table.add_row(name, known.name if known else "", *(f"{count:,}" for count in found.values()))
    out.print(table)
    overlap = counts["answer_overlap"]
    out.print(
        f"Leakage, in-domain: {counts['leaked_test_questions']:,} test questions are also asked in training; "
        + ("no test answers to compare." if overlap is None else f"{overlap:.1%} of test answers occur in training."),
        highlight=False,
    )
    if "dropped_test_facts" in counts:
        out.print(f"Left out for it: {counts['dropped_test_facts']:,} test facts.", highlight=False)
    elif counts["leaked_test_facts"]:
        out.print(f"--without-leaks leaves out {counts['leaked_test_facts']:,} test facts.", highlight=False)
