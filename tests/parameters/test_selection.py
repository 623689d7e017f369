"""Exact global selection against a plain sort, whatever the ties, pieces and threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from knowshift.errors import InputError
from knowshift.parameters.selection import radix as radix_module
from knowshift.parameters.selection.brackets import bracketed
from knowshift.parameters.selection.radix import radix
from knowshift.parameters.selection.select import Cut, choose, exact_count, fraction_name
from knowshift.parameters.tensors import Stretch, stretches, workers


class ListedKeys:
    """Sort keys that are held in memory."""

    def __init__(self, tensors: list[NDArray[np.int32]], run: Any, piece: int) -> None:
        self.tensors, self.run, self.piece = tensors, run, piece

    def of(self, tensor: int, start: int, stop: int) -> NDArray[np.int32]:
        return self.tensors[tensor][start:stop].copy()

    @property
    def sizes(self) -> list[int]:
        return [len(tensor) for tensor in self.tensors]

    def scan(self, function: Any, some: Any = None) -> Iterator[tuple[Stretch, Any]]:
        parts = list(stretches(self.sizes, self.piece)) if some is None else some
        return zip(parts, self.run(lambda *s: function(self.of(*s)), parts), strict=True)


def chosen(tensors: list[NDArray[np.int32]], cut: Cut, piece: int) -> list[bool]:
    masks = [
        cut.mask(tensor, start, tensors[tensor][start:stop]).tolist()
        for tensor, start, stop in stretches([len(t) for t in tensors], piece)
    ]
    return [one for mask in masks for one in mask]


def by_sorting(tensors: list[NDArray[np.int32]], count: int) -> list[bool]:
    flat = [int(key) for tensor in tensors for key in tensor]
    order = sorted(range(len(flat)), key=lambda i: (-flat[i], i))
    first = set(order[:count])
    return [i in first for i in range(len(flat))]


few = st.sampled_from([0, 1, 2, -1, 65535, 65536, 65537, 1 << 30, (1 << 31) - 1, -(1 << 31), 0x7F800000])
anything = st.integers(-(1 << 31), (1 << 31) - 1)
key_lists = st.lists(st.lists(st.one_of(few, anything), min_size=0, max_size=40), min_size=1, max_size=5)


@given(key_lists, st.lists(st.floats(0, 1), min_size=1, max_size=4), st.integers(1, 60), st.sampled_from([1, 2]))
@settings(max_examples=120, deadline=None)
def test_the_first_k_are_those_of_a_stable_sort(
    lists: list[list[int]], fractions: list[float], piece: int, threads: int
) -> None:
    tensors = [np.array(one, np.int32) for one in lists]
    counts = [exact_count(fraction, sum(map(len, lists))) for fraction in fractions]
    with workers(threads) as run:
        cuts = choose(ListedKeys(tensors, run, piece), counts)
    for count, cut in zip(counts, cuts, strict=True):
        assert cut.count == count
        assert chosen(tensors, cut, piece) == by_sorting(tensors, count)
        assert chosen(tensors, cut, 7) == by_sorting(tensors, count)


@given(key_lists, st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_a_third_pass_finds_the_same_ends(lists: list[list[int]], piece: int) -> None:
    tensors = [np.array(one, np.int32) for one in lists]
    total = sum(map(len, lists))
    kept = radix_module.KEPT
    try:
        radix_module.KEPT = 0  # as if more fell into the threshold bins than is held
        with workers(1) as run:
            cuts = choose(ListedKeys(tensors, run, piece), range(total + 1))
    finally:
        radix_module.KEPT = kept
    for count, cut in enumerate(cuts):
        assert chosen(tensors, cut, piece) == by_sorting(tensors, count)


def test_many_keys_of_one_value_across_many_pieces() -> None:
    tensors = [np.full(100_000, 5, np.int32), np.full(100_000, 5, np.int32)]
    tensors[1][50_000:] = 6
    with workers(2) as run:
        cut = choose(ListedKeys(tensors, run, 999), [130_000])[0]
    mask = np.array(chosen(tensors, cut, 4096))
    assert int(mask.sum()) == 130_000
    assert bool(mask[-50_000:].all())
    assert bool(mask[:80_000].all())


@pytest.mark.parametrize("seed", range(6))
def test_brackets_settle_what_counting_finds(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = [60_000, 0, 1, 150_000, 90_000]
    scores = [torch.randn(size, generator=generator).abs() * (1 + i) for i, size in enumerate(sizes)]
    if seed % 3 == 1:  # few values, many of them equal
        scores = [(score * 50).round() / 50 for score in scores]
    if seed % 3 == 2:  # two in five did not change at all
        scores = [score * (torch.rand(score.shape, generator=generator) < 0.6) for score in scores]
    tensors = [score.view(torch.int32).numpy() for score in scores]
    total = sum(sizes)
    counts = [1, total // 100, total // 5, int(total * 0.59), int(total * 0.61), total - 1, total]
    with workers(2) as run:
        keys = ListedKeys(tensors, run, 5000)
        guessed, counted = bracketed(keys, counts), radix(keys, counts)
        assert guessed is not None
        for count in counts:
            one, other = guessed[count], counted[count]
            assert (one.key, one.taken, one.there) == (other.key, other.taken, other.there)
            assert [e for e in one.equals() if e[1]] == [e for e in other.equals() if e[1]]


def test_brackets_give_up_when_the_sample_misleads() -> None:
    torch.manual_seed(0)
    tensors = [np.zeros(400_000, np.int32)]
    with workers(1) as run:
        keys = ListedKeys(tensors, run, 4096)
        assert bracketed(keys, [1, 400_000]) is not None
        sampled = []

        class Misleading(ListedKeys):
            """What the sample reads differs from what the pass reads."""

            def scan(self, function: Any, some: Any = None) -> Iterator[tuple[Stretch, Any]]:
                if some is not None:
                    sampled.extend(some)
                    return iter([(part, function(np.full(part[2] - part[1], 7, np.int32))) for part in some])
                return super().scan(function)

        assert bracketed(Misleading(tensors, run, 4096), [200_000]) is None
        assert sampled


def test_a_count_is_the_floor_of_the_decimal_as_written() -> None:
    assert exact_count(0.29, 100) == 29  # int(0.29 * 100) is 28
    assert exact_count(0.2, 7) == 1
    assert exact_count(0.0, 7) == 0
    assert exact_count(1.0, 7) == 7
    assert exact_count(1e-9, 10**9) == 1
    for wrong in (-0.1, 1.0000001, float("nan"), float("inf")):
        with pytest.raises(InputError, match="expected a number from 0 to 1"):
            exact_count(wrong, 10)


def test_fractions_are_written_as_people_write_them() -> None:
    named = {0.01: "0.01", 0.2: "0.2", 0.6: "0.6", 1.0: "1", 0.0: "0", 0.125: "0.125", 1e-05: "1e-05"}
    assert {fraction: fraction_name(fraction) for fraction in named} == named
    assert fraction_name(np.float64(0.2)) == fraction_name(0.2)
    assert fraction_name(-0.0) == "0"


@given(st.floats(0, 1))
def test_a_fractions_name_is_read_back_as_the_same_fraction(fraction: float) -> None:
    assert float(fraction_name(fraction)) == fraction
