"""Means over levels on facts that differ by model, beside plain means and a bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest

from knowshift.statistics.estimates import mean_interval
from knowshift.statistics.subsets import estimate, mean_over_levels

RNG = np.random.default_rng(0)
FACTS = 400
LEVEL = RNG.integers(0, 3, FACTS)
DOMAIN = RNG.integers(0, 2, FACTS)
HITS = RNG.random(FACTS) < 0.3 + 0.2 * LEVEL
INSIDE = RNG.random(FACTS) < 0.5


def by_hand(hits: np.ndarray, inside: np.ndarray) -> float:  # type: ignore[type-arg]
    means = [
        [hits[its].mean() for level in range(3) if (its := inside & (domain == DOMAIN) & (level == LEVEL)).any()]
        for domain in range(2)
    ]
    return float(np.mean([np.mean(its) for its in means if its]))


def test_the_mean_is_over_levels_that_have_facts_and_then_over_domains() -> None:
    assert mean_over_levels(HITS, INSIDE, LEVEL, DOMAIN).value == pytest.approx(by_hand(HITS, INSIDE))
    without = INSIDE & ~((DOMAIN == 1) & (LEVEL == 2))
    assert mean_over_levels(HITS, without, LEVEL, DOMAIN).value == pytest.approx(by_hand(HITS, without))
    nothing = mean_over_levels(HITS, np.zeros(FACTS, np.bool_), LEVEL, DOMAIN)
    assert not nothing.known
    assert not estimate([(0, nothing)]).known


def test_what_facts_add_gives_the_variance_of_a_bootstrap() -> None:
    part = mean_over_levels(HITS, INSIDE, LEVEL, DOMAIN)
    other = mean_over_levels(~HITS, INSIDE, LEVEL, DOMAIN)
    assert part.minus(other).times(0.5).added_F == pytest.approx(part.added_F)  # right where the other is wrong
    rng = np.random.default_rng(1)
    strata = [np.flatnonzero(INSIDE & (d == DOMAIN) & (k == LEVEL)) for d in range(2) for k in range(3)]
    replicates = [np.mean([HITS[rng.choice(its, len(its))].mean() for its in strata]) for _ in range(2000)]
    found = estimate([(0, part)])
    assert found.draws == 1
    assert found.error == pytest.approx(float(np.std(replicates)), rel=0.06)


def test_one_level_of_independent_facts_is_the_mean_with_its_error() -> None:
    one = np.zeros(FACTS, np.int64)
    part = mean_over_levels(HITS, INSIDE, one, one)
    plain = mean_interval(HITS[INSIDE].astype(np.float64))
    assert (part.value, estimate([(0, part)]).error) == pytest.approx((plain.value, plain.error))
    alone = np.arange(FACTS) == 7
    assert math.isnan(estimate([(0, mean_over_levels(HITS, alone, one, one))]).low)  # one fact: its noise is not known


def test_relations_are_summed_before_they_are_squared() -> None:
    """Facts in pairs that are right together: as clusters they have twice the variance (and fewer degrees)."""
    hits, one = np.repeat(RNG.random(200) < 0.5, 2), np.zeros(400, np.int64)
    part = mean_over_levels(hits, np.ones(400, np.bool_), one, one)
    facts, pairs = (estimate([(0, part)], None, relation) for relation in (None, np.repeat(np.arange(200), 2)))
    assert pairs.value == facts.value
    assert (pairs.error / facts.error) ** 2 == pytest.approx(2, rel=0.01)
    assert pairs.freedom == pytest.approx(199)
    assert not estimate([(0, part)], None, one).known  # one relation
