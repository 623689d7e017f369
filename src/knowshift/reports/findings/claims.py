"""A claim is one contrast with its interval and a verdict; a finding is a few claims and the controls beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar

from knowshift.html.words import interval_words, signed
from knowshift.reports.evidence.evidence import Evidence
from knowshift.reports.evidence.scores import Scores
from knowshift.reports.findings.certainty import certainty
from knowshift.statistics.choices import EQUAL
from knowshift.statistics.estimates import Estimate
from knowshift.statistics.holm import holm
from knowshift.statistics.power import draws_needed, smallest_effect

Verdict = Literal["shown", "not shown", "undecided"]
FindingVerdict = Literal["shown", "shown in part", "not shown", "undecided"]

#: The smallest effect that counts: one point of accuracy (or of a share).
POINT = 0.01

#: Both domains, as their indices.
BOTH = (0, 1)

#: A level, a size or a fraction.
Size = TypeVar("Size", int, float)


@dataclass(frozen=True)
class Claim:
    """A statement that holds if ``estimate`` is above 0.

    ``margin`` is the smallest effect that counts. ``word`` and ``by_relation`` are the same contrast graded at word
    boundaries, and with relations instead of facts resampled.
    """

    name: str
    statement: str
    scope: str
    unit: Literal["points", "nats", "correlation"]
    estimate: Estimate
    sentence: str
    margin: float = POINT
    core: bool = False  # part of the finding's verdict
    p_holm: float = math.nan
    word: Estimate | None = None
    by_relation: Estimate | None = None

    @property
    def verdict(self) -> Verdict:
        return judge(self.estimate, self.margin, self.p_holm)

    @property
    def excluded(self) -> float:
        """An effect above this is excluded: the interval's far end. NaN where the claim is shown or has no interval."""
        return math.nan if self.verdict == "shown" else self.estimate.high

    @property
    def smallest_effect(self) -> float:
        """The effect that four of five such runs would show; Holm's adjustment is not counted."""
        return smallest_effect(self.estimate.error, self.estimate.freedom)

    @property
    def wanted(self) -> float:
        """The effect that draws are counted for: twice the margin, so 2 points of accuracy."""
        return 2 * self.margin

    @property
    def draws_needed(self) -> float:
        """Draws of every setting that show ``wanted``; infinite where only more facts do, NaN where unknown."""
        return draws_needed(self.estimate, self.wanted)

    @property
    def certainty(self) -> str:
        """What stands behind the verdict, as one line; empty where nothing was measured."""
        return certainty(self.estimate, self.unit, self.verdict == "shown", self.wanted)


class Reported(NamedTuple):
    """One of the paper's findings: its number here, its title, and what the paper reports, in its own numbers."""

    number: int
    title: str
    paper: str


