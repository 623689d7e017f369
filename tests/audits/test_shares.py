"""Mean changes of chosen facts: chance subtracted, intervals that hold the truth, few facts that do not claim much."""

from __future__ import annotations

import math

import numpy as np
import pytest

from knowshift.audits.shares import Swapped, discordant, mean_change


def test_a_fall_to_the_mean_is_no_loss() -> None:
    """Facts chosen because they looked known fall back; the swapped difference does not."""
    rng = np.random.default_rng(0)
    truth = rng.beta(0.5, 1.5, 20_000)
    first, second, after = (rng.binomial(20, truth) / 20 for _ in range(3))
    relation = ["r"] * len(truth)
    naive = (after - first)[first >= 0.25].mean()
    chosen = Swapped(first >= 0.25, second >= 0.25, relation)
    assert naive < -0.01
    found = chosen.change(first, second, after).by_fact
    assert found.low < 0 < found.high
    assert found.error < 0.002
    assert chosen.floor(first, second).by_fact.value == pytest.approx(naive, abs=0.004)


def test_intervals_hold_the_truth() -> None:
    """Of 400 samples of 60 facts whose changes are known, between 92% and 99% have an interval that holds the mean."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        change = rng.choice([-1.0, 0.0, 1.0], size=60, p=[0.2, 0.7, 0.1])
        found = mean_change(2 * change, np.full(60, 2.0), ["a"] * 60).by_fact
        held += found.low <= -0.1 <= found.high
    assert 0.92 <= held / 400 <= 0.99


def test_relations_that_move_as_one_widen_their_interval() -> None:
    relation = [f"r{i // 20}" for i in range(100)]
    change = np.repeat([-0.5, 0.0, 0.0, 0.0, 0.5], 20)
    found = mean_change(change, np.ones(100), relation)
    assert found.by_relation.error > 3 * found.by_fact.error
    assert found.by_relation.freedom == 4
    assert math.isnan(mean_change(change[:20], np.ones(20), relation[:20]).by_relation.low)


def test_few_facts_without_a_change_do_not_exclude_one() -> None:
    for facts in (20, 100, 1000):
        found = mean_change(np.zeros(facts), np.full(facts, 2.0), ["r"] * facts)
        assert found.by_fact.value == 0
        assert found.by_fact.p > 0.05
        assert 1 / facts < found.by_fact.high < 4 / facts
        assert found.seen > found.by_fact.high


def test_nothing_chosen_is_missing_and_not_zero() -> None:
    found = mean_change(np.zeros(3), np.zeros(3), ["r"] * 3)
    assert not found.by_fact.known
    assert math.isnan(found.seen)
    one = mean_change(np.array([-2.0]), np.array([2.0]), ["r"])
    assert one.by_fact.value == -1
    assert math.isnan(one.by_fact.low)


def test_mcnemar_is_the_exact_test_of_discordant_pairs() -> None:
    before = np.array([True] * 8 + [False] * 5 + [True] * 10)
    after = np.array([False] * 8 + [True] * 1 + [False] * 4 + [True] * 10)
    lost, gained, p = discordant(before, after)
    assert (lost, gained) == (8, 1)
    assert p == pytest.approx(2 * (1 + 9) / 2**9)
    assert discordant(before, before) == (0, 0, 1.0)
