"""Published ways to undo part of a fine-tuning, as pure functions on arrays, each with its source.

p is the base weight, s the tuned one. Here as everywhere ``fraction`` says how much is undone: 0 leaves the tuned
weights as they are, bit for bit. All are computed in float32.

- ``interpolate``: WiSE-FT (Wortsman et al., arXiv 2109.01903), s - f (s - p); f is their 1 - alpha.
- ``dare``: DARE (Yu et al., arXiv 2311.03099): each change is dropped with probability f, those kept are divided by
  1 - f.
- ``breadcrumbs``: Model Breadcrumbs (Davari and Belilovsky, arXiv 2312.06795): in each tensor the largest |s - p| (a
  share ``OUTLIERS`` of its weights, at most f) and the smallest are restored, f of its weights in all. 1% of outliers
  is mergekit's default. Their merging of several models has no part here.
- ``fapm``: FAPM (Huang, Cheng and Wang, arXiv 2509.08255): S = |s - p| - mean|p| |s - p| / |p|, the mean over the
  tensor; in each tensor the f of its weights with the smallest S are restored (their sparsity ratio; the authors' code
  keeps 10%).
- ``lines``: LiNeS (Wang et al., arXiv 2410.17146) in its single-task form: the change of layer l of L is scaled by
  alpha + (1 - alpha) (l - 1) / (L - 1), and by alpha outside the layers; here alpha = 1 - f.
- ``dg-hard``: DG-Hard (Abro and Tahir, arXiv 2605.20296): the singular values of a matrix's change below the
  Gavish-Donoho threshold (arXiv 1305.5870) for unknown noise are set to 0. It has no fraction. Its reference code
  leaves out tensors under 1,024 weights, and so does this.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from knowshift.parameters.kernels import compiled as kernels
from knowshift.parameters.selection.criteria import clamped
from knowshift.parameters.tensors import Array, single

#: Elementwise: every weight of the region gets a new value.
BLENDS = ("interpolate", "dare", "lines")
#: A selection within each tensor.
PER_TENSOR = ("breadcrumbs", "fapm")
#: On whole matrices, without a fraction.
SPECTRAL = ("dg-hard",)
PUBLISHED = (*BLENDS, *PER_TENSOR, *SPECTRAL)

OUTLIERS = 0.01
SMALLEST_MATRIX = 1024


@np.errstate(all="ignore")
def interpolate(base: Array, tuned: Array, fraction: float) -> NDArray[np.float32]:
    """s - fraction (s - p), float32, shape as given."""
    p, s = single(base), single(tuned)
    return s - np.float32(fraction) * (s - p)


@np.errstate(all="ignore")
def dare(
    base: Array, tuned: Array, fraction: float, keys: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(values in float32, which were dropped): dropped where a uniform 31-bit key is among the first of 2^31."""
    p, s = single(base), single(tuned)
    if fraction == 1.0:
        return p, np.ones(keys.shape, np.bool_)
    dropped = keys < round(fraction * 2**31)
    return np.where(dropped, p, p + (s - p) / np.float32(1.0 - fraction)), dropped


def lines_scale(layer: int | None, layers: int, fraction: float) -> float:
    """What the change of one layer (from 0) of ``layers`` is multiplied by; None is outside the layers."""
    alpha = 1.0 - fraction
    if layer is None:
        return alpha
    return alpha + (1.0 - alpha) * (layer / (layers - 1) if layers > 1 else 1.0)


@np.errstate(all="ignore")
def fapm_keys(base: Array, tuned: Array, mean: float) -> NDArray[np.int32]:
    """int32 sort keys of FAPM, the smallest S first; ``mean`` is the tensor's mean |p|. p = 0, s != p ranks first."""
    compiled = kernels.keys("fapm", base, tuned, mean)
    if compiled is not None:
        return compiled[0]
    p = single(base)
    change = np.abs(single(tuned) - p)
    score = change - np.float32(mean) * (change / np.abs(p))
    score = clamped(np.where(change == 0, np.float32(0), score), nan=-np.inf)
    score += np.float32(0)  # -0.0 and 0.0 are one score
    bits = score.view(np.int32)
    return ~np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # larger key, smaller score


def spectral_filter(change: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """DG-Hard on one matrix of changes, float32 (rows, columns): (the filtered changes, singular values kept)."""
    rows, columns = change.shape
    aspect = min(rows, columns) / max(rows, columns)
    left, values, right = np.linalg.svd(change, full_matrices=False)
    middle = float(values[len(values) // 2])  # the lower of two, as in the reference code; they descend
    kept = int((values > hard_threshold(aspect) * middle / marchenko_pastur_median(aspect)).sum())
    return (left[:, :kept] * values[:kept]) @ right[:kept], kept


def hard_threshold(aspect: float) -> float:
    """The optimal hard threshold in units of noise x sqrt(longer side), for rows / columns = ``aspect`` <= 1.

    Gavish and Donoho 2014, equation 11; 4 / sqrt(3) for a square matrix.
    """
    return math.sqrt(2 * (aspect + 1) + 8 * aspect / (aspect + 1 + math.sqrt(aspect**2 + 14 * aspect + 1)))


@lru_cache(maxsize=256)
def marchenko_pastur_median(aspect: float) -> float:
    """The median singular value of noise, in the same units: the root of the Marchenko-Pastur median.

    The density sqrt((b - x)(x - a)) / (2 pi aspect x) on [a, b] is integrated with x = centre - radius cos t, which
    removes the roots at its ends.
    """
    low, high = (1 - math.sqrt(aspect)) ** 2, (1 + math.sqrt(aspect)) ** 2
    t = np.linspace(0.0, math.pi, 200_001)
    x = (low + high) / 2 - (high - low) / 2 * np.cos(t)
    # At a = 0 (a square matrix) the integrand's limit at t = 0 is finite: radius^2 sin^2 t / x -> radius (1 + cos t).
    density = ((high - low) / 2 * np.sin(t)) ** 2 / np.where(x > 0, x, 1.0)
    density[x <= 0] = high - low
    mass = np.concatenate(([0.0], np.cumsum((density[1:] + density[:-1]) / 2)))
    return math.sqrt(float(np.interp(mass[-1] / 2, mass, x)))
