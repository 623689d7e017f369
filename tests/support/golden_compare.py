"""A table of a run folder against what it should be: no row, column or number more or less."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path

from golden_findings import findings
from golden_records import Behind, Interval, Records, needed, visible
from golden_tables import Golden

WORD, RELATION = ("word_estimate", "word_low", "word_high"), ("relation_low", "relation_high")
BEHIND = (
    *("excluded", "cluster_low", "cluster_high", "cluster_p", "cluster_freedom", "clusters", "intraclass"),
    *("design_effect", "pairs", "gained", "lost", "smallest_effect", "draws_needed"),
)
TEXTS = ("scope", "statement", "sentence")


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def says(found: str, wanted: str) -> bool:
    """Whether two sentences are one, but for the last decimal of a number that lies between two."""
    decimals = re.compile(r"\d+\.\d+")
    if decimals.sub("#", found) != decimals.sub("#", wanted):
        return False
    pairs = zip(decimals.findall(found), decimals.findall(wanted), strict=True)
    return all(abs(float(a) - float(b)) < 1.1 * 10.0 ** -len(b.split(".")[1]) for a, b in pairs)


def compare(file: Path, golden: Golden) -> int:
    """Hold every cell of a table; the number of cells held."""
    rows = rows_of(file)
    assert sorted(rows[0]) == sorted(golden.columns)
    names = golden.columns[: golden.key]
    found = {tuple(row[name] for name in names): row for row in rows}
    wanted = {row[: golden.key]: row[golden.key :] for row in golden.rows}
    assert len(found) == len(rows)
    assert len(wanted) == len(golden.rows)
    assert set(found) == set(wanted)
    wrong, compared = [], 0
    for key, values in wanted.items():
        for name, value in zip(golden.columns[golden.key :], values, strict=True):
            cell = found[key][name]
            if name == "sentence":
                right = says(cell, str(value))
            elif isinstance(value, int | str):
                right = cell == str(value)
            elif math.isnan(value):
                right = cell == ""
            else:
                right = cell != "" and abs(float(cell) - value) < 2e-6  # six decimals are written
            if not right:
                wrong.append((*key, name, cell, value))
            compared += 1
    assert not wrong, (file.name, wrong[:5])
    return compared


def compare_findings(file: Path, records: Records, texts: Mapping[str, tuple[str, str, str]] | None = None) -> int:
    """Hold every claim; its scope, statement and sentence against ``texts``, where these are given."""
    told = {row["claim"]: tuple(row[name] for name in TEXTS) for row in rows_of(file)}
    rows = []
    for name, claim in findings(records).items():
        e, w, r = claim.estimate, claim.word or Interval(), claim.relation or Interval()
        head = (name, str(claim.finding), claim.role, claim.unit, claim.verdict)
        numbers = (e.value, e.low, e.high, e.p, claim.p_holm, e.draws, claim.margin)
        b = e.behind or Behind(math.nan, math.nan, math.nan)
        c = b.clustered
        behind = (
            *(math.nan if claim.verdict == "shown" else e.high, c.low, c.high, c.p, c.freedom),
            *(b.clusters, b.correlation, b.design_effect, *b.turned),
            *(visible(e.error, e.freedom), needed(e, 2 * claim.margin)),
        )
        rows.append((*head, *numbers, w.value, w.low, w.high, r.low, r.high, *behind, *(texts or told)[name]))
    numbered = ("verdict", "estimate", "low", "high", "p", "p_holm", "draws", "margin")
    columns = ("claim", "finding", "role", "unit", *numbered, *WORD, *RELATION, *BEHIND, *TEXTS)
    return compare(file, Golden(columns, 1, rows))
