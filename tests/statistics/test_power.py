"""What a run could have seen: against statsmodels, by simulation, and where there is no answer."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.power import TTestPower

from knowshift.statistics.crossed import crossed_interval
from knowshift.statistics.estimates import MANY, MISSING, Parts, from_error, without_interval
from knowshift.statistics.power import MOST_DRAWS, draws_needed, smallest_effect


@pytest.mark.parametrize("count", [3, 5, 12, 200])
@pytest.mark.parametrize("power", [0.8, 0.9])
def test_the_smallest_effect_has_that_power_by_statsmodels(count: int, power: float) -> None:
    """A mean of ``count`` values of deviation 1, by its standardised effect; both tails count there."""
    effect = smallest_effect(count**-0.5, count - 1.0, power)
    theirs = TTestPower().power(effect, nobs=count, alpha=0.05, alternative="two-sided")
    assert theirs == pytest.approx(power, abs=2e-5)


def test_with_many_degrees_of_freedom_it_is_2_8_errors() -> None:
    assert smallest_effect(0.01, MANY) == pytest.approx(0.028016, abs=1e-6)
    assert smallest_effect(0.0, 5) == 0
    assert all(math.isnan(smallest_effect(*pair)) for pair in ((math.nan, 5.0), (0.1, math.nan)))


def test_such_an_effect_is_shown_four_times_of_five() -> None:
    rng = np.random.default_rng(1)
    effect = smallest_effect(0.5, 3.0)  # four draws of deviation 1
    shown = 0
    for _ in range(2000):
        values = effect + rng.standard_normal(4)
        shown += crossed_interval(values, np.tile(values, (3, 1)), [0] * 4).low > 0
    assert shown / 2000 == pytest.approx(0.8, abs=0.03)


positive = st.floats(1e-6, 1.0)


@given(positive, positive, st.integers(2, 6), positive)
@settings(deadline=None, max_examples=60)
def test_the_draws_needed_are_the_first_that_are_enough(facts: float, one: float, draws: int, effect: float) -> None:
    freedom = 2.0 * (draws - 1)
    estimate = replace(from_error(0.1, math.sqrt(facts + one / draws), 4.0, draws), parts=Parts(facts, one, freedom))

    def seen(count: int) -> bool:
        variance, own = facts + one / count, one / count
        known = min(MANY, variance**2 / (own**2 / (freedom * (count - 1) / (draws - 1))))
        return smallest_effect(math.sqrt(variance), known) <= effect

    needed = draws_needed(estimate, effect)
    if math.isinf(needed):
        assert not seen(MOST_DRAWS)
    else:
        assert seen(int(needed))
        assert needed == 2 or not seen(int(needed) - 1)


def test_draws_needed_by_hand() -> None:
    """A run sees with its own draws what it says it sees; facts alone set the limit; one draw knows nothing."""
    rng = np.random.default_rng(2)
    values, replicates = np.array([0.1, 0.3, 0.2]), 0.001 * rng.standard_normal((400, 1)) + np.zeros((1, 3))
    run = crossed_interval(values, replicates, [0, 0, 0])
    assert run.parts is not None
    assert run.parts.facts + run.parts.one_draw / 3 == pytest.approx(run.error**2)
    seen = smallest_effect(run.error, run.freedom)
    assert draws_needed(run, seen * 1.0001) == 3
    assert draws_needed(run, seen * 0.9999) == 4
    assert draws_needed(run, 100.0) == 2
    assert draws_needed(run, 0.0005) == math.inf
    assert math.isnan(draws_needed(crossed_interval(values[:1], replicates[:, :1], [0]), 0.1))
    assert all(math.isnan(draws_needed(none, 0.1)) for none in (MISSING, without_interval(0.1, 1)))
