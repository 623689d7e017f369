"""How many facts a model was tuned on, as people read it: one of the grid's sizes, or all facts of its level.

Long tables have a training set of all facts under the control "all", with the number of its facts as the size, which
differs from level to level. Where sizes stand beside each other it is one size, the last.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeAlias

from knowshift.html.table import Table
from knowshift.reports.evidence.run_folder import ALL

#: A number of facts, or :data:`ALL`.
Size: TypeAlias = int | str


def rows_by_size(table: Table, **values: object) -> list[dict[str, Any]]:
    """The rows of the grid and of training sets of all facts that have these values.

    ``size`` is a :data:`Size`, and ``samples`` the number of facts.
    """
    return [
        {**row, "size": ALL if row["control"] == ALL else row["size"], "samples": row["size"]}
        for row in table.where(**values)
        if row["control"] in ("", ALL)
    ]


def place_of(size: Size) -> float:
    """What sizes are ordered by: all facts are the last."""
    return math.inf if isinstance(size, str) else size


def in_order(sizes: Iterable[Size]) -> list[Size]:
    """Each size once, ascending."""
    return sorted(set(sizes), key=place_of)


def size_words(size: Size) -> str:
    """ "1,920", or "all"."""
    return size if isinstance(size, str) else f"{size:,}"
