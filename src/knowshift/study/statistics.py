"""How sure a number is: facts resampled, training draws crossed with them, paired differences, Holm.

Everything the report says is a *linear contrast*: a weighted sum of accuracies (or of mean KL) of tuned models on
groups of facts. Two things could have come out otherwise, and they cross: which facts were asked, and which training
set was drawn. Facts are resampled within their test level (a bootstrap, one matrix product for all models at once).
With the two to five draws a study can pay for, resampling draws as well gives intervals that are too short, so their
part comes from its exact moment, with Student's t for how few they are (:func:`crossed_interval`).

Shape suffixes: B replicates, F facts, C columns (one tuned model each), G groups of facts, U units (one training draw).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Degrees of freedom beyond which Student's t is the normal distribution for every purpose here.
MANY = 1e6


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval. ``draws`` is the fewest training draws behind it: with 1, only facts vary.

    What is missing is NaN: everything where there was nothing to average, all but the value where nothing was repeated.
    """

    value: float
    low: float
    high: float
    error: float  # standard error, in the unit of value
    freedom: float  # degrees of freedom of Student's t
    p: float  # two-sided, of value = 0
    draws: int

    @property
    def known(self) -> bool:
        """False where there was nothing to average: the number is missing, not 0."""
        return not math.isnan(self.value)


MISSING = Estimate(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, 0)

#: Replicates that differ by less than this share of their size are equal: the rest is rounding.
SAME = 1e-9


def without_interval(value: float, draws: int) -> Estimate:
    """A number that nothing was repeated for: how sure it is cannot be said, so interval and p are missing, not 0."""
    return Estimate(value, math.nan, math.nan, math.nan, math.nan, math.nan, draws)


def group_means(values_FC: NDArray[np.generic], group_F: Integers, groups: int) -> Floats:
    """Mean of each column over each group of facts, shape (C, G); NaN where a group is empty (missing, not 0)."""
    indicator_FG = (group_F[:, None] == np.arange(groups)[None, :]).astype(np.float64)
    sums_CG = values_FC.T.astype(np.float64) @ indicator_FG
    counts_G = indicator_FG.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(counts_G > 0, sums_CG / counts_G, np.nan))


def resampling_weights(
    group_F: Integers, replicates: int, seed: int, cluster_F: Integers | None = None, strata_F: Integers | None = None
) -> Floats:
    """How often each replicate holds each fact, shape (B, F).

    Facts are drawn with replacement within their group; with ``cluster_F`` (a relation for each fact) whole clusters
    are drawn within ``strata_F`` (a domain). From n units n - 1 are drawn and weighted n / (n - 1), which makes the
    variance of a mean unbiased for small groups (Rao and Wu 1988); a group of one cannot vary.
    """
    rng = np.random.default_rng(seed)
    weights_BF = np.zeros((replicates, len(group_F)))
    strata = group_F if cluster_F is None else (np.zeros_like(group_F) if strata_F is None else strata_F)
    for stratum in np.unique(strata):
        facts = np.flatnonzero(strata == stratum)
        units, unit_of_fact = np.unique(facts if cluster_F is None else cluster_F[facts], return_inverse=True)
        count = len(units)
        if count == 1:
            weights_BF[:, facts] = 1.0
            continue
        drawn = rng.multinomial(count - 1, np.full(count, 1.0 / count), size=replicates)
        weights_BF[:, facts] = (drawn * (count / (count - 1)))[:, unit_of_fact]
    return weights_BF


