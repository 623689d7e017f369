"""A server with slots (llama.cpp): as many texts a request as it holds, and no more requests than fill them."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knowshift.models.server.connection import ServerError
from knowshift.models.server.engine import CompletionsServer
from knowshift.models.server.session import Served
from toy_server import Reply, Toy, draw, serving


class Slots(Toy):
    """Says of its slots what llama.cpp says, and refuses more texts than it has (build 11549)."""

    def __init__(self, slots: int) -> None:
        super().__init__("llamacpp")
        self.slots = slots
        self.props: Any = None  # what it says in the place of that
        self.cuts_stops = True

    def answer(self, method: str, path: str, body: dict[str, Any]) -> Reply:
        if path == "/props":
            return self.props or self.json({"total_slots": self.slots})
        if body.get("n", 1) > self.slots:
            said = f"Field 'n': Value must be between 1 <= value <= {self.slots}, but got {body['n']}"
            return self.json({"error": {"code": 400, "message": said, "type": "invalid_request_error"}}, 400)
        return super().answer(method, path, body)


@pytest.fixture
def slots() -> Iterator[Slots]:
    with serving(Slots(4)) as running:
        assert isinstance(running, Slots)
        yield running


def test_draws_are_asked_for_in_as_few_requests_as_the_slots_allow(slots: Slots) -> None:
    session = draw(CompletionsServer(slots.url), prompts=12)
    assert slots.paths.count("/props") == 1
    # What it remembers of a prompt is not to be relied on after a request of several texts.
    assert all(body["cache_prompt"] is False for body in slots.draws)
    assert [
        sorted(body.get("n", 1) for body in slots.draws if body["prompt"] == f"capital {i}") for i in range(12)
    ] == [[2, 4, 4]] * 12
    # Every draw has a seed of its own, and its text is that of the seed.
    for i, row in enumerate(session.hit.tolist()):
        own = [body for body in slots.draws if body["prompt"] == f"capital {i}"]
        assert row == [random.Random(body["seed"] + child).random() < 0.5 for body in own for child in range(body["n"])]
    seeds = [body["seed"] + child for body in slots.draws for child in range(body["n"])]
    assert len(set(seeds)) == 120


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(held=st.integers(1, 12), draws=st.integers(1, 12))
def test_any_number_of_slots_gives_all_draws(slots: Slots, held: int, draws: int) -> None:
    slots.slots = held
    slots.draws.clear()
    assert (draw(CompletionsServer(slots.url), prompts=2, draws=draws).hit >= 0).all()
    most = min(held, draws)
    assert max(body.get("n", 1) for body in slots.draws) == most
    assert len(slots.draws) == 2 * -(-draws // most)


@pytest.mark.parametrize("told", [None, True, 0, -1, "4", 4.0, []])
@pytest.mark.parametrize("status", [200, 404, 501])
def test_slots_that_are_not_told_are_found_out(slots: Slots, told: Any, status: int) -> None:
    slots.slots, slots.props = 3, slots.json({"total_slots": told}, status)
    draw(CompletionsServer(slots.url), prompts=1)
    assert [body.get("n", 1) for body in slots.draws] == [3, 3, 3, 1]


def test_another_kind_of_server_is_not_asked_for_slots(toy: Toy) -> None:
    draw(CompletionsServer(toy.url))
    assert "/props" not in toy.paths


def test_slots_that_want_a_key_are_told(slots: Slots) -> None:
    slots.props = slots.json({"error": "key"}, 401)
    with pytest.raises(ServerError, match="wants a key"):
        CompletionsServer(slots.url)


def test_requests_under_way_are_those_that_fill_the_slots_and_one(slots: Slots) -> None:
    def slow(body: dict[str, Any]) -> None:
        time.sleep(0.02)

    slots.spoil = slow
    draw(CompletionsServer(slots.url), prompts=12)
    assert slots.most_under_way == 2
    slots.most_under_way = 0
    draw(CompletionsServer(slots.url, concurrency=1), prompts=4)
    assert slots.most_under_way == 1


@given(slots=st.integers(1, 64), at_once=st.integers(1, 64), concurrency=st.integers(1, 64))
def test_slots_are_filled_and_no_more_than_one_request_waits(slots: int, at_once: int, concurrency: int) -> None:
    at_once = min(at_once, slots)

    class Told:
        pass

    told: Any = Told()
    told.slots = slots
    requests = Served(told, concurrency, False).requests(at_once)
    assert 1 <= requests <= concurrency
    if requests < concurrency:
        assert slots < requests * at_once <= slots + at_once
