"""Levels, their certainty, and mastery measured with the three stopping rules."""

from __future__ import annotations

import csv
import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.facts.relations import RELATIONS
from knowshift.facts.sources.load import load_facts
from knowshift.models.loading import LoadedModel
from knowshift.probing.agreement import agreement
from knowshift.probing.certainty import (
    FEW_VALUES,
    _concentration,
    beta_binomial,
    beta_quadrature,
    chance_of_sum,
    level_probabilities,
    rate_interval,
)
from knowshift.probing.certainty_record import write_certainty
from knowshift.probing.levels import certain_level, level_of, plausible_hits
from knowshift.probing.measure import Protocol, measure_mastery
from knowshift.probing.prompts import prompt_rates, write_prompts
from knowshift.records import MASTERY, read_table, write_table
from markov import markov_model


@settings(deadline=None)
@given(draws=st.integers(1, 400), data=st.data())
def test_levels_are_the_papers_quarters(draws: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, draws))
    rate = Fraction(hits, draws)
    ends = [Fraction(0), Fraction(1, 4), Fraction(1, 2), Fraction(3, 4), Fraction(1)]
    level = level_of(hits, draws)
    assert rate == 0 if level == 0 else ends[level - 1] < rate <= ends[level]


@pytest.mark.parametrize(("hits", "draws"), [(1, 0), (-1, 5), (6, 5)])
def test_there_is_no_level_for_impossible_counts(hits: int, draws: int) -> None:
    with pytest.raises(ValueError, match=f"no level for {hits} hits of {draws} draws"):
        level_of(hits, draws)


@settings(deadline=None)
@given(total=st.integers(1, 60), data=st.data())
def test_a_level_is_certain_exactly_when_no_rest_can_change_it(total: int, data: st.DataObject) -> None:
    draws = data.draw(st.integers(1, total))
    hits = data.draw(st.integers(0, draws))
    possible = {level_of(hits + more, total) for more in range(total - draws + 1)}
    assert certain_level(hits, draws, total) == (possible.pop() if len(possible) == 1 else None)


@settings(max_examples=25, deadline=None)
@given(total=st.integers(2, 80), data=st.data())
def test_plausible_hits_hold_the_truth_however_often_one_looks(total: int, data: st.DataObject) -> None:
    """At an error of 0.2 the true count leaves the running intersection in at most a fifth of random orders."""
    truth = data.draw(st.integers(0, total))
    seed = data.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    outcomes = np.arange(total) < truth
    missed = 0
    for _ in range(150):
        seen = np.cumsum(rng.permutation(outcomes))
        ends = [plausible_hits(int(seen[n - 1]), n, total, 0.2) for n in range(1, total + 1)]
        missed += any(not low <= truth <= high for low, high in ends)
    assert stats.binomtest(missed, 150, 0.2, alternative="greater").pvalue > 1e-4


def test_all_draws_leave_nothing_open() -> None:
    assert plausible_hits(7, 210, 210, 0.01) == (7, 7)


CHAIN = {
    "n": {"Q": 0.9, ".": 0.1},  # never known
    "s": {"A": 0.97, "Q": 0.03},  # nearly always
    "r": {"A": 0.02, "Q": 0.98},  # rarely
    "A": {".": 1.0},
    "Q": {".": 1.0},
}


def _fact(name: str, prompts: tuple[str, ...], answer: str = "A") -> Fact:
    return Fact(name, "P19", "train", "in_domain", name, f"{name}?", answer, exposures=3, prompts=prompts)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return markov_model(tmp_path_factory.mktemp("markov"), CHAIN)


FACTS = (
    [_fact(f"never{i}", ("n",) * 21) for i in range(6)]
    + [_fact(f"always{i}", ("s",) * 21) for i in range(6)]
    + [_fact(f"half{i}", ("s",) * 10 + ("n",) * 11) for i in range(6)]
    + [_fact(f"rare{i}", ("r",) * 21) for i in range(6)]
)


