"""Statistics against independent formulas, against simulations with a known truth, and their invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from knowshift.reports.evidence.answers import Column
from knowshift.reports.evidence.choices import against_levels, chosen, spread
from knowshift.reports.evidence.run_folder import Setting
from knowshift.reports.evidence.scores import Model, Scores
from knowshift.reports.findings.claims import BOTH, POINT, judge
from knowshift.statistics.choices import BEST_AND_WORST, ONE_CHOICE, TWO_CHOICES, choose_elsewhere
from knowshift.statistics.correlation import rank_correlation
from knowshift.statistics.crossed import crossed_interval, pooled_noise
from knowshift.statistics.estimates import (
    MISSING,
    Estimate,
    from_error,
    mean_interval,
    percentile_interval,
    proportion_interval,
    widened,
)
from knowshift.statistics.holm import holm
from knowshift.statistics.resampling import group_means, resampled_means, resampling_weights

probabilities = st.floats(0, 1, allow_nan=False)


def test_group_means_are_visible_fractions_and_empty_groups_are_missing() -> None:
    hits = np.array([[True, False], [True, True], [False, True], [True, True]])
    means = group_means(hits, np.array([0, 0, 0, 2]), 3)
    assert means[0].tolist()[:1] == [pytest.approx(2 / 3)]
    assert means[1, 0] == pytest.approx(2 / 3)
    assert np.isnan(means[:, 1]).all()
    assert means[:, 2].tolist() == [1.0, 1.0]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_weights_keep_every_groups_size(groups: list[int], seed: int) -> None:
    group = np.asarray(groups)
    weights = resampling_weights(group, 20, seed)
    for g in np.unique(group):
        assert weights[:, group == g].sum(axis=1) == pytest.approx(float((group == g).sum()))
    assert (weights >= 0).all()


def test_clusters_are_drawn_whole_and_within_their_stratum() -> None:
    cluster = np.array([0, 0, 1, 1, 1, 2, 2, 3])
    domain = np.array([0, 0, 0, 0, 0, 1, 1, 1])
    weights = resampling_weights(np.arange(8), 200, 1, cluster, domain)
    for c in np.unique(cluster):
        assert (weights[:, cluster == c].std(axis=1) == 0).all()
    assert weights[:, [0, 2]].sum(axis=1) == pytest.approx(2.0)  # two clusters of domain 0
    assert weights[:, 0].std() > 0


def test_bootstrap_variance_is_the_textbook_one() -> None:
    rng = np.random.default_rng(0)
    hits = rng.random((80, 1)) < 0.3
    group = np.repeat([0, 1], [20, 60])
    replicated, varying = resampled_means(hits, group, 2, 20_000, 3)
    assert varying.all()
    for g in (0, 1):
        sample = hits[group == g, 0].astype(float)
        assert replicated[0, :, g].var() == pytest.approx(sample.var(ddof=1) / len(sample), rel=0.05)
        assert replicated[0, :, g].mean() == pytest.approx(sample.mean(), abs=0.002)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(0, 1000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_resampled_means_are_those_of_the_weights(groups: list[int], seed: int, in_clusters: bool) -> None:
    """Linearised round the mean, one stratum at a time, as with all weights at once; group 3 has no facts."""
    rng = np.random.default_rng(seed)
    group = np.asarray(groups)
    cluster = group % 2 * 3 + rng.integers(0, 3, len(group)) if in_clusters else None
    values = rng.random((len(group), 2))
    found, varying = resampled_means(values, group, 4, 30, seed, cluster, group % 2)
    weights = resampling_weights(group, 30, seed, cluster, group % 2)
    for g in range(3):
        inside = group == g
        if not inside.any():
            continue
        mean = values[inside].mean(axis=0)
        expected = mean + weights[:, inside] @ (values[inside] - mean) / inside.sum()
        assert pytest.approx(expected, abs=1e-6) == found[:, :, g].T
        stratum = group == g if cluster is None else group % 2 == g % 2
        units = stratum.sum() if cluster is None else len(np.unique(cluster[stratum]))
        assert varying[g] == (units > 1)
    assert np.isnan(found[:, :, 3]).all()
    assert not varying[3]


def test_same_seed_same_weights() -> None:
    group = np.zeros(10, dtype=np.int64)
    assert (resampling_weights(group, 5, 7) == resampling_weights(group, 5, 7)).all()
    assert (resampling_weights(group, 5, 7) != resampling_weights(group, 5, 8)).any()


def test_interval_of_one_stratum_is_students_when_facts_do_not_vary() -> None:
    values = np.array([0.4, 0.5, 0.45])
    estimate = crossed_interval(values, np.tile(values, (50, 1)), [0, 0, 0])
    low, high = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
    assert (estimate.low, estimate.high) == (pytest.approx(low), pytest.approx(high))
    assert estimate.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert estimate.draws == 3


def test_interval_of_one_draw_is_the_bootstraps() -> None:
    rng = np.random.default_rng(1)
    replicates = 0.5 + 0.02 * rng.standard_normal((4000, 1))
    estimate = crossed_interval(np.array([0.5]), replicates, [0])
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * 0.02, rel=0.05)
    assert estimate.draws == 1


def test_missing_stays_missing_and_no_error_is_a_point() -> None:
    assert not crossed_interval(np.array([]), np.zeros((5, 0)), []).known
    assert not crossed_interval(np.array([math.nan]), np.full((5, 1), math.nan), [0]).known
    point = from_error(0.2, 0.0, 3, 2)
    assert (point.low, point.high, point.p) == (0.2, 0.2, 0.0)
    assert not mean_interval([]).known
    assert math.isnan(mean_interval([1.0]).low)


def _simulate(rng: np.random.Generator, draws: int, strata: int, facts: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Contrasts of every (stratum, draw) on every fact: fact effect + draw effect + their interaction; mean 0."""
    fact = 0.4 * rng.standard_normal(facts)
    draw = 0.04 * rng.standard_normal(draws * strata)
    noise = 0.5 * rng.standard_normal((facts, draws * strata))
    values = (fact[:, None] + draw[None, :] + noise) / strata
    replicated, _ = resampled_means(values, np.zeros(facts, dtype=np.int64), 1, 150, int(rng.integers(1 << 30)))
    return values.mean(axis=0), replicated[:, :, 0].T


