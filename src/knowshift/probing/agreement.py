"""How far two mastery records of the same facts agree on levels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from knowshift.errors import InputError, KnowshiftWarning
from knowshift.facts.fact import LEVELS
from knowshift.records import MASTERY, estimate_of, read_table


@dataclass(frozen=True)
class Agreement:
    """How far two records of the same facts agree on levels."""

    facts: int
    same: float  # share of facts with the same level
    within_one: float  # share at most one level apart
    kappa: float  # Cohen's, with quadratic weights: 0 chance, 1 perfect; NaN where all facts have one level
    table: list[list[int]]  # facts by level in the first record (rows) and the second (columns)


def agreement_of(first: Path, second: Path) -> Agreement:
    """Agreement on the facts that both records hold.

    Raises:
        InputError: a file that is no mastery record, or none in common.
    """
    levels, told = [], []
    for path in (first, second):
        table, about = read_table(path, MASTERY, "mastery")
        told.append((estimate_of(table.column_names), about.get("dtype")))
        levels.append(dict(zip(table["fact"].to_pylist(), table["level"].to_pylist(), strict=True)))
    check_comparable((first, *told[0]), (second, *told[1]))
    common = [fact for fact in levels[0] if fact in levels[1]]
    if not common:
        raise InputError(f"{first}: has no fact in common with {second}")
    return agreement([levels[0][fact] for fact in common], [levels[1][fact] for fact in common])


def check_comparable(first: tuple[Path, str, Any], second: tuple[Path, str, Any]) -> None:
    """Warn of records that were measured in two dtypes. A record is given by its path, estimate and dtype.

    Raises:
        InputError: one record holds hits and the other expected hits.
    """
    if first[1] != second[1]:
        raise InputError(
            f"{first[0]}: holds {first[1]!r}, {second[0]} {second[1]!r}; expected records of one --estimate"
        )
    if first[2] != second[2]:
        warnings.warn(
            f"{first[0]} was measured in {first[2]}, {second[0]} in {second[2]}; part of what differs is rounding",
            KnowshiftWarning,
            stacklevel=2,
        )


def agreement(first: Sequence[int], second: Sequence[int]) -> Agreement:
    """Compare the levels of the same facts in two records.

    Two independent full runs set the ceiling: no cheaper rule can be asked to agree with one of them better than the
    other does.
    """
    pairs = list(zip(first, second, strict=True))
    table = np.zeros((LEVELS, LEVELS), dtype=np.int64)
    for a, b in pairs:
        table[a, b] += 1
    total = len(pairs)
    if not total:
        return Agreement(0, float("nan"), float("nan"), float("nan"), table.tolist())
    apart = np.abs(np.subtract.outer(np.arange(LEVELS), np.arange(LEVELS)))
    by_chance = np.outer(table.sum(axis=1), table.sum(axis=0)) / total
    expected = float((apart**2 * by_chance).sum())
    kappa = 1 - float((apart**2 * table).sum()) / expected if expected else float("nan")
    same, near = float(np.trace(table)) / total, float(table[apart <= 1].sum()) / total
    return Agreement(total, same, near, kappa, table.tolist())