def test_full_makes_every_draw_and_exact_finds_the_same_levels_with_fewer(chain: LoadedModel) -> None:
    full = measure_mastery(chain, FACTS, Protocol(seed=1, max_new_tokens=4))
    assert full.columns["draws"] == [210] * len(FACTS)
    assert full.columns["level"][:12] == [0] * 6 + [4] * 6
    assert set(full.columns["level"][12:18]) <= {2}
    assert full.columns["exposures"] == [3] * len(FACTS)
    exact = measure_mastery(chain, FACTS, Protocol(seed=1, max_new_tokens=4, stopping="exact"))
    assert exact.columns["level"] == full.columns["level"]
    assert sum(exact.columns["draws"]) < sum(full.columns["draws"])
    assert exact.positions < full.positions
    for name in ("exact", "full"):
        record = exact if name == "exact" else full
        for hits, draws in zip(record.columns["prompt_hits"], record.columns["prompt_draws"], strict=True):
            assert all(0 <= hit <= draw <= 10 for hit, draw in zip(hits, draws, strict=True))
    # The draws that exact makes are those of full.
    for few, many, made in zip(
        exact.columns["prompt_hits"], full.columns["prompt_hits"], exact.columns["prompt_draws"], strict=True
    ):
        assert all(hit == whole for hit, whole, draw in zip(few, many, made, strict=True) if draw == 10)


def test_sequential_spends_few_draws_where_the_level_is_clear(chain: LoadedModel) -> None:
    full = measure_mastery(chain, FACTS, Protocol(seed=1, max_new_tokens=4))
    some = measure_mastery(chain, FACTS, Protocol(seed=1, max_new_tokens=4, stopping="sequential"))
    same = sum(a == b for a, b in zip(some.columns["level"], full.columns["level"], strict=True))
    assert same >= len(FACTS) - 1
    draws = np.array(some.columns["draws"]).reshape(4, 6)
    assert (draws[0] <= 70).all()  # the model gives the answer no probability: nothing is to be expected
    assert (draws[1] <= 70).all()
    assert draws.sum() < 0.6 * 210 * len(FACTS)


def test_a_fact_does_not_depend_on_its_company_or_the_seed_alone(chain: LoadedModel) -> None:
    whole = measure_mastery(chain, FACTS, Protocol(seed=4, max_new_tokens=4))
    part = measure_mastery(chain, FACTS[15:20][::-1], Protocol(seed=4, max_new_tokens=4))
    assert part.columns["prompt_hits"] == whole.columns["prompt_hits"][15:20][::-1]
    other = measure_mastery(chain, FACTS[15:20], Protocol(seed=5, max_new_tokens=4))
    assert other.columns["prompt_hits"] != whole.columns["prompt_hits"][15:20]


def test_the_record_is_written_as_documented(chain: LoadedModel, tmp_path: Path) -> None:
    record = measure_mastery(chain, FACTS, Protocol(seed=1, draws_per_prompt=3, max_new_tokens=4))
    assert sum(record.counts()) == len(FACTS)
    record.write(tmp_path / "m.parquet", {"seed": 1})
    table, about = read_table(tmp_path / "m.parquet", MASTERY, "mastery")
    assert about == {"seed": 1}
    for row in table.to_pylist():
        assert row["hits"] == sum(row["prompt_hits"])
        assert row["rate"] == row["hits"] / row["draws"]
        assert row["level"] == level_of(row["hits"], row["draws"]) == record.levels()[row["fact"]]


def test_bad_requests(chain: LoadedModel) -> None:
    with pytest.raises(InputError, match="stopping rule 'exakt' is unknown; nearest: 'exact'"):
        measure_mastery(chain, FACTS[:1], Protocol(stopping="exakt"))
    for error in (1.5, 1.0, 0.0, -0.1):
        with pytest.raises(InputError, match=rf"error rate {re.escape(str(error))}"):
            measure_mastery(chain, FACTS[:1], Protocol(stopping="sequential", error=error))
    with pytest.raises(InputError, match="relation 'P0' has no completion prompts"):
        measure_mastery(chain, [Fact("f", "P0", "test", "in_domain", "s", "q", "a")])
    assert measure_mastery(chain, []).columns["fact"] == []


