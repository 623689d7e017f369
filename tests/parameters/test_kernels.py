"""The compiled loops give what the numpy code gives, bit for bit."""

from __future__ import annotations

import os
import shutil
import subprocess

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowshift.parameters.kernels import compiled as kernels
from knowshift.parameters.methods import mix
from knowshift.parameters.selection.brackets import Bracket, sort_out
from knowshift.parameters.selection.criteria import NotFinite, keys, random_keys
from knowshift.parameters.selection.published import fapm_keys
from knowshift.parameters.selection.radix import Refinement, tally, upper_counts
from knowshift.parameters.selection.select import NOTHING, Cut
from knowshift.parameters.tensors import Array

EDGES = [0.0, -0.0, 1e-45, -1e-45, 2.0**-126, 1.0, -1.0, 1.5, 3.3e38, -3.3e38, 1e-3, float("inf"), float("nan")]
DTYPES = [ml_dtypes.bfloat16, np.float16, np.float32, np.float64]
LENGTHS = [1, 7, 1023, 1024, 1025, 5000]


def compiles() -> bool:
    """Whether there is a C compiler with its headers."""
    program = "#include <math.h>\nint main(void) { return 0; }\n"
    command = ["cc", "-x", "c", "-", "-o", os.devnull]
    return shutil.which("cc") is not None and not subprocess.run(command, input=program, text=True).returncode


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Runs a function with the compiled loops and without: (what each gave)."""
    compiled = kernels.library()
    if compiled is None:
        assert os.environ.get("KNOWSHIFT_COMPILED") == "0" or not compiles(), "there is a compiler: install again"
        pytest.skip("not compiled")

    def run(function):  # type: ignore[no-untyped-def]
        results = []
        for library in (compiled, None):
            monkeypatch.setattr(kernels, "library", lambda library=library: library)
            results.append(function())
        return results

    return run


def weights(length: int, seed: int, dtype: type, edges: bool) -> tuple[Array, Array]:
    """A base and a tuned piece; some weights unchanged, and with ``edges`` some that need care."""
    generator = np.random.default_rng(seed)
    base = generator.standard_normal(length) * 0.02
    tuned = base + generator.standard_normal(length) * 1e-3 * (generator.random(length) < 0.5)
    if edges:
        for side in (base, tuned):
            some = generator.random(length) < 0.2
            side[some] = generator.choice(EDGES, length)[some]
    with np.errstate(over="ignore"):
        return base.astype(dtype), tuned.astype(dtype)


def same(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other)


@pytest.mark.parametrize("criterion", ["relative", "absolute", "least", "magnitude", "authors", "ties", "fapm"])
@pytest.mark.parametrize("edges", [False, True])
def test_keys(criterion: str, edges: bool, both) -> None:  # type: ignore[no-untyped-def]
    for seed, length in enumerate(LENGTHS):
        for of_base in DTYPES:
            for of_tuned in DTYPES:
                base = weights(length, seed, of_base, edges)[0]
                tuned = weights(length, seed, of_tuned, edges)[1]

                def made(base: Array = base, tuned: Array = tuned) -> Array:
                    if criterion == "fapm":
                        return fapm_keys(base, tuned, 0.0123)
                    return keys(criterion, base, tuned)

                compiled, plain = both(made)
                assert same(compiled, plain), (length, of_base, of_tuned)


@pytest.mark.parametrize("criterion", ["relative", "absolute", "least", "magnitude", "authors", "ties"])
def test_what_is_not_finite_is_noticed_wherever_it_stands(criterion: str, both) -> None:  # type: ignore[no-untyped-def]
    for bad in (float("inf"), -float("inf"), float("nan")):
        for place in (0, 1023, 1024, 2999):
            for side in (0, 1):
                pair = weights(3000, 5, ml_dtypes.bfloat16, False)
                pair[side][place] = bad
                refused = both(lambda pair=pair: _refused(criterion, *pair))
                assert refused == [True, True]
    assert both(lambda: _refused(criterion, *weights(3000, 5, ml_dtypes.bfloat16, False))) == [False, False]


def _refused(criterion: str, base: Array, tuned: Array) -> bool:
    try:
        keys(criterion, base, tuned, strict=True)
    except NotFinite:
        return True
    return False


def test_random_keys(both) -> None:  # type: ignore[no-untyped-def]
    for start, stop in ((0, 5000), (12345, 12350), (2**31 - 3, 2**31 + 3), (2**33, 2**33 + 9)):
        compiled, plain = both(lambda start=start, stop=stop: random_keys(7, "model.layers.0.x", start, stop))
        assert same(compiled, plain)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_sorting_out_by_brackets(data: st.DataObject) -> None:
    length = data.draw(st.sampled_from(LENGTHS))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    spread = data.draw(st.sampled_from([4, 60, 65536]))
    made = generator.integers(-spread // 2, spread // 2, length) << 16 | generator.integers(0, 3, length)
    held = made.astype(np.int32)
    brackets = []
    for _ in range(data.draw(st.integers(1, 4))):
        low, high = sorted(data.draw(st.integers(-spread // 2, spread // 2 - 1)) for _ in range(2))
        common = data.draw(st.sampled_from([None, int(held[0]), low << 16]))
        brackets.append(Bracket(low << 16, high << 16 | 0xFFFF, common, 0.0))
    over, equals, near = sort_out(brackets, held)
    wanted: set[int] = set()
    for bracket, above, number in zip(brackets, over, equals, strict=True):
        inside = [k for k in held.tolist() if bracket.low <= k <= bracket.high and k != bracket.common]
        assert above == int((held > bracket.high).sum())
        assert number == (0 if bracket.common is None else int((held == bracket.common).sum()))
        wanted.update(inside)
    assert near.tolist() == [key for key in held.tolist() if key in wanted]


def test_sorting_out_is_the_same_without(both) -> None:  # type: ignore[no-untyped-def]
    base, tuned = weights(5000, 1, ml_dtypes.bfloat16, False)
    held = keys("relative", base, tuned)
    upper = sorted({key >> 16 for key in held.tolist()})
    brackets = [
        Bracket(upper[part * len(upper) // 4] << 16, upper[part * len(upper) // 4 + 5] << 16 | 0xFFFF, common, 0.0)
        for part, common in ((0, 0), (1, None), (2, None), (3, None))
    ]
    compiled, plain = both(lambda: sort_out(brackets, held))
    assert list(compiled[0]) == list(plain[0])
    assert list(compiled[1]) == list(plain[1])
    assert same(compiled[2], plain[2])
    assert 0 < len(plain[2]) < len(held)


CUTS = [NOTHING, Cut(0, 0x3C800000, 2, 1500), Cut(0, 0, 2, 2900), Cut(0, 0x3D000000, 1 << 62, 0), Cut(0, 0, 1 << 62, 0)]


@pytest.mark.parametrize("criterion", ["relative", "absolute", "least", "magnitude", "authors", "ties", "fapm"])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32])
def test_restoring_is_keys_and_a_mask(criterion: str, dtype: type) -> None:
    if kernels.library() is None:
        pytest.skip("not compiled")
    bits = {2: np.uint16, 4: np.uint32}[np.dtype(dtype).itemsize]
    base, tuned = weights(3001, 6, dtype, True)
    base[::7] = tuned[::7]
    key = fapm_keys(base, tuned, 0.01) if criterion == "fapm" else keys(criterion, base, tuned)
    some = 0
    for cut in [*CUTS, Cut(0, int(np.sort(key)[1500]), 2, 1200)]:
        for tensor, start in ((2, 0), (2, 1000), (2, 2899), (1, 0), (3, 0)):
            out = np.empty_like(tuned)
            found = kernels.restore(criterion, base, tuned, 0.01, cut.within(tensor, start, len(out)), out)
            mask = cut.mask(tensor, start, key)
            assert found == (int(mask.sum()), False)
            assert same(out.view(bits), np.where(mask, base.view(bits), tuned.view(bits)))
            some += 0 < mask.sum() < len(mask)
    assert some
    plain = weights(3001, 6, dtype, False)
    assert kernels.restore(criterion, *plain, 0.01, (0, 0), np.empty_like(plain[0]))[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_mixing(dtype: type) -> None:
    """What the compiled restoring is held to, and what runs where there is none."""
    base, tuned = weights(3001, 3, dtype, True)
    mask = np.random.default_rng(1).random(3001) < 0.3
    bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[base.itemsize]
    wanted = np.where(mask, base.view(bits), tuned.view(bits))
    beside, in_place = np.empty_like(tuned), tuned.copy()
    mix(mask, base, tuned, beside)
    mix(mask, base, in_place, in_place)
    assert same(beside.view(bits), wanted)
    assert same(in_place.view(bits), wanted)


def test_counting_by_upper_bits(both) -> None:  # type: ignore[no-untyped-def]
    generator = np.random.default_rng(2)
    held = generator.integers(-(2**31), 2**31 - 1, 5000).astype(np.int32)
    held[:3000] &= 0x3FFFF
    amounts = generator.random(5000)
    for given_weights in (None, amounts):
        compiled, plain = both(lambda given_weights=given_weights: upper_counts(held, given_weights))
        assert same(compiled, plain)
        assert plain.sum() == pytest.approx(5000 if given_weights is None else amounts.sum())


def test_tallies_of_scores(both) -> None:  # type: ignore[no-untyped-def]
    scores = np.abs(weights(5000, 4, np.float32, False)[0])
    scores[:1000] = 0
    scores[1000:1003] = np.inf
    compiled, plain = both(lambda: tally(scores))
    for one, other in zip(compiled, plain, strict=True):
        assert same(one, other)
    finite = scores[np.isfinite(scores)].astype(np.float64)
    assert [part.sum() for part in plain] == [5000, pytest.approx(finite.sum()), pytest.approx((finite**2).sum())]


def test_counting_lower_bits_in_chosen_bins(both) -> None:  # type: ignore[no-untyped-def]
    held = np.random.default_rng(3).integers(-(2**18), 2**18, 5000).astype(np.int32)

    def counted() -> tuple[Array, Array]:
        refined = Refinement([32768 - 2, 32768, 32768 + 1])
        places = refined.inside(held)
        refined.add(places)
        refined.add(places[:10])
        return places, np.concatenate([refined.of(bin_) for bin_ in (32768 - 2, 32768, 32768 + 1)])

    (places, counts), (plain_places, plain_counts) = both(counted)
    assert same(places, plain_places)
    assert same(counts, plain_counts)
    inside = np.isin(held >> 16, (-2, 0, 1))
    assert len(places) == int(inside.sum())
    assert int(counts.sum()) == len(places) + 10
