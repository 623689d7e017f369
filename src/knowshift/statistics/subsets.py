"""Accuracy on facts that differ from model to model: the plain mean over test levels, with what each fact adds.

A mean over a level's facts that belong to a subset is a ratio, hits over facts. Its noise over facts is that of its
linearisation: a fact adds (hit - mean) / n to it, and two means on overlapping facts vary together by the sum of the
products of what each fact adds (Sarndal, Swensson and Wretman 1992, section 5.6; n / (n - 1) corrects for the mean that
is estimated).

Shape suffixes: F facts, U units (one training draw).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knowshift.statistics.crossed import DrawNoise, interval_of_covariance
from knowshift.statistics.estimates import MISSING, Estimate, Floats
from knowshift.statistics.resampling import Integers

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Part:
    """A mean (or a sum of means), and what each fact adds to it by chance; NaN where there was no fact."""

    value: float
    added_F: Floats

    @property
    def known(self) -> bool:
        return not math.isnan(self.value)

    def minus(self, other: Part) -> Part:
        """The difference, paired by fact."""
        return Part(self.value - other.value, self.added_F - other.added_F)

    def times(self, factor: float) -> Part:
        return Part(factor * self.value, factor * self.added_F)


def mean_over_levels(hits_F: Bools, inside_F: Bools, level_F: Integers, domain_F: Integers) -> Part:
    """The plain mean over the domains in ``inside_F`` of the plain mean over its test levels of the share of hits.

    A level without a fact inside takes no part. A level with one fact adds no noise that could be seen.
    """
    added = np.zeros(len(hits_F))
    domains = np.unique(domain_F[inside_F])
    value = 0.0 if len(domains) else math.nan
    for domain in domains:
        here = inside_F & (domain_F == domain)
        levels = np.unique(level_F[here])
        for level in levels:
            facts = np.flatnonzero(here & (level_F == level))
            weight, n = 1 / len(levels) / len(domains), len(facts)
            mean = float(hits_F[facts].mean())
            value += weight * mean
            if n > 1:
                added[facts] = weight * (hits_F[facts] - mean) / n * math.sqrt(n / (n - 1))
    return Part(value, added)


def estimate(
    units: Sequence[tuple[int, Part]], noise: DrawNoise | None = None, relation_F: Integers | None = None
) -> Estimate:
    """The sum over strata of the mean over draws of what (stratum, part) contribute, over draws and facts.

    ``noise`` says how noisy a draw is where that is pooled. With a relation for each fact, relations are the clusters:
    what their facts add is summed first, and there are as many degrees of freedom as relations less one.
    """
    kept = [(stratum, part) for stratum, part in units if part.known]
    if not kept:
        return MISSING
    values = np.asarray([part.value for _, part in kept])
    added_UF = np.stack([part.added_F for _, part in kept])
    freedom = math.inf
    if relation_F is not None:
        used = np.unique(relation_F[(added_UF != 0).any(axis=0)])
        if len(used) < 2:
            return MISSING
        together = np.stack([added_UF[:, relation_F == relation].sum(axis=1) for relation in used], axis=1)
        added_UF, freedom = together * math.sqrt(len(used) / (len(used) - 1)), len(used) - 1.0
    return interval_of_covariance(values, added_UF @ added_UF.T, [stratum for stratum, _ in kept], noise, freedom)