def test_a_world_that_was_learned_is_known_better_where_it_was_written_more(
    small_model: LoadedModel, small_world: Path
) -> None:
    facts = [fact for fact in load_facts(f"world:{small_world}").facts if fact.split == "test"][:40]
    record = measure_mastery(small_model, facts, Protocol(draws_per_prompt=4, max_new_tokens=8))
    assert len(record.columns["fact"]) == 40
    assert all(len(row) == 21 for row in record.columns["prompt_hits"])
    assert 0 < sum(record.columns["hits"]) < sum(record.columns["draws"])


# -- certainty ------------------------------------------------------------------------------------------------


def test_intervals_treat_prompts_as_clusters() -> None:
    spread = rate_interval([10, 0] * 10, [10] * 20)
    even = rate_interval([5] * 20, [10] * 20)
    assert spread[1] - spread[0] > 2.5 * (even[1] - even[0])
    assert even[0] < 0.5 < even[1]
    none = rate_interval([0] * 21, [10] * 21)
    assert none[0] == 0
    assert 0.1 < none[1] < 0.25
    assert rate_interval([21], [21])[0] > 0
    assert np.isnan(rate_interval([], [])).all()


def test_intervals_cover_the_rate_over_prompts_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        rates = rng.beta(0.8, 1.6, 21)
        low, high = rate_interval(rng.binomial(10, rates), [10] * 21)
        covered += low <= 0.8 / 2.4 <= high
    assert 0.90 < covered / 400 < 0.99


def test_level_probabilities_say_how_often_another_run_gives_a_level() -> None:
    rng = np.random.default_rng(1)
    told, came = np.zeros(5), np.zeros(5)
    for _ in range(300):
        rates = rng.beta(0.5, 0.9, 21) * 10 ** rng.uniform(-4, 0)
        told += level_probabilities(rng.binomial(10, rates), [10] * 21)
        came[level_of(int(rng.binomial(10, rates).sum()), 210)] += 1
    assert told.sum() == pytest.approx(300)
    assert np.abs(told - came).max() < 25
    assert level_probabilities([10] * 21, [10] * 21)[4] > 0.99
    assert np.isnan(level_probabilities([], [])).all()


def test_agreement_counts_levels_and_chance() -> None:
    found = agreement([0, 1, 2, 3, 4], [0, 1, 3, 3, 0])
    assert (found.facts, found.same, found.within_one) == (5, 3 / 5, 4 / 5)
    assert found.table[2][3] == 1
    assert found.table[4][0] == 1
    assert agreement([1, 2], [1, 2]).kappa == 1
    assert math.isnan(agreement([1, 1], [1, 1]).kappa)
    assert agreement([], []).facts == 0


