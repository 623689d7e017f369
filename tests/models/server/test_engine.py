"""The engine behind `knowshift mastery URL`: its identity, and bad servers told in one line."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from knowshift.models.server.engine import CompletionsServer
from knowshift.records import MASTERY, read_table
from toy_server import Reply, Toy, draw, mastery_command


def slow(body: dict[str, Any]) -> None:
    time.sleep(1.0)


def cut(body: dict[str, Any]) -> Reply:
    choices = [{"text": " Li", "finish_reason": "length"}] * 9 + [{"text": " Lima", "finish_reason": "stop"}]
    return Toy.json({"choices": choices, "usage": {"completion_tokens": 20, "total_tokens": 25}})


def fewer(body: dict[str, Any]) -> Reply:
    return Toy.json({"choices": [{"text": " Lima", "finish_reason": "stop"}] * 9})


BAD: dict[str, tuple[Callable[[dict[str, Any]], Reply | None], str]] = {
    "slow": (slow, "no answer to /v1/completions in 2 attempts, the last: nothing within 0.4 s"),
    "cut": (cut, "cut 9 of 10 texts after 20 tokens in all; expected 32 each"),
    "fewer": (fewer, "gave 9 of 10 texts for 'In Peru it is'; expected all of them"),
    "none": (lambda body: Toy.json({"choices": []}), "gave 0 of 10 texts"),
    "busy": (lambda body: Toy.json({"error": "busy"}, 429, Retry_After="0"), "in 2 attempts, the last: status 429"),
    "for long": (lambda body: Toy.json({}, 429, Retry_After="3600"), "asks to come back in 3600 s (status 429: {})"),
    "failing": (lambda body: (500, {}, b"Internal\nServer Error"), "the last: status 500: Internal Server Error"),
    "no json": (lambda body: (200, {}, b"<html>\n<b>Hello"), "expected JSON from /v1/completions, got <html> <b>Hello"),
    "chat": (lambda body: Toy.json({"choices": [{"message": {}}]}), "expected a completion with choices of text, got"),
    "nested": (lambda body: (200, {}, b"[" * 100_000), "expected JSON from /v1/completions"),
    "key": (lambda body: Toy.json({"error": "who?"}, 401), "wants a key (status 401: "),
    "too long": (
        lambda body: Toy.json({"error": "context of 8"}, 400),
        'refuses /v1/completions with status 400: {"error',
    ),
    "gone": (
        lambda body: (302, {"Location": "http://elsewhere/"}, b""),
        "sends /v1/completions on to http://elsewhere/",
    ),
    "hangs up": (
        lambda body: (200, {"Content-Length": "99", "Connection": "close"}, b"{"),
        "in 2 attempts, the last: IncompleteRead(1 bytes read, 98 more expected)",
    ),
}


@pytest.mark.parametrize("how", BAD)
def test_a_bad_server_ends_in_one_line_and_what_was_recorded_stays(
    toy: Toy, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("KNOWSHIFT_CONCURRENCY", "1")
    if how == "slow":
        monkeypatch.setenv("KNOWSHIFT_TIMEOUT", "0.4")
    spoil, says = BAD[how]
    toy.spoil = lambda body: spoil(body) if len(toy.draws) > 2 else None  # the first fact has two prompts
    status, told = mastery_command(monkeypatch, capsys, toy.url, tmp_path)
    assert status == 2
    last = told.strip().splitlines()[-1]
    assert last.startswith(f"knowshift: {toy.url}: ")
    assert says in last
    assert "Traceback" not in told
    assert [path.name for path in (tmp_path / "m.parquet.parts").glob("part-*")] == ["part-000000000.parquet"]
    assert not (tmp_path / "m.parquet").exists()
    # The same command goes on where it stopped, and ends as if nothing had been.
    toy.spoil = lambda body: None
    asked = len(toy.draws)
    assert mastery_command(monkeypatch, capsys, toy.url, tmp_path)[0] == 0
    assert len(toy.draws) == asked + 4
    other = tmp_path / "undisturbed"
    other.mkdir()
    assert mastery_command(monkeypatch, capsys, toy.url, other)[0] == 0
    ours, theirs = (read_table(folder / "m.parquet", MASTERY, "mastery") for folder in (tmp_path, other))
    assert ours[0].equals(theirs[0])
    assert ours[1]["engine"] == "completions/vllm"
    assert ours[1]["model"] == "toy"


#: Each differs from the first in one thing that a server tells of its model, or in what it is.
TOLD = {
    "nothing": {},
    "root": {"root": "x"},
    "another root": {"root": "y"},
    "length": {"max_model_len": 4096},
    "weights": {"meta": {"n_params": 1}},
    "more weights": {"meta": {"n_params": 2}},
    "vocabulary": {"meta": {"n_vocab": 1}},
    "bytes": {"meta": {"size": 1}},
    "no meta": {"meta": "none", "root": "z"},
    "name": {"id": "another"},
    "kind": {"owned_by": "llamacpp"},
}


def test_the_identity_is_that_of_the_model_told(toy: Toy) -> None:
    def identity(**told: Any) -> str:
        toy.entries = [{"id": "toy", "owned_by": "vllm", **told}]
        return str(CompletionsServer(f"{toy.url}#{toy.entries[0]['id']}").about()["identity"])

    identities = {name: identity(**told) for name, told in TOLD.items()}
    assert len(set(identities.values())) == len(TOLD)
    # What changes with every start of a server does not count, nor what else it serves.
    assert identity(created=17, meta={"n_ctx": 512}) == identities["nothing"]
    toy.entries = [{"id": "first", "owned_by": "vllm", "root": "y"}, {"id": "toy", "owned_by": "vllm", "root": "x"}]
    about = CompletionsServer(f"{toy.url}#toy").about()
    assert about.pop("identity") == identities["root"]
    assert about == {"engine": "completions/vllm", "model": "toy", "dtype": "server", "device": "server"}


def test_a_model_that_is_given_goes_before_that_of_the_url(toy: Toy) -> None:
    server = CompletionsServer(f"{toy.url}#theirs", "ours")
    draw(server)
    assert server.model == "ours"
    assert {body["model"] for body in toy.draws} == {"ours"}
