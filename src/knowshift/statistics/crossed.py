"""Facts crossed with training draws: the interval of a linear contrast.

Everything the report says is a *linear contrast*: a weighted sum of accuracies (or of mean KL) of tuned models on
groups of facts. Two crossed factors are random: which facts were asked, and which training set was drawn. Facts are
resampled within their test level (a bootstrap, :mod:`knowshift.statistics.resampling`). With the two to five draws of
a study, resampling draws as well gives intervals that are too short, so their part comes from its exact moment, with
Student's t for how few they are (:func:`crossed_interval`).

Shape suffixes: B replicates, U units (one training draw).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from knowshift.statistics.estimates import MANY, MISSING, Estimate, Parts, from_error, without_interval

Floats = NDArray[np.float64]


#: Replicates that differ by less than this share of their size are equal: the rest is rounding.
SAME = 1e-9


@dataclass(frozen=True, slots=True)
class DrawNoise:
    """What one training draw adds by chance: the variance of a draw's value, known with so many degrees of freedom."""

    variance: float
    freedom: float


def pooled_noise(values_by_stratum: Sequence[Floats]) -> DrawNoise | None:
    """The draws' variance within strata taken together, as in an analysis of variance; None without any two draws.

    It takes the noise of a draw to be alike at, say, the five training levels: with three draws a level, one level's
    own variance has 2 degrees of freedom and an interval 2.2 times as wide as it should be; pooled it has 10.
    """
    freedom = sum(len(values) - 1 for values in values_by_stratum)
    if freedom == 0:
        return None
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in values_by_stratum)
    return DrawNoise(squares / freedom, float(freedom))


def crossed_interval(
    values_U: Floats,
    replicates_BU: NDArray[np.floating],
    stratum_U: Sequence[int],
    noise: DrawNoise | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Interval of a sum over strata of the mean over the stratum's training draws.

    ``values_U[u]`` is what draw u contributes, ``replicates_BU`` the same under resampled facts, ``stratum_U[u]`` names
    what u is a draw of (a training level). With c(u, v) the covariance of two units over replicates,

        variance = [mean of c(u, v) over pairs u != v of a stratum, and over all pairs across strata]   facts
                 + [sample variance of the draws' values / number of draws]                            draws

    The first part is the noise all draws share; the second holds the draws' own noise and their interaction with the
    facts once. (Resampling both ways counts that interaction three times and the draws too little: Owen 2007.) The
    variance over facts alone is a lower bound. Degrees of freedom after Satterthwaite (1946). A stratum with one draw
    contributes no draw part: ``draws`` is then 1, and the interval holds for that draw only. Where the replicates are
    equal too, nothing has varied, and interval and p are missing. ``noise``, pooled over contrasts of the same kind,
    stands for the sample variance of a stratum with two draws or more.
    """
    if not len(values_U) or bool(np.isnan(values_U).any()):
        return MISSING
    _, counts = np.unique(np.asarray(stratum_U), return_counts=True)
    if counts.min() == 1 and not _varies(replicates_BU):
        return without_interval(_value(values_U, stratum_U), 1)
    covariance_UU = np.atleast_2d(np.cov(replicates_BU.astype(np.float64), rowvar=False, ddof=1))
    return interval_of_covariance(values_U, covariance_UU, stratum_U, noise, confidence=confidence)


def interval_of_covariance(
    values_U: Floats,
    covariance_UU: Floats,
    stratum_U: Sequence[int],
    noise: DrawNoise | None = None,
    freedom_of_facts: float = math.inf,
    confidence: float = 0.95,
) -> Estimate:
    """:func:`crossed_interval` with the covariance of units over facts, known with ``freedom_of_facts``.

    With one draw of a stratum and a covariance of 0 nothing has varied, and interval and p are missing.
    """
    strata = np.asarray(stratum_U)
    labels, counts = np.unique(strata, return_counts=True)
    share_U = 1.0 / counts[np.searchsorted(labels, strata)]
    fewest = int(counts.min())
    facts_only = float(share_U @ covariance_UU @ share_U)
    shared, draw_part, freedom_sum = facts_only, 0.0, 0.0
    for label, count in zip(labels, counts, strict=True):
        inside = np.flatnonzero(strata == label)
        if count == 1:
            continue
        block = covariance_UU[np.ix_(inside, inside)]
        off_diagonal = (block.sum() - np.trace(block)) / (count * (count - 1))
        shared += off_diagonal - block.mean()
        own = noise or DrawNoise(float(np.var(values_U[inside], ddof=1)), count - 1)
        part = own.variance / count
        draw_part += part
        freedom_sum += part**2 / own.freedom
    shared = max(shared, 0.0)
    variance = max(shared + draw_part, facts_only)
    # Where facts alone say more than that, the rest is the draws' interaction with facts: more draws shrink it too.
    rest = variance - shared
    if fewest == 1:
        if variance <= (SAME * float(np.abs(values_U).max())) ** 2:
            return without_interval(_value(values_U, stratum_U), fewest)
        parts = Parts(variance, math.nan, math.nan)
    else:
        parts = Parts(shared, rest * fewest, rest**2 / freedom_sum if freedom_sum > 0 else MANY)
    below = freedom_sum + (variance - draw_part) ** 2 / freedom_of_facts
    freedom = min(variance**2 / below, MANY) if below > 0 else MANY
    found = from_error(_value(values_U, stratum_U), math.sqrt(variance), freedom, fewest, confidence)
    return replace(found, parts=parts)


def over_draws(strata: Sequence[int], values: Sequence[float]) -> Estimate:
    """Mean over strata of the mean over draws, of what has no facts to resample; with one draw there is no interval."""
    array = np.asarray(values, dtype=np.float64) / max(1, len(set(strata)))
    return crossed_interval(array, np.zeros((2, len(array))), strata)


def _value(values_U: Floats, stratum_U: Sequence[int]) -> float:
    """The sum over strata of the mean over draws."""
    _, index_U, counts = np.unique(np.asarray(stratum_U), return_inverse=True, return_counts=True)
    return float(values_U @ (1.0 / counts[index_U]))


def _varies(replicates_BU: NDArray[np.floating]) -> bool:
    """Whether any column holds two numbers that differ by more than rounding; one replicate or none does not vary."""
    if len(replicates_BU) < 2:
        return False
    return bool((np.ptp(replicates_BU, axis=0) > SAME * np.abs(replicates_BU).max(axis=0)).any())
