"""Contrasts of models by hand: weights over groups of facts, halves, honest choices, and intervals by the textbook."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from knowshift.reports.evidence.answers import Column
from knowshift.reports.evidence.choices import Choice, against_levels, chosen, spread
from knowshift.reports.evidence.run_folder import Setting
from knowshift.reports.evidence.scores import GROUPS, HALVES, SEED, Contribution, Model, Scores, halve
from knowshift.statistics.choices import BEST_AND_WORST, ONE_CHOICE, TWO_CHOICES
from knowshift.statistics.crossed import crossed_interval
from knowshift.statistics.estimates import MISSING, Estimate, mean_interval, percentile_interval


def setting(level: int, size: int = 60, control: str = "") -> Setting:
    return Setting(level, size, 1e-4, control)


def whole(accuracies: dict[tuple[Setting, int], tuple[float, float]], facts: int = 40) -> Scores:
    """Models whose value is the same on all facts of a domain: all of their noise is between draws."""
    place = np.arange(facts)
    domain, level = place % 2, place // 2 % 5
    columns = [Column(its, draw) for its, draw in accuracies]
    values = np.stack([np.where(domain == 0, a, b) for a, b in accuracies.values()], axis=1)
    return Scores(values, domain, level, columns, replicates=50)


def near(values: Sequence[float]) -> list[object]:
    return [pytest.approx(value, abs=2e-6) for value in values]


def interval(estimate: Estimate) -> list[float]:
    return [estimate.value, estimate.low, estimate.high]


def student(values: Sequence[float], error: float, freedom: float) -> list[object]:
    mean = float(np.mean(values))
    reach = float(stats.t.ppf(0.975, freedom)) * error
    return near([mean, mean - reach, mean + reach])


# -- groups and weights -----------------------------------------------------------------------------------------

#: Four facts of level 0 and three of level 2 in-domain, two of level 4 out-of-domain.
DOMAIN = np.asarray([0] * 7 + [1] * 2)
LEVEL = np.asarray([0] * 4 + [2] * 3 + [4] * 2)


@pytest.fixture
def scores() -> Scores:
    values = np.asarray([[1], [0], [0], [0], [1], [1], [0], [1], [0]])
    return Scores(values, DOMAIN, LEVEL, [Column(setting(0), 0)], replicates=20)


def test_halves_differ_by_at_most_one_fact_and_are_seeded() -> None:
    domain, level = np.repeat([0, 1], 50), np.tile(np.arange(5), 20)
    half = halve(domain, level)
    for d, lv in itertools.product((0, 1), range(5)):
        inside = half[(domain == d) & (level == lv)]
        assert sorted(np.bincount(inside, minlength=2)) == [5, 5]
    assert (half == halve(domain, level, SEED)).all()
    assert (half != halve(domain, level, SEED + 1)).any()
    assert 0 < (half[:10] == 0).sum() < 10
    assert sorted(np.bincount(halve(np.zeros(3, np.int64), np.zeros(3, np.int64)))) == [1, 2]


def test_a_group_is_a_domain_a_level_and_a_half(scores: Scores) -> None:
    assert (GROUPS, HALVES) == (20, 2)
    counts = scores.counts.reshape(2, 5, 2)
    assert counts.sum(axis=2).tolist() == [[4, 0, 3, 0, 0], [0, 0, 0, 0, 2]]
    assert counts[0, 0].tolist() == [2, 2]
    half = halve(DOMAIN, LEVEL)
    for h in (0, 1):
        inside = (DOMAIN == 0) & (LEVEL == 2) & (half == h)
        assert counts[0, 2, h] == inside.sum()
        assert scores.means.reshape(-1, 2, 5, 2)[0, 0, 2, h] == pytest.approx(scores.values[inside, 0].mean())


def test_weights_make_the_mean_over_domains_of_the_mean_over_levels(scores: Scores) -> None:
    def value(weights: np.ndarray) -> float:
        return scores.value(0, weights)

    assert value(scores.over([0])) == pytest.approx((1 / 4 + 2 / 3) / 2)
    assert value(scores.over([1])) == pytest.approx(1 / 2)
    assert value(scores.over([0, 1])) == pytest.approx(((1 / 4 + 2 / 3) / 2 + 1 / 2) / 2)
    assert value(scores.over([0], 0)) == pytest.approx(1 / 4)
    assert value(scores.over([0, 1], 4)) == pytest.approx(1 / 2)  # a domain without such facts takes no part
    assert np.isnan(scores.over([1], 0)).all()
    assert scores.over([0, 1]).sum() == pytest.approx(1)
    assert value(scores.pooled([0])) == pytest.approx(3 / 7)
    assert value(scores.pooled([0, 1])) == pytest.approx(4 / 9)
    assert scores.pooled([0, 1]).sum() == pytest.approx(1)
    half = halve(DOMAIN, LEVEL)
    for h in (0, 1):
        level_0, level_2 = (scores.values[(lv == LEVEL) & (half == h), 0].mean() for lv in (0, 2))
        assert value(scores.over([0], half=h)) == pytest.approx((level_0 + level_2) / 2)
        assert value(scores.pooled([0, 1], half=h)) == pytest.approx(scores.values[half == h, 0].mean())
    nothing = Scores(scores.values[:7], DOMAIN[:7], LEVEL[:7], scores.columns, replicates=5)
    assert np.isnan(nothing.pooled([1])).all()
    assert np.isnan(nothing.over([1])).all()
    assert nothing.over([0, 1]).tolist() == nothing.over([0]).tolist()


def test_models_by_their_settings_and_draws() -> None:
    columns = [
        Column(None, 0, prompt="zero_shot"),
        *(Column(setting(2), draw) for draw in (2, 0, 1)),
        Column(setting(0), 0),
        Column(setting(0), 0, "relative", 0.2),
        Column(setting(0, control="learning_rate"), 0),
    ]
    scores = Scores(np.zeros((10, len(columns))), np.zeros(10, np.int64), np.arange(10) % 5, columns, replicates=5)
    assert scores.settings() == [setting(0), setting(2)]
    assert scores.settings("learning_rate") == [setting(0, control="learning_rate")]
    assert scores.draws(Model(setting(2))) == (0, 1, 2)
    assert scores.draws(Model(setting(0)).restored("relative", 0.2)) == (0,)
    assert scores.draws(Model(setting(0)).restored("relative", 0.3)) == ()
    assert scores.column(Model(setting(2)), 1) == 3
    assert scores.column(Model(setting(0), "relative", 0.2), 0) == 5


# -- differences ------------------------------------------------------------------------------------------------


def test_a_difference_is_paired_by_draw_and_drops_what_has_no_pair() -> None:
    a, b, c = setting(0), setting(1), setting(2)
    scores = whole(
        {
            (a, 0): (0.4, 0.4),
            (a, 1): (0.7, 0.7),
            (a, 2): (0.9, 0.9),
            (b, 0): (0.1, 0.1),
            (b, 1): (0.2, 0.2),
            (c, 5): (1, 1),
        }
    )
    weights = scores.over((0, 1))
    found = scores.difference([(Model(a), Model(b))], weights)
    assert interval(found) == student([0.3, 0.5], 0.1, 1)  # standard deviation 0.1414 over root 2
    assert found.draws == 2
    assert interval(scores.difference([(Model(b), Model(a))], weights)) == student([-0.3, -0.5], 0.1, 1)
    both = scores.difference([(Model(a), Model(b)), (Model(a), Model(c))], weights)
    assert interval(both) == interval(found)
    assert scores.difference([(Model(a), Model(c))], weights) == MISSING
    assert interval(scores.mean([Model(a)], weights)) == student([0.4, 0.7, 0.9], math.sqrt(0.19 / 3 / 3), 2)
    alike = [(Model(a), None), (Model(b), None), (Model(c), None)]
    pooled = scores.difference([(Model(b), None)], weights, alike)
    # Sums of squares 0.38 / 3 and 0.005 with two and one degrees of freedom; a level of one draw has none.
    error = math.sqrt((0.38 / 3 + 0.005) / 3 / 2)
    assert interval(pooled) == student([0.1, 0.2], error, 3)


def test_the_noise_of_facts_is_the_textbooks() -> None:
    """One draw: the sum over strata of (weight squared times variance of the paired differences over facts)."""
    rng = np.random.default_rng(3)
    facts = 60
    place = np.arange(facts)
    domain, level = place % 2, place // 2 % 5
    values = (rng.random((facts, 2)) < [0.7, 0.4]).astype(float)
    values[:30, 1] = values[:30, 0]  # correlated: pairing narrows the interval
    a, b = setting(0), setting(1)
    scores = Scores(values, domain, level, [Column(a, 0), Column(b, 0)], replicates=20_000)
    weights = scores.over((0, 1))
    group = (domain * 5 + level) * 2 + halve(domain, level)
    difference = values[:, 0] - values[:, 1]
    variance = sum(weights[g] ** 2 * difference[group == g].var(ddof=1) / (group == g).sum() for g in np.unique(group))
    found = scores.difference([(Model(a), Model(b))], weights)
    assert found.value == pytest.approx(sum(weights[g] * difference[group == g].mean() for g in np.unique(group)))
    assert found.error == pytest.approx(math.sqrt(variance), rel=0.03)
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.03)


def test_relations_are_resampled_whole() -> None:
    """Four relations of ten facts that agree within a relation: as if there were four facts."""
    values = np.repeat([1.0, 0.0, 1.0, 1.0], 10)[:, None]
    zeros = np.zeros(40, np.int64)
    cluster = np.repeat(np.arange(4), 10)
    column = [Column(setting(0), 0)]
    apart = Scores(values, zeros, zeros, column, replicates=4000)
    together = Scores(values, zeros, zeros, column, cluster=cluster, replicates=4000)
    weights = apart.over((0,))
    errors = [s.mean([Model(setting(0))], weights).error for s in (apart, together)]
    assert errors[0] == pytest.approx(math.sqrt(0.1875 / 40), rel=0.1)
    assert errors[1] == pytest.approx(math.sqrt(0.25 / 4), rel=0.1)


# -- choices ----------------------------------------------------------------------------------------------------


def test_the_best_is_chosen_in_the_other_draws_and_measured_in_this_one() -> None:
    a, b, reference = setting(0, 60), setting(0, 240), setting(0, 1920)
    scores = whole(
        {
            **{(a, d): (v, v) for d, v in enumerate((0.9, 0.2, 0.2))},  # lucky in draw 0
            **{(b, d): (v, v) for d, v in enumerate((0.5, 0.5, 0.5))},
            **{(reference, d): (0.1, 0.1) for d in range(3)},
        }
    )
    options = {60.0: Model(a), 240.0: Model(b)}
    found = chosen(scores, [options], [Model(reference)], (0, 1))
    # Draw 0 is measured where b was the best of draws 1 and 2; draws 1 and 2, where a was, by draw 0's luck.
    values = [0.4, 0.1, 0.1]
    assert found.chosen == {60.0: 4, 240.0: 2}
    assert interval(found.estimate) == student(values, ONE_CHOICE * float(np.std(values, ddof=1)) / math.sqrt(3), 2)
    lowest = chosen(scores, [options], [Model(reference)], (0, 1), highest=False)
    assert lowest.chosen == {60.0: 2, 240.0: 4}
    assert lowest.estimate.value == pytest.approx(np.mean([0.8, 0.4, 0.4]))
    both = chosen(scores, [options], [options], (0, 1))
    assert both.estimate.value == pytest.approx(0)
    slow = chosen(scores, [options], [{0.0: Model(reference), 1.0: Model(b)}], (0, 1))
    assert slow.chosen == found.chosen  # what the reference was chosen as is not counted
    differences = [0.5 - 0.5, 0.2 - 0.5, 0.2 - 0.5]
    error = ONE_CHOICE * float(np.std(differences, ddof=1)) / math.sqrt(3)
    assert interval(slow.estimate) == student(differences, error, 2)


def test_two_choices_that_disagree_widen_most() -> None:
    names = [setting(level) for level in range(4)]
    first, second = ((0.9, 0.2, 0.2), (0.5, 0.5, 0.5)), ((0.8, 0.1, 0.1), (0.3, 0.4, 0.5))
    accuracies = {
        (its, d): (v, v) for its, row in zip(names, (*first, *second), strict=True) for d, v in enumerate(row)
    }
    scores = whole(accuracies)
    models = [Model(its) for its in names]
    found = chosen(scores, [dict(enumerate(models[:2]))], [dict(enumerate(models[2:]))], (0, 1))
    values = [0.5 - 0.3, 0.2 - 0.1, 0.2 - 0.1]
    assert interval(found.estimate) == student(values, TWO_CHOICES * float(np.std(values, ddof=1)) / math.sqrt(3), 2)


def test_choices_take_only_draws_that_all_have() -> None:
    a, b, reference = setting(0, 60), setting(0, 240), setting(0, 1920)
    scores = whole({(a, 0): (0.4, 0.4), (a, 1): (0.4, 0.4), (b, 1): (0.5, 0.5), (reference, 1): (0.1, 0.1)})
    found = chosen(scores, [{1.0: Model(a), 2.0: Model(b)}], [Model(reference)], (0, 1))
    assert (found.estimate.value, found.estimate.draws) == (pytest.approx(0.4), 1)
    assert found.chosen == {2.0: 2}
    assert chosen(scores, [{}], [Model(reference)], (0, 1)) == Choice(MISSING, {})


def test_best_minus_worst() -> None:
    levels = {level: setting(level) for level in (0, 2, 4)}
    rows = {0: (0.1, 0.2, 0.0), 2: (0.6, 0.5, 0.7), 4: (0.4, 0.5, 0.3)}
    scores = whole({(levels[level], d): (v, v) for level, row in rows.items() for d, v in enumerate(row)})
    options = {level: Model(its) for level, its in levels.items()}
    best, worst = spread(scores, options, (0, 1))
    assert (best.chosen, worst) == ({2.0: 6}, {0.0: 6})
    assert interval(best.estimate) == student([0.5, 0.3, 0.7], math.sqrt(2 * 0.01 / 3), 6)
    rows[4] = (0.9, 0.5, 0.3)  # the best of draws 0 and 1, which choose for draw 2
    scores = whole({(levels[level], d): (v, v) for level, row in rows.items() for d, v in enumerate(row)})
    best, worst = spread(scores, options, (0, 1))
    assert (best.chosen, worst) == ({2.0: 4, 4.0: 2}, {0.0: 6})
    squares = 0.02 + 0.02 + float(np.var(rows[4])) * 3
    error = BEST_AND_WORST * math.sqrt(2 * squares / 6 / 3)
    assert interval(best.estimate) == student([0.6 - 0.1, 0.5 - 0.2, 0.3 - 0.0], error, 6)
    alone, none = spread(scores, {2: options[2]}, (0, 1))
    assert (alone.estimate, alone.chosen, none) == (MISSING, {}, {})


def test_a_level_against_the_best_and_the_worst_of_the_others() -> None:
    rows = {0: (0.1, 0.2, 0.0), 2: (0.6, 0.5, 0.7), 4: (0.4, 0.5, 0.3)}
    scores = whole({(setting(level), d): (v, v) for level, row in rows.items() for d, v in enumerate(row)})
    others = {level: Model(setting(level)) for level in (2, 4)}
    worst = against_levels(scores, others, Model(setting(0)), (0, 1), highest=False)
    assert (interval(worst.estimate), worst.chosen) == (student([0.3, 0.3, 0.3], math.sqrt(0.02 / 3), 6), {4.0: 6})
    best = against_levels(scores, others, Model(setting(0)), (0, 1), highest=True)
    assert (interval(best.estimate), best.chosen) == (student([0.5, 0.3, 0.7], math.sqrt(0.02 / 3), 6), {2.0: 6})


def test_what_is_chosen_most_often_and_first_of_equals() -> None:
    assert Choice(MISSING, {60.0: 2, 240.0: 4}).usual == 240.0
    assert Choice(MISSING, {60.0: 3, 240.0: 3}).usual == 60.0
    assert Choice(MISSING, {}).usual is None


def test_units_of_strata_add_up() -> None:
    scores = whole(
        {
            (setting(level), d): (v, v)
            for level, row in {0: (0.2, 0.4), 1: (0.5, 0.7)}.items()
            for d, v in enumerate(row)
        }
    )
    weights = scores.over((0, 1))
    units = [
        Contribution(level, ((scores.column(Model(setting(level)), d), weights * (1 - 2 * level)),))
        for level in (0, 1)
        for d in (0, 1)
    ]
    found = scores.estimate(units)
    assert found.value == pytest.approx(0.3 - 0.6)
    assert found.error == pytest.approx(math.sqrt(0.02 / 2 + 0.02 / 2), abs=1e-6)
    assert found.freedom == pytest.approx(2)


# -- the statistics under them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_crossed_interval_by_the_formula(seed: int) -> None:
    """Of facts, the mean covariance of two units, within a stratum and across; of draws, their variance over n."""
    rng = np.random.default_rng(seed)
    strata = [0, 0, 0, 1, 1]
    shared = rng.standard_normal((200, 1))
    replicates = 0.1 * shared + 0.02 * rng.standard_normal((200, 5))
    values = 0.5 + 0.1 * rng.standard_normal(5)
    found = crossed_interval(values, replicates, strata)
    covariance = np.cov(replicates, rowvar=False)
    facts = 0.0
    for i, j in itertools.product((0, 1), repeat=2):
        pairs = [
            covariance[u, v]
            for u in range(5)
            for v in range(5)
            if (strata[u], strata[v]) == (i, j) and (i != j or u != v)
        ]
        facts += float(np.mean(pairs))
    parts = [float(np.var(values[:3], ddof=1)) / 3, float(np.var(values[3:], ddof=1)) / 2]
    variance = facts + sum(parts)
    assert found.value == pytest.approx(values[:3].mean() + values[3:].mean())
    assert found.error == pytest.approx(math.sqrt(variance))
    freedom = variance**2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 1)
    assert found.freedom == pytest.approx(freedom)
    reach = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)
    assert interval(found) == near([found.value, found.value - reach, found.value + reach])
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.value) / math.sqrt(variance), freedom))
    assert found.draws == 2


def test_facts_alone_bound_the_variance_from_below() -> None:
    """Equal draws with independent noise over facts: the variance is no less than that of resampling the facts."""
    rng = np.random.default_rng(0)
    replicates = rng.standard_normal((500, 2))
    found = crossed_interval(np.asarray([0.5, 0.5]), replicates, [0, 0])
    share = np.asarray([0.5, 0.5])
    assert found.error == pytest.approx(math.sqrt(share @ np.cov(replicates, rowvar=False) @ share))


def test_a_mean_of_independent_values_is_students() -> None:
    values = [0.2, 0.5, 0.3, 0.9]
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert interval(found) == near([float(np.mean(values)), low, high])
    assert found.error == pytest.approx(float(np.std(values, ddof=1)) / 2)
    assert found.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert (found.draws, found.freedom) == (4, 3)


@pytest.mark.parametrize(
    ("replicates", "p"),
    [
        (np.linspace(0.1, 1, 99), 2 * 1 / 100),  # none beyond 0: the smallest p that so many can tell
        (np.linspace(-1, -0.1, 99), 2 * 1 / 100),
        (np.concatenate([np.full(9, -0.5), np.full(90, 0.5)]), 2 * 10 / 100),
        (np.concatenate([np.full(9, 0.5), np.full(90, -0.5)]), 2 * 10 / 100),
        (np.concatenate([np.full(50, 0.5), np.full(49, -0.5)]), 2 * 50 / 100),
        (np.zeros(99), 1.0),
        (np.concatenate([np.full(50, np.nan), np.linspace(0.1, 1, 99)]), 2 * 1 / 100),
    ],
)
def test_p_of_a_bootstrap_is_twice_the_smaller_share_beyond_0(replicates: np.ndarray, p: float) -> None:
    found = percentile_interval(0.5, replicates, 3)
    assert found.p == pytest.approx(p)
    finite = replicates[np.isfinite(replicates)]
    assert found.error == pytest.approx(float(np.std(finite, ddof=1)))
    low, high = np.quantile(finite, [0.025, 0.975])
    assert [found.low, found.high] == near([min(low, 0.5), max(high, 0.5)])