@pytest.mark.parametrize(("draws", "strata"), [(2, 5), (3, 1), (3, 5), (5, 1)])
def test_intervals_hold_the_truth_as_often_as_they_say(draws: int, strata: int) -> None:
    rng = np.random.default_rng(10 * draws + strata)
    runs, held = 400, 0
    labels = np.repeat(np.arange(strata), draws).tolist()
    for _ in range(runs):
        values, replicates = _simulate(rng, draws, strata)
        estimate = crossed_interval(values, replicates, labels)
        held += estimate.low <= 0 <= estimate.high
    assert 0.925 <= held / runs <= 0.995


def test_resampling_facts_alone_would_be_too_sure() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(300):
        _, replicates = _simulate(rng, 2, 1)
        low, high = np.quantile(replicates.mean(axis=1), [0.025, 0.975])
        held += low <= 0 <= high
    assert held / 300 < 0.93  # what crossed_interval corrects


def test_pooled_noise_narrows_a_levels_interval_and_keeps_its_coverage() -> None:
    rng = np.random.default_rng(4)
    held, pooled_width, own_width = 0, [], []
    for _ in range(250):
        levels = [_simulate(rng, 3, 1) for _ in range(5)]
        noise = pooled_noise([values for values, _ in levels])
        assert noise is not None
        assert noise.freedom == 10
        estimate = crossed_interval(*levels[0], [0, 0, 0], noise)
        own = crossed_interval(*levels[0], [0, 0, 0])
        held += estimate.low <= 0 <= estimate.high
        pooled_width.append(estimate.high - estimate.low)
        own_width.append(own.high - own.low)
    assert 0.93 <= held / 250 <= 0.995
    assert np.mean(pooled_width) < np.mean(own_width)
    assert pooled_noise([np.array([0.1])]) is None