def test_prompts_that_do_not_work_show(chain: LoadedModel, tmp_path: Path) -> None:
    facts = [_fact(f"f{i}", ("s", "n", "s" if i % 2 else "n", "s" if i % 2 else "r")) for i in range(10)]
    measure_mastery(chain, facts, Protocol(seed=1, max_new_tokens=4)).write(tmp_path / "m.parquet", {})
    rows = prompt_rates(pq.read_table(tmp_path / "m.parquet").to_batches(max_chunksize=4))
    assert [row["prompt"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["rate"] > 0.9
    assert rows[1] == {"relation": "P19", "prompt": 1, "facts": 10, "rate": 0.0, "correlation": None}
    assert rows[3]["correlation"] > 0.9
    table, figure = write_prompts(tmp_path / "m.parquet", tmp_path / "prompts")
    assert len(table.read_text().splitlines()) == 5
    first = figure.read_bytes()
    write_prompts(tmp_path / "m.parquet", tmp_path / "prompts")
    assert figure.read_bytes() == first
    write_certainty(tmp_path / "m.parquet", tmp_path / "certainty.parquet")
    for row in pq.read_table(tmp_path / "certainty.parquet").to_pylist():
        assert row["rate_low"] <= row["rate"] <= row["rate_high"]
        assert sum(row[f"level_{level}"] for level in range(5)) == pytest.approx(1)


def test_certainty_is_of_another_run_with_as_many_draws(chain: LoadedModel, tmp_path: Path) -> None:
    """About 10 of 21 prompts hit: one draw a prompt repeats that less surely than ten."""
    rows = []
    for each in (1, 10):
        record = measure_mastery(chain, FACTS[12:13], Protocol(seed=1, draws_per_prompt=each, max_new_tokens=4))
        record.write(tmp_path / "m.parquet", {"draws_per_prompt": each})
        write_certainty(tmp_path / "m.parquet", tmp_path / "certainty.parquet")
        rows.append(pq.read_table(tmp_path / "certainty.parquet").to_pylist()[0])
    hits, draws = record.columns["prompt_hits"][0], record.columns["prompt_draws"][0]
    assert rows[1]["level_2"] == level_probabilities(hits, draws)[2]
    assert rows[0]["level_2"] < rows[1]["level_2"]
    assert level_probabilities(hits, draws)[2] == level_probabilities(hits[::-1], draws)[2]


# -- values by hand -------------------------------------------------------------------------------------------


def test_intervals_have_the_values_of_the_formula() -> None:
    """Wilson's interval for n effective draws and Student's t over prompts, worked out by hand."""

    def wilson(rate: float, n: float, t: float) -> list[float]:
        root = math.sqrt(rate * (1 - rate) / n + t * t / (4 * n * n))
        return [(rate + t * t / (2 * n) + sign * t * root) / (1 + t * t / n) for sign in (-1, 1)]

    cases = [
        # hits, draws, confidence: rate, effective draws, quantile
        (([0] * 21, [10] * 21, 0.95), 0.0, 21, 2.085963),  # every prompt counts as one draw
        (([10] * 21, [10] * 21, 0.95), 1.0, 21, 2.085963),
        (([1, 3], [10, 10], 0.95), 0.2, 0.16 / (2 / 1 * 2 / 400), 12.706205),  # residuals -1 and 1
        (([2, 4, 6], [10, 10, 10], 0.9), 0.4, 0.24 / (3 / 2 * 8 / 900), 2.919986),
        (([1, 3, 9], [5, 10, 15], 0.95), 13 / 30, 221 * 36 / 507, 4.302653),  # residuals -7/6, -4/3 and 5/2
        (([5, 5, 5, 5], [10] * 4, 0.95), 0.5, 40, 3.182446),  # never more than the draws made
        (([10, 0], [10, 10], 0.95), 0.5, 1, 12.706205),  # never fewer than one
        (([3, 0], [10, 0], 0.95), 0.3, 1, 1.959964),  # a prompt without draws was not asked
        (([21], [21], 0.95), 1.0, 1, 1.959964),
    ]
    for arguments, rate, n, t in cases:
        assert rate_interval(*arguments).tolist() == pytest.approx(wilson(rate, n, t), abs=1e-6), arguments


def test_the_chance_of_a_level_has_the_values_of_the_posterior() -> None:
    """One prompt, one draw more: the chance of a hit is the posterior mean, (200 E[m] + hits) / (200 + draws)."""
    for hits, draws in ((0, 1), (1, 1), (3, 10)):
        mean = (0.25 + hits) / (0.5 + draws)
        expected = (200 * mean + hits) / (200 + draws)
        found = level_probabilities([hits], [draws], draws_per_prompt=1)
        assert found[4] == pytest.approx(expected)
        assert found[0] == pytest.approx(1 - found[4])
        assert found[1:4].tolist() == [0, 0, 0]


@settings(max_examples=30, deadline=None)
@given(
    rates=st.lists(st.floats(0, 1), min_size=1, max_size=21),
    draws=st.lists(st.floats(0.1, 40), min_size=21, max_size=21),
    again=st.integers(1, 12),
)
def test_the_chance_of_a_level_is_that_of_simulated_runs(rates: list[float], draws: list[float], again: int) -> None:
    """Within five standard errors of 4,000 runs drawn from the posterior, step by step."""
    made = np.array(draws[: len(rates)])
    hits, rng, runs = made * rates, np.random.default_rng(again), 4_000
    c = _concentration(hits, made)
    mean = rng.beta(0.25 + hits.sum(), 0.25 + (made - hits).sum(), size=(runs, 1))
    own = rng.beta(np.maximum(mean * c + hits, 1e-9), np.maximum((1 - mean) * c + made - hits, 1e-9))
    totals = rng.binomial(again, own).sum(axis=1)
    came = np.bincount([level_of(int(total), again * len(rates)) for total in totals], minlength=5) / runs
    told = level_probabilities(hits.tolist(), made.tolist(), again)
    assert told.sum() == pytest.approx(1)
    assert np.abs(told - came).max() < 5 * 0.5 / runs**0.5


@given(a=st.floats(0.1, 300), b=st.floats(0.1, 300), draws=st.integers(1, 300))
def test_hits_of_unknown_rates_are_beta_binomial(a: float, b: float, draws: int) -> None:
    expected = stats.betabinom(draws, a, b).pmf(np.arange(draws + 1))
    np.testing.assert_allclose(beta_binomial(draws, np.array(a), np.array(b)), expected, rtol=1e-6, atol=1e-12)


@settings(deadline=None)
@given(
    kinds=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 99)), min_size=1, max_size=4),
    values=st.sampled_from([2, 11, FEW_VALUES, FEW_VALUES + 1, 90]),
)
def test_sums_have_the_chances_of_a_convolution(kinds: list[tuple[int, int]], values: int) -> None:
    """By a matrix, and of many values by fast transforms."""
    counts = np.array([count for count, _ in kinds])
    chances = np.stack(
        [np.stack([np.random.default_rng([seed, q]).dirichlet(np.ones(values)) for _, seed in kinds]) for q in range(3)]
    )
    weights = np.array([0.2, 0.5, 0.3])
    expected = 0.0
    for weight, its in zip(weights, chances, strict=True):
        total = np.ones(1)
        for count, one in zip(counts, its, strict=True):
            for _ in range(count):
                total = np.convolve(total, one)
        expected = expected + weight * total
    np.testing.assert_allclose(chance_of_sum(weights, chances, counts), expected, atol=1e-12)


