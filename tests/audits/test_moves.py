"""Which facts moved: the probability against draws from the posteriors, and what chance alone makes of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowshift.audits.moves import MOVE, Moves, Rates
from knowshift.probing.certainty import PROMPT_PRIOR


def rates(hits: list[float], draws: float = 200.0) -> Rates:
    held = np.array(hits, dtype=float)
    return Rates(held / draws, held, draws - held)


@settings(max_examples=25, deadline=None)
@given(
    before=st.floats(0, 60),
    after=st.floats(0, 60),
    draws=st.sampled_from([60.0, 200.0]),
    by=st.sampled_from([0.0, MOVE]),
)
def test_the_probability_of_a_fall_is_that_of_draws_from_both_posteriors(
    before: float, after: float, draws: float, by: float
) -> None:
    rng = np.random.default_rng(0)
    drawn = [rng.beta(PROMPT_PRIOR + hits, PROMPT_PRIOR + draws - hits, 40_000) for hits in (before, after)]
    found = rates([before], draws).probability_of_fall(rates([after], draws), by)
    assert found[0] == pytest.approx((drawn[0] - drawn[1] > by).mean(), abs=0.02)


def test_moves_need_a_border_crossed_and_little_doubt() -> None:
    before = rates([180, 180, 60, 51, 0, 0, 10])
    after = rates([180, 0, 49, 20, 0, 190, 60])
    assert Moves.between(before, after).names() == ["kept", "lost", "kept", "kept", "never", "gained", "gained"]
    few = Moves.between(rates([1.2, 0], 2.0), rates([0.2, 1.5], 2.0))
    assert few.names() == ["kept", "never"]


@given(st.lists(st.tuples(st.floats(0, 200), st.floats(0, 200)), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_every_fact_is_one_of_four_and_the_way_back_swaps_lost_and_gained(pairs: list[tuple[float, float]]) -> None:
    before, after = rates([a for a, _ in pairs]), rates([b for _, b in pairs])
    there, back = Moves.between(before, after), Moves.between(after, before)
    assert sum(there.counts().values()) == len(pairs)
    assert (there.lost == back.gained).all()
    assert (there.gained == back.lost).all()


def test_chance_alone_hardly_moves_a_fact() -> None:
    """Two runs of 210 draws of the same facts: at most one known fact in fifty is lost for sure."""
    rng = np.random.default_rng(1)
    truth = rng.beta(0.4, 0.6, 4000)
    first, second = (rates(rng.binomial(210, truth).astype(float).tolist(), 210.0) for _ in range(2))
    moved = Moves.between(first, second)
    assert moved.lost.sum() <= 0.005 * first.known.sum()
    assert moved.gained.sum() <= 0.005 * first.known.sum()
