"""A budget of time: which facts are asked when not all can be, and what so many facts can tell (docs/mastery.md)."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import stats

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.system.progress import duration

#: Standard errors on either side of a 95% interval.
Z = float(stats.norm.ppf(0.975))

_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_DURATION = re.compile(rf"(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?", re.ASCII)


def seconds_of(budget: str | float) -> float:
    """Seconds of a budget: a number of them, or a text such as "90s", "10m", "1h30m" or "0.5h".

    Raises:
        InputError: another text, or no time at all.
    """
    seconds = math.nan
    if isinstance(budget, str):
        if budget and (found := _DURATION.fullmatch(budget)):
            seconds = sum(float(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True))
    elif isinstance(budget, (int, float)) and not isinstance(budget, bool):
        seconds = float(budget) if abs(budget) < 1e15 else math.inf
    if not 0 < seconds < 1e15:
        raise InputError(f"budget {repr(budget)[:80]}: expected a time such as 90s, 10m, 1h30m or 0.5h")
    return seconds


@dataclass(frozen=True)
class Budget:
    """Seconds that a run may take, counted from ``began``, a time of :func:`time.monotonic`."""

    seconds: float
    began: float = field(default_factory=time.monotonic)
    ends: float | None = None  # where this run has only a share of it: the time at which that ends

    @property
    def left(self) -> float:
        """Seconds from now; below 0 when it is used up."""
        return (self.began + self.seconds if self.ends is None else self.ends) - time.monotonic()

    def share(self, fraction: float) -> Budget:
        """The same for a run that may take a fraction of what is left now."""
        return replace(self, ends=time.monotonic() + fraction * self.left)


def balanced_order(relations: Sequence[str], seed: int) -> list[int]:
    """Places of facts, given the relation of each, in the order in which a budget takes them.

    Relations come in turn, and each gives one fact a turn; both orders are drawn by ``seed``. So any first part of the
    result is balanced: the counts of two relations that still have facts differ by at most one.
    """
    places: dict[str, list[int]] = {}
    for place, relation in enumerate(relations):
        places.setdefault(relation, []).append(place)
    rng = np.random.default_rng([seed, 10])
    names = sorted(places)
    turns = [rng.permutation(places[names[turn]]).tolist() for turn in rng.permutation(len(names))]
    return [
        place
        for *_, place in sorted((lap, turn, place) for turn, own in enumerate(turns) for lap, place in enumerate(own))
    ]


def balanced_sample(facts: Sequence[Fact], count: int, seed: int) -> list[Fact]:
    """So many facts, balanced over relations, in their own order; a larger sample holds every smaller one."""
    chosen = balanced_order([fact.relation for fact in facts], seed)[:count]
    return [facts[place] for place in sorted(chosen)]


def half_width(asked: Sequence[int], there: Sequence[int]) -> float:
    """Half of the 95% interval of a share of facts, at most: a fraction of 1.

    Of relation h, n_h of N_h facts are asked, drawn at random; n is the sum of n_h. The share among the facts asked is
    the mean over relations of the share in each, with weights n_h / n. Relations are strata, so its half-width is

        1.96 sqrt( sum over h of (n_h / n)^2 (1/4) / n_h (N_h - n_h) / (N_h - 1) )

    with the largest variance that a share can have, 1/4 at p = 1/2, in every relation, and the finite population
    correction (Cochran, "Sampling Techniques", 1977, 5.9). The normal interval is rough for a handful of facts.

    Args:
        asked: n_h of each relation, at least 1.
        there: N_h of each relation.
    """
    n = sum(asked)
    rest = (own * (of - own) / max(of - 1, 1) for own, of in zip(asked, there, strict=True))
    return min(1.0, Z * math.sqrt(sum(rest) / 4) / n)


@dataclass(frozen=True)
class Plan:
    """The facts that a budget has room for, and what they can tell."""

    budget: float  # seconds
    facts: tuple[Fact, ...]  # in the order of the source
    of: int  # facts there
    relations: dict[str, tuple[int, int]]  # of each, facts asked and facts there
    pace: float | None = None  # facts a second that it was made for; None where an earlier run had chosen
    at_random: bool = True  # within relations; False where another order is taken than the balanced one

    @classmethod
    def of_sample(
        cls,
        budget: float,
        facts: Sequence[Fact],
        count: int,
        seed: int,
        pace: float | None = None,
        order: Sequence[int] | None = None,
    ) -> Plan:
        """The plan that asks ``count`` of ``facts``, the first of an order of their places (the balanced one)."""
        first = balanced_order([fact.relation for fact in facts], seed) if order is None else order
        chosen = [facts[place] for place in sorted(first[:count])]
        there, asked = (Counter(fact.relation for fact in some) for some in (facts, chosen))
        relations = {name: (asked[name], there[name]) for name in sorted(there)}
        return cls(budget, tuple(chosen), len(facts), relations, pace, order is None)

    def about(self) -> dict[str, Any]:
        """What a record says of it, and what a later run needs to choose the same facts."""
        return {"seconds": self.budget, "facts": len(self.facts), "of": self.of}

    @property
    def known_to(self) -> tuple[float, float]:
        """:func:`half_width` over all relations asked, and the largest of one of them."""
        asked = [counts for counts in self.relations.values() if counts[0]]
        ones = [half_width([own], [of]) for own, of in asked]
        return half_width(*map(list, zip(*asked, strict=True))), max(ones)

    def told(self) -> dict[str, Any]:
        """For scripts: counts, and the 95% half-widths as fractions of 1."""
        of_all, of_one = self.known_to
        effect = {"share": of_all, "mean_rate": of_all, "share_of_relation": of_one}
        return {
            **self.about(),
            "relations": sum(own > 0 for own, _ in self.relations.values()),
            "of_relations": len(self.relations),
            "facts_per_second": self.pace,
            "smallest_effect": effect if self.at_random else None,
        }

    def line(self) -> str:
        """For people: what was chosen, and what it can and cannot tell."""
        relations = [own for own, _ in self.relations.values() if own]
        pace = "" if self.pace is None else f", at {self.pace:.2g} facts/s"
        if len(self.facts) == self.of:
            return f"budget {duration(self.budget)}: all {self.of:,} facts{pace}; nothing is left out"
        if not self.at_random:
            return (
                f"budget {duration(self.budget)}: {len(self.facts):,} of {self.of:,} facts over {len(relations)} of "
                f"{len(self.relations)} relations{pace}"
            )
        of_all, of_one = self.known_to
        missing = len(self.relations) - len(relations)
        none = f", and {missing} of {len(self.relations)} relations whole" if missing else ""
        return (
            f"budget {duration(self.budget)}: {len(self.facts):,} of {self.of:,} facts over {len(relations)} relations"
            f"{pace}; a share of facts, or mean R, over these relations is known to ±{100 * of_all:.1f} points (95%), "
            f"of one relation to ±{100 * of_one:.0f}; left out are {self.of - len(self.facts):,} facts{none}"
        )
