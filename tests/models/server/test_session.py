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
    server.completions.gives(10)
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
    server.completions.gives(10)
    toy.spoil = one
    began = time.monotonic()
    with pytest.raises(ServerError, match="refuses /v1/completions with status 400"):
        draw(server, prompts=50)
    assert time.monotonic() - began < 5
