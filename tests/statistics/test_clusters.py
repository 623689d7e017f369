"""Clusters of facts against matrices, against statsmodels, and against simulations with a known truth."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from knowshift.statistics.clusters import (
    cluster_freedom,
    cluster_scores,
    facts_variance,
    intraclass_correlation,
)
from knowshift.statistics.crossed import interval_of_covariance


def by_matrices(values: np.ndarray, group: np.ndarray, cluster: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """CR2 and its degrees of freedom by their definition (Bell and McCaffrey 2002): hat matrix, roots, projections."""
    dummies = (group[:, None] == np.arange(len(weights))).astype(float)
    inverse = np.linalg.inv(dummies.T @ dummies)
    left = np.eye(len(values)) - dummies @ inverse @ dummies.T
    contrast = dummies @ inverse @ weights
    terms, reach = [], []
    for name in np.unique(cluster):
        inside = np.flatnonzero(cluster == name)
        roots, vectors = np.linalg.eigh(left[np.ix_(inside, inside)])
        root = np.where(roots > 1e-9, np.abs(roots), np.inf) ** -0.5
        adjusted = contrast[inside] @ ((vectors * root) @ vectors.T)
        terms.append(float(adjusted @ (left @ values)[inside]))
        reach.append(left[:, inside] @ adjusted)
    gram = np.asarray(reach) @ np.asarray(reach).T
    squares = float((gram**2).sum())
    return float(np.sum(np.square(terms))), float(np.trace(gram)) ** 2 / squares if squares > 1e-20 else math.nan


def ours(values: np.ndarray, group: np.ndarray, cluster: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    found = cluster_scores(values[:, None], group, len(weights), cluster)
    return float(((found.scores_CRG[0] @ weights) ** 2).sum()), cluster_freedom(found.counts_RG, weights)


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 6), st.integers(4, 40))
@settings(max_examples=80, deadline=None)
def test_scores_and_freedom_are_those_of_the_matrices(seed: int, groups: int, clusters: int, facts: int) -> None:
    rng = np.random.default_rng(seed)
    group, cluster = rng.integers(0, groups, facts), rng.integers(0, clusters, facts)
    assume(len(np.unique(group)) == groups)
    values, weights = rng.standard_normal(facts), rng.uniform(0.1, 1, groups)
    variance, freedom = ours(values, group, cluster, weights)
    expected, expected_freedom = by_matrices(values, group, cluster, weights)
    assert variance == pytest.approx(expected, abs=1e-12)
    assert freedom == pytest.approx(expected_freedom, nan_ok=True)
    if not math.isnan(freedom):
        assert 0.99 <= freedom <= len(np.unique(cluster))


def study(rng: np.random.Generator, clusters: int, each: int, groups: int) -> tuple[np.ndarray, ...]:
    """Every cluster with so many facts in every group."""
    cluster = np.repeat(np.arange(clusters), each * groups)
    group = np.tile(np.arange(groups), clusters * each)
    values = 0.3 * rng.standard_normal(clusters)[cluster] + rng.standard_normal(len(cluster)) + group
    return values, group, cluster


def test_balanced_clusters_are_those_of_statsmodels() -> None:
    """Its small-sample factor is R / (R - 1) x (N - 1) / (N - K); with balanced clusters CR2 is the first alone."""
    values, group, cluster = study(np.random.default_rng(1), 7, 5, 3)
    weights = np.array([0.5, 0.3, 0.2])
    dummies = (group[:, None] == np.arange(3)).astype(float)
    fit = sm.OLS(values, dummies).fit(cov_type="cluster", cov_kwds={"groups": cluster, "use_correction": True})
    theirs = float(weights @ fit.cov_params() @ weights) * (len(values) - 3) / (len(values) - 1)
    assert ours(values, group, cluster, weights)[0] == pytest.approx(theirs)


def test_a_fact_for_a_cluster_is_statsmodels_hc2_and_the_sum_of_variances() -> None:
    rng = np.random.default_rng(2)
    group = rng.integers(0, 3, 50)
    values, weights = rng.standard_normal(50) * (1 + group), np.array([0.5, 0.3, 0.2])
    dummies = (group[:, None] == np.arange(3)).astype(float)
    theirs = float(weights @ sm.OLS(values, dummies).fit(cov_type="HC2").cov_params() @ weights)
    assert ours(values, group, np.arange(50), weights)[0] == pytest.approx(theirs)
    assert facts_variance(values, group, weights) == pytest.approx(theirs)


def test_one_group_of_equal_clusters_is_the_t_test_of_their_means() -> None:
    values, group, cluster = study(np.random.default_rng(3), 8, 6, 1)
    found = cluster_scores(values[:, None], group, 1, cluster)
    scores = found.scores_CRG[0]
    freedom = cluster_freedom(found.counts_RG, np.ones(1))
    estimate = interval_of_covariance(np.array([values.mean()]), scores.T @ scores, [0], None, freedom)
    means = values.reshape(8, 6).mean(axis=1)
    test = stats.ttest_1samp(means, 0)
    low, high = test.confidence_interval(0.95)
    assert freedom == pytest.approx(7)
    assert (estimate.low, estimate.high, estimate.p) == (
        pytest.approx(low),
        pytest.approx(high),
        pytest.approx(test.pvalue),
    )


def test_few_clusters_with_most_of_the_facts_leave_few_degrees_of_freedom() -> None:
    cluster = np.repeat(np.arange(10), [200, *[5] * 9])
    counts = np.bincount(cluster).astype(float)[:, None]
    assert cluster_freedom(counts, np.ones(1)) < 2
    assert cluster_freedom(np.full((10, 1), 20.0), np.ones(1)) == pytest.approx(9)


def test_a_cluster_that_is_a_whole_group_tells_nothing_of_it() -> None:
    group, cluster = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([0, 0, 0, 1, 1, 2, 2])
    values = np.array([1.0, 5.0, 9.0, 1.0, 2.0, 4.0, 8.0])
    found = cluster_scores(values[:, None], group, 3, cluster)
    assert (found.scores_CRG[0, :, [0, 2]] == 0).all()
    assert found.scores_CRG[0, 1:, 1] == pytest.approx([-4.5 / 4 * 2**0.5, 4.5 / 4 * 2**0.5])
    assert math.isnan(cluster_freedom(found.counts_RG, np.array([1.0, 0.0, 0.0])))


@pytest.mark.parametrize("sizes", [[6] * 9, [3, 12, 5, 9, 4, 7]])
def test_intraclass_correlation_is_the_analysis_of_variance(sizes: list[int]) -> None:
    rng = np.random.default_rng(len(sizes))
    cluster = np.repeat(np.arange(len(sizes)), sizes)
    values = rng.standard_normal(len(sizes))[cluster] + rng.standard_normal(len(cluster))
    frame = pd.DataFrame({"value": values, "cluster": cluster})
    table = sm.stats.anova_lm(smf.ols("value ~ C(cluster)", frame).fit())
    between, within = table["mean_sq"]
    count = len(cluster)
    size = (count - sum(n**2 for n in sizes) / count) / (len(sizes) - 1)
    found = intraclass_correlation(values, cluster)
    assert found == pytest.approx((between - within) / (between + (size - 1) * within))
    if len(set(sizes)) == 1:  # then it is what restricted maximum likelihood finds
        mixed = smf.mixedlm("value ~ 1", frame, groups=frame["cluster"]).fit(reml=True)
        shared = float(mixed.cov_re.iloc[0, 0])
        assert found == pytest.approx(shared / (shared + mixed.scale), abs=1e-3)


def test_intraclass_correlation_at_its_ends_and_where_there_is_none() -> None:
    cluster = np.repeat(np.arange(4), 3)
    assert intraclass_correlation(cluster.astype(float), cluster) == pytest.approx(1)
    assert intraclass_correlation(np.tile([0.0, 1.0, 2.0], 4), cluster) == pytest.approx(-0.5)  # -1 / (n - 1)
    assert math.isnan(intraclass_correlation(np.ones(12), cluster))
    assert math.isnan(intraclass_correlation(np.arange(12.0), np.zeros(12, np.int64)))
    assert math.isnan(intraclass_correlation(np.arange(12.0), np.arange(12)))


def test_the_design_effect_of_equal_clusters_is_kishs() -> None:
    """1 + (n - 1) rho, for many clusters."""
    values, group, cluster = study(np.random.default_rng(4), 400, 8, 1)
    effect = ours(values, group, cluster, np.ones(1))[0] / facts_variance(values, group, np.ones(1))
    assert effect == pytest.approx(1 + 7 * intraclass_correlation(values, cluster), rel=0.01)


def test_clustered_intervals_hold_the_truth_where_independent_ones_do_not() -> None:
    """Eleven relations of different sizes whose facts move together, in two groups; no effect."""
    rng = np.random.default_rng(5)
    sizes = [40, 30, 30, 20, 20, 20, 15, 10, 10, 5, 5]
    cluster = np.repeat(np.arange(11), sizes)
    group = np.arange(len(cluster)) % 2
    weights = np.array([0.5, 0.5])
    held = alone = 0
    for _ in range(600):
        values = 0.3 * rng.standard_normal(11)[cluster] + rng.standard_normal(len(cluster))
        mean = np.array([values[group == 0].mean(), values[group == 1].mean()]) @ weights
        variance, freedom = ours(values, group, cluster, weights)
        estimate = interval_of_covariance(np.array([mean]), np.array([[variance]]), [0], None, freedom)
        held += estimate.low <= 0 <= estimate.high
        alone += abs(mean) <= 1.96 * math.sqrt(facts_variance(values, group, weights))
    assert 0.92 <= held / 600 <= 0.98
    assert alone / 600 < 0.85


def test_one_draw_whose_clusters_do_not_differ_has_no_interval() -> None:
    """No spread that was seen is not certainty; with two draws their own spread is there."""
    one = interval_of_covariance(np.array([0.2]), np.zeros((1, 1)), [0], None, 5.0)
    assert (one.value, one.draws) == (0.2, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.p)
    two = interval_of_covariance(np.array([0.2, 0.3]), np.zeros((2, 2)), [0, 0], None, 5.0)
    assert (two.low, two.high) == tuple(map(pytest.approx, stats.t.interval(0.95, 1, 0.25, 0.05)))
