"""Every number of every table of a run folder written by hand, held against independent formulas."""

from __future__ import annotations

from pathlib import Path

import pytest

import golden_leakage
import golden_run
import golden_tables
import golden_tasks
from golden_compare import compare, compare_findings
from golden_records import Records
from golden_texts import TEXTS
from knowshift.reports.tables.build import build_tables

TABLES = {**golden_tables.TABLES, **golden_leakage.TABLES, **golden_tasks.TABLES}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = golden_run.build(tmp_path_factory.mktemp("golden") / "run")
    build_tables(run).write(run / "tables")
    return run


@pytest.fixture(scope="module")
def records(run: Path) -> Records:
    return Records(run)


def test_every_table_is_held(run: Path) -> None:
    assert {file.stem for file in (run / "tables").iterdir()} == {*TABLES, "findings"}


@pytest.mark.parametrize("name", TABLES)
def test_every_number_of_a_table(run: Path, records: Records, name: str) -> None:
    assert compare(run / "tables" / f"{name}.csv", TABLES[name](records)) > 0


def test_every_number_and_sentence_of_the_findings(run: Path, records: Records) -> None:
    compare_findings(run / "tables/findings.csv", records, TEXTS)
