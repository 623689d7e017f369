"""Resampling facts, or clusters of them, within their groups: replicates of many means by one matrix product.

Shape suffixes: B replicates, F facts, C columns (one tuned model each), G groups of facts, U units (one training draw).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def group_means(values_FC: NDArray[np.generic], group_F: Integers, groups: int) -> Floats:
    """Mean of each column over each group of facts, shape (C, G); NaN where a group is empty (missing, not 0)."""
    counts_G = np.bincount(group_F, minlength=groups)
    sums_CG = np.zeros((values_FC.shape[1], groups))
    for group in np.flatnonzero(counts_G):
        sums_CG[:, group] = values_FC[group_F == group].sum(axis=0, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(counts_G > 0, sums_CG / counts_G, np.nan))


def resampling_weights(
    group_F: Integers, replicates: int, seed: int, cluster_F: Integers | None = None, strata_F: Integers | None = None
) -> Floats:
    """How often each replicate holds each fact, shape (B, F).

    Facts are drawn with replacement within their group; with ``cluster_F`` (a relation for each fact) whole clusters
    are drawn within ``strata_F`` (a domain). From n units n - 1 are drawn and weighted n / (n - 1), which makes the
    variance of a mean unbiased for small groups (Rao and Wu 1988); a group of one cannot vary.
    """
    weights_BF = np.empty((replicates, len(group_F)))
    for facts, unit_of_fact, weights_BN in _drawn(group_F, replicates, seed, cluster_F, strata_F):
        weights_BF[:, facts] = weights_BN[:, unit_of_fact]
    return weights_BF


def _drawn(
    group_F: Integers, replicates: int, seed: int, cluster_F: Integers | None, strata_F: Integers | None
) -> Iterator[tuple[NDArray[np.integer], NDArray[np.integer], Floats]]:
    """For each stratum its facts, the unit of each, and how often each replicate holds each of the N units."""
    rng = np.random.default_rng(seed)
    strata = group_F if cluster_F is None else (np.zeros_like(group_F) if strata_F is None else strata_F)
    for stratum in np.unique(strata):
        facts = np.flatnonzero(strata == stratum)
        units, unit_of_fact = np.unique(facts if cluster_F is None else cluster_F[facts], return_inverse=True)
        count = len(units)
        if count == 1:
            yield facts, unit_of_fact, np.ones((replicates, 1))
            continue
        drawn = rng.multinomial(count - 1, np.full(count, 1.0 / count), size=replicates)
        yield facts, unit_of_fact, np.asarray(drawn * (count / (count - 1)), dtype=np.float64)


def resampled_means(
    values_FC: NDArray[np.generic],
    group_F: Integers,
    groups: int,
    replicates: int,
    seed: int,
    cluster_F: Integers | None = None,
    strata_F: Integers | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Group means under each resampling, shape (C, B, G), and which groups can vary, shape (G,).

    Weights as :func:`resampling_weights` has them, one stratum at a time: memory does not grow with replicates times
    all facts. Means are linearised round the observed mean, ``a + sum w (x - a) / n``: the same as the plain weighted
    mean when a group's weights sum to its size, and defined when a replicate of whole relations leaves a small group
    empty. A group without facts is NaN; one varies where its stratum has more than one unit.
    """
    means_CG = group_means(values_FC, group_F, groups)
    sizes_G = np.bincount(group_F, minlength=groups)
    out_CBG = np.repeat(means_CG[:, None, :], replicates, axis=1)
    varying_G = np.zeros(groups, dtype=bool)
    for facts, unit_of_fact, weights_BN in _drawn(group_F, replicates, seed, cluster_F, strata_F):
        units = weights_BN.shape[1]
        for group in np.unique(group_F[facts]):
            inside = group_F[facts] == group
            sums_NC = values_FC[facts[inside]].astype(np.float64) - means_CG[None, :, group]
            if cluster_F is not None:
                its = unit_of_fact[inside]
                sums_NC = np.stack([np.bincount(its, column, minlength=units) for column in sums_NC.T], axis=1)
            out_CBG[:, :, group] += (weights_BN @ sums_NC).T / sizes_G[group]
            varying_G[group] |= units > 1
    return out_CBG.astype(np.float32), varying_G


def draw_weights(stratum_U: Sequence[int], replicates: int, seed: int) -> Floats:
    """How often each replicate holds each training draw, shape (B, U), resampled within strata as facts are."""
    return resampling_weights(np.asarray(stratum_U, dtype=np.int64), replicates, seed)
