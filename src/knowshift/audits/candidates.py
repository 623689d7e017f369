"""Ways to undo a part of a fine-tuning, simplest first, and which of them are tried where there is no time for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from knowshift.parameters.selection.select import FRACTIONS

#: A criterion, its fractions in ascending order, and a region.
Sweep = tuple[str, tuple[float, ...], str]

#: All layers, and the two parts of them that are undone alone.
REGIONS = ("layers", "mlp", "attention")
#: Criteria with their fractions, simplest first; the paper's fractions where weights are put back.
#: Controls (random, least) are candidates too.
CRITERIA: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("interpolate", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)),
    ("lines", (0.25, 0.5, 0.75)),
    ("random", FRACTIONS),
    ("relative", FRACTIONS),
    ("least", FRACTIONS),
    ("fapm", (0.2, 0.4)),
    ("dg-hard", (1.0,)),
)
#: Each criterion for each region.
SWEEPS: tuple[Sweep, ...] = tuple(
    (criterion, fractions, region) for criterion, fractions in CRITERIA for region in REGIONS
)
#: What is tried first where there is no time for all, by criterion, fraction and region: a coarse curve, a random
#: restoration and one of the paper's criterion.
FIRST = (
    *(("interpolate", fraction, "layers") for fraction in (0.5, 0.3, 0.7)),
    ("random", 0.4, "layers"),
    ("relative", 0.2, "layers"),
    ("interpolate", 0.2, "layers"),
)
#: What follows them: some fractions of each criterion. All else comes last, in the order of :data:`SWEEPS`, and not at
#: all where none can be chosen.
COARSE: tuple[Sweep, ...] = (
    ("interpolate", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), "layers"),
    ("interpolate", (0.3, 0.5, 0.7), "mlp"),
    ("interpolate", (0.3, 0.5, 0.7), "attention"),
    ("lines", (0.25, 0.5, 0.75), "layers"),
    ("random", (0.1, 0.2, 0.4, 0.6), "layers"),
    ("relative", (0.05, 0.1, 0.2, 0.4), "layers"),
    ("least", (0.2, 0.4, 0.6), "layers"),
    ("fapm", (0.2, 0.4), "layers"),
    ("dg-hard", (1.0,), "layers"),
)


@dataclass(frozen=True)
class Candidate:
    """One way to undo a part of the tuning."""

    criterion: str
    fraction: float
    region: str

    @property
    def name(self) -> str:
        return f"{self.criterion} {self.fraction:g} ({self.region})"


def sweeps_for(candidates: float, *, coarse: bool = False) -> list[Sweep]:
    """So many candidates as sweeps, in the order in which they are tried: those of :data:`FIRST`, of :data:`COARSE`,
    all others; of each of these the simplest first.

    ``coarse``: none but the first two.
    """
    left, found = max(0, math.floor(min(candidates, len(each(SWEEPS))))), []
    wanted = _wanted(coarse)
    for tier in (set(FIRST), set(each(COARSE)), wanted):
        own = [one for one in each(SWEEPS) if one in tier & wanted][:left]
        left, wanted = left - len(own), wanted - set(own)
        for criterion, fractions, region in SWEEPS:
            if chosen := tuple(fraction for fraction in fractions if (criterion, fraction, region) in own):
                found.append((criterion, chosen, region))
    return found


def rank(candidate: Candidate) -> int:
    """Its place among all, of which the simplest is the first."""
    return each(SWEEPS).index((candidate.criterion, candidate.fraction, candidate.region))


def each(sweeps: Sequence[Sweep]) -> list[tuple[str, float, str]]:
    """Criterion, fraction and region of every candidate, in order."""
    return [(criterion, fraction, region) for criterion, fractions, region in sweeps for fraction in fractions]


def _wanted(coarse: bool) -> set[tuple[str, float, str]]:
    return set(each(SWEEPS)) & set(each(COARSE)) if coarse else set(each(SWEEPS))


def left_out(tried: Sequence[Candidate], *, coarse: bool = False) -> list[str]:
    """What was not tried, in words: a criterion, its fractions and a region each; ``coarse`` as in the sweeps."""
    wanted = _wanted(coarse)
    done = {(one.criterion, one.fraction, one.region) for one in tried}
    found = []
    for criterion, fractions, region in SWEEPS:
        if missing := [f"{one:g}" for one in fractions if (criterion, one, region) in wanted - done]:
            found.append(f"{criterion} {', '.join(missing)} ({region})")
    return found
