"""The report's data: each table as CSV and as LaTeX, the same bytes for the same cells."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from knowshift.files import write_text
from knowshift.html.table import Row, Table
from knowshift.reports.evidence.evidence import Evidence, read_evidence
from knowshift.reports.findings.build import Finding, find, finding_rows
from knowshift.reports.tables.answers import accuracy, accuracy_summary, base, exposures, mastery
from knowshift.reports.tables.bench.characteristics import characteristics, characteristics_ends
from knowshift.reports.tables.bench.strategies import strategies, strategies_chosen, strategies_matched
from knowshift.reports.tables.controls import controls, mixed_trainings, trainings
from knowshift.reports.tables.latex import to_latex
from knowshift.reports.tables.leakage import leakage, leakage_sizes
from knowshift.reports.tables.moves import moves
from knowshift.reports.tables.other import instruct, other_tasks, other_tasks_summary
from knowshift.reports.tables.paper import paper_tables
from knowshift.reports.tables.restoration import layer_groups, restoration, restoration_summary, train_set
from knowshift.reports.tables.settings import rate_name
from knowshift.reports.tables.shift import concentration, places, token_shift, token_shift_summary


@dataclass(frozen=True)
class Tables(Mapping[str, Table]):
    """Every table by name, with the findings they support and the evidence they come from."""

    tables: Mapping[str, Table]
    findings: Sequence[Finding]
    evidence: Evidence

    def __getitem__(self, name: str) -> Table:
        return self.tables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables)

    def __len__(self) -> int:
        return len(self.tables)

    def write(self, folder: Path) -> list[Path]:
        """Write every table as ``folder/NAME.csv`` and ``folder/NAME.tex``; returns the paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, table in self.tables.items():
            for suffix, write in (("csv", to_csv), ("tex", to_latex)):
                path = folder / f"{name}.{suffix}"
                write_text(path, write(table))
                paths.append(path)
        return paths


def build_tables(run: Path) -> Tables:
    """Read a run folder and compute every table; an InputError names what cannot be read."""
    evidence = read_evidence(run)
    findings = find(evidence)
    long = [
        mastery(evidence),
        exposures(evidence),
        base(evidence),
        accuracy(evidence),
        accuracy_summary(evidence),
        controls(evidence),
        trainings(evidence),
        moves(evidence),
        leakage(evidence),
        leakage_sizes(evidence),
        token_shift(evidence),
        token_shift_summary(evidence),
        concentration(evidence),
        places(evidence, "layers"),
        places(evidence, "modules"),
        restoration(evidence),
        restoration_summary(evidence),
        train_set(evidence),
        layer_groups(evidence),
        instruct(evidence),
        other_tasks(evidence),
        other_tasks_summary(evidence),
        *_bench(evidence),
    ]
    named = {table.name: table for table in long}
    mixed = mixed_trainings(evidence)
    tables = [*long, *paper_tables(named, rate_name(evidence.run.learning_rate), mixed), finding_rows(findings)]
    return Tables({table.name: table for table in tables}, findings, evidence)


def _bench(evidence: Evidence) -> list[Table]:
    """Tables of strategies, where some were benched."""
    if not evidence.benched:
        return []
    every = strategies(evidence)
    return [
        *(every, strategies_chosen(evidence), strategies_matched(every)),
        *(characteristics(evidence), characteristics_ends(evidence)),
    ]


def to_csv(table: Table) -> str:
    """Plain CSV: floats with six decimals, missing values empty, one header line, no index."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([_cell(value) for value in row] for row in table.rows)
    return out.getvalue()


def _cell(value: Row | object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        text = f"{value:.6f}"
        return "0.000000" if text == "-0.000000" else text
    return str(value)
