"""What stands behind a verdict, in one line: the effect excluded, other relations, pairs, what could be seen."""

from __future__ import annotations

import math
from collections.abc import Callable

from knowshift.html.words import interval_words, listed, signed
from knowshift.statistics.estimates import Clustered, Estimate
from knowshift.statistics.power import draws_needed, smallest_effect

#: How an effect is written, by the unit of its claim: scale, decimals, unit.
WRITTEN = {"points": (100.0, 1, " points"), "nats": (1.0, 2, " nats"), "correlation": (1.0, 2, "")}


def certainty(estimate: Estimate, unit: str, shown: bool, wanted: float) -> str:
    """What an estimate says and what it cannot say.

    Args:
        estimate: of a claim.
        unit: one of :data:`WRITTEN`.
        shown: whether the claim is; if not, the line begins with the effect that is excluded.
        wanted: the effect that draws are counted for, in the estimate's own unit.
    """
    scale, digits, name = WRITTEN[unit]

    def size(effect: float) -> str:
        return f"{scale * effect:.{digits}f}{name}"

    said = []
    if not estimate.known:
        return ""
    if not shown or math.isnan(estimate.high):
        said.append(excluded(estimate.high, unit))
    if not math.isnan(estimate.low):
        by_fact = f"95% interval {interval_words(estimate, scale, digits)}{name}"
        said.append(f"{by_fact}{_clusters(estimate.clustered, scale, digits) if estimate.clustered else ''}.")
    if estimate.turned:
        pairs = estimate.turned
        said.append(
            f"Of {pairs.pairs:,} pairs of answers, {pairs.gained:,} are right only on the side that the claim favours, "
            f"{pairs.lost:,} only on the other."
        )
    visible = smallest_effect(estimate.error, estimate.freedom)
    if not math.isnan(visible):
        said.append(
            f"An effect of {size(visible)} would show in four of five such runs; {_draws(estimate, wanted, size)}"
        )
    return " ".join(said)


def excluded(high: float, unit: str, where: str = "") -> str:
    """Which effect is excluded by an interval whose upper end is ``high`` (NaN: there is none), as a sentence.

    Args:
        high: in the estimate's own unit.
        unit: one of :data:`WRITTEN`.
        where: what was asked, where a sentence is about more than one thing: "on them".
    """
    scale, digits, name = WRITTEN[unit]
    where = f" {where}" if where else ""
    if math.isnan(high):
        return f"No effect is excluded{where}: nothing was repeated, so there is no interval."
    return f"Excluded is an effect above {signed(high, scale, digits)}{name}{where}."


def _clusters(clustered: Clustered, scale: float, digits: int) -> str:
    found = clustered.interval
    about = [
        f"{name} {value}"
        for name, value in (
            ("degrees of freedom", f"{found.freedom:.1f}" if found.error > 0 else ""),
            ("intra-class correlation", _two(clustered.correlation)),
            ("design effect", _two(clustered.design_effect)),
        )
        if value
    ]
    words = interval_words(found, scale, digits)
    return f"; with {clustered.clusters} relations as clusters {words}{f' ({listed(about)})' if about else ''}"


def _two(value: float) -> str:
    return "" if math.isnan(value) else f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")


def _draws(estimate: Estimate, wanted: float, size: Callable[[float], str]) -> str:
    needed = draws_needed(estimate, wanted)
    if math.isnan(needed):
        return f"how many draws {size(wanted)} need is not known from one draw."
    if math.isinf(needed):
        return f"for {size(wanted)} no number of draws is enough, only more facts."
    return f"{size(wanted)} need {needed:.0f} draws."
