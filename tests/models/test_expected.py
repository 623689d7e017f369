"""Expected hits: unbiased where R is known exactly, whatever the answer's spelling, and less variable than draws."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from knowshift.errors import InputError
from knowshift.models.loading import LoadedModel, load_model
from knowshift.models.sampling import expected
from knowshift.models.sampling.expected import ExpectedSession
from knowshift.models.sampling.session import sample
from knowshift.models.sampling.settings import Sampling
from knowshift.models.sampling.spelling import Pieces, Spelling, spelling_of
from markov import Chain, markov_model, rate_of

PAIRS = (("a", "b"), ("b", "c"))
TOKENS = ("a", "b", "c", "ab", "bc")
#: Standard errors that a right estimate stays within but for one seed in millions; wrong ones are shown to leave them.
FAR = 5.0


def _values(
    loaded: LoadedModel, answers: Sequence[str], texts: int, length: int, seed: int = 0, share: float = 1.0
) -> NDArray[np.float64]:
    sampling = Sampling(seed=seed, max_new_tokens=length)
    drawn = ExpectedSession(loaded, ["x"], [answers], sampling, texts, streams=["k"])
    drawn.read()
    drawn.draw([np.arange(texts)], np.array([share]))
    return drawn.value[0]


def _off(values: NDArray[np.float64], rate: float) -> float:
    """How many standard errors the mean lies from ``rate``; a spread that few rare values show is not believed."""
    error = max(float(values.std(ddof=1)), 0.02 * rate**0.5) / len(values) ** 0.5
    return (float(values.mean()) - rate) / max(error, 1e-7)


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    """Every token may follow every other, with probabilities in fiftieths."""
    chain = {}
    for last in ("x", *TOKENS):
        shares = draw(st.lists(st.integers(0, 10), min_size=6, max_size=6).filter(any))
        total = sum(shares)
        chain[last] = {token: n / total for token, n in zip((*TOKENS, "."), shares, strict=True) if n}
    return chain


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    chain=chains(),
    answers=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3, unique=True),
    length=st.integers(1, 6),
    share=st.sampled_from([1.0, 0.5, 0.2]),
    least=st.sampled_from([0.3, 1.0, 2.0]),
)
def test_its_mean_is_the_rate_for_any_chain_and_any_answers(
    chain: Chain, answers: list[str], length: int, share: float, least: float
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        loaded = markov_model(Path(folder), chain, pairs=PAIRS)
    with pytest.MonkeyPatch.context() as patch:
        # Random truncation at every chance.
        patch.setattr(expected, "THINNED_AGAIN", 3)
        patch.setattr(expected, "CARRIED", least)
        patch.setattr(expected, "FOLLOWED", 0.2)
        values = _values(loaded, answers, 4000, length, share=share)
    assert abs(_off(values, rate_of(chain, "x", length, answers))) < FAR


#: The answer "abc" is a+bc, ab+c or a+b+c here; the tokenizer writes "abc" as ab+c.
CHAIN: Chain = {
    "x": {"a": 0.3, "ab": 0.2, "b": 0.3, "c": 0.2},
    "a": {"b": 0.5, "bc": 0.2, "a": 0.3},
    "b": {"c": 0.4, "a": 0.6},
    "c": {"a": 0.5, ".": 0.5},
    "ab": {"c": 0.6, "a": 0.4},
    "bc": {"a": 1.0},
}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return markov_model(tmp_path_factory.mktemp("markov"), CHAIN, pairs=PAIRS)


def test_every_spelling_counts_and_a_wrong_rate_is_noticed(chain: LoadedModel) -> None:
    values = _values(chain, ["abc"], 20_000, 4)
    rate = rate_of(CHAIN, "x", 4, ["abc"])
    assert abs(_off(values, rate)) < FAR
    assert abs(_off(values, rate * 1.03)) > FAR
    assert abs(_off(values, rate * 0.97)) > FAR


def test_values_vary_less_than_draws_and_know_how_much(chain: LoadedModel) -> None:
    for answers, least in ((["c"], 4.0), (["abc"], 2.0), (["ab"], 1.8)):
        rate = rate_of(CHAIN, "x", 4, answers)
        values = _values(chain, answers, 20_000, 4)
        assert values.var() * least < rate * (1 - rate), answers
        halves = values.reshape(-1, 2)
        # The variance of means of two, as two values tell it.
        told = halves.var(axis=1, ddof=1).mean() / 2
        assert told == pytest.approx(halves.mean(axis=1).var(), rel=0.05)


def test_a_larger_least_weight_is_as_right_and_varies_more(chain: LoadedModel) -> None:
    rate, spread = rate_of(CHAIN, "x", 4, ["abc"]), {}
    for least in (None, 2.0):
        sampling = Sampling(seed=2, max_new_tokens=4)
        session = ExpectedSession(chain, ["x"], [["abc"]], sampling, 20_000, streams=["k"], least_weight=least)
        session.read()
        session.draw([np.arange(20_000)])
        values = session.value[0]
        assert abs(_off(values, rate)) < FAR
        spread[least] = values.var()
    assert spread[2.0] > 2 * spread[None]


def test_texts_depend_on_no_others_and_not_on_rounds(chain: LoadedModel) -> None:
    whole = _values(chain, ["abc", "ca"], 40, 6)
    assert len(set(whole.tolist())) > 5
    prompts, accepted = ["x", "a", "x"], [["abc", "ca"], ["b"], ["cc"]]
    sampling = Sampling(seed=0, max_new_tokens=6)
    session = ExpectedSession(chain, prompts, accepted, sampling, 40, streams=["k", "other", "third"], max_nodes=8)
    session.read()
    shares = np.array([1.0, 1.0, 0.5])
    session.draw([np.arange(5, 40), np.arange(3), np.empty(0, dtype=np.int64)], shares)
    assert np.isnan(session.value[0, :5]).all()
    assert np.isnan(session.value[2]).all()
    session.draw([np.arange(5), np.arange(3, 20), np.arange(40)], shares)
    np.testing.assert_allclose(session.value[0], whole, atol=1e-6)
    assert (_values(chain, ["abc", "ca"], 40, 6, seed=1) != whole).any()


def test_it_agrees_with_draws_on_the_shipped_world() -> None:
    from knowshift.facts.fact import completion_prompts
    from knowshift.facts.sources.load import load_facts

    tiny = load_model("world:tiny")
    facts = load_facts("world:tiny").facts[:600:30]
    prompts = [
        (prompt, fact.accepted, f"{fact.id}/{i}") for fact in facts for i, prompt in enumerate(completion_prompts(fact))
    ]
    texts, accepted, streams = zip(*prompts, strict=True)
    drawn = sample(tiny, texts, accepted, Sampling(draws_per_prompt=40, seed=3), streams=streams)
    theirs, positions = drawn.hit, []
    for least in (None, 2.0):
        session = ExpectedSession(tiny, texts, accepted, Sampling(seed=4), 4, streams=streams, least_weight=least)
        session.read()
        session.draw([np.arange(4)] * len(texts))
        mine = session.value
        error = np.hypot(
            (mine.var(axis=1, ddof=1) / 4).sum() ** 0.5, (theirs.var(axis=1, ddof=1) / 40).sum() ** 0.5
        ) / len(texts)
        assert abs(mine.mean() - theirs.mean()) < FAR * error
        assert error < 0.01
        assert 0.2 < mine.mean() < 0.8
        assert mine.max() < (1.5 if least is None else 2.5)
        positions.append(session.positions)
    assert positions[1] < 0.9 * positions[0]


def test_no_value_exceeds_one_where_nothing_is_truncated(chain: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text is one weight that is divided among its parts, so an answer of several tokens is not counted twice."""
    monkeypatch.setattr(expected, "FOLLOWED", 0.0)
    monkeypatch.setattr(expected, "CARRIED", 0.0)
    for answers in (["c"], ["abc"], ["abc", "bc", "ca"]):
        values = _values(chain, answers, 2000, 6)
        assert values.max() <= 1 + 1e-9
        assert abs(_off(values, rate_of(CHAIN, "x", 6, answers))) < FAR


