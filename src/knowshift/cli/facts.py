"""`knowshift facts SOURCE`: counts of a source of facts, and the leakage from its training set into its test set."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from knowshift.cli.output import FACTS_FORMS, JsonOption, console, emit
from knowshift.system.terminal import Terminal

_LABELS = {
    "train_in_domain": "in-domain training",
    "test_in_domain": "in-domain test",
    "test_out_of_domain": "out-of-domain test",
    "train_out_of_domain": "out-of-domain training",
}


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
        import knowshift

        loaded = knowshift.load_facts(source)
        clean = loaded.without_leaks()
        counts = (clean if drop_leaks else loaded).summary()
        if drop_leaks:
            counts["dropped_test_facts"] = len(loaded.facts) - len(clean.facts)
        else:
            counts["leaked_test_facts"] = len(loaded.facts) - len(clean.facts)
        _show(counts, console if as_json else Terminal())
        emit(counts, as_json)


def _show(counts: dict[str, Any], out: Terminal) -> None:
    from rich.table import Table

    from knowshift.facts.relations import RELATIONS

    out.print(f"{counts['source']}, digest {counts['digest']}", highlight=False)
    for key, label in _LABELS.items():
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
        out.print(f"Left out: {counts['dropped_test_facts']:,} test facts.", highlight=False)
    elif counts["leaked_test_facts"]:
        out.print(f"--without-leaks leaves out {counts['leaked_test_facts']:,} test facts.", highlight=False)
