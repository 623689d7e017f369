"""The prefix tree: exact distributions on hand-made chains, the same texts as separate draws, whatever the batches."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from knowshift.errors import InputError
from knowshift.facts.grading import Grader
from knowshift.models.loading import LoadedModel
from knowshift.models.sampling import frontier, next_token, tree
from knowshift.models.sampling.frontier import edges_of_parts
from knowshift.models.sampling.next_token import draw_tokens
from knowshift.models.sampling.philox import philox, stream_key, uniforms
from knowshift.models.sampling.session import TreeSession, greedy, sample
from knowshift.models.sampling.settings import Sampling
from knowshift.models.token_bytes import token_pieces
from markov import markov_model, texts_of

CHAIN = {
    "x": {"a": 0.5, "b": 0.3, ".": 0.2},
    "a": {"a": 0.25, "b": 0.5, ".": 0.25},
    "b": {"c": 0.6, ".": 0.4},
    "c": {"a": 1.0},
    "y": {"y": 1.0},
}
BEGINNING = "It is said that the owner of Zukar Hill is Brehi. "
PROMPTS = [
    "The capital of Brehi is",
    "The capital of Zukar is",
    "The capital",
    "Brehi",
    "The capital of Brehi is",
    "It is said that the owner of Zukar Hill is",
    "x",
]


#: A right sampler fails a statistical test here with one seed in a million; each test also shows that a slightly wrong
#: one does fail it.
CHANCE = 1e-6


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return markov_model(tmp_path_factory.mktemp("markov"), CHAIN)


def test_philox_gives_the_published_numbers() -> None:
    """Known answers of Philox-4x32-10 from the authors' Random123 distribution."""
    keys = np.array([0, 0xFFFFFFFFFFFFFFFF, 0x299F31D0A4093822], dtype=np.uint64)
    full = 0xFFFFFFFF
    counters = np.array([[0] * 4, [full] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]], dtype=np.uint64)
    expected = [
        [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ]
    assert philox(keys, counters).tolist() == expected


def test_uniforms_are_uniform_and_differ_by_seed_name_draw_and_step() -> None:
    keys = np.array([stream_key(0, str(i)) for i in range(4000)], dtype=np.uint64)
    zero = np.zeros(len(keys), dtype=np.int64)
    values = uniforms(keys, zero, zero)
    assert values.min() >= 0
    assert values.max() < 1
    of_one_key = uniforms(np.repeat(keys[:1], 4000), np.arange(4000), zero)
    for drawn in (values, of_one_key):
        assert stats.kstest(drawn, "uniform").pvalue > CHANCE
        assert stats.kstest(drawn**1.3, "uniform").pvalue < CHANCE
    for other in (uniforms(keys, zero + 1, zero), uniforms(keys, zero, zero + 1), uniforms(keys[::-1], zero, zero)):
        assert stats.pearsonr(values, other).pvalue > CHANCE
        assert stats.pearsonr(values, other + 0.3 * values).pvalue < CHANCE
    assert stream_key(0, "a") != stream_key(1, "a")


def test_texts_have_exactly_the_distribution_of_the_chain(chain: LoadedModel) -> None:
    draws, length = 20_000, 5
    found = sample(
        chain,
        ["x"],
        [["#"]],
        Sampling(seed=1, draws_per_prompt=draws, max_new_tokens=length),
        streams=["k"],
        keep_texts=True,
        max_nodes=64,
    )
    assert found.texts is not None
    expected: Counter[str] = Counter()
    for (text, _), probability in texts_of(CHAIN, "x", length).items():
        expected[text] += probability  # type: ignore[assignment]
    assert set(found.texts[0]) <= set(expected)
    assert sum(found.texts[0].values()) == draws
    assert found.positions < 60
    wrong = sample(
        *(chain, ["x"], [["#"]]),
        Sampling(seed=1, draws_per_prompt=draws, max_new_tokens=length, temperature=0.8),
        streams=["k"],
        keep_texts=True,
    )
    assert wrong.texts is not None
    shares = [draws * p for p in expected.values()]
    assert min(shares) > 20
    right, off = ([texts[text] for text in expected] for texts in (found.texts[0], wrong.texts[0]))
    assert stats.chisquare(right, shares).pvalue > CHANCE
    assert stats.chisquare(off, shares).pvalue < CHANCE


@pytest.mark.parametrize("answer", ["b", "ca", "aa"])
def test_a_draw_ends_at_its_answer_and_hits_have_the_exact_rate(chain: LoadedModel, answer: str) -> None:
    draws, length = 5_000, 6
    found = sample(
        chain,
        ["x"],
        [[answer]],
        Sampling(seed=2, draws_per_prompt=draws, max_new_tokens=length),
        streams=[answer],
        keep_texts=True,
    )
    ways = texts_of(CHAIN, "x", length, stop=answer)
    rate = sum(probability for (_, how), probability in ways.items() if how == "over")
    assert stats.binomtest(int(found.hits[0]), draws, rate).pvalue > CHANCE
    assert stats.binomtest(int(found.hits[0]), draws, rate + 0.06).pvalue < CHANCE
    assert found.texts is not None
    for text in found.texts[0]:
        assert text.find(answer) in (-1, len(text) - len(answer))
    assert found.draws == draws


def test_each_draw_is_the_one_that_would_have_been_made_alone(small_model: LoadedModel) -> None:
    """A naive sampler, one text at a time over the whole sequence, gives the same texts from the same streams."""
    seed, length = 5, 7
    found = sample(
        small_model,
        PROMPTS,
        [["a"]] * len(PROMPTS),
        Sampling(seed=seed, draws_per_prompt=4, max_new_tokens=length),
        streams=[str(i) for i in range(len(PROMPTS))],
        keep_texts=True,
    )
    pieces = token_pieces(small_model.tokenizer, small_model.model.config.vocab_size)
    assert pieces is not None
    assert found.texts is not None
    checked = 0
    for p, ids in enumerate(small_model.encoder.prompts(PROMPTS, length)):
        naive: Counter[str] = Counter()
        for draw in range(4):
            tokens, text = list(ids), b""
            for step in range(length):
                with torch.inference_mode():
                    logits = small_model.model(torch.tensor([tokens])).logits[:, -1]
                key = np.array([stream_key(seed, str(p))], dtype=np.uint64)
                token = draw_tokens(logits, np.array([0]), uniforms(key, np.array([draw]), np.array([step])), 0.7)[0][0]
                if token in small_model.stop_ids():
                    break
                tokens.append(int(token))
                text += pieces[token]
                if b"a" in text:
                    break
            naive[text.decode("utf-8", "replace")] += 1
            assert found.hit[p, draw] == (b"a" in text)
            checked += 1
        assert naive == found.texts[p]
    assert checked == 28


@settings(max_examples=12, deadline=None)
@given(order=st.permutations(range(len(PROMPTS))), kept=st.integers(1, len(PROMPTS)), nodes=st.integers(2, 40))
def test_neither_order_nor_batches_nor_company_change_a_draw(
    chain_and_all: tuple[LoadedModel, np.ndarray], order: list[int], kept: int, nodes: int
) -> None:
    model, everything = chain_and_all
    some = order[:kept]
    found = sample(
        model,
        [PROMPTS[i] for i in some],
        [["a"]] * kept,
        Sampling(seed=3, draws_per_prompt=6, max_new_tokens=9),
        streams=[str(i) for i in some],
        max_nodes=nodes,
    )
    assert (found.hit == everything[some]).all()


@pytest.fixture(scope="module")
def chain_and_all(small_world: Path) -> tuple[LoadedModel, np.ndarray]:
    from knowshift.models.loading import load_model

    model = load_model(str(small_world))
    keys = [str(i) for i in range(len(PROMPTS))]
    found = sample(
        model, PROMPTS, [["a"]] * len(PROMPTS), Sampling(seed=3, draws_per_prompt=6, max_new_tokens=9), streams=keys
    )
    assert 0 < found.hit.sum() < found.hit.size
    return model, found.hit


def test_rounds_give_the_same_draws_as_one(chain_and_all: tuple[LoadedModel, np.ndarray]) -> None:
    model, everything = chain_and_all
    keys = [str(i) for i in range(len(PROMPTS))]
    session = TreeSession(
        model, PROMPTS, [["a"]] * len(PROMPTS), Sampling(seed=3, draws_per_prompt=6, max_new_tokens=9), streams=keys
    )
    none = np.empty(0, dtype=np.int64)
    session.draw([np.array([4, 1]) if i % 2 else none for i in range(len(PROMPTS))])
    assert (session.hit >= 0).sum() == 2 * 3
    session.draw([np.array([0, 2, 3, 5]) if i % 2 else np.arange(3) for i in range(len(PROMPTS))])
    after_two = session.positions
    session.draw([none if i % 2 else np.arange(3, 6) for i in range(len(PROMPTS))])
    assert (session.hit == everything).all()
    assert session.positions > after_two


def test_the_expectation_of_answers_is_exact_where_it_can_be_told(chain: LoadedModel) -> None:
    """In the chain from x, within two characters, `c` comes only second and only after b: 0.3 x 0.6."""
    keys = list(map(str, range(200)))
    session = TreeSession(chain, ["x"] * 200, [["c#"]] * 200, Sampling(seed=0, max_new_tokens=2), streams=keys)
    session.draw([np.arange(10)] * 200)
    spaced, bare = session.expected.mean(axis=0) / 10
    assert bare == pytest.approx(0.3 * 0.6, abs=5 * 0.6 * (0.3 * 0.7 / 2000) ** 0.5)  # 5 standard errors
    assert spaced == 0


def test_direct_is_the_rest_of_the_answer_after_its_first_token(small_model: LoadedModel) -> None:
    prompts, answer = ["The capital of Brehi is", "Brehi"], "Zukarobaq"
    session = TreeSession(small_model, prompts, [[answer]] * 2, Sampling(seed=0, max_new_tokens=20), streams=["0", "1"])
    session.draw([np.arange(1)] * 2)
    ratio = session.direct(np.arange(2))
    for prompt, found in zip(prompts, ratio, strict=True):
        begin, whole = small_model.tokenizer([prompt, f"{prompt} {answer}"])["input_ids"]
        assert whole[: len(begin)] == begin
        logits = small_model.model(torch.tensor([whole])).logits[0].detach() / 0.7
        chances = torch.log_softmax(logits, -1)
        rest = sum(float(chances[i - 1, whole[i]]) for i in range(len(begin) + 1, len(whole)))
        assert found == pytest.approx(float(np.exp(rest)), rel=1e-3)
        assert len(whole) > len(begin) + 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 12))
def test_parts_of_a_front_keep_prompts_together(sizes: list[int], size: int) -> None:
    of = np.repeat(np.arange(len(sizes)), sizes)
    edges = edges_of_parts(of, size)
    assert (edges[0], edges[-1]) == (0, len(of))
    parts = [of[start:end].tolist() for start, end in itertools.pairwise(edges)]
    assert all(0 < len(part) <= size for part in parts)
    for number, own in enumerate(sizes):
        holding = sum(number in part for part in parts)
        assert holding == 1 if own <= size else holding >= -(-own // size)


def test_what_prompts_begin_with_costs_one_pass(small_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    forward = tree.Walk._forward

    def counted(walk: Any, tokens: Any, *given: Any) -> Any:
        passes.append(tokens.shape[1])
        return forward(walk, tokens, *given)

    monkeypatch.setattr(tree.Walk, "_forward", counted)
    greedy(small_model, [BEGINNING + "The", BEGINNING + "It", BEGINNING], max_new_tokens=1)
    assert passes[0] == len(small_model.encoder.prompts([BEGINNING.strip()])[0]) - 2
    assert set(passes[1:]) == {1}
    with torch.inference_mode():
        alone = [greedy(small_model, [BEGINNING + word], max_new_tokens=4)[0] for word in ("The", "It", "")]
    assert greedy(small_model, [BEGINNING + word for word in ("The", "It", "")], max_new_tokens=4) == alone


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=6))
def test_shared_tokens_are_those_of_all(rows: list[list[int]]) -> None:
    ids = np.full((len(rows), 5), -1, dtype=np.int64)
    for row, own in zip(ids, rows, strict=True):
        row[: len(own)] = own
    shortest = min(map(len, rows))
    shared = frontier.shared_tokens(ids, shortest)
    assert all(own[:shared] == rows[0][:shared] for own in rows)
    assert shared == shortest or len({own[shared] for own in rows}) > 1


