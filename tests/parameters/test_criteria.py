"""Scores and sort keys in edge cases: zeros, denormals, infinities, ties, stored dtypes."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from knowshift.parameters.selection.criteria import (
    CRITERIA,
    INFINITE,
    NotFinite,
    authors,
    keys,
    random_keys,
    relative,
    score_of,
)
from weights_pairs import relative_by_definition

EDGES = [0.0, -0.0, 1e-45, -1e-45, 1e-38, 1.0, -1.0, 1.5, 2.0**-126, 3.4e38, -3.4e38, 1e-3, 0.1]
weights = st.lists(
    st.one_of(st.sampled_from(EDGES), st.floats(width=32, allow_nan=False, allow_infinity=False)), min_size=1
)


@given(weights, st.data())
@settings(max_examples=150, deadline=None)
def test_relative_change_is_its_definition(base: list[float], data: st.DataObject) -> None:
    tuned = data.draw(st.lists(st.sampled_from([*base, *EDGES]), min_size=len(base), max_size=len(base)))
    score = relative(np.float32(base), np.float32(tuned), strict=True)
    assert score.tolist() == [relative_by_definition(p, s) for p, s in zip(base, tuned, strict=True)]


def test_zero_bases_rank_before_every_finite_ratio() -> None:
    base, tuned = np.float32([0.0, 1e-45, 1.0, 0.0]), np.float32([1e-45, 3e38, 1.0, -0.0])
    key = keys("relative", base, tuned)
    assert key[0] == INFINITE
    assert key[0] > key[1] > key[2] == key[3] == 0


def test_what_is_not_finite_is_refused_or_ranks_first() -> None:
    nan, inf = math.nan, math.inf
    base = np.float32([1.0, inf, nan, inf, nan, 1.0, inf, 0.0])
    tuned = np.float32([inf, 1.0, 1.0, inf, nan, nan, -inf, 0.0])
    first = [True, True, True, False, False, True, True, False]
    assert (keys("relative", base, tuned) == INFINITE).tolist() == first
    assert (keys("absolute", base, tuned) == INFINITE).tolist() == first
    for criterion in set(CRITERIA) - {"random"}:
        for place in range(7):
            with pytest.raises(NotFinite):
                keys(criterion, base[place : place + 1], tuned[place : place + 1], strict=True)
        keys(criterion, base[7:], tuned[7:], strict=True)
    largest = np.float32([3.4e38]), np.float32([-3.4e38])
    assert 1.0 < float(relative(*largest, strict=True)[0]) < 1.01  # a change beyond float32 is its largest, no infinity


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_scores_are_float32_whatever_is_stored(dtype: type) -> None:
    base = np.array([0.1, 0.2, 0.3], dtype)
    tuned = np.float32([0.11, 0.2, 0.25])
    expected = np.abs(tuned - base.astype(np.float32)) / np.abs(base.astype(np.float32))
    assert np.array_equal(relative(base, tuned), expected)
    assert relative(base, tuned).dtype == np.float32


def test_least_and_magnitude_and_ties_turn_the_order_round() -> None:
    base, tuned = np.float32([1.0, 0.5, -0.1, 0.0]), np.float32([1.1, 0.5, -0.4, 0.2])

    def order(criterion: str) -> list[int]:
        return [int(place) for place in np.argsort(-keys(criterion, base, tuned).astype(np.int64), kind="stable")]

    assert order("least") == [1, 0, 2, 3]
    assert order("magnitude") == [3, 2, 1, 0]
    assert order("ties") == [1, 0, 3, 2]
    for criterion in ("least", "ties", "magnitude", "relative"):
        key = int(keys(criterion, base, tuned)[0])
        expected = {"least": 0.1, "relative": 0.1, "ties": 0.1, "magnitude": 1.0}[criterion]
        assert score_of(criterion, key) == pytest.approx(expected, rel=1e-5)


def test_the_authors_rule_step_by_step() -> None:
    generator = np.random.default_rng(0)
    base, tuned = generator.standard_normal((2, 500)).astype(ml_dtypes.bfloat16)
    base[:5] = 0
    tuned[:3] = 0

    def rounded(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return x.astype(ml_dtypes.bfloat16).astype(np.float32)

    p, s = base.astype(np.float32), tuned.astype(np.float32)
    with np.errstate(invalid="ignore"):
        expected = rounded(np.abs(rounded(s - p)) / rounded(np.abs(p) + np.float32(1e-8)))
    assert np.array_equal(authors(base, tuned), expected)
    assert authors(base, tuned)[:3].tolist() == [0, 0, 0]


def test_random_keys_do_not_depend_on_the_stretch_and_look_uniform() -> None:
    whole = random_keys(7, "a", 0, 100_000)
    assert np.array_equal(whole[31:977], random_keys(7, "a", 31, 977))
    assert whole.min() >= 0
    assert len(np.unique(whole)) > 99_990  # 31 bits of a bijection on 32: hardly any repeat
    for other in (random_keys(8, "a", 0, 100_000), random_keys(7, "b", 0, 100_000), np.roll(whole, 1)):
        assert abs(np.corrcoef(whole, other)[0, 1]) < 0.02
    # Twenty equal bins of 5,000: the chi-squared statistic of 19 degrees of freedom stays below 60 (p = 4e-6).
    bins = np.bincount((whole.astype(np.int64) * 20) >> 31, minlength=20)
    assert float(((bins - 5000) ** 2 / 5000).sum()) < 60
    far = random_keys(7, "a", (1 << 32) + 5, (1 << 32) + 9)
    assert far.shape == (4,)
    assert not np.array_equal(far, random_keys(7, "a", 5, 9))