def test_pooled_noise_is_the_analysis_of_variance() -> None:
    groups = [np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.0])]
    noise = pooled_noise(groups)
    assert noise is not None
    squares = sum(((g - g.mean()) ** 2).sum() for g in groups)
    assert noise.variance == pytest.approx(squares / 3)


@given(st.lists(probabilities, max_size=12))
def test_holm_never_makes_surer_keeps_the_order_and_stays_a_probability(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(a >= p - 1e-12 and a <= 1 for a, p in zip(adjusted, p_values, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.asarray(adjusted)[order]) >= 0).all()
    if p_values:
        assert min(adjusted) == pytest.approx(min(1.0, min(p_values) * len(p_values)))


def test_holm_by_hand_and_missing_takes_no_part() -> None:
    assert holm([0.01, math.nan, 0.04, 0.03])[0] == pytest.approx(0.03)
    assert holm([0.01, math.nan, 0.04, 0.03])[2:] == [pytest.approx(0.06), pytest.approx(0.06)]
    assert math.isnan(holm([0.01, math.nan])[1])


@given(
    arrays(np.float64, (3, 3, 2), elements=st.floats(0, 1, width=32)),
    st.integers(0, 2),
    st.integers(0, 1),
    arrays(np.float64, 3, elements=st.floats(0, 1, width=32)),
)
@settings(deadline=None)
def test_a_choice_never_sees_what_measures_it(scores: np.ndarray, draw: int, half: int, other: np.ndarray) -> None:
    changed = scores.copy()
    changed[:, draw, :] = other[:, None]  # all of this draw
    changed[:, :, half] = other[:, None]  # all of this half
    assert choose_elsewhere(scores)[draw, half] == choose_elsewhere(changed)[draw, half]


def test_an_honest_choice_among_equals_gains_nothing() -> None:
    rng = np.random.default_rng(5)
    honest, greedy = [], []
    for _ in range(400):
        scores = rng.standard_normal((7, 3, 2))
        chosen = choose_elsewhere(scores)
        honest.append(np.mean([scores[chosen[d, h], d, h] for d in range(3) for h in range(2)]))
        greedy.append(scores.mean(axis=(1, 2)).max())
    assert abs(np.mean(honest)) < 0.08
    assert np.mean(greedy) > 0.4


@pytest.mark.parametrize("candidates", [2, 5])
@pytest.mark.parametrize(("draws", "common"), [(1, 0.5), (3, 0.0), (3, 0.9)])
def test_choices_among_equals_scatter_no_more_than_their_intervals_are_widened(
    candidates: int, draws: int, common: float
) -> None:
    rng = np.random.default_rng(candidates)
    runs = 1500
    chosen, spread = np.zeros(runs), np.zeros(runs)
    for i in range(runs):
        shared = math.sqrt(common) * rng.standard_normal((candidates, 1, 2))
        scores = shared + math.sqrt(1 - common) * rng.standard_normal((candidates, draws, 2))
        best, worst = choose_elsewhere(scores), choose_elsewhere(scores, highest=False)
        d, h = np.indices(best.shape)
        chosen[i] = scores[best, d, h].mean()
        spread[i] = chosen[i] - scores[worst, d, h].mean()
    one = common / 2 + (1 - common) / (2 * draws)  # variance of one candidate's mean over folds
    sampling = 1.04  # of a standard deviation over so many runs
    assert abs(chosen.mean()) < 0.08
    assert math.sqrt((chosen.var() + one) / (2 * one)) < ONE_CHOICE * sampling
    assert math.sqrt(chosen.var() / one) < TWO_CHOICES * sampling
    assert math.sqrt(spread.var() / (2 * one)) < BEST_AND_WORST * sampling


def test_widened_keeps_the_value_and_what_is_missing() -> None:
    estimate = from_error(0.1, 0.02, 8, 3)
    wider = widened(estimate, 1.5)
    assert wider.value == estimate.value
    assert wider.high - wider.low == pytest.approx(1.5 * (estimate.high - estimate.low))
    assert wider.p > estimate.p
    assert not widened(MISSING, 2).known


def test_choice_finds_the_best_takes_the_first_of_equals_and_the_lowest_when_asked() -> None:
    scores = np.zeros((3, 2, 2))
    scores[1] = 1
    assert (choose_elsewhere(scores) == 1).all()
    assert (choose_elsewhere(scores, highest=False) == 0).all()
    scores[1, :, 0] = math.nan  # a half without facts: the other half chooses
    assert choose_elsewhere(scores).shape == (2, 2)


@given(st.permutations([0.1, 0.2, 0.3, 0.6, 0.7]), st.booleans())
def test_candidates_that_differ_by_rounding_alone_are_equal(other: list[float], highest: bool) -> None:
    """The same numbers in another order may have another last digit in their mean; the first candidate is taken."""
    ascending = [0.1, 0.2, 0.3, 0.6, 0.7]
    for pair in ((other, ascending), (ascending, other)):
        scores = np.repeat(np.asarray(pair)[:, :, None], 2, axis=2)
        assert choose_elsewhere(np.concatenate([scores[:, :1], scores], axis=1), highest)[0].tolist() == [0, 0]


@given(st.integers(0, 60), st.integers(1, 60))
def test_proportion_interval_holds_the_rate_and_stays_in_range(hits: int, count: int) -> None:
    hits = min(hits, count)
    low, high = proportion_interval(hits, count)
    assert 0 <= low <= hits / count + 1e-12
    assert hits / count - 1e-12 <= high <= 1
    expected = stats.binomtest(hits, count).proportion_ci(method="wilson")
    assert (low, high) == (pytest.approx(expected.low, abs=1e-9), pytest.approx(expected.high, abs=1e-9))


def test_proportion_of_nothing_is_missing() -> None:
    assert all(math.isnan(end) for end in proportion_interval(0, 0))


@given(arrays(np.float64, (2, 8), elements=st.floats(-5, 5, width=16)))
@settings(deadline=None)
def test_rank_correlation_is_spearmans(pair: np.ndarray) -> None:
    ours = float(rank_correlation(pair[0], pair[1]))
    if np.ptp(pair[0]) == 0 or np.ptp(pair[1]) == 0:
        assert math.isnan(ours)
    else:
        assert ours == pytest.approx(stats.spearmanr(pair[0], pair[1]).statistic, abs=1e-9)


def test_percentile_interval_by_hand() -> None:
    estimate = percentile_interval(0.5, np.linspace(0, 1, 1001), 3)
    assert (estimate.low, estimate.high) == (pytest.approx(0.025), pytest.approx(0.975))
    assert not percentile_interval(math.nan, np.zeros(3), 3).known


@given(st.floats(-1, 1), arrays(np.float64, st.integers(2, 40), elements=st.floats(-1, 1)))
def test_an_interval_holds_its_estimate(value: float, replicates: np.ndarray) -> None:
    found = percentile_interval(value, replicates, 3)
    assert found.low <= value <= found.high


def test_what_nothing_was_repeated_for_has_no_interval_and_no_p() -> None:
    """One draw of each stratum, and facts that do not vary: rounding in the replicates is no variation either."""
    for value, scale in ((0.3, 1.0), (0.0, 1.0), (0.3, 1 + 1e-15)):
        replicates = np.full((50, 2), value)
        replicates[::2] *= scale
        estimate = crossed_interval(np.array([value, value]), replicates, [0, 1])
        assert estimate.value == pytest.approx(2 * value)
        assert estimate.draws == 1
        assert all(math.isnan(x) for x in (estimate.low, estimate.high, estimate.error, estimate.p))
    # A second draw of one stratum says nothing about the other's.
    assert math.isnan(crossed_interval(np.array([0.1, 0.2, 0.3]), np.zeros((9, 3)), [0, 0, 1]).low)
    assert math.isnan(percentile_interval(0.5, np.array([math.nan, 0.4]), 1).p)
    assert percentile_interval(0.5, np.array([]), 1).value == 0.5


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(0, 1000), st.booleans())
@settings(max_examples=60, deadline=None)
def test_an_interval_over_draws_asks_for_two_draws_of_every_stratum(
    draws: list[int], seed: int, facts_vary: bool
) -> None:
    rng = np.random.default_rng(seed)
    strata = np.repeat(np.arange(len(draws)), draws)
    replicates = rng.standard_normal((20, len(strata))) if facts_vary else np.zeros((20, len(strata)))
    estimate = crossed_interval(rng.standard_normal(len(strata)), replicates, strata.tolist())
    assert estimate.known
    assert math.isnan(estimate.low) == math.isnan(estimate.p) == (min(draws) == 1 and not facts_vary)
    assert estimate.p != 0


