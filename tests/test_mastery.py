"""Levels, their certainty, and mastery measured with the three stopping rules."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.facts.sources import load_facts
from knowshift.mastery import level_of, measure_mastery
from knowshift.mastery.certainty import agreement, level_probabilities, rate_interval, write_certainty
from knowshift.mastery.levels import certain_level, plausible_hits
from knowshift.mastery.prompts import prompt_rates, write_prompts
from knowshift.models.loading import LoadedModel
from knowshift.records import MASTERY, read_table
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
    full = measure_mastery(chain, FACTS, seed=1, max_new_tokens=4)
    assert full.columns["draws"] == [210] * len(FACTS)
    assert full.columns["level"][:12] == [0] * 6 + [4] * 6
    assert set(full.columns["level"][12:18]) <= {2}
    assert full.columns["exposures"] == [3] * len(FACTS)
    exact = measure_mastery(chain, FACTS, seed=1, max_new_tokens=4, stopping="exact")
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
    full = measure_mastery(chain, FACTS, seed=1, max_new_tokens=4)
    some = measure_mastery(chain, FACTS, seed=1, max_new_tokens=4, stopping="sequential")
    same = sum(a == b for a, b in zip(some.columns["level"], full.columns["level"], strict=True))
    assert same >= len(FACTS) - 1
    draws = np.array(some.columns["draws"]).reshape(4, 6)
    assert (draws[0] <= 70).all()  # the model gives the answer no probability: nothing is to be expected
    assert (draws[1] <= 70).all()
    assert draws.sum() < 0.6 * 210 * len(FACTS)


def test_a_fact_does_not_depend_on_its_company_or_the_seed_alone(chain: LoadedModel) -> None:
    whole = measure_mastery(chain, FACTS, seed=4, max_new_tokens=4)
    part = measure_mastery(chain, FACTS[15:20][::-1], seed=4, max_new_tokens=4)
    assert part.columns["prompt_hits"] == whole.columns["prompt_hits"][15:20][::-1]
    other = measure_mastery(chain, FACTS[15:20], seed=5, max_new_tokens=4)
    assert other.columns["prompt_hits"] != whole.columns["prompt_hits"][15:20]


def test_the_record_is_written_as_documented(chain: LoadedModel, tmp_path: Path) -> None:
    record = measure_mastery(chain, FACTS, seed=1, draws_per_prompt=3, max_new_tokens=4)
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
        measure_mastery(chain, FACTS[:1], stopping="exakt")
    with pytest.raises(InputError, match=r"error rate 1\.5"):
        measure_mastery(chain, FACTS[:1], stopping="sequential", error=1.5)
    with pytest.raises(InputError, match="relation 'P0' has no completion prompts"):
        measure_mastery(chain, [Fact("f", "P0", "test", "in_domain", "s", "q", "a")])
    assert measure_mastery(chain, []).columns["fact"] == []


def test_a_world_that_was_learned_is_known_better_where_it_was_written_more(
    small_model: LoadedModel, small_world: Path
) -> None:
    facts = [fact for fact in load_facts(f"world:{small_world}").facts if fact.split == "test"][:40]
    record = measure_mastery(small_model, facts, draws_per_prompt=4, max_new_tokens=8)
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
        told += level_probabilities(rng.binomial(10, rates), [10] * 21, samples=200)
        came[level_of(int(rng.binomial(10, rates).sum()), 210)] += 1
    assert told.sum() == pytest.approx(300)
    assert np.abs(told - came).max() < 25
    assert level_probabilities([10] * 21, [10] * 21)[4] > 0.99
    assert np.isnan(level_probabilities([], [])).all()


def test_agreement_counts_levels_and_chance() -> None:
    found = agreement([0, 1, 2, 3, 4, None], [0, 1, 3, 3, 0, 2])
    assert (found.facts, found.same, found.within_one) == (5, 3 / 5, 4 / 5)
    assert found.table[2][3] == 1
    assert found.table[4][0] == 1
    assert agreement([1, 2], [1, 2]).kappa == 1
    assert math.isnan(agreement([1, 1], [1, 1]).kappa)
    assert agreement([], []).facts == 0


def test_prompts_that_do_not_work_show(chain: LoadedModel, tmp_path: Path) -> None:
    facts = [_fact(f"f{i}", ("s", "n", "s" if i % 2 else "n", "s" if i % 2 else "r")) for i in range(10)]
    measure_mastery(chain, facts, seed=1, max_new_tokens=4).write(tmp_path / "m.parquet", {})
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
        record = measure_mastery(chain, FACTS[12:13], seed=1, draws_per_prompt=each, max_new_tokens=4)
        record.write(tmp_path / "m.parquet", {"draws_per_prompt": each})
        write_certainty(tmp_path / "m.parquet", tmp_path / "certainty.parquet")
        rows.append(pq.read_table(tmp_path / "certainty.parquet").to_pylist()[0])
    hits, draws = record.columns["prompt_hits"][0], record.columns["prompt_draws"][0]
    assert rows[1]["level_2"] == level_probabilities(hits, draws)[2]
    assert rows[0]["level_2"] < rows[1]["level_2"]
    assert level_probabilities(hits, draws)[2] == level_probabilities(hits[::-1], draws)[2]