def test_a_run_of_very_many_draws_repeats_the_rates() -> None:
    assert level_probabilities([3] * 21, [10] * 21, 1000)[2] > 0.9


@pytest.mark.parametrize(("each", "said"), [(0, "is 0; expected one"), (10_001, "expected a count below 10,001")])
def test_a_record_of_impossible_draws_has_no_certainty(
    chain: LoadedModel, tmp_path: Path, each: int, said: str
) -> None:
    record = measure_mastery(chain, FACTS[12:13], Protocol(seed=1, draws_per_prompt=1, max_new_tokens=4))
    record.write(tmp_path / "m.parquet", {"draws_per_prompt": each})
    with pytest.raises(InputError, match=said):
        write_certainty(tmp_path / "m.parquet", tmp_path / "certainty.parquet")


@given(a=st.floats(0.25, 5000), b=st.floats(0.25, 5000), degree=st.integers(0, 15))
def test_quadrature_has_the_moments_of_beta(a: float, b: float, degree: int) -> None:
    points, weights = beta_quadrature(a, b, nodes=8)
    moment = math.prod((a + k) / (a + b + k) for k in range(degree))
    assert ((points >= 0) & (points <= 1)).all()
    assert weights @ points**degree == pytest.approx(moment, rel=1e-7)


@pytest.mark.parametrize(
    ("hits", "draws", "expected"),
    [
        ([2, 8], [10, 10], 0.25 / (0.09 - 0.25 / 10) - 1),
        ([2, 16], [10, 20], 0.24 / ((10 * 0.4**2 + 20 * 0.2**2) / 30 - 0.24 / 15) - 1),
        ([0, 10], [10, 10], 0.2),  # 1/9, below the least
        ([5, 5], [10, 10], 200.0),  # no spread
        ([0, 0], [10, 10], 200.0),
        ([3], [10], 200.0),
    ],
)
def test_how_alike_prompts_are_by_moments(hits: list[int], draws: list[int], expected: float) -> None:
    assert _concentration(np.array(hits, float), np.array(draws, float)) == pytest.approx(expected)


