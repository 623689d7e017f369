"""The line behind a verdict: its sentences by hand, and the numbers behind them in the hand-made run."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from hand_run import FACTS, TEST, TUNED, answered
from knowshift.reports.evidence.answers import Column
from knowshift.reports.evidence.run_folder import Setting
from knowshift.reports.evidence.scores import Model, Scores
from knowshift.reports.findings.certainty import _two, certainty
from knowshift.reports.findings.claims import BOTH, Claim, judge
from knowshift.reports.tables.build import Tables
from knowshift.statistics.discordant import Turned
from knowshift.statistics.estimates import MISSING, Clustered, Estimate, Parts, from_error, without_interval

OTHER = Clustered(from_error(0.01, 0.02, 9.04, 3), 24, -0.012, 1.4)


def known(value: float, error: float, freedom: float = 4.0, facts: float = 0.0) -> Estimate:
    """Three draws, all the noise theirs but for ``facts``."""
    return replace(from_error(value, error, freedom, 3), parts=Parts(facts, 3 * (error**2 - facts), freedom))


def test_a_claim_that_is_not_shown_begins_with_what_is_excluded() -> None:
    estimate = replace(known(0.01, 0.005), clustered=OTHER, turned=Turned(1300, 900, 400, 1400))
    assert certainty(estimate, "points", False, 0.02) == (
        "Excluded is an effect above +2.4 points. 95% interval −0.4 to +2.4 points; with 24 relations as clusters −3.5 "
        "to +5.5 (degrees of freedom 9.0, intra-class correlation −0.01 and design effect 1.40). Of 4,000 pairs of "
        "answers, 1,300 are right only on the side that the claim favours, 900 only on the other. An effect of 1.9 "
        "points would show in four of five such runs; 2.0 points need 3 draws."
    )


def test_a_claim_that_is_shown_excludes_nothing() -> None:
    assert certainty(known(0.5, 0.1, facts=0.009), "nats", True, 0.14) == (
        "95% interval +0.22 to +0.78 nats. An effect of 0.38 nats would show in four of five such runs; for 0.14 nats "
        "no number of draws is enough, only more facts."
    )


def test_what_is_not_known_is_not_said() -> None:
    assert certainty(MISSING, "points", False, 0.02) == ""
    assert certainty(without_interval(0.1, 1), "points", False, 0.02) == (
        "No effect is excluded: nothing was repeated, so there is no interval."
    )
    one = replace(from_error(0.1, 0.01, 1e6, 1), parts=Parts(1e-4, math.nan, math.nan))
    assert certainty(one, "points", True, 0.02).endswith("how many draws 2.0 points need is not known from one draw.")
    percentiles = Estimate(-0.5, -0.8, -0.1, 0.2, math.nan, 0.01, 3)
    assert certainty(percentiles, "correlation", False, 0.2) == (
        "Excluded is an effect above −0.10. 95% interval −0.80 to −0.10."
    )
    bare = replace(OTHER, interval=from_error(0.01, 0.0, 3.0, 3), correlation=math.nan, design_effect=math.nan)
    assert "; with 24 relations as clusters +1.0 to +1.0." in certainty(
        replace(known(0.01, 0.005), clustered=bare), "points", True, 0.02
    )


def test_every_claim_that_is_not_shown_says_what_it_excludes(hand_tables: Tables) -> None:
    claims = [claim for finding in hand_tables.findings for claim in (*finding.claims, *finding.controls)]
    assert {claim.verdict for claim in claims} == {"shown", "not shown", "undecided"}
    for claim in claims:
        says = claim.certainty.startswith("Excluded is an effect above")
        assert says == (claim.verdict != "shown") == (not math.isnan(claim.excluded))
        assert claim.wanted == 2 * claim.margin
        if says:
            assert claim.excluded == claim.estimate.high


def test_pairs_of_a_difference_by_hand(hand_tables: Tables) -> None:
    """Level 0 at 1,920 samples, as tuned at 60: whole test levels are right or wrong, so pairs are counts of facts."""
    evidence = hand_tables.evidence
    one, other = (Model(Setting(0, size, 3e-4, "")) for size in (60, 1920))
    found = evidence.substring.difference([(one, other)], evidence.substring.over(BOTH)).turned
    gained = lost = 0
    for draw in range(3):
        for domain, name in enumerate(FACTS):
            first, second = (answered(TUNED[0, size][draw][domain]) for size in (60, 1920))
            gained += sum(fact.domain == name and fact.level in first - second for fact in TEST)
            lost += sum(fact.domain == name and fact.level in second - first for fact in TEST)
    assert found is not None
    assert (found.gained, found.lost) == (gained, lost)
    assert gained > 0
    assert evidence.substring.mean([one], evidence.substring.over(BOTH)).turned is None


def relations_matter(rng: np.random.Generator, sizes: list[int]) -> tuple[Scores, Model, Model]:
    """One model is better on every other relation and worse on the others, in three draws."""
    relation = np.repeat(np.arange(len(sizes)), sizes)
    columns = [Column(Setting(level, 60, 1e-3, ""), draw) for level in (0, 1) for draw in range(3)]
    better = np.where(relation % 2 == 0, 0.25, -0.25)
    chance = np.stack([0.5 + better * (column.setting is not None and column.setting.level) for column in columns], 1)
    values = rng.random(chance.shape) < chance
    level = np.arange(len(relation)) % 5
    scores = Scores(values, np.zeros(len(relation), np.int64), level, columns, relation=relation, replicates=300)
    return scores, *(Model(Setting(level, 60, 1e-3, "")) for level in (1, 0))


def test_relations_that_react_differently_widen_the_clustered_interval() -> None:
    scores, one, other = relations_matter(np.random.default_rng(1), [60] * 10)
    estimate = scores.difference([(one, other)], scores.over([0]))
    clustered = estimate.clustered
    assert clustered is not None
    assert clustered.clusters == 10
    assert clustered.interval.value == pytest.approx(estimate.value)
    assert clustered.design_effect > 5
    assert clustered.correlation > 0.1
    wider = (clustered.interval.high - clustered.interval.low) / (estimate.high - estimate.low)
    assert wider > 1.5
    assert clustered.interval.freedom < 10
    assert judge(clustered.interval, 0.01) == "undecided"


def test_negated_and_one_relation() -> None:
    scores, one, other = relations_matter(np.random.default_rng(2), [100] * 4)
    weights = scores.over([0])
    there, back = (scores.difference([pair], weights) for pair in ((one, other), (other, one)))
    turned = there.negated()
    assert turned.turned == back.turned
    assert turned.clustered is not None
    assert back.clustered is not None
    assert (turned.low, turned.clustered.interval.low) == (
        pytest.approx(back.low),
        pytest.approx(back.clustered.interval.low),
    )
    alone, one, other = relations_matter(np.random.default_rng(3), [100])
    found = alone.difference([(one, other)], alone.over([0]))
    assert found.clustered is None
    claim = Claim("a", "a", "", "points", found, "a.")
    assert "relations as clusters" not in claim.certainty


def test_no_zero_has_a_sign() -> None:
    assert [_two(value) for value in (-0.004, 0.004, -0.006)] == ["0.00", "0.00", "\N{MINUS SIGN}0.01"]
