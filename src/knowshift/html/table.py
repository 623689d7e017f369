"""A table of the report: named columns and rows of plain values, as its CSV file has them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

from knowshift.statistics.estimates import Estimate

Row: TypeAlias = tuple[str | int | float | bool | None, ...]


@dataclass(frozen=True)
class Table:
    """Rows of plain values under column names; NaN and None are missing.

    ``percent`` names columns of proportions that people read in percent; their values here and in CSV are 0..1.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    percent: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.name

    def where(self, **values: object) -> list[dict[str, Any]]:
        """The rows whose columns have these values, as dicts; all rows where none are given."""
        named = (dict(zip(self.columns, row, strict=True)) for row in self.rows)
        return [row for row in named if all(row[k] == v for k, v in values.items())]


def is_missing(value: Any) -> bool:
    """Whether a table's value is missing: None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def bounds(estimate: Estimate, floor: float = -math.inf, ceiling: float = math.inf) -> tuple[float, float, float]:
    """Value, low, high for a table; the interval cut to the range of the quantity."""
    return estimate.value, max(estimate.low, floor), min(estimate.high, ceiling)