def test_kappa_has_quadratic_weights() -> None:
    """Squared distances 17 where chance gives 105 / 5 = 21; with linear weights it would be 1 - 5 / 8.2."""
    assert agreement([0, 1, 2, 3, 4], [0, 1, 3, 3, 0]).kappa == pytest.approx(1 - 17 / 21)
    assert agreement([0, 4], [4, 0]).kappa == -1


def test_certainty_is_written_row_by_row(chain: LoadedModel, tmp_path: Path) -> None:
    record = measure_mastery(chain, FACTS[10:20], Protocol(seed=1, draws_per_prompt=4, max_new_tokens=4))
    record.write(tmp_path / "m.parquet", {"draws_per_prompt": 4})
    write_certainty(tmp_path / "m.parquet", tmp_path / "c.parquet", confidence=0.8)
    rows = pq.read_table(tmp_path / "c.parquet").to_pylist()
    columns = record.columns
    assert [row["fact"] for row in rows] == columns["fact"]
    assert [row["level"] for row in rows] == columns["level"]
    assert [row["rate"] for row in rows] == columns["rate"]
    for row, hits, draws in zip(rows, columns["prompt_hits"], columns["prompt_draws"], strict=True):
        assert [row["rate_low"], row["rate_high"]] == rate_interval(hits, draws, 0.8).tolist()
        assert [row[f"level_{i}"] for i in range(5)] == level_probabilities(hits, draws, 4).tolist()


@settings(max_examples=60, deadline=None)
@given(total=st.integers(1, 60), error=st.sampled_from([0.01, 0.2, 0.5]), data=st.data())
def test_plausible_hits_are_those_whose_probability_did_not_fall_below_the_error(
    total: int, error: float, data: st.DataObject
) -> None:
    """Posterior over prior of every true count, with a beta-binomial(1/2, 1/2) prior, by scipy's distributions."""
    draws = data.draw(st.integers(1, total))
    hits = data.draw(st.integers(0, draws))
    counts = np.arange(total + 1)
    likelihood = stats.hypergeom.pmf(hits, total, counts, draws)
    evidence = float(likelihood @ stats.betabinom.pmf(counts, total, 0.5, 0.5))
    ratio = likelihood / evidence
    if np.abs(ratio / error - 1).min() < 1e-6:
        return  # on the border to the last digits
    inside = np.flatnonzero(ratio > error)
    assert plausible_hits(hits, draws, total, error) == (inside[0], inside[-1])


SURE = {"t": {"A": 1.0}, "n": {"Q": 1.0}, "l": {"A": 0.0005, "Q": 0.9995}, "A": {".": 1.0}, "Q": {".": 1.0}}


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return markov_model(tmp_path_factory.mktemp("sure"), SURE)


def test_exact_looks_after_16_18_20_and_21_prompts(sure: LoadedModel) -> None:
    """All hits are level 4 after 160 of 210, no hit is level 0 only after all; 17 sure prompts lie between."""
    facts = [_fact("always", ("t",) * 21), _fact("never", ("n",) * 21), _fact("few", ("t",) * 3)]
    found = {
        seed: measure_mastery(sure, facts, Protocol(seed=seed, max_new_tokens=2, stopping="exact")) for seed in (1, 2)
    }
    for record in found.values():
        assert record.columns["draws"] == [160, 210, 30]
        assert record.columns["level"] == [4, 0, 4]
        assert set(record.columns["prompt_draws"][0]) == {0, 10}
    first, second = (record.columns["prompt_draws"][0] for record in found.values())
    assert first != second  # which prompts are asked first follows from the seed
    mixed = measure_mastery(
        sure,
        [_fact(f"m{i}", ("t",) * 17 + ("n",) * 4) for i in range(3)],
        Protocol(seed=1, max_new_tokens=2, stopping="exact"),
    )
    assert mixed.columns["level"] == [4] * 3  # 170 of 210
    assert len(set(mixed.columns["draws"])) == 1  # one order of prompts for all facts
    assert mixed.columns["draws"][0] in (180, 200, 210)


