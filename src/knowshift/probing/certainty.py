"""How sure a measured mastery is: an interval for R, and the probability of each level in another run.

The prompts are a sample of the ways to ask, and draws from one prompt are more alike than draws from several, so the
prompt is the unit (a cluster): what varies between prompts counts, not the number of draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from knowshift.facts.fact import LEVELS
from knowshift.probing.levels import DRAWS

Floats = NDArray[np.float64]

#: Both parameters of the prior over a fact's mean rate in :func:`level_probabilities`.
PROMPT_PRIOR = 0.25


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
    prompt_hits: Sequence[float],
    prompt_draws: Sequence[float],
    draws_per_prompt: int = DRAWS,
    samples: int = 500,
    seed: int = 0,
) -> Floats:
    """The probability of each level in another full run over the same prompts: float64 [5], sums to 1.

    Full runs are drawn from a posterior: the mean rate over prompts from Beta(1/4 + hits, 1/4 + misses), heavy at both
    ends as mean rates are, each prompt's own rate from the Beta distribution around it whose concentration fits the
    spread between prompts (empirical Bayes), so that a prompt with few draws leans on the others. With 500 samples
    the sampling itself adds a standard error of at most 0.022. NaN without draws.
    """
    # Prompts in whatever order are the same to it, and many facts have the same counts (none at all, or all).
    pairs = sorted(zip(prompt_draws, prompt_hits, strict=True))
    return _level_probabilities(tuple(pairs), draws_per_prompt, samples, seed).copy()


@lru_cache(maxsize=1 << 12)
def _level_probabilities(
    pairs: tuple[tuple[float, float], ...], draws_per_prompt: int, samples: int, seed: int
) -> Floats:
    draws, hits = np.array(pairs, dtype=float).reshape(-1, 2).T
    if draws.sum() == 0:
        return np.full(LEVELS, np.nan)
    rng = np.random.default_rng(seed)
    concentration = _concentration(hits[draws > 0], draws[draws > 0])
    mean = rng.beta(PROMPT_PRIOR + hits.sum(), PROMPT_PRIOR + (draws - hits).sum(), size=(samples, 1))
    rates = rng.beta(
        np.maximum(mean * concentration + hits, 1e-9), np.maximum((1 - mean) * concentration + draws - hits, 1e-9)
    )
    again = rng.binomial(draws_per_prompt, rates).sum(axis=1)
    levels = -(-4 * again // (draws_per_prompt * len(hits)))
    counts: Floats = np.bincount(levels, minlength=LEVELS) / samples
    return counts


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
