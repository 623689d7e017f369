"""Rows that are lists of nodes hold what their prompts and texts do, and change no text."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaConfig

from knowshift.models.layers import attention
from knowshift.models.loading import LoadedModel, load_model
from knowshift.models.sampling import pages, tree
from knowshift.models.sampling.cache import append_rows, continue_rows, pick_rows, tree_cache
from knowshift.models.sampling.expected import ExpectedSession
from knowshift.models.sampling.pages import PagedLayer, Pool
from knowshift.models.sampling.session import TreeSession, greedy, sample
from knowshift.models.sampling.settings import Sampling
from tiny_models import tiny_checkpoint

LAYERS, WIDTH = 2, 16
Held = list[tuple[float, ...]]  # of each row, its tokens


@pytest.fixture(autouse=True)
def _compiled_on_one_thread() -> Iterator[None]:
    if attention.library() is None:
        pytest.skip("not compiled")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def add(cache: DynamicCache, held: Held, token: float, tokens: int) -> Held:
    """So many tokens at the end of every row, each with a number of its own."""
    rows = len(held)
    numbers = token + torch.arange(rows * tokens).view(rows, 1, tokens, 1) / 1000
    for number, layer in enumerate(cache.layers):
        new = (numbers + 100 * number).expand(-1, 3, -1, WIDTH).clone()
        layer.update(new, -new)
    return [(*row, *new) for row, new in zip(held, numbers.view(rows, tokens).tolist(), strict=True)]


def holds(cache: DynamicCache) -> Held:
    """What every row holds, the same in all layers, heads and lanes."""
    found = None
    for number, layer in enumerate(cache.layers):
        keys, values = layer.pages.together()
        assert layer.get_seq_length() == keys.shape[2]
        assert torch.equal(keys, -values)
        assert torch.equal(keys, keys[:, :1, :, :1].expand_as(keys))
        rows = [tuple(row) for row in (keys[:, 0, :, 0] - 100 * number).tolist()]
        assert found is None or np.allclose(found, rows, atol=1e-4)
        found = rows
    assert found is not None
    return found


rows_of = st.lists(st.integers(0, 10**6), min_size=1, max_size=9)
moves = st.lists(
    st.tuples(st.sampled_from(["continue", "pick", "append", "drop"]), st.integers(0, 9), rows_of), max_size=14
)


@settings(deadline=None)
@given(moves=moves, capacity=st.sampled_from([1, 30, 1000]), first=st.integers(1, 4))
def test_rows_hold_what_they_were_given(moves: list[tuple[str, int, list[int]]], capacity: int, first: int) -> None:
    """Whatever becomes of other caches in the same pool, whose nodes move when it is full."""
    pool, config = Pool(capacity), LlamaConfig(num_hidden_layers=LAYERS)
    caches = [tree_cache(config, pool)]
    held = [add(caches[0], [()] * 3, 0.0, first)]
    for turn, (move, which, chosen) in enumerate(moves, start=1):
        at = which % len(caches)
        rows = np.array(chosen) % len(held[at])
        its = [held[at][row] for row in rows]
        if move == "continue":
            place = continue_rows(caches[at], rows)
            assert sorted(place) == list(range(len(rows)))
            held[at] = its
        elif move == "pick":
            caches.append(pick_rows(caches[at], rows))
            held.append(its)
            at = len(caches) - 1
        elif move == "append":
            same = [i for i, other in enumerate(held) if len(other[0]) == len(its[0]) and i != at]
            if not same:
                continue
            append_rows(caches[same[0]], caches[at], rows)
            at, held[same[0]] = same[0], held[same[0]] + its
        elif len(caches) > 1:
            del caches[at], held[at]
            gc.collect()
            at = 0
        held[at] = add(caches[at], held[at], float(turn), 1)
        assert pool.used <= pool.capacity
    for cache, its in zip(caches, held, strict=True):
        add(cache, its, 99.0, 1)
        assert np.allclose([row[:-1] for row in holds(cache)], its, atol=1e-4)


def test_a_pool_has_no_more_than_its_rows_need() -> None:
    pool = Pool(8)  # which is full at once, and then has room for twice what is needed
    for turn in range(50):
        cache = tree_cache(LlamaConfig(num_hidden_layers=LAYERS), pool)
        add(cache, [()] * 4, float(turn), 2)
        del cache
        gc.collect()
    assert pool.capacity == 16
    pool.collect()
    assert pool.used == 0


@settings(deadline=None)
@given(
    rows=st.integers(1, 40),
    groups=st.integers(1, 3),
    shared=st.integers(1, 3),
    width=st.sampled_from([16, 32, 48, 64, 128]),
    length=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_attention_by_nodes_is_that_of_rows(
    rows: int, groups: int, shared: int, width: int, length: int, dtype: torch.dtype, masked: bool, seed: int
) -> None:
    """To the bit by the loop in C; and where rows have to be put together, as before a mask."""
    torch.manual_seed(seed)
    keys, values = torch.randn(2, 50, groups, width).to(dtype)
    nodes = np.random.default_rng(seed).integers(0, 50, size=(rows, length), dtype=np.int32)
    given = attention.Pages(keys, values, nodes)
    query = torch.randn(rows, groups * shared, 1, width).to(dtype)
    mask = torch.zeros(rows, 1, 1, length, dtype=dtype) if masked else None
    newest = given.beside(torch.zeros(rows, groups, 1, width, dtype=dtype))
    module = torch.nn.Module()
    module.num_key_value_groups = shared  # type: ignore[assignment]
    mine, _ = attention.one_token_attention(module, query, newest, newest, mask)
    theirs, _ = attention.one_token_attention(module, query, *given.together(), mask)
    assert given.used == 1
    assert torch.equal(mine, theirs)
    some = torch.arange(0, rows, 2)
    few, _ = attention.one_token_attention(module, query[some], *attention.some_rows(some, newest, newest), None)
    assert masked or torch.equal(few, mine[some])


MODELS: dict[str, dict[str, Any]] = {
    "wide heads that share keys": {"head_dim": 48, "num_attention_heads": 4, "num_key_value_heads": 2},
    "layers that are computed whole": {"head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 2},
}
PROMPTS = ["What?", "What is it?", "When was it?", "Who", "Which of them was it then?", "Why"]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> LoadedModel:
    return load_model(str(tiny_checkpoint(tmp_path / "model", **MODELS[request.param])))


def found(model: LoadedModel) -> list[Any]:
    """Greedy texts, sampled hits and values of two rounds, with what they cost."""
    accepted, streams = [["a", "e"]] * len(PROMPTS), list("abcdef")
    sampling = Sampling(seed=3, draws_per_prompt=6, max_new_tokens=9)
    its: list[Any] = [greedy(model, PROMPTS, max_new_tokens=9, max_nodes=4)]
    once = sample(model, PROMPTS, accepted, sampling, streams=streams, max_nodes=5)
    its += [once.hit.tolist(), once.positions]
    for session in (
        TreeSession(model, PROMPTS, accepted, sampling, streams=streams, max_nodes=7),
        ExpectedSession(model, PROMPTS, accepted, sampling, 6, streams=streams, max_nodes=7),
    ):
        if isinstance(session, ExpectedSession):
            session.read()
        for numbers in (np.array([4, 1]), np.array([0, 2, 3, 5])):
            session.draw([numbers] * len(PROMPTS))
        its += [(session.hit if isinstance(session, TreeSession) else session.value).tolist(), session.positions]
    return its


def test_no_text_and_no_cost_depends_on_it(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, in a pool that is full again and again; the same nodes are computed in the same order."""
    updates: list[int] = []
    room = PagedLayer.room

    def seen(layer: PagedLayer, *given: Any) -> Any:
        updates.append(layer.rows.pool.capacity)
        return room(layer, *given)

    monkeypatch.setattr(PagedLayer, "room", seen)
    monkeypatch.setattr(tree, "Pool", lambda capacity: Pool(1))
    mine = found(model)
    assert max(updates) > 1
    updates.clear()
    monkeypatch.setattr(tree.Walk, "_may_share", lambda walk, length: False)
    assert mine == found(model)
    assert not updates