@dataclass(frozen=True)
class Finding:
    """One of the paper's findings (the fields of :class:`Reported`), looked for in this run."""

    number: int
    title: str
    paper: str
    sentence: str
    claims: tuple[Claim, ...]
    controls: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()
    short: str = ""  # for the page's headline; empty where not measured

    @property
    def verdict(self) -> FindingVerdict:
        """Shown if every core claim is; not shown if none is and one is excluded; in part if some are."""
        verdicts = [claim.verdict for claim in self.claims if claim.core]
        if all(v == "shown" for v in verdicts):
            return "shown"
        if any(v == "shown" for v in verdicts):
            return "shown in part"
        return "not shown" if "not shown" in verdicts else "undecided"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is missing is null."""
        return {
            "finding": self.number,
            "title": self.title,
            "paper": self.paper,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "claims": [_claim_json(claim) for claim in self.claims],
            "controls": [_claim_json(claim) for claim in self.controls],
            "notes": list(self.notes),
        }


def judge(estimate: Estimate, margin: float, p_holm: float = math.nan) -> Verdict:
    """Shown: the interval lies above 0 (and, where claims were adjusted together, p stays below 0.05).

    Not shown: the interval lies below ``margin``: the effect is opposite, or too small to matter. Undecided: neither,
    or not measured.
    """
    if math.isnan(estimate.low):
        return "undecided"
    if estimate.low > 0 and not p_holm > 0.05:
        return "shown"
    return "not shown" if estimate.high < margin else "undecided"


def _number(value: float) -> float | None:
    return None if math.isnan(value) or math.isinf(value) else round(value, 6)


def _estimate_json(estimate: Estimate) -> dict[str, float | None]:
    return {"value": _number(estimate.value), "low": _number(estimate.low), "high": _number(estimate.high)}


def _claim_json(claim: Claim) -> dict[str, Any]:
    clustered, turned = claim.estimate.clustered, claim.estimate.turned
    return {
        "name": claim.name,
        "statement": claim.statement,
        "scope": claim.scope,
        "unit": claim.unit,
        "core": claim.core,
        "verdict": claim.verdict,
        "estimate": _number(claim.estimate.value),
        "interval": [_number(claim.estimate.low), _number(claim.estimate.high)],
        "p": _number(claim.estimate.p),
        "p_holm": _number(claim.p_holm),
        "draws": claim.estimate.draws,
        "margin": claim.margin,
        "word_boundary": _estimate_json(claim.word) if claim.word else None,
        "by_relation": _estimate_json(claim.by_relation) if claim.by_relation else None,
        "excluded": _number(claim.excluded),
        "clusters": clustered
        and {
            "relations": clustered.clusters,
            "interval": [_number(clustered.interval.low), _number(clustered.interval.high)],
            "p": _number(clustered.interval.p),
            "freedom": _number(clustered.interval.freedom),
            "intraclass_correlation": _number(clustered.correlation),
            "design_effect": _number(clustered.design_effect),
        },
        "turned": turned and {"pairs": turned.pairs, "gained": turned.gained, "lost": turned.lost},
        "smallest_effect": _number(claim.smallest_effect),
        "draws_needed": "inf" if math.isinf(claim.draws_needed) else _number(claim.draws_needed),
        "sentence": claim.sentence,
        "certainty": claim.certainty,
    }


class ThreeWays(TypedDict):
    """Keyword arguments of a :class:`Claim`."""

    estimate: Estimate
    word: Estimate
    by_relation: Estimate


def three_ways(evidence: Evidence, contrast: Callable[[Scores], Estimate]) -> ThreeWays:
    """A contrast under the substring grader, the word-boundary grader, and with relations as clusters."""
    return {
        "estimate": contrast(evidence.substring),
        "word": contrast(evidence.word),
        "by_relation": contrast(evidence.by_relation),
    }


def adjusted(claims: Sequence[Claim]) -> tuple[Claim, ...]:
    """Claims asked together (one for each training level), with Holm's p."""
    p_values = holm([claim.estimate.p for claim in claims])
    return tuple(replace(claim, p_holm=p) for claim, p in zip(claims, p_values, strict=True))


def brackets(estimate: Estimate, scale: float = 100, digits: int = 1) -> str:
    """The 95% interval as the page writes it: "[+1.2 to +5.0]"."""
    return f"[{interval_words(estimate, scale, digits)}]"


def points(estimate: Estimate, digits: int = 1) -> str:
    """ "+3.1 points [+1.2 to +5.0]"."""
    return _written(estimate, 100, digits, " points")


def nats(estimate: Estimate) -> str:
    """ "+0.42 nats [+0.30 to +0.54]"."""
    return _written(estimate, 1, 2, " nats")


def plain(estimate: Estimate) -> str:
    """ "+0.42 [+0.30 to +0.54]"."""
    return _written(estimate, 1, 2, "")


def _written(estimate: Estimate, scale: float, digits: int, unit: str) -> str:
    if not estimate.known:
        return "not measured"
    return f"{signed(estimate.value, scale, digits)}{unit} {brackets(estimate, scale, digits)}"


def caution(estimate: Estimate) -> str:
    """The words that a headline adds where the interval contains 0, or where there is none."""
    return "" if estimate.low > 0 or estimate.high < 0 else " (may be chance)"


def more_or_less(value: float) -> str:
    """ "3.1 points more", "0.4 points less"."""
    if math.isnan(value):
        return "an unknown amount more"
    return f"{abs(100 * value):.1f} points {'more' if value >= 0 else 'less'}"


def from_highest(means: Mapping[Size, float]) -> list[Size]:
    """The keys of ``means`` from the highest mean to the lowest; those whose means differ by rounding alone ascend."""
    return sorted(means, key=lambda name: (-round(means[name], EQUAL), name))


def mean_of(values: Sequence[float]) -> float:
    """Plain mean, exactly rounded; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan
