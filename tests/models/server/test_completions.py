"""What one request asks for."""

from __future__ import annotations

from typing import Any

import pytest

from knowshift.models.server.engine import CompletionsServer
from toy_server import Reply, Toy, draw


def test_the_whole_distribution_is_asked_for(toy: Toy) -> None:
    draw(CompletionsServer(toy.url))
    body = toy.draws[0]
    assert (body["temperature"], body["max_tokens"], body["top_p"]) == (0.7, 32, 1.0)
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0.0, 1.0)
    assert body["stop"] == ["Lima"]


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
