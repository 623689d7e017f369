"""Changes over facts with their intervals: of R, of answers in each form, of knowledge in any form.

Known facts are those that one measurement of the base puts at :data:`.moves.KNOWN` or above; what the base knew of them
is taken from its *other* measurement, so that facts which looked known by luck do not count as lost. Both measurements
take either part, and their halves are added:

    change = (S_1 + S_2) / (n_1 + n_2)
    S_1 = sum over the n_1 facts known by the first of (after - second), S_2 the other way round

and the noise floor is the same with a measurement of the base in the place of ``after``. Greedy answers are the same in
both, and only the choice of facts differs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from knowshift.statistics.estimates import MISSING, Estimate, from_error, without_interval

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Change:
    """A mean change over chosen facts, in units of what changed (fractions of 1).

    Attributes:
        by_fact: with other facts of the same relations in mind.
        by_relation: with other relations in mind; relations are clusters. Missing with one relation.
        facts: chosen facts (half of those that one of two measurements chose).
        seen: the smallest change that so many facts show with a probability of 80%.
    """

    by_fact: Estimate
    by_relation: Estimate
    facts: float
    seen: float


def mean_change(change: Floats, weight: Floats, relation: Sequence[str]) -> Change:
    """The mean sum(change) / sum(weight) over facts [F], with its intervals.

    The standard error is that of a ratio, by its linearised residuals e = change - mean x weight (Cochran, "Sampling
    Techniques", 1977, 6.4): n / (n - 1) sum e² over the n facts with a weight, or over relations' sums of e, which is
    the cluster-robust one with its small-sample factor G / (G - 1) and G - 1 degrees of freedom. That no fact of a few
    has moved does not say that none would: half a fact lost, half a fact gained and one that stayed are added (Agresti
    and Min, "Simple improved confidence intervals for comparing matched proportions", 2005), to the error alone.
    """
    total, chosen = float(weight.sum()), weight > 0
    n = int(chosen.sum())
    if total <= 0:
        return Change(MISSING, MISSING, 0.0, math.nan)
    mean = float(change.sum()) / total
    residual = (change - mean * weight)[chosen]
    names, own = np.unique(np.asarray(relation)[chosen], return_inverse=True)
    by_fact = _estimate(mean, residual, total, n)
    by_relation = _estimate(mean, np.bincount(own, residual).astype(float), total, len(names))
    reach = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    return Change(by_fact, by_relation, total / 2, float(reach * by_fact.error))


def _estimate(mean: float, residual: Floats, total: float, units: int) -> Estimate:
    if units < 2:
        return without_interval(mean, 1)
    # Facts chosen by both measurements have a weight of 2, and so have those added.
    added = 4 * (0.5 * (1 + mean) ** 2 + 0.5 * (1 - mean) ** 2 + mean**2)
    error = math.sqrt(units / (units - 1) * float((residual**2).sum()) + added) / (total + 4)
    found = from_error(mean, error, units - 1.0, 1)
    return replace(found, low=max(found.low, -1.0), high=min(found.high, 1.0))  # nothing changes by more


@dataclass(frozen=True)
class Swapped:
    """The two ways to choose facts by one measurement of the base and to compare with the other: weights [F]."""

    first: Bools
    second: Bools
    relation: Sequence[str]

    @property
    def weight(self) -> Floats:
        both: Floats = self.first.astype(float) + self.second.astype(float)
        return both

    def change(self, first: Floats, second: Floats, after: Floats) -> Change:
        """Of a quantity that the base's measurements put at ``first`` and ``second``, and ``after`` at another."""
        moved = np.where(self.first, after - second, 0.0) + np.where(self.second, after - first, 0.0)
        return mean_change(moved, self.weight, self.relation)

    def floor(self, first: Floats, second: Floats) -> Change:
        """The same with the base's own measurement in the place of ``after``: what choosing facts makes by itself."""
        moved = np.where(self.first, second - first, 0.0) + np.where(self.second, first - second, 0.0)
        return mean_change(moved, self.weight, self.relation)


def discordant(before: Bools, after: Bools) -> tuple[int, int, float]:
    """(right before only, right after only, exact two-sided p of McNemar's test) of paired greedy answers."""
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    both = lost + gained
    return lost, gained, 1.0 if not both else float(stats.binomtest(lost, both).pvalue)
