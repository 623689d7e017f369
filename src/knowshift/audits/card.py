"""The model card of a repaired model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from knowshift.audits.repair import Repair
from knowshift.html.words import interval_words, percent, signed


def card(repair: Repair, names: Mapping[str, str]) -> str:
    """What was done, measured and left open, as Markdown; ``names`` are those of base and tuned model."""
    assert repair.chosen is not None
    assert repair.held_out is not None
    assert repair.purpose is not None
    before, after, gain = repair.held_out
    lines = [
        f"# {Path(names['tuned']).name}, repaired by knowshift",
        "",
        f"A part of the fine-tuning of `{names['tuned']}` on `{names['base']}` was undone: {repair.chosen.name}.",
        "",
        "Measured on facts and items that the choice did not see:",
        "",
        f"- facts that the base knows, there in some form: {percent(before.known.mean())} as tuned, "
        f"{percent(after.known.mean())} repaired ({len(before.known):,} facts);",
        f"- {repair.purpose.name}: {percent(before.kept.mean())} as tuned, {percent(after.kept.mean())} repaired "
        f"({len(before.kept):,} items);",
        f"- the mean of both: {signed(gain.value)} points [{interval_words(gain)}].",
        "",
        "Not measured: anything else that the tuned model can do.",
        "",
    ]
    return "\n".join(lines)
