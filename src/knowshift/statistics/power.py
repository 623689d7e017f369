"""What a measurement could have seen: the smallest effect, and how many training draws a given effect needs."""

from __future__ import annotations

import math

from scipy import special

from knowshift.statistics.estimates import MANY, Estimate

#: The usual convention: an effect is seen if four of five repetitions of the measurement would show it.
POWER = 0.8

#: More draws than anyone trains.
MOST_DRAWS = 10_000


def smallest_effect(error: float, freedom: float, power: float = POWER, confidence: float = 0.95) -> float:
    """The true effect that would be shown with probability ``power``, in the unit of ``error``.

    Shown means that the two-sided t interval lies above 0. The effect is ``error`` times the noncentrality at which
    Student's noncentral t exceeds the critical value with probability ``power``: 2.80 with many degrees of freedom,
    5.65 with two. The other tail, which adds less than 1e-5, is left out.

    Args:
        error: standard error of the estimate.
        freedom: its degrees of freedom; NaN (an interval by percentiles) gives NaN.

    Source:
        Cohen 1988, 2.5; Bloom 1995 for the effect as a multiple of the standard error.
    """
    if math.isnan(error) or math.isnan(freedom) or freedom <= 0:
        return math.nan
    critical = float(special.stdtrit(freedom, 0.5 + confidence / 2))
    return float(special.nctdtrinc(freedom, 1 - power, critical)) * error


def draws_needed(estimate: Estimate, effect: float, power: float = POWER) -> float:
    """The fewest training draws of every setting with which ``effect`` would be seen, on the same facts.

    The part of the variance that draws share stays; the draws' own is divided by their number, and their degrees of
    freedom grow with it (:class:`~knowshift.statistics.estimates.Parts`). At least 2, since one draw says nothing
    about draws. Infinite where no number is enough: that effect needs more facts. NaN where the run has no two draws.

    Args:
        estimate: with the parts of its variance.
        effect: a true effect, in the unit of the estimate.
    """
    parts = estimate.parts
    if parts is None or math.isnan(parts.one_draw):
        return math.nan

    def seen(draws: int) -> bool:
        shared, own = parts.facts, parts.one_draw / draws
        freedom = parts.freedom * (draws - 1) / (estimate.draws - 1)
        variance = shared + own
        below = own**2 / freedom
        known = min(variance**2 / below, MANY) if below > 0 else MANY
        return smallest_effect(math.sqrt(variance), known, power) <= effect

    if not seen(MOST_DRAWS):
        return math.inf
    low, high = 1, MOST_DRAWS  # not enough (one draw says nothing), enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if seen(middle) else (middle, high)
    return float(high)
