"""Layers computed whole give the logits and gradients of transformers' own, and only layers that are known are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from knowshift.models.layers import loops
from knowshift.models.layers.llama import Layers, whole_layers
from knowshift.models.layers.loops import Keys
from knowshift.training.one_row import OneRow

compiled = pytest.mark.skipif(loops.library() is None, reason="not compiled")
#: Where the order of sums over a row is known to be PyTorch's own, results are the same to the bit.
SAME_ORDER = torch.backends.cpu.get_cpu_capability() in ("AVX512", "AVX2") and torch.__version__.startswith("2.13.")


def a_llama(**options: Any) -> Any:
    sizes = {"hidden_size": 80, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 5}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{**sizes, "vocab_size": 260, "head_dim": 16, **options}))
    for name, weight in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(weight, 0.5, 1.5)
    return model


def assert_alike(one: Tensor, other: Tensor) -> None:
    if SAME_ORDER:
        assert torch.equal(one, other)
    else:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@compiled
@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 20), width=st.integers(1, 300), residual=st.booleans(), seed=st.integers(0, 99))
def test_the_norm_and_its_gradients_are_those_of_the_formula(rows: int, width: int, residual: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x, added, weight, gradient = (torch.randn(size) for size in ((rows, width), (rows, width), width, (rows, width)))
    summed, out, r = loops.added_norm(x, added, weight, 1e-5)
    assert torch.equal(summed, x + added)
    plain, plain_r = loops.norm(summed, weight, 1e-5)
    assert torch.equal(plain, out)
    assert torch.equal(plain_r, r)
    exact, exact_weight = summed.double().requires_grad_(), weight.double().requires_grad_()
    expected = exact_weight * (exact / (exact.square().mean(1, keepdim=True) + 1e-5).sqrt())
    expected.backward(gradient.double())
    assert exact.grad is not None
    assert exact_weight.grad is not None
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(out, expected.detach(), **close)
    of_x, of_weight = loops.norm_backward(summed, r, weight, gradient, x if residual else None)
    torch.testing.assert_close(of_x, exact.grad + (x if residual else 0), rtol=1e-3, atol=1e-4, check_dtype=False)
    torch.testing.assert_close(of_weight, exact_weight.grad, **close)


@compiled
@given(rows=st.integers(1, 6), heads=st.integers(1, 3), half=st.integers(1, 20), seed=st.integers(0, 99))
def test_heads_are_rotated_and_back(rows: int, heads: int, half: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2 * rows, heads, 2 * half)).astype(np.float32)
    angle = np.tile(rng.uniform(0, 7, size=(rows, half)), 2).astype(np.float32)  # of as many rows, taken twice
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * np.tile(angle[:, :half], (2, 1)))[:, None]
    cosine, sine = torch.from_numpy(np.cos(angle)), torch.from_numpy(np.sin(angle))
    found = loops.rotate(torch.from_numpy(x.copy()), cosine, sine)
    np.testing.assert_allclose(found, np.concatenate([turned.real, turned.imag], axis=2), atol=1e-5)
    np.testing.assert_allclose(loops.rotate(found, cosine, sine, back=True), x, atol=1e-5)


def drawn_mask(tokens: int, rng: np.random.Generator) -> Tensor:
    """Every token sees itself and some of those before it."""
    return torch.from_numpy(np.tril(rng.random((tokens, tokens)) < 0.1) | np.eye(tokens, dtype=bool))


@compiled
@settings(deadline=None, max_examples=40)
@given(
    tokens=st.integers(8, 40),
    heads=st.integers(1, 3),
    width=st.integers(1, 40),
    scale=st.floats(0.01, 30),
    some=st.booleans(),
    seed=st.integers(0, 99),
)
def test_attention_to_few_keys_and_its_gradients_are_those_of_the_formula(
    tokens: int, heads: int, width: int, scale: float, some: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    mask = drawn_mask(tokens, rng)
    asked = torch.from_numpy(np.sort(rng.choice(tokens, rng.integers(1, tokens), replace=False))) if some else None
    rows = tokens if asked is None else len(asked)
    q, k, v, gradient = (
        torch.from_numpy(rng.normal(size=(size, heads, width))).float() for size in (rows, tokens, tokens, rows)
    )
    keys = Keys.of(mask)
    assert loops.few_keys(mask) == (loops.FEW * int(mask.sum()) <= mask.numel())
    out, probabilities = loops.attend(q, k, v, keys, scale, asked)
    found = loops.attend_backward(gradient, q, k, v, probabilities, keys, scale, asked)

    exact = [one.double().requires_grad_() for one in (q, k, v)]
    scores = scale * torch.einsum("rhw,thw->hrt", exact[0], exact[1])
    seen = mask if asked is None else mask[asked]
    expected = torch.einsum("hrt,thw->rhw", scores.masked_fill(~seen, -torch.inf).softmax(2), exact[2])
    expected.backward(gradient.double())
    size = 1 + scale
    torch.testing.assert_close(out, expected.detach(), rtol=1e-4, atol=2e-5 * size, check_dtype=False)
    for one, other in zip(found, exact, strict=True):
        assert other.grad is not None
        torch.testing.assert_close(one, other.grad, rtol=1e-3, atol=2e-4 * size * size, check_dtype=False)


def test_a_mask_that_was_written_to_is_looked_at_again() -> None:
    layers, mask = Layers(), torch.eye(9, dtype=torch.bool)[None, None]
    before = layers.few_keys(mask, 1, 9)
    assert before is not None
    assert layers.few_keys(mask, 1, 9) is before
    mask[..., 0] = True
    after = layers.few_keys(mask, 1, 9)
    assert after is not None
    assert len(after.keys) == 9 + 8
    assert layers.few_keys(mask, 2, 9) is None
    assert layers.few_keys(mask, 1, 8) is None
    assert layers.few_keys(mask[..., :1, :], 1, 9) is None
    with torch.inference_mode():
        assert layers.few_keys(mask.clone(), 1, 9) is None


def test_with_many_threads_keys_are_left_to_the_usual_attention() -> None:
    mask, threads = torch.eye(9, dtype=torch.bool), torch.get_num_threads()
    try:
        torch.set_num_threads(loops.FEW + 1)
        assert not loops.few_keys(mask)
    finally:
        torch.set_num_threads(threads)


def test_a_token_that_sees_nothing_is_left_to_the_usual_attention() -> None:
    mask = torch.eye(9, dtype=torch.bool)
    assert loops.few_keys(mask)
    mask[4, 4] = False
    assert not loops.few_keys(mask)


@compiled
@pytest.mark.parametrize("some", [False, True])
def test_a_batch_as_one_row_has_the_loss_and_gradients_of_the_usual_attention(
    some: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = a_llama()
    rng = np.random.default_rng(0)
    examples = [
        {"input_ids": [5, 6, *ids], "labels": [-100] * 4 + ids[2:]} for ids in rng.integers(7, 260, (6, 6)).tolist()
    ]
    batch = OneRow("sdpa", torch.float32)(examples)
    asked = (batch["labels"][0, 1:] != -100).nonzero().squeeze(1) if some else None
    calls: list[int] = []
    backward = loops.attend_backward
    monkeypatch.setattr(loops, "attend_backward", lambda *given: calls.append(1) or backward(*given))

    def found(block: AbstractContextManager[Any]) -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        with block as layers, nullcontext() if layers is None else layers.only(asked):
            loss = model(**batch, use_cache=False).loss
            loss.backward()
        return loss.detach(), [weight.grad.clone() for weight in model.parameters()]

    usual, gradients = found(nullcontext())
    assert not calls
    whole, own = found(whole_layers(model))
    assert len(calls) == 2
    torch.testing.assert_close(whole, usual, rtol=1e-5, atol=1e-6)
    for one, other in zip(own, gradients, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def row_mask(tokens: int) -> Tensor:
    return torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril() & (torch.arange(tokens) != 2)


@compiled
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "mask",
    [
        None,
        row_mask(12),
        torch.zeros(1, 1, 12, 12).masked_fill_(~row_mask(12), -1e9),
        torch.arange(12)[None, None, None] == 1,  # one row for all tokens
        (torch.arange(12) == 1).expand(1, 5, 12, 12),  # one for each head
    ],
)
def test_logits_and_gradients_are_those_of_transformers(rows: int, mask: Tensor | None) -> None:
    model = a_llama()
    ids = torch.randint(4, 260, (rows, 12), generator=torch.Generator().manual_seed(0))

    def found(block: AbstractContextManager[Any]) -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        with block:
            answer = model(input_ids=ids, labels=ids, attention_mask=mask, use_cache=False)
            answer.loss.backward()
        return answer.logits.detach(), [weight.grad.clone() for weight in model.parameters()]

    (usual, gradients), (whole, own) = found(nullcontext()), found(whole_layers(model))
    assert_alike(whole, usual)
    assert len(own) == 2 * 9 + 3
    for one, other in zip(own, gradients, strict=True):
        assert other.abs().max() > 0
        assert_alike(one, other)


@compiled
def test_reading_with_a_cache_gives_the_same_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = a_llama().eval()
    ids = torch.randint(4, 260, (3, 9), generator=torch.Generator().manual_seed(0))

    def read() -> tuple[Tensor, Tensor]:
        first = model(input_ids=ids[:, :8], use_cache=True)
        return first.logits, model(input_ids=ids[:, 8:], past_key_values=first.past_key_values, use_cache=True).logits

    calls: list[int] = []
    norm = loops.norm
    monkeypatch.setattr(loops, "norm", lambda *given: calls.append(1) or norm(*given))
    with torch.inference_mode():
        usual = read()
        assert not calls
        with whole_layers(model) as layers:
            assert layers.count == 2
            whole = read()
    assert len(calls) == 2 * 2
    for one, other in zip(whole, usual, strict=True):
        assert_alike(one, other)


@compiled
@settings(deadline=None, max_examples=25)
@given(
    scored=st.lists(st.integers(1, 11), min_size=1, max_size=12, unique=True),
    mask=st.sampled_from([None, row_mask(12), torch.zeros(1, 1, 12, 12).masked_fill_(~row_mask(12), -1e9)]),
)
def test_where_some_tokens_are_asked_for_loss_and_gradients_are_the_same(
    scored: list[int], mask: Tensor | None
) -> None:
    model = a_llama()
    ids = torch.randint(4, 260, (1, 12), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, -100)
    labels[0, scored] = ids[0, scored]
    asked = torch.tensor(sorted(scored)) - 1

    def found(told: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        with whole_layers(model) as layers, layers.only(told):
            answer = model(input_ids=ids, labels=labels, attention_mask=mask, use_cache=False)
            answer.loss.backward()
        if told is not None and len(told) < 12:
            hidden = answer.logits.detach()[0]
            others = [place for place in range(12) if place not in told.tolist()]
            assert not hidden[others].any()  # nothing was computed there
        return answer.loss.detach(), [weight.grad.clone() for weight in model.parameters()]

    (loss, gradients), (same, own) = found(None), found(asked)
    torch.testing.assert_close(same, loss, rtol=1e-5, atol=1e-6)
    for one, other in zip(own, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@compiled
@pytest.mark.parametrize("padded", [False, True])
def test_where_some_rows_are_asked_for_they_have_the_same_logits(padded: bool) -> None:
    model = a_llama().eval()
    ids = torch.randint(4, 260, (5, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if padded:
        mask[2, :3] = 0
    asked = torch.tensor([1, 2, 4])

    def read(told: Tensor | None) -> tuple[Tensor, Any]:
        with torch.inference_mode(), whole_layers(model) as layers:
            with layers.only(told):  # of several tokens in each of several rows it is not heeded
                first = model(input_ids=ids[:, :8], attention_mask=mask[:, :8], use_cache=True)
            cache = first.past_key_values
            with layers.only(told):
                return model(input_ids=ids[:, 8:], attention_mask=mask, past_key_values=cache).logits, cache

    (usual, kept), (some, cache) = read(None), read(asked)
    torch.testing.assert_close(some[asked], usual[asked], rtol=1e-5, atol=1e-6)
    assert not some[[0, 3]].any()
    for one, other in zip(cache.layers, kept.layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


def with_hook(model: Any) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda *given: None)
    model.model.layers[1].register_forward_pre_hook(lambda *given: None)


def with_other_maps(model: Any) -> None:
    class Map(nn.Linear):
        pass

    for layer in model.model.layers:
        layer.self_attn.q_proj.__class__ = Map


CHANGES: dict[str, Callable[[Any], Any]] = {
    "hooks": with_hook,
    "other maps, as an adapter's": with_other_maps,
    "bfloat16": lambda model: model.to(torch.bfloat16),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_with_anything_else_is_left_alone(change: str) -> None:
    model = a_llama()
    CHANGES[change](model)
    with whole_layers(model) as layers:
        assert layers.count == 0


def test_other_layers_are_left_alone() -> None:
    for other in (a_llama(num_key_value_heads=1), a_llama(hidden_act="gelu"), a_llama(mlp_bias=True)):
        with whole_layers(other) as layers:
            assert layers.count == 0
    config = Qwen2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=99
    )
    with whole_layers(AutoModelForCausalLM.from_config(config)) as layers:
        assert layers.count == 0
    with whole_layers(nn.Linear(2, 2)) as layers:
        assert layers.count == 0


@compiled
def test_calls_with_anything_unusual_go_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model = a_llama(attention_dropout=0.1)
    monkeypatch.setattr(loops, "norm", lambda *given: pytest.fail("a whole layer"))
    ids = torch.arange(5, 9)[None]
    with whole_layers(model) as layers:
        assert layers.count == 2
        model.train()(input_ids=ids, labels=ids).loss.backward()  # dropout
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model.eval()(input_ids=ids)
        for weight in model.model.layers.parameters():
            weight.requires_grad_(False)
        model(input_ids=ids, labels=ids).loss.backward()  # some weights are not trained
        model.set_attn_implementation("eager")
        with torch.no_grad():
            model(input_ids=ids)


@compiled
def test_layers_are_given_back_after_an_error() -> None:
    model = a_llama()
    block = whole_layers(model)
    assert block.__enter__().count == 2
    assert "forward" in vars(model.model.layers[0])
    with whole_layers(model) as layers:  # within itself
        assert layers.count == 0
    assert not block.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert not any("forward" in vars(layer) for layer in model.model.layers)
