"""The five mastery levels, and which of them are still possible when only some of the draws have been made."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, gammaln

#: Draws of each prompt in a full run (the paper's).
DRAWS = 10
#: The prior over hit rates in :func:`plausible_hits`: Beta(1/2, 1/2), heavy at both ends, as hit rates are.
HIT_PRIOR = 0.5


def level_of(hits: int, draws: int) -> int:
    """The mastery level of R = hits / draws: 0 if R = 0, else 1 to 4 for (0, 1/4], (1/4, 1/2], (1/2, 3/4], (3/4, 1].

    In integers, so that a rate on a boundary is never moved by rounding. Raises ValueError outside 0 <= hits <= draws.
    """
    if draws <= 0 or not 0 <= hits <= draws:
        raise ValueError(f"no level for {hits} hits of {draws} draws")
    return -(-4 * hits // draws)


def certain_level(hits: int, draws: int, total: int) -> int | None:
    """The level that ``total`` draws will give whatever the draws not yet made, or None while it is open."""
    lowest, highest = level_of(hits, total), level_of(hits + total - draws, total)
    return lowest if lowest == highest else None


def plausible_hits(hits: int, draws: int, total: int, error: float) -> tuple[int, int]:
    """The least and the most hits among ``total`` draws that are plausible after ``draws`` of them, in random order.

    A confidence sequence for sampling without replacement (Waudby-Smith and Ramdas, "Confidence sequences for
    sampling without replacement", NeurIPS 2020, the prior-posterior ratio with a beta-binomial prior): however often
    one looks, the true count lies in all the intervals together with probability at least 1 - ``error``, provided
    that the order of the draws is uniformly random.
    """
    first, last = _plausible(hits, draws, total, error)
    return first, last


@lru_cache(maxsize=1 << 16)
def _plausible(hits: int, draws: int, total: int, error: float) -> tuple[int, int]:
    k = np.arange(hits, hits + total - draws + 1)
    # log of posterior / prior at every count k = likelihood / evidence; hypergeometric, the binomials of the draws
    # made cancel.
    likelihood = _log_choose(k, hits) + _log_choose(total - k, draws - hits) - _log_choose(total, draws)
    evidence = (
        _log_choose(draws, hits) + betaln(hits + HIT_PRIOR, draws - hits + HIT_PRIOR) - betaln(HIT_PRIOR, HIT_PRIOR)
    )
    inside = np.flatnonzero(likelihood - evidence > np.log(error))
    return int(k[inside[0]]), int(k[inside[-1]])


def _log_choose(n: NDArray[np.int64] | int, k: int) -> NDArray[np.float64]:
    result: NDArray[np.float64] = gammaln(np.asarray(n) + 1.0) - gammaln(k + 1.0) - gammaln(np.asarray(n) - k + 1.0)
    return result
