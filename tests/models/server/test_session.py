"""Draws round by round: seeds, hits, requests at once, and an end at once."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

from knowshift.models.sampling.settings import Sampling
from knowshift.models.server.connection import ServerError
from knowshift.models.server.engine import CompletionsServer
from toy_server import Reply, Toy, draw


def test_all_draws_of_a_prompt_in_one_request_with_seeds_of_their_own(toy: Toy) -> None:
    session = draw(CompletionsServer(toy.url), prompts=40)
    assert len(toy.draws) == 40
    assert {body["n"] for body in toy.draws} == {10}
    seeds = sorted(body["seed"] for body in toy.draws)
    assert min(np.diff(seeds)) >= 10
    assert 0 <= seeds[0] < seeds[-1] < 2**31 - 10
    # The hits are those of the texts that these seeds give.
    expected = {
        body["prompt"]: [random.Random(body["seed"] + i).random() < 0.5 for i in range(10)] for body in toy.draws
    }
    assert session.hit.tolist() == [[int(hit) for hit in expected[f"capital {i}"]] for i in range(40)]
    assert 120 < session.hit.sum() < 280
    assert session.positions == 40 * (5 + 20)
    again = draw(CompletionsServer(toy.url), prompts=40)
    assert np.array_equal(again.hit, session.hit)
    assert not np.array_equal(draw(CompletionsServer(toy.url), prompts=40, seed=1).hit, session.hit)


def test_rounds_of_a_prompt_use_other_seeds(toy: Toy) -> None:
    session = CompletionsServer(toy.url).session(["p"], [["Lima"]], Sampling(seed=0), streams=["k"])
    for numbers in ([0, 3], [1], [2, 4, 5, 6, 7, 8, 9]):
        session.draw([np.array(numbers)])
    assert (session.hit >= 0).all()
    assert [body.get("n", 1) for body in toy.draws] == [2, 1, 7]
    assert len({body["seed"] for body in toy.draws}) == 3


def test_rounds_of_one_length_use_other_seeds(toy: Toy) -> None:
    session = CompletionsServer(toy.url).session(["p"], [["Lima"]], Sampling(seed=0), streams=["k"])
    for number in range(10):
        session.draw([np.array([number])])
    assert len({body["seed"] for body in toy.draws}) == 10
    assert session.positions == 10 * (5 + 2)


def test_the_seeds_of_a_prompt_follow_from_its_stream_wherever_it_stands(toy: Toy) -> None:
    server = CompletionsServer(toy.url)
    hits = {}
    for streams in (["a", "b", "c"], ["c", "a", "d"]):
        session = server.session(["p"] * 3, [["Lima"]] * 3, Sampling(seed=0), streams=streams)
        session.draw([np.arange(10)] * 3)
        for stream, row in zip(streams, session.hit.tolist(), strict=True):
            assert hits.setdefault(stream, row) == row
    assert len({tuple(row) for row in hits.values()}) == 4
    assert len({body["seed"] for body in toy.draws}) == 4


@pytest.mark.parametrize("stopping", [True, False])
def test_a_draw_hits_if_it_holds_any_accepted_answer(toy: Toy, stopping: bool) -> None:
    toy.cuts_stops = not stopping
    server = CompletionsServer(toy.url)
    accepted = [["Lima"], ["Quito", "they say"], ["Cusco", "Lima"], ["Cusco", "they"], ["lima", "say so"], ["usc"]]
    session = server.session(["p"] * 6, accepted, Sampling(seed=0), streams=["one stream"] * 6)
    done: list[int] = []
    session.draw([np.arange(10)] * 6, done.append)
    lima, middle, either, both, none, part = session.hit.astype(bool)
    assert 0 < lima.sum() < 10
    assert middle.tolist() == lima.tolist()
    assert either.all()
    assert both.all()
    assert not none.any()
    assert part.tolist() == (~lima).tolist()
    assert done == [1] * 6
    assert {tuple(body.get("stop", ())) for body in toy.draws} == ({*map(tuple, accepted)} if stopping else {()})


def test_draws_that_are_not_asked_for_stay_unmade(toy: Toy) -> None:
    server = CompletionsServer(toy.url)
    session = server.session(["p", "q"], [["Lima"]] * 2, Sampling(seed=0), streams=["p", "q"])
    session.draw([np.array([7, 2]), np.array([], dtype=int)])
    assert [body["prompt"] for body in toy.draws] == ["p"]
    assert (session.hit[0] >= 0).nonzero()[0].tolist() == [2, 7]
    assert (session.hit[1] == -1).all()


def test_requests_under_way_are_bounded(toy: Toy) -> None:
    def slow(body: dict[str, Any]) -> None:
        time.sleep(0.02)

    toy.spoil = slow
    draw(CompletionsServer(toy.url, concurrency=3), prompts=12)
    assert 1 < toy.most_under_way <= 3


def test_an_interrupt_ends_at_once(toy: Toy) -> None:
    waiting = threading.Event()

    def never(body: dict[str, Any]) -> None:
        waiting.set()
        time.sleep(20)

    server = CompletionsServer(toy.url, concurrency=4)
    server.completions.at_once(10)
    toy.spoil = never

    def interrupt() -> None:
        waiting.wait()
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        draw(server, prompts=50)
    assert time.monotonic() - began < 5
    asked = len(toy.draws)
    time.sleep(0.3)
    assert len(toy.draws) == asked <= 4  # nobody goes on asking


def test_one_failure_ends_the_others_at_once(toy: Toy) -> None:
    def one(body: dict[str, Any]) -> Reply | None:
        if body["prompt"] == "capital 2":
            return toy.json({"error": "no"}, 400)
        time.sleep(20)
        return None

    server = CompletionsServer(toy.url, concurrency=8)
    server.completions.at_once(10)
    toy.spoil = one
    began = time.monotonic()
    with pytest.raises(ServerError, match="refuses /v1/completions with status 400"):
        draw(server, prompts=50)
    assert time.monotonic() - began < 5