def test_greedy_is_what_generate_gives(small_model: LoadedModel) -> None:
    texts = greedy(small_model, PROMPTS, max_new_tokens=9, max_nodes=8)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        ids = torch.tensor([small_model.tokenizer(prompt)["input_ids"]])
        out = small_model.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=9, top_k=None, top_p=None
        )
        assert text == small_model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert greedy(small_model, []) == []


@pytest.fixture(params=["compiled", "by PyTorch"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop in C, and what PyTorch does without it."""
    if request.param == "by PyTorch":
        monkeypatch.setattr(next_token, "library", lambda: None)
    elif next_token.library() is None:
        pytest.skip("not compiled")
    assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("_way")
def test_tokens_are_drawn_where_the_cumulative_sum_passes() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0, 2.0, -torch.inf]])
    shares = np.exp(np.array([0.0, 1.0, 2.0]) / 0.5)
    ends = np.cumsum(shares) / shares.sum()
    points = np.array([0.0, ends[0] - 1e-6, ends[0] + 1e-6, ends[1] + 1e-6, np.nextafter(1.0, 0.0)])
    tokens, chance = draw_tokens(logits, np.zeros(5, dtype=np.int64), points, 0.5, np.array([[2, -1]] * 5))
    assert tokens.tolist() == [0, 0, 2, 3, 3]
    assert chance[:, 0] == pytest.approx(shares[1] / shares.sum())
    assert (chance[:, 1] == 0).all()
    for bad in (torch.nan, torch.inf):
        for place in (0, 1, 39):
            row = torch.zeros(2, 40)
            row[1, place] = bad
            with pytest.raises(InputError, match="not finite"):
                draw_tokens(row, np.array([0, 1]), np.array([0.5, 0.5]), 1.0)
    with pytest.raises(InputError, match="not finite"):
        draw_tokens(torch.full((1, 40), -torch.inf), np.array([0]), np.array([0.5]), 1.0)


@pytest.mark.usefixtures("_way")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.integers(1, 5),
    vocabulary=st.integers(1, 700),
    draws=st.integers(1, 12),
    left_out=st.sampled_from([0.0, 0.3, 0.95]),
    spread=st.sampled_from([0.1, 3.0, 40.0]),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.5]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    lies=st.sampled_from(["plain", "some columns", "by columns"]),
    seed=st.integers(0, 999),
)
def test_each_draw_gets_the_token_that_its_number_falls_on(
    rows: int,
    vocabulary: int,
    draws: int,
    left_out: float,
    spread: float,
    temperature: float,
    dtype: torch.dtype,
    lies: str,
    seed: int,
) -> None:
    """Beside sums in float64: its part of the whole holds the number, up to rounding in float32, and is not empty."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, vocabulary)) * spread
    values[:, 1:][rng.random((rows, vocabulary - 1)) < left_out] = -np.inf
    logits = torch.from_numpy(values).to(dtype)
    exact = logits.double().numpy()
    if lies == "some columns":
        logits = torch.cat([torch.full((rows, 3), 99.0, dtype=dtype), logits], dim=1)[:, 3:]
    elif lies == "by columns":
        logits = logits.t().contiguous().t()
    row, uniform = rng.integers(0, rows, draws), np.r_[0.0, np.nextafter(1, 0), rng.random(draws)][-draws:]
    watched = rng.integers(-1, vocabulary, size=(draws, 2))
    tokens, chance = draw_tokens(logits, row, uniform, temperature, watched)
    shares = np.exp((exact - exact.max(axis=1, keepdims=True)) / temperature)
    shares /= shares.sum(axis=1, keepdims=True)
    ends = shares.cumsum(axis=1)
    assert (shares[row, tokens] > 0).all()
    assert (ends[row, tokens] >= uniform - 1e-5).all()
    assert (ends[row, tokens] - shares[row, tokens] <= uniform + 1e-5).all()
    told = np.where(watched < 0, 0.0, shares[row[:, None], np.maximum(watched, 0)])
    np.testing.assert_allclose(chance, told, rtol=1e-4, atol=1e-7)


def test_a_small_model_has_pieces_that_spell_its_texts(small_model: LoadedModel) -> None:
    assert small_model.pieces is not None
    ids = small_model.tokenizer("São Tomé is in 北京.", add_special_tokens=False)["input_ids"]
    assert b"".join(small_model.pieces[i] for i in ids).decode() == "São Tomé is in 北京."


@pytest.mark.parametrize("stopping_text", ["", "  "])
def test_an_empty_answer_is_refused(small_model: LoadedModel, stopping_text: str) -> None:
    with pytest.raises(InputError, match=r"k: an accepted answer is empty"):
        sample(small_model, ["a"], [["b", stopping_text]], Sampling(seed=0), streams=["k"])


def test_a_prompt_that_does_not_fit_is_refused(small_model: LoadedModel) -> None:
    with pytest.raises(InputError, match="does not fit into the model's context of 512"):
        sample(small_model, ["word " * 600], [["b"]], Sampling(seed=0), streams=["k"])


def test_hits_at_word_boundaries_are_those_of_whole_texts(small_model: LoadedModel) -> None:
    """Ending a draw early never changes its grade, and does save positions."""
    keys = [str(i) for i in range(len(PROMPTS))]
    sampling = Sampling(seed=3, draws_per_prompt=40, max_new_tokens=16)
    whole = sample(small_model, PROMPTS, [["no such answer"]] * len(PROMPTS), sampling, streams=keys, keep_texts=True)
    assert whole.texts is not None
    for answer in ("is", "of the", "City"):
        found = sample(small_model, PROMPTS, [[answer]] * len(PROMPTS), replace(sampling, grading="word"), streams=keys)
        grader = Grader([answer])
        expected = [sum(count for text, count in texts.items() if grader.word(text)) for texts in whole.texts]
        assert found.hits.tolist() == expected
        if answer == "is":
            assert sum(expected) > 0
            assert found.positions < whole.positions
    with pytest.raises(InputError, match="grading 'words' is unknown; nearest: 'word'"):
        replace(sampling, grading="words")


def test_texts_that_must_be_decoded_whole_give_the_same_hits(chain_and_all: tuple[LoadedModel, np.ndarray]) -> None:
    model, everything = chain_and_all
    keys = [str(i) for i in range(len(PROMPTS))]
    session = TreeSession(
        model, PROMPTS, [["a"]] * len(PROMPTS), Sampling(seed=3, draws_per_prompt=6, max_new_tokens=9), streams=keys
    )
    object.__setattr__(model, "__dict__", {**model.__dict__, "pieces": None})
    session._walk = session._new_walk()
    session.draw([np.arange(6)] * len(PROMPTS))
    assert (session.hit == everything).all()
    del model.__dict__["pieces"]


def _tiny(kind: str, **more: object) -> object:
    """A config of this family with two layers of width 32."""
    import transformers

    common = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_size": 32, "num_hidden_layers": 2}
    return getattr(transformers, kind)(**{**common, "num_attention_heads": 2, **more})


_LLAMA = {"intermediate_size": 64, "num_key_value_heads": 1, "max_position_embeddings": 128}
FAMILIES = {
    "GPT2Config": {"n_positions": 128},  # learned positions
    "BloomConfig": {},  # no positions but in attention
    "OPTConfig": {"ffn_dim": 64, "max_position_embeddings": 128, "word_embed_proj_dim": 32},  # positions from 2 on
    "LlamaConfig": {**_LLAMA, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64},  # wide heads
    "MistralConfig": {**_LLAMA, "sliding_window": 4},
    "Gemma3TextConfig": {**_LLAMA, "sliding_window": 4, "head_dim": 16},  # some layers slide, some do not
    "MixtralConfig": {**_LLAMA, "num_local_experts": 4},
    "Lfm2Config": {**_LLAMA, "layer_types": ["conv", "full_attention"]},
    "MambaConfig": {"state_size": 4},  # no attention at all
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_any_family_of_causal_models_answers_as_generate_does(kind: str, small_world: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from knowshift.models.loading import load_model

    tokenizer = AutoTokenizer.from_pretrained(small_world)
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(_tiny(kind, vocab_size=len(tokenizer), **FAMILIES[kind]))
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() > 1:
                weight.mul_(8)  # so that the answers vary
    made.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    for shown in (BEGINNING, ""):  # what all prompts begin with is read at once
        prompts = [shown + prompt for prompt in PROMPTS]
        texts = greedy(model, prompts, max_new_tokens=7, max_nodes=4)
        for prompt, text in zip(prompts, texts, strict=True):
            ids = torch.tensor([tokenizer(prompt)["input_ids"]])
            out = model.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=7)
            assert text == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert len(set(texts)) > 3
    keys = [str(i) for i in range(len(PROMPTS))]
    asked = (model, PROMPTS, [["a"]] * len(PROMPTS), Sampling(seed=3, draws_per_prompt=6, max_new_tokens=7))
    whole = sample(*asked, streams=keys)
    assert (sample(*asked, streams=keys, max_nodes=3).hit == whole.hit).all()
    session = TreeSession(*asked, streams=keys)
    session.draw([np.array([4, 1])] * len(PROMPTS))
    session.draw([np.array([0, 2, 3, 5])] * len(PROMPTS))
    assert (session.hit == (whole.hit == 1)).all()


def test_a_model_that_keeps_no_cache_is_refused(small_world: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from knowshift.models.loading import load_model

    tokenizer = AutoTokenizer.from_pretrained(small_world)
    config = _tiny("RwkvConfig", vocab_size=len(tokenizer), attention_hidden_size=32)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="model type 'rwkv' takes no cache"):
        greedy(load_model(str(tmp_path)), PROMPTS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_draws_from_nearly_the_same_distribution(
    dtype: str, small_world: Path, chain_and_all: tuple[LoadedModel, np.ndarray]
) -> None:
    """Per prompt, hit counts of 400 draws in either precision pass for counts of one rate."""
    from knowshift.models.loading import load_model

    model, _ = chain_and_all
    half = load_model(str(small_world), dtype=dtype)
    assert half.model.dtype == getattr(torch, dtype)
    keys = [str(i) for i in range(len(PROMPTS))]
    counts = [
        sample(
            *(which, PROMPTS, [["a"]] * len(PROMPTS)),
            Sampling(seed=seed, draws_per_prompt=400, max_new_tokens=9, temperature=temperature),
            streams=keys,
        ).hits
        for seed, (which, temperature) in enumerate([(model, 0.7), (half, 0.7), (half, 0.1)])
    ]

    def least(one: np.ndarray, other: np.ndarray) -> float:
        tables = [[[a, 400 - a], [b, 400 - b]] for a, b in zip(one, other, strict=True)]
        return min(stats.fisher_exact(table).pvalue for table in tables)

    assert least(counts[0], counts[1]) > CHANCE
    assert least(counts[0], counts[2]) < CHANCE


def test_every_id_that_the_generation_config_ends_texts_with_ends_them(tmp_path: Path) -> None:
    """In the chain every text is "abc" for ever; with `b` named beside EOS it is "a"."""
    from knowshift.models.loading import load_model

    model = markov_model(tmp_path, {"x": {"a": 1.0}, "a": {"b": 1.0}, "b": {"c": 1.0}, "c": {"a": 1.0}})
    b = model.tokenizer.convert_tokens_to_ids("b")
    config = tmp_path / "generation_config.json"
    for told, ends, text in (([2, b], [2, b], "a"), (b, [2, b], "a"), (2, [2], "abcab")):
        config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token_id": told}))
        model = load_model(str(tmp_path))
        assert model.stop_ids() == ends
        assert greedy(model, ["x"], max_new_tokens=5) == [text]
        found = sample(
            model,
            ["x"],
            [["#"]],
            Sampling(seed=0, draws_per_prompt=3, max_new_tokens=5),
            streams=["k"],
            keep_texts=True,
        )
        assert found.texts == [Counter({text: 3})]
