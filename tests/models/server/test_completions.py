"""What one request asks for."""

from __future__ import annotations

import json
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
from toy_server import Reply, Toy, draw


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
@given(draws=st.integers(1, 9), many=st.booleans(), seed=st.integers(0, 2**31 - 1))
def test_the_seeds_of_requests_lie_as_far_apart_as_each_has_draws(toy: Toy, draws: int, many: bool, seed: int) -> None:
    toy.draws.clear()
    asked = completions(toy.url)
    for key in "abc":
        texts, _ = asked.texts("p", (), Sampling(seed=seed), key, draws, many=many)
        assert len(texts) == draws
    seeds = [body["seed"] for body in toy.draws]
    assert len(set(seeds)) == len(seeds) == (3 if many else 3 * draws)
    assert all(seed % draws == 0 for seed in seeds)
    assert 0 <= min(seeds) <= max(seeds) <= 2**31 - draws
    assert max(seeds) > 2**20


def test_the_seeds_stay_those_of_earlier_records(toy: Toy) -> None:
    asked = completions(toy.url)
    asked.texts("p", (), Sampling(seed=3), "fact/0", 10)
    asked.texts("p", (), Sampling(seed=3), "fact/0", 2, many=False)
    assert [body["seed"] for body in toy.draws] == [107584570, 1992478810, 624816422]


@pytest.mark.parametrize(
    ("made", "ended", "passes"),
    [
        (None, 10, True),  # not told
        (80, 10, True),
        (79, 10, False),
        (8, 10, True),  # of one text only
        (9, 10, False),
        (7, 10, False),
        (0, 10, False),
        (40, 5, True),
        (39, 5, False),
        (7, 1, False),
        (0, 0, True),
        (True, 10, True),  # no number
        (-1, 10, True),
    ],
)
def test_texts_that_the_server_has_cut(toy: Toy, made: Any, ended: int, passes: bool) -> None:
    choices = [{"text": "x", "finish_reason": "length" if i < ended else "stop"} for i in range(10)]
    usage = {} if made is None else {"usage": {"completion_tokens": made, "total_tokens": 100}}
    toy.always, toy.spoil = True, lambda body: toy.json({"choices": choices, **usage})
    asked = completions(toy.url)
    body = asked.body("p", texts=10, max_new_tokens=8)
    if passes:
        assert asked.ask(body) == (["x"] * 10, 100 if usage else 0)
    else:
        with pytest.raises(ServerError, match=f"cut {ended} of 10 texts after {made} tokens in all; expected 8 each"):
            asked.ask(body)


@pytest.mark.parametrize("most", [1, 4, 9])
def test_the_tokens_of_all_requests_are_summed(toy: Toy, most: int) -> None:
    toy.most = most
    session = draw(CompletionsServer(toy.url), prompts=2)
    assert len(toy.draws) == 20
    assert session.positions == 20 * (5 + 2)


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
    assert [known.gives(texts) for texts in (1, 10, 10)] == [True, False, False]
    assert asked == [10, 1]
