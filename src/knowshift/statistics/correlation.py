"""Spearman's rank correlation of many rows at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]


def rank_correlation(x: Floats, y: Floats) -> Floats:
    """Spearman's correlation along the last axis; NaN where one side is constant."""
    rank_x, rank_y = (stats.rankdata(v, axis=-1) for v in (x, y))
    rank_x = rank_x - rank_x.mean(axis=-1, keepdims=True)
    rank_y = rank_y - rank_y.mean(axis=-1, keepdims=True)
    scale = np.sqrt((rank_x**2).sum(axis=-1) * (rank_y**2).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(scale > 0, (rank_x * rank_y).sum(axis=-1) / scale, np.nan))
