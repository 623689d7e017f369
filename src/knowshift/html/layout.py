"""What a table of the report is, and how numbers are written in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from knowshift.statistics.estimates import Estimate

Row: TypeAlias = tuple[str | int | float | bool | None, ...]

DOMAIN_WORDS = {"in_domain": "in-domain", "out_of_domain": "out-of-domain", "both": "both domains"}


@dataclass(frozen=True)
class Table:
    """Rows of plain values under column names; NaN and None are missing."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.name

    def where(self, **values: object) -> list[dict[str, Any]]:
        """The rows whose columns have these values, as dicts."""
        named = (dict(zip(self.columns, row, strict=True)) for row in self.rows)
        return [row for row in named if all(row[k] == v for k, v in values.items())]


def bounds(estimate: Estimate, floor: float = -math.inf, ceiling: float = math.inf) -> tuple[float, float, float]:
    """Value, low, high for a table; the interval cut where the quantity cannot go."""
    return estimate.value, max(estimate.low, floor), min(estimate.high, ceiling)


def percent(value: float, digits: int = 1) -> str:
    """A proportion as a percentage, "41.7%"."""
    return "missing" if math.isnan(value) else f"{100 * value:.{digits}f}%"


def signed(value: float, scale: float = 100, digits: int = 1) -> str:
    """A signed number with a real minus sign; never "-0.0"."""
    text = f"{scale * value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def interval_words(estimate: Estimate, scale: float = 100, digits: int = 1) -> str:
    """The interval in words: "1.2 to 3.4"."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return "no interval"
    return f"{signed(estimate.low, scale, digits)} to {signed(estimate.high, scale, digits)}"


def listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else ""