@pytest.mark.parametrize(
    ("error", "draws"),
    # 180, 147, 105 and 52 draws are left at the looks; each is expected to bring 0.0005 hits.
    [(0.2, 30), (0.0901, 30), (0.0899, 63), (0.0734, 105), (0.0524, 158), (0.0259, 210)],
)
def test_sequential_stops_a_hitless_fact_when_too_few_hits_are_expected(
    sure: LoadedModel, error: float, draws: int
) -> None:
    facts = [_fact("rare", ("l",) * 21), _fact("sure", ("t",) * 21)]
    record = measure_mastery(sure, facts, Protocol(seed=1, max_new_tokens=2, stopping="sequential", error=error))
    assert record.columns["hits"][0] == 0
    assert record.columns["draws"][0] == draws
    looks = [n for n in (30, 63, 105, 158, 210) if level_of(plausible_hits(n, n, 210, error)[0], 210) == 4]
    assert record.columns["draws"][1] == looks[0]
    assert all(0 <= one <= 10 for one in record.columns["prompt_draws"][0])
    assert min(record.columns["prompt_draws"][1]) < 10  # draws are spread over prompts


def test_the_defaults_are_the_papers_and_settings_reach_the_sampler(chain: LoadedModel) -> None:
    told = Protocol()
    assert (told.draws_per_prompt, told.temperature, told.max_new_tokens, told.grading) == (10, 0.7, 32, "substring")
    assert (told.stopping, told.seed) == ("full", 0)
    facts = [_fact(f"f{i}", ("s",) * 21, answer="A") for i in range(20)]
    # 0.97 and 0.03 to the power 0.7 / 2.1 are 0.99 and 0.31, 0.761 after normalising; 4,200 draws
    warm = measure_mastery(chain, facts, Protocol(max_new_tokens=2, temperature=2.1))
    assert sum(warm.columns["hits"]) / 4200 == pytest.approx(0.761, abs=0.035)
    assert sum(measure_mastery(chain, facts, Protocol(max_new_tokens=2)).columns["hits"]) / 4200 == pytest.approx(
        0.97, abs=0.015
    )
    loop = [_fact("loop", ("s",) * 21, answer="AA")]
    assert measure_mastery(chain, loop, Protocol(max_new_tokens=1)).columns["hits"] == [0]


def test_prompts_csv_and_figure_name_what_was_asked(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    # The last fact was asked by one prompt alone, so its other prompts say nothing of this one.
    hits = [[10, 6, 0], [8, 4, 1], [10, 2, 2], [9, 0, 0]]
    draws = [[10, 10, 10]] * 3 + [[10, 0, 0]]
    rows: dict[str, list[Any]] = dict.fromkeys(("fact", "split", "domain"), names)
    rows |= {"relation": ["P19"] * 4, "exposures": [None] * 4, "prompt_hits": hits, "prompt_draws": draws}
    rows |= {"hits": [16, 13, 14, 9], "draws": [30, 30, 30, 10], "rate": [0.5] * 4, "level": [2] * 4}
    record = tmp_path / "m.parquet"
    write_table(record, MASTERY, rows, {})
    found = prompt_rates(pq.read_table(record).to_batches())
    assert [row["facts"] for row in found] == [4, 3, 3]
    assert [row["rate"] for row in found] == pytest.approx([37 / 40, 0.4, 0.1])
    own, rest = [1.0, 0.8, 1.0], [6 / 20, 5 / 20, 4 / 20]
    assert found[0]["correlation"] == pytest.approx(float(np.corrcoef(own, rest)[0, 1]))
    table, figure = write_prompts(record, tmp_path / "prompts")
    written = list(csv.DictReader(table.open(encoding="utf-8")))
    assert [row["template"] for row in written] == list(RELATIONS["P19"].completions[:3])
    svg = figure.read_text()
    assert f"P19 {RELATIONS['P19'].name} (4)" in re.sub(r"&#\d+;", "", svg)
    ink = re.findall(r"<!-- ([012]) -->\s*<g style=\"fill: (#[0-9a-f]+)\"", svg)
    assert ink == [("0", "#ffffff"), ("1", "#333333"), ("2", "#333333")]
