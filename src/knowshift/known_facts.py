"""Facts with their rows of a mastery record: which of them the base model knows, and how well."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.records import MASTERY, checked, read_table

#: The columns of a mastery record that are used here.
COLUMNS = ("fact", "prompt_hits", "prompt_draws", "level")


@dataclass(frozen=True)
class KnownFacts:
    """Facts by id, and the rows of a mastery record in its order (:data:`COLUMNS`): each row's fact is among them."""

    facts: Mapping[str, Fact]
    rows: Sequence[Mapping[str, Any]]

    @cached_property
    def levels(self) -> dict[str, int]:
        """The base model's mastery level (0 to 4) by fact id."""
        return {row["fact"]: row["level"] for row in self.rows}

    def of(self, split: str, level: int | None = None) -> list[Fact]:
        """The recorded facts of a split, and of a level where one is given, in the record's order."""
        return [
            self.facts[row["fact"]]
            for row in self.rows
            if self.facts[row["fact"]].split == split and (level is None or row["level"] == level)
        ]

    def prompt_counts(self, column: str) -> dict[str, Sequence[int]]:
        """``prompt_hits`` or ``prompt_draws``, one count for each completion prompt, by fact id."""
        return {row["fact"]: row[column] for row in self.rows}


def known_facts(facts: Iterable[Fact], mastery: Path | pa.Table, source: str) -> KnownFacts:
    """Facts with a mastery record of them; ``source`` names the facts in errors.

    Raises:
        InputError: no such file, not a mastery record, or a record of other facts.
    """
    name = str(mastery) if isinstance(mastery, Path) else "the mastery record"
    if isinstance(mastery, Path):
        table, _ = read_table(mastery, MASTERY, "mastery")
    else:
        table = checked(mastery, MASTERY, "mastery", name)
    by_id = {fact.id: fact for fact in facts}
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        fact = by_id.get(row["fact"])
        if fact is None or fact.exposures != row["exposures"]:  # different worlds use the same ids
            raise InputError(f"{name}: fact {row['fact']!r} is not that of {source}; the record is of other facts")
    return KnownFacts(by_id, rows)
