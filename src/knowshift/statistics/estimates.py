"""A number with its interval: of a mean, of a proportion, of replicates, or from a standard error.

What is missing is NaN, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from knowshift.statistics.discordant import Turned

Floats = NDArray[np.float64]


#: Degrees of freedom beyond which Student's t is the normal distribution for every purpose here.
MANY = 1e6


@dataclass(frozen=True, slots=True)
class Parts:
    """Where a variance comes from, in the unit of the estimate squared: ``facts`` + ``one_draw`` / draws."""

    facts: float  # shared by all draws: more of them do not shrink it
    one_draw: float  # with one draw in every stratum; NaN where some stratum has one
    freedom: float  # degrees of freedom of one_draw


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval. ``draws`` is the fewest training draws behind it: with 1, only facts vary.

    What is missing is NaN: everything where there was nothing to average, all but the value where nothing was repeated.
    ``parts``, ``clustered`` and ``turned`` are there for contrasts of answers alone.
    """

    value: float
    low: float
    high: float
    error: float  # standard error, in the unit of value
    freedom: float  # degrees of freedom of Student's t
    p: float  # two-sided, of value = 0
    draws: int
    parts: Parts | None = None
    clustered: Clustered | None = None
    turned: Turned | None = None  # from what is subtracted to what it is subtracted from

    @property
    def known(self) -> bool:
        """False where there was nothing to average: the number is missing, not 0."""
        return not math.isnan(self.value)

    def negated(self) -> Estimate:
        """The same contrast with the opposite sign."""
        return replace(
            self,
            value=-self.value,
            low=-self.high,
            high=-self.low,
            clustered=self.clustered and replace(self.clustered, interval=self.clustered.interval.negated()),
            turned=self.turned and self.turned.negated(),
        )


@dataclass(frozen=True, slots=True)
class Clustered:
    """The same estimate for other clusters of facts (other relations) than those asked about.

    ``design_effect`` is the facts' part of the variance with clusters over that with independent facts.
    """

    interval: Estimate
    clusters: int
    correlation: float  # intra-class, of the facts' own differences within their groups
    design_effect: float


MISSING = Estimate(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, 0)


def without_interval(value: float, draws: int) -> Estimate:
    """A number without repetitions: its uncertainty is unknown, so interval and p are missing, not 0."""
    return Estimate(value, math.nan, math.nan, math.nan, math.nan, math.nan, draws)


def from_error(value: float, error: float, freedom: float, draws: int, confidence: float = 0.95) -> Estimate:
    """The symmetric t interval of a value with its standard error; replicates that all agree give a point."""
    if error <= 0:
        return Estimate(value, value, value, 0.0, freedom, 1.0 if value == 0 else 0.0, draws)
    reach = float(special.stdtrit(freedom, 0.5 + confidence / 2)) * error
    p = float(2 * special.stdtr(freedom, -abs(value) / error))
    return Estimate(value, value - reach, value + reach, error, freedom, p, draws)


def widened(estimate: Estimate, factor: float) -> Estimate:
    """The same estimate with its standard error multiplied: for a choice that differed between folds."""
    if not estimate.known or math.isnan(estimate.error):
        return estimate
    parts, clustered = estimate.parts, estimate.clustered
    return replace(
        from_error(estimate.value, estimate.error * factor, estimate.freedom, estimate.draws),
        parts=parts and Parts(factor**2 * parts.facts, factor**2 * parts.one_draw, parts.freedom),
        clustered=clustered and replace(clustered, interval=widened(clustered.interval, factor)),
        turned=estimate.turned,
    )


def mean_interval(values: Sequence[float] | Floats, confidence: float = 0.95) -> Estimate:
    """Mean of independent values with its t interval; one value has no interval (NaN ends)."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return MISSING
    value = float(array.mean())
    if len(array) == 1:
        return without_interval(value, 1)
    error = float(array.std(ddof=1)) / math.sqrt(len(array))
    return from_error(value, error, len(array) - 1.0, len(array), confidence)


def proportion_interval(hits: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; NaN for no items. Stays in 0..1, and is no point at 0 and at 1."""
    if count == 0:
        return math.nan, math.nan
    z = float(special.ndtri(0.5 + confidence / 2))
    rate = hits / count
    scale = 1 + z**2 / count
    centre = (rate + z**2 / (2 * count)) / scale
    reach = z * math.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2)) / scale
    return max(0.0, centre - reach), min(1.0, centre + reach)


def percentile_interval(value: float, replicates_B: Floats, draws: int, confidence: float = 0.95) -> Estimate:
    """Bootstrap percentile interval, for what is not linear (a rank correlation); p from the share beyond 0.

    Replicates are noisier than what was observed, and noise weakens a correlation, so the observed value may be beyond
    their percentiles; the interval then reaches to it.
    """
    finite = replicates_B[np.isfinite(replicates_B)]
    if math.isnan(value):
        return MISSING
    if len(finite) < 2:
        return without_interval(value, draws)
    low, high = np.quantile(finite, [0.5 - confidence / 2, 0.5 + confidence / 2])
    beyond = min(int((finite <= 0).sum()), int((finite >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (len(finite) + 1))
    low, high = min(float(low), value), max(float(high), value)
    return Estimate(value, low, high, float(finite.std(ddof=1)), math.nan, p, draws)
