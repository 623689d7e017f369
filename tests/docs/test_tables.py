"""docs/records.md names every table, record and figure with its columns."""

from __future__ import annotations

import re

import pytest

from knowshift import records
from knowshift.reports.tables.bench.characteristics import CHARACTERISTICS, ENDS
from knowshift.reports.tables.bench.strategies import CHOSEN, COLUMNS, MATCHED
from knowshift.reports.tables.build import Tables
from pages import ROOT, tables

TEXT = (ROOT / "docs" / "records.md").read_text(encoding="utf-8")
#: Columns that every row of a record begins with.
FACT = ("fact", "relation", "split", "domain")


def words(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def rows_of(head: str) -> dict[str, str]:
    """The last cells of the table whose head begins so, by the first cell's name."""
    rows = next(table for table in tables("docs/records.md") if table[0][0] == head)[1:]
    return {row[0].strip("`"): row[-1] for row in rows}


def test_every_table_and_its_columns_in_order(hand_tables: Tables) -> None:
    documented, short = rows_of("file"), dict(re.findall(r"\*(\w+)\*(?: stands)? for ([^;.]*)[;.]", TEXT))
    assert set(short) == {"setting", "model", "counts"}
    of_a_bench = {"strategies": COLUMNS, "strategies_chosen": CHOSEN, "strategies_matched": MATCHED}
    of_a_bench |= {"characteristics": CHARACTERISTICS, "characteristics_ends": ENDS}
    assert [name for name in documented if name not in of_a_bench] == list(hand_tables)
    for name, columns in {**{name: table.columns for name, table in hand_tables.items()}, **of_a_bench}.items():
        written = re.sub(r"\*(setting|model|counts)\*", lambda found: short[found[1]], documented[name])
        assert words(written) == list(columns), name


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("mastery", records.MASTERY),
        ("answers", records.ANSWERS),
        ("token shift", records.TOKEN_SHIFT),
        ("tasks", records.TASKS),
    ],
)
def test_every_record_and_its_columns(name: str, schema: object) -> None:
    columns = [column for column in schema.names if column not in FACT]  # type: ignore[attr-defined]
    assert [word for word in words(rows_of("record")[name]) if word in columns] == columns
