"""One line under each figure, from its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from knowshift.html.table import Table
from knowshift.html.words import exact_percent, listed, percent, signed
from knowshift.reports.evidence.sizes import place_of, rows_by_size
from knowshift.reports.findings.claims import Claim, Finding, from_highest, mean_of
from knowshift.statistics.choices import EQUAL

Rows = Sequence[dict[str, Any]]


def takeaways(tables: Mapping[str, Table], findings: Sequence[Finding]) -> dict[str, str]:
    """A sentence for every figure name; empty where there is nothing to say."""
    claims = {claim.name: claim for finding in findings for claim in (*finding.claims, *finding.controls)}
    return {
        "accuracy_by_size": _accuracy(tables["accuracy_summary"]),
        "kl_by_size": _sentence(claims, "kl_rises"),
        "restoration": _restoration(tables["restoration_summary"]),
        "restoration_by_level": _by_level(tables["restoration_summary"]),
        "concentration": _sentence(claims, "concentration_0.01"),
        "mastery_by_exposures": _exposures(tables["exposures"]),
    }


def _sentence(claims: Mapping[str, Claim], name: str) -> str:
    return claims[name].sentence if name in claims else ""


def _accuracy(summary: Table) -> str:
    rows: Rows = rows_by_size(summary, test_level="mean")
    if len({r["size"] for r in rows}) < 2:
        return ""
    peaks: dict[float, list[str]] = {}
    for level in sorted({r["level"] for r in rows}):
        totals: dict[float, list[float]] = {}
        for row in rows:
            if row["level"] == level and not math.isnan(row["accuracy"]):
                totals.setdefault(place_of(row["size"]), []).append(row["accuracy"])
        if totals:
            best = from_highest({size: mean_of(values) for size, values in totals.items()})[0]
            peaks.setdefault(best, []).append(str(level))
    if not peaks:
        return ""
    parts = [
        f"{'all facts' if math.isinf(size) else f'{size:,.0f} samples'} for level{'s' if len(levels) > 1 else ''} "
        f"{listed(levels)}"
        for size, levels in sorted(peaks.items())
    ]
    return f"The highest point, both domains together, lies at {'; at '.join(parts)}."


def _restoration(summary: Table) -> str:
    rows: Rows = summary.where(control="", level="mean")
    if not rows:
        return ""
    size = max(r["size"] for r in rows)
    parts = []
    for criterion, words in (("relative", "the most changed weights"), ("random", "weights at random")):
        gains: dict[float, list[float]] = {}
        for row in rows:
            if row["size"] == size and row["criterion"] == criterion and not math.isnan(row["difference"]):
                gains.setdefault(float(row["fraction"]), []).append(row["difference"])
        means = {fraction: mean_of(values) for fraction, values in gains.items()}
        if means:
            best, last = from_highest(means)[0], max(means)
            parts.append(
                f"{words} {signed(means[best])} points at best ({exact_percent(best)}) and {signed(means[last])} at "
                f"{exact_percent(last)}"
            )
    return f"After {size:,} samples, as observed here, restoring changes accuracy: {'; '.join(parts)}." if parts else ""


def _by_level(summary: Table) -> str:
    rows: Rows = [r for r in summary.where(control="", criterion="relative") if r["level"] != "mean"]
    if not rows:
        return ""
    size = max(r["size"] for r in rows)
    rows = [r for r in rows if r["size"] == size and not math.isnan(r["p_holm"])]
    better = sum(r["p_holm"] < 0.05 and r["difference"] > 0 for r in rows)
    worse = sum(r["p_holm"] < 0.05 and r["difference"] < 0 for r in rows)
    return (
        f"Of {len(rows)} differences (training levels, fractions and domains), {better} are gains and {worse} are "
        "losses at p < 0.05 after Holm's adjustment."
    )


def _exposures(table: Table) -> str:
    filled: Rows = [r for r in table.where() if r["facts"]]
    if len(filled) < 2:
        return ""
    first, last = filled[0], filled[-1]
    steps = [round(b["mean_rate"] - a["mean_rate"], EQUAL) for a, b in pairwise(filled)]
    word = "rises at every step" if all(step > 0 for step in steps) else "does not rise at every step"
    return (
        f"The mean rate goes from {percent(first['mean_rate'])} of draws (written {_times(first)}) to "
        f"{percent(last['mean_rate'])} ({_times(last)}); it {word}."
    )


def _times(row: Mapping[str, Any]) -> str:
    name = str(row["exposures"])
    return {"never": "never", "1": "once"}.get(name, f"{name} times")
