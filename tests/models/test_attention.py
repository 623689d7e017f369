"""Attention of one token gives what PyTorch's kernel gives, for every width, sharing of keys and length of cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from knowshift.models.layers import attention
from knowshift.models.sampling.cache import TreeLayer, continue_rows, tree_cache


@pytest.fixture(params=["compiled", "by PyTorch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """The loop in C, which runs where PyTorch has one thread, and what PyTorch does without it: whether it is C."""
    if request.param == "by PyTorch":
        monkeypatch.setattr(attention, "library", lambda: None)
    elif attention.library() is None:
        pytest.skip("not compiled")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield request.param == "compiled"
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("way")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.integers(1, 140),
    groups=st.integers(1, 3),
    shared=st.integers(1, 3),
    width=st.sampled_from([4, 16, attention.NARROW, attention.NARROW + 8, 48, 64, 128, 256]),
    tokens=st.integers(1, attention.LONG_NARROW // 2),
    before=st.sampled_from([0, 0, 1, 20]),
    scaling=st.sampled_from([None, 0.3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_one_token_attends_as_by_the_kernel(
    rows: int,
    groups: int,
    shared: int,
    width: int,
    tokens: int,
    before: int,
    scaling: float | None,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    held = torch.randn(2, 1, groups, before, width).to(dtype)  # what all rows have in common
    prefix = attention.Prefix(*held) if before else None
    layer = TreeLayer(prefix=prefix)
    for _ in range(2):  # a prompt's tokens, then one more
        key, value = layer.update(*torch.randn(2, rows, groups, tokens, width).to(dtype))
    assert key.shape == (rows, groups, 2 * tokens, width)
    assert layer.get_seq_length() == before + 2 * tokens
    query = torch.randn(rows, groups * shared, 1, width).to(dtype)
    mine, nothing = attention.one_token_attention(torch.nn.Module(), query, key, value, None, scaling=scaling)
    assert prefix is None or prefix.used == 1
    key, value = (torch.cat([of.expand(rows, -1, -1, -1), own], 2) for of, own in zip(held, (key, value), strict=True))
    exact = (tensor.double() for tensor in (query, key, value))
    theirs = torch.nn.functional.scaled_dot_product_attention(*exact, scale=scaling, enable_gqa=True)
    assert nothing is None
    assert mine.shape == (rows, 1, groups * shared, width)
    near = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    assert mine.dtype == dtype
    torch.testing.assert_close(mine.double(), theirs.transpose(1, 2), rtol=near, atol=near)


def test_which_heads_the_loop_in_c_takes(way: bool) -> None:
    def taken(width: int, dtype: torch.dtype = torch.float32) -> bool:
        one = torch.zeros(1, 1, 1, width, dtype=dtype)
        return attention._compiled(one, one, one, 1.0) is not None

    assert [taken(width) for width in (8, 16, 40, 256, 272)] == [False, way, False, way, False]
    assert [taken(32, dtype) for dtype in (torch.bfloat16, torch.float16)] == [way, False]
    torch.set_num_threads(2)
    assert not taken(32)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_seen(bad: float) -> None:
    """Only the row that has one, in all of what it attends to."""
    key, value = torch.randn(2, 3, 1, 20, 32)
    key[1, 0, 7, 3] = bad
    found = attention.one_token_attention(torch.nn.Module(), torch.ones(3, 1, 1, 32), key, value, None)[0]
    assert found.isnan().all(dim=-1).flatten().tolist() == [False, True, False]


@pytest.mark.usefixtures("way")
def test_scores_far_apart() -> None:
    """Of scores that differ by more than a float32 can hold the powers of, the largest alone counts."""
    key = torch.zeros(1, 1, 3, 32)
    key[..., 0] = torch.tensor([-1e4, 300.0, 100.0])
    value = torch.arange(3.0)[None, None, :, None].expand(1, 1, 3, 32)
    found = attention.one_token_attention(torch.nn.Module(), torch.ones(1, 1, 1, 32), key, value, None, scaling=1.0)[0]
    assert found.flatten().tolist() == [1.0] * 32


@pytest.mark.parametrize("width", [8, 32, 64])
def test_long_caches_go_to_the_kernel(width: int, way: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def kernel(module: object, query: torch.Tensor, key: torch.Tensor, *more: object, **named: object) -> object:
        asked.append(key.shape[2])
        return query.transpose(1, 2), None

    monkeypatch.setattr(attention, "sdpa_attention_forward", kernel)
    by_c = way and width % attention.LANES == 0
    longest = attention.LONG_NARROW if width <= attention.NARROW and not by_c else attention.LONG
    for tokens in (longest, longest + 1):
        key = torch.zeros(1, 1, tokens, width)
        attention.one_token_attention(torch.nn.Module(), torch.zeros(1, 1, 1, width), key, key, None)
    assert asked == [longest + 1]


@given(
    moves=st.lists(st.lists(st.integers(0, 10**6), min_size=1, max_size=12), min_size=1, max_size=6),
    width=st.sampled_from([8, 64]),
)
def test_rows_go_on_with_what_their_parents_held(moves: list[list[int]], width: int) -> None:
    cache = tree_cache(LlamaConfig(num_hidden_layers=1))
    history: list[tuple[int, ...]] = [(i,) for i in range(4)]

    def add(tokens: list[int]) -> None:
        new = torch.tensor(tokens, dtype=torch.float32)[:, None, None, None].expand(-1, 2, 1, width)
        cache.layers[0].update(new, -new)

    add([0, 1, 2, 3])
    for turn, chosen in enumerate(moves):
        parents = np.array(chosen) % len(history)
        row = continue_rows(cache, parents)
        told: list[tuple[int, ...]] = [()] * len(parents)
        for node, its_row in enumerate(row):
            told[its_row] = (*history[parents[node]], 100 * turn + node)
        history = told
        add([its[-1] for its in history])
        assert cache.layers[0].keys[:, 1, :, width - 1].tolist() == [list(its) for its in history]
        assert cache.layers[0].values[:, 0, :, 0].tolist() == [[-x for x in its] for its in history]
