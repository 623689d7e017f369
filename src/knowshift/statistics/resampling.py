"""Resampling facts, or clusters of them, within their groups: replicates of many means by one matrix product.

Shape suffixes: B replicates, F facts, C columns (one tuned model each), G groups of facts, U units (one training draw).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def group_means(values_FC: NDArray[np.generic], group_F: Integers, groups: int) -> Floats:
    """Mean of each column over each group of facts, shape (C, G); NaN where a group is empty (missing, not 0)."""
    indicator_FG = (group_F[:, None] == np.arange(groups)[None, :]).astype(np.float64)
    sums_CG = values_FC.T.astype(np.float64) @ indicator_FG
    counts_G = indicator_FG.sum(axis=0)
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
    rng = np.random.default_rng(seed)
    weights_BF = np.zeros((replicates, len(group_F)))
    strata = group_F if cluster_F is None else (np.zeros_like(group_F) if strata_F is None else strata_F)
    for stratum in np.unique(strata):
        facts = np.flatnonzero(strata == stratum)
        units, unit_of_fact = np.unique(facts if cluster_F is None else cluster_F[facts], return_inverse=True)
        count = len(units)
        if count == 1:
            weights_BF[:, facts] = 1.0
            continue
        drawn = rng.multinomial(count - 1, np.full(count, 1.0 / count), size=replicates)
        weights_BF[:, facts] = (drawn * (count / (count - 1)))[:, unit_of_fact]
    return weights_BF


def replicated_means(
    values_FC: NDArray[np.generic], group_F: Integers, groups: int, weights_BF: Floats
) -> NDArray[np.float32]:
    """Group means under each resampling, shape (B, C, G).

    Linearised round the observed mean, ``a + sum w (x - a) / n``: the same as the plain weighted mean when a group's
    weights sum to its size, and defined when a replicate of whole relations leaves a small group empty.
    """
    means_CG = group_means(values_FC, group_F, groups)
    out = np.full((len(weights_BF), values_FC.shape[1], groups), np.nan, dtype=np.float32)
    for group in range(groups):
        facts = np.flatnonzero(group_F == group)
        if not len(facts):
            continue
        centred_FC = values_FC[facts].astype(np.float64) - means_CG[None, :, group]
        out[:, :, group] = means_CG[None, :, group] + (weights_BF[:, facts] @ centred_FC) / len(facts)
    return out


def draw_weights(stratum_U: Sequence[int], replicates: int, seed: int) -> Floats:
    """How often each replicate holds each training draw, shape (B, U), resampled within strata as facts are."""
    return resampling_weights(np.asarray(stratum_U, dtype=np.int64), replicates, seed)