def test_what_prompts_promise_is_what_comes_next(chain: LoadedModel) -> None:
    session = ExpectedSession(
        chain, ["x", "a", "b"], [["ab"], ["bc"], ["abc"]], Sampling(max_new_tokens=3), 2, streams=["1", "2", "3"]
    )
    # "ab" is a token; behind "a" come bc whole and b, with which its own spelling in tokens begins not; a of "abc".
    assert session.read() == pytest.approx([0.2, 0.2, 0.0], abs=1e-4)


def test_an_automaton_watches_for_what_completes_an_answer_or_goes_on_with_it(chain: LoadedModel) -> None:
    pieces = Pieces.of(chain)
    assert pieces is not None
    ids = {token: chain.tokenizer.convert_tokens_to_ids(token) for token in TOKENS}
    spelling = spelling_of(chain, pieces, ["abc"])
    start = spelling.watch(0)
    assert ids["ab"] in start.tokens.tolist()
    assert not start.hits.any()
    within = spelling.watch(spelling.step(0, ids["ab"]))
    assert within.tokens[within.hits].tolist() == [ids["c"]]
    other = spelling.watch(spelling.step(0, ids["a"]))
    assert other.tokens[other.hits].tolist() == [ids["bc"]]
    # What completes an answer goes on with none.
    both = Spelling(pieces, [b"abc", b"bc"], [[ids["ab"], ids["c"]], [ids["b"], ids["c"]]])
    after = both.watch(both.step(0, ids["a"]))
    assert after.tokens[after.hits].tolist() == [ids["bc"]]
    assert set(after.tokens[~after.hits].tolist()) == {ids["ab"], ids["b"]}


def test_what_it_cannot_do_is_refused(chain: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="k: an accepted answer is empty"):
        _values(chain, ["a", " "], 2, 3)
    monkeypatch.setitem(chain.__dict__, "pieces", None)
    with pytest.raises(InputError, match=r"gives no bytes for each token.*use --estimate hits"):
        _values(chain, ["a"], 2, 3)
