"""What one request asks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knowshift.models.sampling.settings import Sampling
from knowshift.models.server.completions import Completions
from knowshift.models.server.connection import Connection, ServerError
from knowshift.models.server.dialects import DIALECTS
from knowshift.models.server.engine import CompletionsServer
from knowshift.models.server.settings import Address, Settings
from toy_server import STATUSES, Reply, Toy, draw


def test_the_whole_distribution_is_asked_for(toy: Toy) -> None:
    draw(CompletionsServer(toy.url))
    body = toy.draws[0]
    assert (body["temperature"], body["max_tokens"], body["top_p"]) == (0.7, 32, 1.0)
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0.0, 1.0)
    assert body["stop"] == ["Lima"]


def completions(url: str, dialect: str = "openai", model: str | None = None) -> Completions:
    """Of a server that nothing is asked of yet."""
    connection = Connection(Address.parse(url), None, Settings.read(None, None, None, 0.0))
    return Completions(connection, DIALECTS[dialect], model)


def test_a_request_of_each_shape() -> None:
    plain = {"prompt": "p", "max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "seed": 0}
    openai = completions("http://h")
    assert openai.body("p") == plain
    full = openai.body("p", "abcdef", seed=7, texts=2, temperature=0.5, max_new_tokens=9)
    changed = {"seed": 7, "temperature": 0.5, "max_tokens": 9}
    assert full == {**plain, **changed, "n": 2, "stop": ["a", "b", "c", "d"]}
    assert completions("http://h", model="m").body("p") == {**plain, "model": "m"}
    whole = completions("http://h", "transformers")
    for temperature, sampled in ((0.7, {"do_sample": True, "temperature": 0.7}), (0.0, {"do_sample": False})):
        body = whole.body("p", temperature=temperature, max_new_tokens=3)
        told = {"top_p": 1.0, "top_k": 0, "max_new_tokens": 3, "temperature": 1.0}
        assert json.loads(body["generation_config"]) == {**told, **sampled}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draws=st.integers(1, 12), at_once=st.integers(1, 12), seed=st.integers(0, 2**31 - 1))
def test_the_seeds_of_all_texts_are_distinct(toy: Toy, draws: int, at_once: int, seed: int) -> None:
    toy.draws.clear()
    asked = completions(toy.url)
    for key in "abc":
        texts = asked.texts("p", (), Sampling(seed=seed), key, draws, at_once=at_once).texts
        assert len(texts) == draws
    assert max(body.get("n", 1) for body in toy.draws) <= at_once
    assert len(toy.draws) == 3 * -(-draws // at_once)
    seeds = [body["seed"] + child for body in toy.draws for child in range(body.get("n", 1))]
    assert len(set(seeds)) == len(seeds) == 3 * draws
    assert 0 <= min(seeds) <= max(seeds) < 2**31
    assert max(seeds) > 2**20


def test_the_seeds_stay_those_of_earlier_records(toy: Toy) -> None:
    asked = completions(toy.url)
    asked.texts("p", (), Sampling(seed=3), "fact/0", 10)
    asked.texts("p", (), Sampling(seed=3), "fact/0", 2, at_once=1)
    assert [body["seed"] for body in toy.draws] == [107584570, 1992478810, 624816422]


@pytest.mark.parametrize(
    ("made", "ended", "passes"),
    [
        (None, range(10), True),  # not told
        (80, range(10), True),
        (79, range(10), False),
        (8, range(10), False),
        (0, range(10), False),
        (40, range(5), True),
        (39, range(5), False),
        (7, range(9, 10), False),
        (8, range(9, 10), True),
        (0, (), True),
        (True, range(10), True),  # no number
        (-1, range(10), True),
    ],
)
def test_texts_that_the_server_has_cut(toy: Toy, made: Any, ended: Collection[int], passes: bool) -> None:
    def cutting(body: dict[str, Any]) -> Reply:
        choices = [{"text": "x", "finish_reason": "length" if i in ended else "stop"} for i in range(10)]
        usage = {} if made is None else {"usage": {"completion_tokens": made, "total_tokens": 100}}
        return toy.json({"choices": choices, **usage})

    toy.always, toy.spoil = True, cutting
    ask = lambda: completions(toy.url).texts("p", (), Sampling(max_new_tokens=8), "k", 10)  # noqa: E731
    if passes:
        drawn = ask()
        assert (drawn.texts, drawn.total) == (["x"] * 10, 0 if made is None else 100)
    else:
        says = f"cut {len(ended)} of 10 texts after {made} tokens in all; expected 8 each"
        with pytest.raises(ServerError, match=says):
            ask()


def counting_the_first(lengths: Sequence[int]) -> Callable[[dict[str, Any]], Reply]:
    """A server that reports the tokens of the first of several texts, as llama.cpp does (build 11549)."""

    def spoil(body: dict[str, Any]) -> Reply:
        most = body["max_tokens"]
        made = [min(most, length) for length in lengths[: body.get("n", 1)]]
        choices = [{"text": "x", "finish_reason": "length" if one == most else "stop"} for one in made]
        return Toy.json({"choices": choices, "usage": {"completion_tokens": made[0], "total_tokens": made[0] + 5}})

    return spoil


@pytest.mark.parametrize("first", [3, 8])
def test_a_server_that_counts_the_first_of_several_texts_alone_cuts_none(toy: Toy, first: int) -> None:
    toy.always, toy.spoil = True, counting_the_first([first, *[8] * 9])
    asked = completions(toy.url)
    assert asked.at_once(10) == 10
    drawn = asked.texts("p", (), Sampling(max_new_tokens=8), "k", 10)
    assert (drawn.texts, drawn.total) == (["x"] * 10, first + 5)


def test_a_server_that_counts_the_first_text_alone_is_caught_by_it(toy: Toy) -> None:
    toy.always, toy.spoil = True, counting_the_first([8] * 10)
    asked = completions(toy.url)
    asked.at_once(10)

    def cut(body: dict[str, Any]) -> Reply:
        choices = [{"text": "x", "finish_reason": "length"}] * 10
        return toy.json({"choices": choices, "usage": {"completion_tokens": 7}})

    toy.spoil = cut
    with pytest.raises(ServerError, match="cut 1 of 10 texts after 7 tokens in all; expected 8 each"):
        asked.texts("p", (), Sampling(max_new_tokens=8), "k", 10)


@pytest.mark.parametrize("most", [1, 4, 9])
def test_the_tokens_of_all_requests_are_summed(toy: Toy, most: int) -> None:
    toy.most = most
    session = draw(CompletionsServer(toy.url), prompts=2)
    assert len(toy.draws) == 20
    assert session.positions == 20 * (5 + 2)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(most=st.integers(1, 12), draws=st.integers(1, 12), slots=st.none() | st.integers(1, 16), status=STATUSES)
def test_a_request_is_for_as_many_texts_as_the_server_takes(
    toy: Toy, most: int, draws: int, slots: int | None, status: int
) -> None:
    """Whatever it says of its slots: one that takes up to ``most`` is asked for as many of them as it holds."""

    def limited(body: dict[str, Any]) -> Reply | None:
        return toy.json({"error": "n"}, status) if body.get("n", 1) > most else None

    toy.always, toy.spoil = True, limited
    asked = completions(toy.url)
    asked.slots = slots
    assert asked.at_once(draws) == min(most, draws, slots or draws)


@pytest.mark.parametrize("how", ["refuses", "fails", "ignores"])
def test_a_server_without_n_gives_one_text_a_request(toy: Toy, how: str) -> None:
    def only_one(body: dict[str, Any]) -> Reply | None:
        if body.get("n", 1) > 1:
            return toy.json({"error": "Only one completion choice is allowed"}, 400 if how == "refuses" else 500)
        return None

    toy.always = how != "ignores"
    toy.spoil = only_one if toy.always else toy.spoil
    toy.most = 1
    session = draw(CompletionsServer(toy.url), prompts=8)
    assert (session.hit >= 0).all()
    assert 0 < session.hit.mean() < 1
    assert len(toy.draws) == 80
    assert len({body["seed"] for body in toy.draws}) == 80


def test_a_500_to_a_request_of_many_texts_is_no_passing_trouble(toy: Toy) -> None:
    asked: list[int] = []

    def only_one(body: dict[str, Any]) -> Reply | None:
        asked.append(body.get("n", 1))
        return toy.json({"error": "n"}, 500) if body.get("n", 1) > 1 else None

    toy.always, toy.spoil = True, only_one
    known = completions(toy.url)
    assert [known.at_once(texts) for texts in (1, 10, 10)] == [1, 1, 1]
    assert asked == [10, 1, 5, 3, 2]
