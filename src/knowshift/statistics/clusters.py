"""Facts in clusters (relations): the variance of a contrast where the facts of a cluster move together.

Shape suffixes: F facts, C columns (one model each), R clusters, G groups of facts, U units (one training draw).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClusterScores:
    """What each cluster adds to each group mean, after the adjustment of :func:`cluster_scores`."""

    counts_RG: Floats  # facts
    scores_CRG: Floats  # unit of the values


def cluster_scores(
    values_FC: NDArray[np.generic], group_F: Integers, groups: int, cluster_F: Integers
) -> ClusterScores:
    r"""The bias-reduced cluster scores (CR2) of the group means of every column.

    Means of groups are the least-squares fit of ``values`` on a dummy of each group. For cluster r, CR2 multiplies the
    residuals by :math:`(I - H_{rr})^{-1/2}`, with H the hat matrix, so that the variance has no bias where facts are
    independent and alike. With dummies of groups that matrix is known: with :math:`n_{rg}` of the :math:`n_g` facts of
    group g in cluster r, the score is

    .. math:: \frac{1}{n_g} \Bigl(1 - \frac{n_{rg}}{n_g}\Bigr)^{-1/2} \sum_{f \in r, g} (x_f - \bar x_g)

    and 0 where one cluster is the whole group, whose own noise cannot be seen. Sums and products of scores over
    clusters estimate variances and covariances of weighted sums of group means.

    Args:
        values_FC: numbers or yes and no, of every fact under every model.
        group_F: the group of each fact, 0 to ``groups`` - 1.
        groups: G.
        cluster_F: the cluster of each fact, 0 to R - 1.

    Source:
        Bell and McCaffrey 2002; Pustejovsky and Tipton 2018.
    """
    clusters = int(cluster_F.max()) + 1 if len(cluster_F) else 0
    joint_F = cluster_F * groups + group_F
    counts_RG = np.bincount(joint_F, minlength=clusters * groups).reshape(clusters, groups).astype(np.float64)
    sizes_G = counts_RG.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        adjusted_RG = (1 / sizes_G) / np.sqrt(1 - counts_RG / sizes_G)
        adjusted_RG[~np.isfinite(adjusted_RG)] = 0.0
        shares_RG = np.where(sizes_G > 0, counts_RG / sizes_G, 0.0)
    scores_CRG = np.empty((values_FC.shape[1], clusters, groups))
    for column in range(values_FC.shape[1]):
        sums = np.bincount(joint_F, values_FC[:, column].astype(np.float64), minlength=clusters * groups)
        sums_RG = sums.reshape(clusters, groups)
        scores_CRG[column] = adjusted_RG * (sums_RG - shares_RG * sums_RG.sum(axis=0))
    return ClusterScores(counts_RG, scores_CRG)


def cluster_freedom(counts_RG: Floats, weights_G: Floats) -> float:
    """Satterthwaite's degrees of freedom of the CR2 variance of ``weights_G`` @ (group means); NaN where it is 0.

    The variance is a sum over clusters of squares; where facts are independent and alike it has the mean and variance
    of a chi-square with :math:`(tr M)^2 / tr(M^2)` degrees of freedom, M the covariance of the clusters' terms.
    They are fewer than the clusters less one, and far fewer where few clusters hold most of the facts.

    Args:
        counts_RG: facts of each cluster in each group.
        weights_G: what each group mean is multiplied with, in the contrast.

    Source:
        Bell and McCaffrey 2002, section 4; Pustejovsky and Tipton 2018, equation 11.
    """
    used_G = weights_G != 0
    counts_RG, weights_G = counts_RG[:, used_G], weights_G[used_G]
    sizes_G = counts_RG.sum(axis=0)
    share_RG = counts_RG / sizes_G
    whole_RG = counts_RG == sizes_G
    # A cluster's term is a_RG times the sum of its residuals: residuals are what is left after the group mean.
    a_RG = np.where(whole_RG, 0.0, weights_G / sizes_G / np.sqrt(np.where(whole_RG, 1.0, 1 - share_RG)))
    reach_RG = a_RG * counts_RG
    moments_RR = np.diag((a_RG**2 * counts_RG).sum(axis=1)) - (reach_RG / sizes_G) @ reach_RG.T
    squares = float((moments_RR**2).sum())
    return float(np.trace(moments_RR)) ** 2 / squares if squares > 0 else math.nan


def facts_variance(values_F: Floats, group_F: Integers, weights_G: Floats) -> float:
    """Variance of ``weights_G`` @ (group means of ``values_F``) with independent facts: the sum of w^2 s^2 / n.

    A group of one fact adds nothing. With each fact a cluster of its own, CR2 is the same number.
    """
    total = 0.0
    for group in np.flatnonzero(weights_G):
        inside = values_F[group_F == group]
        if len(inside) > 1:
            total += float(weights_G[group]) ** 2 * float(inside.var(ddof=1)) / len(inside)
    return total


def intraclass_correlation(values_F: Floats, cluster_F: Integers) -> float:
    r"""How alike facts of one cluster are: the share of the variance that lies between clusters, at most 1.

    The one-way analysis-of-variance estimator, for clusters of different sizes:

    .. math:: \rho = \frac{MS_B - MS_W}{MS_B + (n_0 - 1) MS_W}, \qquad n_0 = \frac{N - \sum n_r^2 / N}{R - 1}

    It is below 0 where facts of one cluster differ more than facts of different ones, as half of the estimates do
    where clusters do not matter. NaN where nothing varies, with one cluster, or with one fact in each.

    Source:
        Donner and Koval 1980; Fisher 1925 for clusters of one size.
    """
    names, index_F = np.unique(cluster_F, return_inverse=True)
    count, clusters = len(values_F), len(names)
    if clusters < 2 or count <= clusters:
        return math.nan
    sizes_R = np.bincount(index_F).astype(np.float64)
    means_R = np.bincount(index_F, values_F) / sizes_R
    between = float((sizes_R * (means_R - values_F.mean()) ** 2).sum()) / (clusters - 1)
    within = float(((values_F - means_R[index_F]) ** 2).sum()) / (count - clusters)
    usual_size = (count - float((sizes_R**2).sum()) / count) / (clusters - 1)
    scale = between + (usual_size - 1) * within
    return (between - within) / scale if scale > 0 else math.nan
