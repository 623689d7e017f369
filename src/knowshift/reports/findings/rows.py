"""Every claim as a row of ``findings.csv``; docs/records.md says what each column is."""

from __future__ import annotations

from collections.abc import Sequence

from knowshift.html.table import Table
from knowshift.reports.findings.claims import Finding

FINDING_COLUMNS = (
    "finding",
    "role",
    "claim",
    "scope",
    "statement",
    "verdict",
    "unit",
    "estimate",
    "low",
    "high",
    "p",
    "p_holm",
    "draws",
    "margin",
    "word_estimate",
    "word_low",
    "word_high",
    "relation_low",
    "relation_high",
    "excluded",
    "cluster_low",
    "cluster_high",
    "cluster_p",
    "cluster_freedom",
    "clusters",
    "intraclass",
    "design_effect",
    "pairs",
    "gained",
    "lost",
    "smallest_effect",
    "draws_needed",
    "sentence",
)


def finding_rows(findings: Sequence[Finding]) -> Table:
    """Every claim as a row; ``role`` is core (part of the finding's verdict), detail or control."""
    rows = []
    for finding in findings:
        for claim in (*finding.claims, *finding.controls):
            role = "control" if claim in finding.controls else "core" if claim.core else "detail"
            e, w, r = claim.estimate, claim.word, claim.by_relation
            c, t = e.clustered, e.turned
            rows.append(
                (
                    finding.number,
                    role,
                    claim.name,
                    claim.scope,
                    claim.statement,
                    claim.verdict,
                    claim.unit,
                    *(e.value, e.low, e.high, e.p),
                    claim.p_holm,
                    e.draws,
                    claim.margin,
                    *((w.value, w.low, w.high) if w else (None, None, None)),
                    *((r.low, r.high) if r else (None, None)),
                    claim.excluded,
                    *((c.interval.low, c.interval.high, c.interval.p, c.interval.freedom) if c else (None,) * 4),
                    *((c.clusters, c.correlation, c.design_effect) if c else (None,) * 3),
                    *((t.pairs, t.gained, t.lost) if t else (None,) * 3),
                    claim.smallest_effect,
                    claim.draws_needed,
                    claim.sentence,
                )
            )
    return Table("findings", FINDING_COLUMNS, tuple(rows))
