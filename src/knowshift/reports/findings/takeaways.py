"""One line under each figure, from its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from knowshift.html.table import Table
from knowshift.html.words import listed, percent, signed
from knowshift.reports.findings.claims import Claim, Finding

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
    rows: Rows = summary.where(control="", test_level="mean")
    if len({r["size"] for r in rows}) < 2:
        return ""
    peaks: dict[int, list[str]] = {}
    for level in sorted({r["level"] for r in rows}):
        totals: dict[int, list[float]] = {}
        for row in rows:
            if row["level"] == level and not math.isnan(row["accuracy"]):
                totals.setdefault(row["size"], []).append(row["accuracy"])
        if totals:
            means = {size: sum(v) / len(v) for size, v in totals.items()}
            best = max(means, key=lambda size: (means[size], -size))
            peaks.setdefault(best, []).append(str(level))
    if not peaks:
        return ""
    parts = [
        f"{size:,} samples for level{'s' if len(levels) > 1 else ''} {listed(levels)}"
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
        gains: dict[str, list[float]] = {}
        for row in rows:
            if row["size"] == size and row["criterion"] == criterion and not math.isnan(row["difference"]):
                gains.setdefault(row["fraction"], []).append(row["difference"])
        means = {f: sum(v) / len(v) for f, v in gains.items()}
        if means:
            best = max(means, key=lambda f: (means[f], -float(f)))
            last = max(means, key=float)
            parts.append(
                f"{words} {signed(means[best])} points at best ({100 * float(best):g}%) and {signed(means[last])} at "
                f"{100 * float(last):g}%"
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
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    filled: Rows = [r for r in rows if r["facts"]]
    if len(filled) < 2:
        return ""
    first, last = filled[0], filled[-1]
    steps = [b["mean_rate"] - a["mean_rate"] for a, b in pairwise(filled)]
    word = "rises at every step" if all(s > 0 for s in steps) else "does not rise at every step"
    return (
        f"The mean rate goes from {percent(first['mean_rate'])} of draws (written {_times(first)}) to "
        f"{percent(last['mean_rate'])} ({_times(last)}); it {word}."
    )


def _times(row: Mapping[str, Any]) -> str:
    name = str(row["exposures"])
    return {"never": "never", "1": "once"}.get(name, f"{name} times")