#: Equal models of a simulated study: three candidates, a reference and draws; facts, draws and answers vary.
CANDIDATES, REFERENCE = 3, 9


def _equal_models(rng: np.random.Generator, draws: int) -> Scores:
    """Models of equal accuracy on 200 facts: what a fact, a draw and their meeting add is noise alone."""
    settings_of = [Setting(level, 60, 1e-3, "") for level in (*range(CANDIDATES), REFERENCE)]
    columns = [Column(setting, draw) for setting in settings_of for draw in range(draws)]
    facts = 200
    fact = 0.2 * rng.standard_normal((facts, 1))
    draw = 0.03 * rng.standard_normal((1, len(columns)))
    values = (rng.random((facts, len(columns))) < np.clip(0.5 + fact + draw, 0, 1)).astype(np.float64)
    place = np.arange(facts)
    return Scores(values, place % 2, place % 10 // 2, columns, replicates=100, seed=int(rng.integers(1 << 30)))


@pytest.mark.parametrize("draws", [2, 3])
def test_among_equals_a_false_shown_is_rare(draws: int) -> None:
    """The contrasts of the findings, on models that do not differ: at most 5 of 100 are told as shown."""
    rng = np.random.default_rng(20 + draws)
    runs = 300
    shown = {"difference": 0, "best of three": 0, "best minus worst": 0, "another level": 0}
    for _ in range(runs):
        scores = _equal_models(rng, draws)
        models = {level: Model(Setting(level, 60, 1e-3, "")) for level in (*range(CANDIDATES), REFERENCE)}
        reference = models.pop(REFERENCE)
        options = {float(level): model for level, model in models.items()}
        estimates = {
            "difference": scores.difference([(models[0], reference)], scores.over(BOTH)),
            "best of three": chosen(scores, [options], [reference], BOTH).estimate,
            "best minus worst": spread(scores, models, BOTH)[0].estimate,
            "another level": against_levels(scores, models, reference, BOTH, highest=True).estimate,
        }
        for name, estimate in estimates.items():
            shown[name] += judge(estimate, POINT) == "shown"
    assert all(count / runs <= 0.05 for count in shown.values()), shown
    assert sum(shown.values()) > 0  # intervals that never miss would be too wide


def test_one_fact_or_one_relation_in_every_group_has_no_interval() -> None:
    """Resampling cannot vary them, so their part of the noise is not known, however many draws agree."""
    rng = np.random.default_rng(6)
    setting = Setting(0, 60, 1e-3, "")
    columns = [Column(setting, draw) for draw in range(3)]

    def mean_of_draws(facts: int, relations: int | None) -> Estimate:
        place = np.arange(facts)
        cluster = None if relations is None else place % relations
        values = rng.random((facts, 3)) < 0.5
        scores = Scores(values, np.zeros(facts, np.int64), np.zeros(facts, np.int64), columns, cluster, replicates=50)
        return scores.mean([Model(setting)], scores.over([0]))

    for facts, relations, known in ((2, None, False), (40, 1, False), (40, None, True), (40, 4, True)):
        estimate = mean_of_draws(facts, relations)  # two facts: one in each half
        assert estimate.known
        assert math.isnan(estimate.low) == math.isnan(estimate.p) == (not known)