@pytest.mark.parametrize("why", ["layers that compute on the keys", "another attention", "threads"])
def test_a_model_that_does_not_look_at_nodes_gets_rows(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    mine = found(model)
    refused: list[type] = []
    check, shown = pages.check_by_nodes, PagedLayer.shown

    def told(cache: DynamicCache) -> None:
        try:
            check(cache)
        except pages.NotByNodes:
            refused.append(pages.NotByNodes)
            raise

    monkeypatch.setattr(tree, "check_by_nodes", told)
    if why == "another attention":
        model.model.set_attn_implementation("eager")
    elif why == "threads":
        torch.set_num_threads(2)
    else:
        monkeypatch.setattr(PagedLayer, "shown", lambda layer, keys: shown(layer, keys).clone())
    theirs = found(model)
    assert bool(refused) == (why != "threads")  # there the layer itself sees it
    assert mine[:3] == theirs[:3]
    assert [mine[4], mine[6]] == [theirs[4], theirs[6]]
    np.testing.assert_allclose(mine[5], theirs[5], rtol=1e-4)


def test_threads_may_change_between_rounds(model: LoadedModel) -> None:
    """Then rows are put together for PyTorch's attention."""
    found = []
    for threads in (1, 2):
        session = TreeSession(model, PROMPTS, [["a"]] * len(PROMPTS), Sampling(seed=3), streams=list("abcdef"))
        session.draw([np.array([0, 1])] * len(PROMPTS))
        torch.set_num_threads(threads)
        session.draw([np.array([2, 3])] * len(PROMPTS))
        found.append(session.hit.tolist())
        torch.set_num_threads(1)
    assert found[0] == found[1]


def test_a_walk_does_not_start_again_behind_a_text(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that looks at nodes at first and not later: nothing is told twice."""
    passes: list[DynamicCache] = []
    check = pages.check_by_nodes

    def later(cache: DynamicCache) -> None:
        passes.append(cache)
        if len(passes) > 12:
            raise pages.NotByNodes
        check(cache)

    monkeypatch.setattr(tree, "check_by_nodes", later)
    with pytest.raises(pages.NotByNodes):
        greedy(model, PROMPTS, max_new_tokens=40)


def test_what_a_failed_prefix_cost_is_counted(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention.Prefix, "beside", lambda prefix, keys: None)
    prompts = [f"{'So it was and so it is. ' * 2}{word}" for word in ("What", "When", "Who")]
    sampling = Sampling(seed=1, draws_per_prompt=2, max_new_tokens=3)
    counted = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        counted.append(sample(model, prompts, [["a"]] * 3, sampling, streams=list("abc")).positions)
    assert counted[0] == counted[1]
