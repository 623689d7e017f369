"""The paper's four findings, each looked for in a run: contrasts, intervals, verdicts, sentences from the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from knowshift.reports.evidence.evidence import Evidence, read_evidence
from knowshift.reports.findings.claims import Claim, Finding
from knowshift.reports.findings.level import level_finding
from knowshift.reports.findings.rows import finding_rows
from knowshift.reports.findings.size import size_finding
from knowshift.reports.findings.tokens import token_finding
from knowshift.reports.findings.weights import weight_finding

__all__ = ["Claim", "Finding", "find", "finding_rows", "findings_of"]


def find(evidence: Evidence) -> list[Finding]:
    """The four findings, in the paper's order; their verdicts are defined in docs/measures.md."""
    return [
        size_finding(evidence),
        level_finding(evidence),
        token_finding(evidence),
        weight_finding(evidence),
    ]


def findings_of(run: Path) -> list[dict[str, Any]]:
    """The findings of a run folder as plain JSON values."""
    return [finding.to_json() for finding in find(read_evidence(run))]
