"""How sure a measured mastery is: an interval for R, and the probability of each level in another run.

The prompts are a sample of the ways to ask, and draws from one prompt are more alike than draws from several, so the
prompt is the unit (a cluster): what varies between prompts counts, not the number of draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.fft import next_fast_len

from knowshift.facts.fact import LEVELS
from knowshift.probing.levels import DRAWS

Floats = NDArray[np.float64]

#: Both parameters of the prior over a fact's mean rate in :func:`level_probabilities`.
PROMPT_PRIOR = 0.25
#: Draws of a prompt up to which chances are computed: a fact of 21 prompts then took 1.3 s and 0.13 GB on one core
#: of an AMD EPYC (Zen 4), 2026-11-28.
MOST_DRAWS = 10_000
#: Values of one prompt's hits up to which sums are transformed by a matrix.
FEW_VALUES = 64
#: Points of the quadrature over mean rates.
NODES = 20


def rate_interval(prompt_hits: Sequence[float], prompt_draws: Sequence[float], confidence: float = 0.95) -> Floats:
    """Lower and upper end of an interval for R over prompts like these: float64 [2], within [0, 1].

    A Wilson interval for the pooled rate, with the number of draws divided by the design effect that the variance
    between prompts implies (Kish 1965; Korn and Graubard, "Confidence intervals for proportions with small expected
    number of positive counts estimated from survey data", 1998), and Student's t over the prompts asked. Where all
    prompts agree (all hits or none) the variance between prompts cannot be told and each prompt counts as one draw,
    so that 21 prompts without a hit say R < 0.17 and not R < 0.02. NaN without draws.
    """
    hits, draws = np.asarray(prompt_hits, dtype=float), np.asarray(prompt_draws, dtype=float)
    hits, draws = hits[draws > 0], draws[draws > 0]
    prompts = len(draws)
    if not prompts:
        return np.array([np.nan, np.nan])
    total = draws.sum()
    rate = hits.sum() / total
    binomial = rate * (1 - rate) / total
    effective = float(prompts)
    if prompts > 1 and binomial > 0:
        residual = hits - rate * draws
        variance = prompts / (prompts - 1) * float((residual**2).sum()) / total**2
        # Never more than the draws made, never fewer than one for all.
        effective = float(np.clip(rate * (1 - rate) / max(variance, 1e-300), 1.0, total))
    quantile = stats.norm.ppf(0.5 + confidence / 2)
    if prompts > 1:
        quantile = stats.t.ppf(0.5 + confidence / 2, prompts - 1)
    middle = (rate + quantile**2 / (2 * effective)) / (1 + quantile**2 / effective)
    half = quantile / (1 + quantile**2 / effective)
    half *= np.sqrt(rate * (1 - rate) / effective + quantile**2 / (4 * effective**2))
    ends: Floats = np.clip(np.array([middle - half, middle + half]), 0.0, 1.0)
    return ends


def level_probabilities(
    prompt_hits: Sequence[float], prompt_draws: Sequence[float], draws_per_prompt: int = DRAWS
) -> Floats:
    """The probability of each level in another full run over the same prompts: float64 [5], sums to 1.

    That run makes ``draws_per_prompt`` draws of each prompt, 1 to :data:`MOST_DRAWS`.

    The mean rate over prompts has the posterior Beta(1/4 + hits, 1/4 + misses), heavy at both ends as mean rates are,
    each prompt's own rate that of the Beta distribution around the mean whose concentration fits the spread between
    prompts (empirical Bayes), so that a prompt with few draws leans on the others. Given the mean, a prompt's hits in
    another run are beta-binomial, and their sum over prompts is computed by its characteristic function (a discrete
    Fourier transform over all possible sums); means are summed over by Gauss-Jacobi quadrature. NaN without draws.
    """
    # Prompts in whatever order are the same to it, and many facts have the same counts (none at all, or all).
    alike = Counter(zip(prompt_draws, prompt_hits, strict=True))
    return _level_probabilities(tuple(sorted(alike.items())), draws_per_prompt).copy()


@lru_cache(maxsize=1 << 12)
def _level_probabilities(alike: tuple[tuple[tuple[float, float], int], ...], draws_per_prompt: int) -> Floats:
    draws_U, hits_U = np.array([pair for pair, _ in alike], dtype=float).reshape(-1, 2).T
    count_U = np.array([count for _, count in alike])
    hits, draws = float(hits_U @ count_U), float(draws_U @ count_U)
    if draws == 0:
        return np.full(LEVELS, np.nan)
    asked = draws_U > 0
    concentration = _concentration(np.repeat(hits_U[asked], count_U[asked]), np.repeat(draws_U[asked], count_U[asked]))
    mean_Q, weight_Q = beta_quadrature(PROMPT_PRIOR + hits, PROMPT_PRIOR + draws - hits)
    chance_QUK = beta_binomial(
        draws_per_prompt,
        np.maximum(mean_Q[:, None] * concentration + hits_U, 1e-9),
        np.maximum((1 - mean_Q[:, None]) * concentration + draws_U - hits_U, 1e-9),
    )
    most = draws_per_prompt * int(count_U.sum())
    again = np.clip(chance_of_sum(weight_Q, chance_QUK, count_U), 0.0, None)
    level_of_sum = -(-4 * np.arange(most + 1) // most)
    chances: Floats = np.bincount(level_of_sum, weights=again / again.sum(), minlength=LEVELS).astype(np.float64)
    return chances


def chance_of_sum(weight_Q: Floats, chance_QUK: Floats, count_U: NDArray[np.int64]) -> Floats:
    """P(each sum) [S] of numbers that are independent given q, which has the chances ``weight_Q``.

    Of each kind u there are ``count_U[u]`` numbers, with the chances ``chance_QUK`` of 0 to K - 1; S - 1 is the largest
    sum. By the product of their transforms: of few values by products with a matrix, of many by fast transforms, one
    kind at a time, since a matrix takes memory as the square of their number.
    """
    values = chance_QUK.shape[2]
    sums = (values - 1) * int(count_U.sum()) + 1
    if values <= FEW_VALUES:
        transform_QUF = (chance_QUK @ _waves(values - 1, sums - 1)).view(np.complex128)
        for several in np.flatnonzero(count_U > 1):
            transform_QUF[:, several] **= count_U[several]
        of_sums_F, length = weight_Q @ transform_QUF.prod(axis=1), sums
    else:
        length = next_fast_len(sums, real=True)
        product_QF = np.ones((1, 1), dtype=np.complex128)
        for kind, count in enumerate(count_U):
            product_QF = product_QF * np.fft.rfft(chance_QUK[:, kind], length) ** count
        of_sums_F = weight_Q @ product_QF
    chances: Floats = np.fft.irfft(of_sums_F, length)[:sums]
    return chances


@lru_cache(maxsize=16)
def _waves(draws: int, most: int) -> Floats:
    """exp(-2 pi i k f / (most + 1)) for k up to ``draws`` and the frequencies f of a real transform, in pairs."""
    angle = np.outer(np.arange(draws + 1), np.arange((most + 1) // 2 + 1)) % (most + 1)
    waves: Floats = np.exp(-2j * np.pi * angle / (most + 1)).view(np.float64)
    return waves


def beta_binomial(draws: int, a: Floats, b: Floats) -> Floats:
    """P(k hits of so many draws) of rates from Beta(a, b): the shape of a and b, and [draws + 1] for k from 0."""
    k = np.arange(draws)
    a, b = a[..., None], b[..., None]
    none = np.log((b + k) / (a + b + k)).sum(axis=-1, keepdims=True)
    ratios = np.log((draws - k) / (k + 1) * (a + k) / (b + draws - 1 - k))
    chance: Floats = np.exp(np.concatenate([none, none + ratios.cumsum(axis=-1)], axis=-1))
    return chance


def beta_quadrature(a: float, b: float, nodes: int = NODES) -> tuple[Floats, Floats]:
    """Points and weights [nodes] whose sums are expectations under Beta(a, b) of polynomials of degree < 2 ``nodes``.

    Gauss-Jacobi quadrature by the eigenvalues of its tridiagonal matrix (Golub and Welsch, "Calculation of Gauss
    quadrature rules", 1969).
    """
    p, q = b - 1, a - 1  # exponents of 1 - t and 1 + t on [-1, 1]
    k = np.arange(1, nodes)
    both = 2 * k + p + q
    middle = np.r_[(q - p) / (p + q + 2), (q**2 - p**2) / (both * (both + 2))]
    beside = 4 * k * (k + p) * (k + q) * (k + p + q)
    first = 4 * (1 + p) * (1 + q) / ((2 + p + q) ** 2 * (3 + p + q))  # k = 1, where p + q may be -1
    with np.errstate(divide="ignore", invalid="ignore"):
        beside = beside / (both**2 * (both + 1) * (both - 1))
    beside[0] = first
    values, vectors = np.linalg.eigh(np.diag(middle) + np.diag(np.sqrt(beside), -1))  # of the lower triangle
    return (values + 1) / 2, vectors[0] ** 2


def _concentration(hits: Floats, draws: Floats) -> float:
    """a + b of the Beta distribution that the prompts' rates seem to come from, by moments; between 0.2 and 200.

    Where no prompt or every draw hits, no spread is seen, and the prompts are taken to be alike.
    """
    mean = float(hits.sum() / draws.sum())
    if len(draws) < 2 or not 0 < mean < 1:
        return 200.0
    spread = float(np.average((hits / draws - mean) ** 2, weights=draws))
    between = max(spread - mean * (1 - mean) / float(draws.mean()), 1e-6)
    return float(np.clip(mean * (1 - mean) / between - 1, 0.2, 200.0))