def replicated_means(
    values_FC: NDArray[np.generic], group_F: Integers, groups: int, weights_BF: Floats
) -> NDArray[np.float32]:
    """Group means under each resampling, shape (B, C, G).

    Linearised round the observed mean, ``a + sum w (x - a) / n``: the same as the plain weighted mean when a group's
    weights sum to its size, and defined when a replicate of whole relations leaves a small group empty.
    """
    means_CG = group_means(values_FC, group_F, groups)
    out = np.full((len(weights_BF), values_FC.shape[1], groups), np.nan, dtype=np.float32)
    for group in range(groups):
        facts = np.flatnonzero(group_F == group)
        if not len(facts):
            continue
        centred_FC = values_FC[facts].astype(np.float64) - means_CG[None, :, group]
        out[:, :, group] = means_CG[None, :, group] + (weights_BF[:, facts] @ centred_FC) / len(facts)
    return out


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
    variance over facts alone is a lower bound. Degrees of freedom after Satterthwaite. A stratum with one draw
    contributes no draw part: ``draws`` is then 1, and the interval speaks for that draw only. Where the replicates are
    equal too, nothing has varied, and interval and p are missing. ``noise``, pooled over contrasts of the same kind,
    stands for the sample variance of a stratum with two draws or more.
    """
    strata = np.asarray(stratum_U)
    labels, counts = np.unique(strata, return_counts=True)
    if not len(values_U) or bool(np.isnan(values_U).any()):
        return MISSING
    share_U = 1.0 / counts[np.searchsorted(labels, strata)]
    value = float(values_U @ share_U)
    fewest = int(counts.min())
    if fewest == 1 and not _varies(replicates_BU):
        return without_interval(value, fewest)
    covariance_UU = np.atleast_2d(np.cov(replicates_BU.astype(np.float64), rowvar=False, ddof=1))
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
    variance = max(max(shared, 0.0) + draw_part, facts_only)
    freedom = min(variance**2 / freedom_sum, MANY) if freedom_sum > 0 else MANY
    return from_error(value, math.sqrt(variance), freedom, fewest, confidence)


def _varies(replicates_BU: NDArray[np.floating]) -> bool:
    """Whether any column holds two numbers that differ by more than rounding; one replicate or none does not vary."""
    if len(replicates_BU) < 2:
        return False
    return bool((np.ptp(replicates_BU, axis=0) > SAME * np.abs(replicates_BU).max(axis=0)).any())


def from_error(value: float, error: float, freedom: float, draws: int, confidence: float = 0.95) -> Estimate:
    """The symmetric t interval of a value with its standard error; replicates that all agree give a point."""
    if error <= 0:
        return Estimate(value, value, value, 0.0, freedom, 1.0 if value == 0 else 0.0, draws)
    reach = float(special.stdtrit(freedom, 0.5 + confidence / 2)) * error
    p = float(2 * special.stdtr(freedom, -abs(value) / error))
    return Estimate(value, value - reach, value + reach, error, freedom, p, draws)


#: How much further than its standard error says an honest choice scatters when all candidates are equal: folds choose
#: for one another, so a lucky candidate is chosen by one and counted by the other. By simulation over 2 to 7
#: candidates, 1 to 5 draws and any share of noise common to draws; the largest ratios found. Tested.
ONE_CHOICE, TWO_CHOICES, BEST_AND_WORST = 1.09, 1.17, 1.31


def widened(estimate: Estimate, factor: float) -> Estimate:
    """The same estimate with its standard error multiplied: for a choice on which folds did not agree."""
    if not estimate.known or math.isnan(estimate.error):
        return estimate
    return from_error(estimate.value, estimate.error * factor, estimate.freedom, estimate.draws)


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
    """Wilson's score interval of a proportion; NaN for no items. Never leaves 0..1, honest at 0 and at 1."""
    if count == 0:
        return math.nan, math.nan
    z = float(special.ndtri(0.5 + confidence / 2))
    rate = hits / count
    scale = 1 + z**2 / count
    centre = (rate + z**2 / (2 * count)) / scale
    reach = z * math.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2)) / scale
    return max(0.0, centre - reach), min(1.0, centre + reach)


#: Decimals to which candidates are compared: what differs by less is rounding.
EQUAL = 9


def choose_elsewhere(scores_KDH: Floats, highest: bool = True) -> Integers:
    """The candidate chosen for each (draw, half) from *other* draws and the *other* half of the facts, shape (D, H).

    ``scores_KDH``: candidates (fractions, sizes) x training draws x halves of the facts. Choosing and measuring on the
    same facts rewards luck; here neither the facts nor the draws that measure a choice took part in it. With one
    draw only the facts are kept apart. Ties take the first candidate; an empty half takes the other's choice.
    """
    _, draws, halves = scores_KDH.shape
    assert halves == 2, "facts are split in two halves"
    chosen = np.zeros((draws, halves), dtype=np.int64)
    signed = scores_KDH if highest else -scores_KDH
    for draw in range(draws):
        others = [d for d in range(draws) if d != draw] or [draw]
        for half in range(halves):
            means_K = signed[:, others, 1 - half].mean(axis=1)
            if np.isnan(means_K).any():
                means_K = signed[:, others, half].mean(axis=1)
            # Equal candidates whose last digits differ, by the order of adding, are equal.
            means_K = np.round(means_K, EQUAL)
            chosen[draw, half] = 0 if np.isnan(means_K).all() else int(np.nanargmax(means_K))
    return chosen


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given; a NaN (missing) takes no part and stays NaN."""
    adjusted = [math.nan] * len(p_values)
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def draw_weights(stratum_U: Sequence[int], replicates: int, seed: int) -> Floats:
    """How often each replicate holds each training draw, shape (B, U), resampled within strata as facts are."""
    return resampling_weights(np.asarray(stratum_U, dtype=np.int64), replicates, seed)


def rank_correlation(x: Floats, y: Floats) -> Floats:
    """Spearman's correlation along the last axis; NaN where one side is constant."""
    rank_x, rank_y = (stats.rankdata(v, axis=-1) for v in (x, y))
    rank_x = rank_x - rank_x.mean(axis=-1, keepdims=True)
    rank_y = rank_y - rank_y.mean(axis=-1, keepdims=True)
    scale = np.sqrt((rank_x**2).sum(axis=-1) * (rank_y**2).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(scale > 0, (rank_x * rank_y).sum(axis=-1) / scale, np.nan))


def percentile_interval(value: float, replicates_B: Floats, draws: int, confidence: float = 0.95) -> Estimate:
    """Bootstrap percentile interval, for what is not linear (a rank correlation); p from the share beyond 0."""
    finite = replicates_B[np.isfinite(replicates_B)]
    if math.isnan(value):
        return MISSING
    if len(finite) < 2:
        return without_interval(value, draws)
    low, high = np.quantile(finite, [0.5 - confidence / 2, 0.5 + confidence / 2])
    beyond = min(int((finite <= 0).sum()), int((finite >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (len(finite) + 1))
    return Estimate(value, float(low), float(high), float(finite.std(ddof=1)), math.nan, p, draws)
