"""Completions servers: a real `transformers serve` on loopback, and small servers of our own that misbehave."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knowshift.cli.app import main
from knowshift.errors import InputError
from knowshift.facts.fact import completion_prompts
from knowshift.facts.sources.load import load_facts
from knowshift.models.finding import model_folder
from knowshift.models.loading import load_model
from knowshift.models.sampling.session import sample
from knowshift.models.sampling.settings import Sampling
from knowshift.models.server import engine as module
from knowshift.models.server.dialects import DIALECTS, LEFT_OUT
from knowshift.models.server.engine import CompletionsServer, ServerError
from knowshift.probing import run
from knowshift.probing.engines import EngineSpec
from knowshift.probing.measure import Protocol
from knowshift.probing.run import run_mastery
from knowshift.records import MASTERY, read_table

Reply = tuple[int, dict[str, str], bytes]
KEY = "sk-of-the-test"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KNOWSHIFT_API_KEY", "OPENAI_API_KEY", "KNOWSHIFT_CONCURRENCY", "KNOWSHIFT_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KNOWSHIFT_TRIES", "2")
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.01)


# -- servers of our own ---------------------------------------------------------------------------------------


class Toy:
    """A completions server that says " Lima" or " Cusco" by the seed; ``spoil`` may answer in its place.

    ``spoil`` is asked only for draws, not for the requests by which the engine gets to know the server, unless
    ``always``.
    """

    def __init__(self, owner: str = "vllm") -> None:
        self.entries: list[dict[str, Any]] = [{"id": "toy", "owned_by": owner}]
        self.cuts_stops = False
        self.most = 100  # choices of one request
        self.spoil: Callable[[dict[str, Any]], Reply | None] = lambda body: None
        self.always = False
        self.draws: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        self.url = ""

    def answer(self, method: str, path: str, body: dict[str, Any]) -> Reply:
        if path == "/v1/models":
            return self.spoil({}) if self.always and self.spoil({}) else self.json({"data": self.entries})  # type: ignore[return-value]
        draw = body.get("max_tokens", 0) > 8
        if draw:
            with self.lock:
                self.draws.append(body)
        spoilt = self.spoil(body) if draw or self.always else None
        return spoilt or self.complete(body)

    def complete(self, body: dict[str, Any]) -> Reply:
        count = min(body.get("n", 1), self.most)
        choices = []
        for child in range(count):
            text = " Lima, they say" if random.Random(body.get("seed", 0) + child).random() < 0.5 else " Cusco"
            for stop in body.get("stop", []):
                if stop in text:
                    end = text.index(stop)
                    text = text[:end] if self.cuts_stops else text[: end + len(stop)]
            choices.append({"text": text, "finish_reason": "stop"})
        used = {"prompt_tokens": 5, "completion_tokens": 2 * count, "total_tokens": 5 + 2 * count}
        return self.json({"model": "toy", "choices": choices, "usage": used})

    @staticmethod
    def json(value: Any, status: int = 200, **headers: str) -> Reply:
        return status, headers, json.dumps(value).encode()


@contextmanager
def serving(toy: Toy) -> Iterator[Toy]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            with toy.lock:
                toy.headers.append(self.headers)
                toy.under_way += 1
                toy.most_under_way = max(toy.most_under_way, toy.under_way)
            try:
                status, headers, payload = toy.answer(self.command, self.path, body)
            finally:
                with toy.lock:
                    toy.under_way -= 1
            self.send_response(status)
            told = {name.replace("_", "-"): value for name, value in headers.items()}
            for name, value in {"Content-Length": str(len(payload)), **told}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(payload)

        do_POST = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: Any) -> None:
            pass  # clients that hang up are part of these tests

    httpd = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    toy.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    try:
        yield toy
    finally:
        httpd.shutdown()
        httpd.server_close()


@pytest.fixture
def toy() -> Iterator[Toy]:
    with serving(Toy()) as running:
        yield running


def draw(server: CompletionsServer, prompts: int = 3, draws: int = 10, seed: int = 0) -> Any:
    names = [f"capital {i}" for i in range(prompts)]
    session = server.session(names, [["Lima"]] * prompts, Sampling(seed=seed, draws_per_prompt=draws), streams=names)
    session.draw([np.arange(draws)] * prompts)
    return session


# -- what is asked for ----------------------------------------------------------------------------------------


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


def test_the_whole_distribution_is_asked_for(toy: Toy) -> None:
    draw(CompletionsServer(toy.url))
    body = toy.draws[0]
    assert (body["temperature"], body["max_tokens"], body["top_p"]) == (0.7, 32, 1.0)
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0.0, 1.0)
    assert body["stop"] == ["Lima"]


def refusing(*wanted: Callable[[dict[str, Any]], str | None]) -> Callable[[dict[str, Any]], Reply | None]:
    """A server of a version that refuses fields, each with what it says."""

    def spoil(body: dict[str, Any]) -> Reply | None:
        said = next(filter(None, (check(body) for check in wanted)), None) if body else None
        told = {"object": "error", "message": said, "type": "BadRequestError", "param": None, "code": 400}
        return Toy.json(told, 400) if said else None

    return spoil


def before_0_9(body: dict[str, Any]) -> str | None:
    """vLLM up to 0.8.5."""
    top_k = body.get("top_k", -1)
    return f"top_k must be -1 (disable), or at least 1, got {top_k}." if top_k < 1 and top_k != -1 else None


def only_zero(body: dict[str, Any]) -> str | None:
    """A vLLM to come, which takes 0 alone."""
    return f"top_k must be 0 (disable), or at least 1, got {body['top_k']}." if body.get("top_k", 0) < 0 else None


def unknown(name: str) -> Callable[[dict[str, Any]], str | None]:
    return lambda body: f"{name}: Extra inputs are not permitted" if name in body else None


@pytest.mark.parametrize(
    ("refused", "top_k", "keeps"),
    [
        ((before_0_9,), -1, True),
        ((only_zero,), 0, True),
        ((unknown("include_stop_str_in_output"),), 0, False),
        ((before_0_9, unknown("include_stop_str_in_output")), -1, False),
        ((unknown("include_stop_str_in_output"), before_0_9), -1, False),
    ],
)
def test_fields_are_spelled_as_the_servers_version_takes_them(
    toy: Toy, refused: tuple[Callable[[dict[str, Any]], str | None], ...], top_k: int, keeps: bool
) -> None:
    toy.always, toy.spoil, toy.cuts_stops = True, refusing(*refused), not keeps
    server = CompletionsServer(toy.url)
    hits = draw(server, prompts=20).hit
    for body in toy.draws:
        assert (body["top_k"], body["min_p"], body["repetition_penalty"], body["top_p"]) == (top_k, 0.0, 1.0, 1.0)
        assert body.get("include_stop_str_in_output", False) == keeps
        assert ("stop" in body) == keeps
    assert server.about()["engine"] == "completions/vllm"
    with serving(Toy()) as other:
        assert np.array_equal(draw(CompletionsServer(other.url), prompts=20).hit, hits)


@pytest.mark.parametrize("name", ["top_k", "min_p", "repetition_penalty"])
def test_a_neutral_value_is_never_dropped_where_the_server_would_put_its_own(toy: Toy, name: str) -> None:
    toy.always, toy.spoil = True, refusing(unknown(name))
    with pytest.raises(ServerError) as caught:
        CompletionsServer(toy.url)
    assert "refuses /v1/completions with status 400: " in str(caught.value)
    assert f"{name}: Extra inputs are not permitted" in str(caught.value)
    assert str(caught.value).endswith("(tried top_k 0 or -1, include_stop_str_in_output True or left out)")
    assert not toy.draws


def test_a_server_that_refuses_everything_is_told_in_one_line(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []

    def all_of_it(body: dict[str, Any]) -> Reply | None:
        asked.append(body)
        return toy.json({"error": "no\nsuch\tthing"}, 422) if "top_k" in body else None

    toy.always, toy.spoil = True, all_of_it
    status, told = command(monkeypatch, capsys, toy.url, tmp_path)
    assert status == 2
    assert len(told.strip().splitlines()) == 1
    assert "refuses /v1/completions with status 422" in told
    assert [(body["top_k"], "include_stop_str_in_output" in body) for body in asked if "top_k" in body] == [
        (0, True),
        (0, False),
        (-1, True),
        (-1, False),
    ]


@pytest.mark.parametrize("status", [401, 404, 413])
def test_only_a_bad_request_moves_on_to_another_spelling(toy: Toy, status: int) -> None:
    asked: list[int] = []

    def answer(body: dict[str, Any]) -> Reply | None:
        if "top_k" in body:
            asked.append(body["top_k"])
            return toy.json({"error": "no"}, status)
        return None

    toy.always, toy.spoil = True, answer
    with pytest.raises(ServerError, match=f"status {status}"):
        CompletionsServer(toy.url)
    assert asked == [0]


def test_every_field_that_may_be_left_out_is_one_whose_absence_is_neutral() -> None:
    loose = {name for dialect in DIALECTS.values() for name, values in dialect.spellings.items() if LEFT_OUT in values}
    assert loose == {"include_stop_str_in_output", "no_stop_trim"}


@pytest.mark.parametrize("owner", ["sglang", "llamacpp", "toy", "somebody"])
def test_each_kind_of_server_is_told_in_its_own_words(owner: str) -> None:
    with serving(Toy(owner)) as toy:
        server = CompletionsServer(toy.url)
        draw(server)
    name = {"toy": "tgi", "somebody": "openai"}.get(owner, owner)
    assert server.about()["engine"] == f"completions/{name}"
    assert next(DIALECTS[name].spelled()).fields.items() <= toy.draws[0].items()
    assert ("top_p" in toy.draws[0]) == (name != "tgi")
    assert "knowshift_probe" not in toy.draws[0]


def test_stop_texts_are_sent_only_where_they_stay(toy: Toy) -> None:
    kept = draw(CompletionsServer(toy.url))
    toy.cuts_stops = True
    toy.draws.clear()
    server = CompletionsServer(toy.url)
    assert not server.keeps_stops
    assert np.array_equal(draw(server).hit, kept.hit)
    assert all("stop" not in body for body in toy.draws)


def test_requests_under_way_are_bounded(toy: Toy) -> None:
    def slow(body: dict[str, Any]) -> None:
        time.sleep(0.02)

    toy.spoil = slow
    draw(CompletionsServer(toy.url, concurrency=3), prompts=12)
    assert 1 < toy.most_under_way <= 3


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


def test_rounds_of_a_prompt_use_other_seeds(toy: Toy) -> None:
    session = CompletionsServer(toy.url).session(["p"], [["Lima"]], Sampling(seed=0), streams=["k"])
    for numbers in ([0, 3], [1], [2, 4, 5, 6, 7, 8, 9]):
        session.draw([np.array(numbers)])
    assert (session.hit >= 0).all()
    assert [body.get("n", 1) for body in toy.draws] == [2, 1, 7]
    assert len({body["seed"] for body in toy.draws}) == 3


def test_trouble_that_passes_is_waited_for(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWSHIFT_TRIES", "4")
    troubles = [(503, {}), (429, {"Retry_After": "0.3"}), (500, {})]

    def passing(body: dict[str, Any]) -> Reply | None:
        if troubles:
            status, headers = troubles.pop()
            return toy.json({"error": "busy"}, status, **headers)
        return None

    toy.spoil = passing
    began = time.monotonic()
    session = draw(CompletionsServer(toy.url), prompts=1)
    assert time.monotonic() - began >= 0.3
    assert (session.hit >= 0).all()
    assert len(toy.draws) == 4
    assert len({json.dumps(body) for body in toy.draws}) == 1


def test_a_connection_that_was_closed_while_idle_costs_no_attempt(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWSHIFT_TRIES", "1")
    server = CompletionsServer(toy.url)
    assert server._idle
    for connection in server._idle:
        connection.sock.shutdown(socket.SHUT_RDWR)
    assert (draw(server).hit >= 0).all()


# -- what is refused ------------------------------------------------------------------------------------------

TABLE = [
    {
        "id": f"f{i}",
        "question": "q",
        "subject": "Peru",
        "answer": "Lima",
        "prompts": ["In Peru it is", "{subject}'s is"],
    }
    for i in range(3)
]


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str, folder: Path
) -> tuple[int, str]:
    """`knowshift mastery URL` with parts of one fact: exit status, and standard error."""
    facts = folder / "facts.jsonl"
    facts.write_text("".join(json.dumps(row) + "\n" for row in TABLE))
    monkeypatch.setattr(run, "PART", 1)
    words = ["mastery", url, "--facts", str(facts), "--output", str(folder / "m.parquet"), "--json"]
    monkeypatch.setattr(sys, "argv", ["knowshift", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), capsys.readouterr().err


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
    status, told = command(monkeypatch, capsys, toy.url, tmp_path)
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
    assert command(monkeypatch, capsys, toy.url, tmp_path)[0] == 0
    assert len(toy.draws) == asked + 4
    other = tmp_path / "undisturbed"
    other.mkdir()
    assert command(monkeypatch, capsys, toy.url, other)[0] == 0
    ours, theirs = (read_table(folder / "m.parquet", MASTERY, "mastery") for folder in (tmp_path, other))
    assert ours[0].equals(theirs[0])
    assert ours[1]["engine"] == "completions/vllm"
    assert ours[1]["model"] == "toy"


def test_a_server_that_is_down_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with serving(Toy()) as toy:
        url = toy.url
    status, told = command(monkeypatch, capsys, url, tmp_path)
    assert status == 2
    assert f"knowshift: {url}: no server answers ([Errno 111] Connection refused)" in told
    assert not (tmp_path / "m.parquet.parts").exists()
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and says nothing
        monkeypatch.setenv("KNOWSHIFT_TIMEOUT", "0.2")
        with pytest.raises(ServerError, match=r"no server answers \(nothing within 0.2 s\)"):
            CompletionsServer(f"http://127.0.0.1:{mute.getsockname()[1]}")


def test_a_server_that_goes_down_under_way(toy: Toy) -> None:
    server = CompletionsServer(toy.url)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        server._port = gone.getsockname()[1]
    server.hang_up()
    with pytest.raises(ServerError, match=r"no answer to /v1/completions in 2 attempts, the last: .*refused"):
        draw(server)


def test_models_are_named_or_chosen(toy: Toy) -> None:
    assert CompletionsServer(toy.url).model == "toy"
    assert CompletionsServer(f"{toy.url}/v1#other%2Fname").model == "other/name"
    toy.always = True
    toy.spoil = lambda body: None if "model" in body or not body else toy.json({"error": "no model"}, 400)
    assert CompletionsServer(toy.url).model == "toy"
    toy.entries.append({"id": "second"})
    with pytest.raises(ServerError, match=r"lists 2 models \(toy, second\); name one as http://127.*#MODEL"):
        CompletionsServer(toy.url)
    assert CompletionsServer(f"{toy.url}#second").model == "second"


def test_the_identity_is_that_of_the_model_told(toy: Toy) -> None:
    def identity() -> str:
        return str(CompletionsServer(toy.url).about()["identity"])

    first = identity()
    assert identity() == first
    seen = {first}
    for change in (
        {"id": "toy", "root": "x"},
        {"id": "toy", "meta": {"n_params": 1}},
        {"id": "toy", "meta": {"n_params": 2}},
    ):
        toy.entries = [{"owned_by": "vllm", **change}]
        seen.add(identity())
    assert len(seen) == 4
    # What changes with every start of a server does not count.
    toy.entries[0] |= {"created": 17}
    assert identity() in seen


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://", "not a server's address"),
        ("http://host:port", "not a server's address (Port could not be cast"),
        ("http://host:99999", "not a server's address (Port out of range"),
        ("http://host?x=1", "not a server's address"),
        ("http://me:secret@host", "a server's address with a user in it"),
    ],
)
def test_addresses_that_are_none(url: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        CompletionsServer(url)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("KNOWSHIFT_CONCURRENCY", "1.5"), ("KNOWSHIFT_TIMEOUT", "soon"), ("KNOWSHIFT_TRIES", "0")]
)
def test_settings_that_are_none(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name} is '{value}'; expected a .*number above 0"):
        CompletionsServer("http://127.0.0.1:1")


# -- keys -----------------------------------------------------------------------------------------------------


def test_the_key_is_sent_to_the_server_and_never_shown(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWSHIFT_API_KEY", f"{KEY}\n")
    draw(CompletionsServer(toy.url))
    assert {headers["Authorization"] for headers in toy.headers} == {f"Bearer {KEY}"}
    toy.always = True
    toy.spoil = lambda body: toy.json({"error": f"Incorrect key {KEY}"}, 403)
    with pytest.raises(ServerError, match="does not accept the key in the environment") as caught:
        CompletionsServer(toy.url)
    assert KEY not in str(caught.value)
    assert "Incorrect key ***" in str(caught.value)
    monkeypatch.setenv("KNOWSHIFT_API_KEY", "a\tb")
    with pytest.raises(InputError, match="KNOWSHIFT_API_KEY: has characters that no key has"):
        CompletionsServer(toy.url)


def test_openais_key_goes_to_openai_alone(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    CompletionsServer(toy.url)
    assert all(headers["Authorization"] is None for headers in toy.headers)
    for host in ("api.openai.com", "openai.com"):
        assert module._key(host) == KEY
    for host in ("openai.com.example.org", "notopenai.com", "localhost"):
        assert module._key(host) is None


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("always", [True, False])
def test_no_redirection_is_followed(toy: Toy, status: int, always: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWSHIFT_API_KEY", KEY)
    with serving(Toy()) as other:
        toy.always = always
        toy.spoil = lambda body: (status, {"Location": f"{other.url}/v1/completions"}, b"")
        with pytest.raises(ServerError, match=f"on to {other.url}/v1/completions \\(status {status}\\)"):
            draw(CompletionsServer(toy.url))
        assert not other.headers


# -- ends at once ---------------------------------------------------------------------------------------------


def test_an_interrupt_ends_at_once(toy: Toy) -> None:
    waiting = threading.Event()

    def never(body: dict[str, Any]) -> None:
        waiting.set()
        time.sleep(20)

    server = CompletionsServer(toy.url, concurrency=4)
    server.gives(10)
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
    server.gives(10)
    toy.spoil = one
    began = time.monotonic()
    with pytest.raises(ServerError, match="refuses /v1/completions with status 400"):
        draw(server, prompts=50)
    assert time.monotonic() - began < 5


# -- a real server --------------------------------------------------------------------------------------------

PROMPTS, DRAWS = 24, 8


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `transformers serve` with the shipped model."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    words = ["serve", str(model_folder("world:tiny")), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "transformers.cli.transformers", *words, "--dtype", "float32"],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=quiet,
        )
    try:
        until = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def omnibus(hits: np.ndarray, rates: np.ndarray, draws: int) -> float:
    """How likely hits so far from these rates are if each draw hits with its prompt's rate: Monte Carlo of sum z^2."""
    rates = rates.clip(0.02, 0.98)

    def distance(found: np.ndarray) -> Any:
        return (((found - draws * rates) ** 2) / (draws * rates * (1 - rates))).sum(axis=-1)

    random_hits = np.random.default_rng(0).binomial(draws, rates, size=(20_000, len(rates)))
    return float((distance(random_hits) >= distance(hits)).mean())


def test_transformers_serve_gives_the_same_records_up_to_sampling(
    transformers_serve: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOWSHIFT_CONCURRENCY", "1")  # its seeds are the process's: one at a time is reproducible
    server = CompletionsServer(transformers_serve)
    assert server.about()["engine"] == "completions/transformers"
    assert server.keeps_stops
    assert not server.gives(DRAWS)
    loaded = load_model("world:tiny")
    facts = load_facts("world:tiny").facts[:200]
    prompts = [completion_prompts(fact)[i % 21] for i, fact in enumerate(facts)]
    accepted = [fact.accepted for fact in facts]
    every = sample(loaded, prompts, accepted, Sampling(seed=4, draws_per_prompt=500), streams=prompts).hits / 500
    # Prompts whose draws are neither sure to hit nor to miss.
    chosen = np.flatnonzero((every > 0.05) & (every < 0.95))[:PROMPTS]
    assert len(chosen) == PROMPTS
    prompts, accepted, rates = [prompts[i] for i in chosen], [accepted[i] for i in chosen], every[chosen]
    session = server.session(prompts, accepted, Sampling(seed=3, draws_per_prompt=DRAWS), streams=prompts)
    session.draw([np.arange(DRAWS)] * PROMPTS)
    assert session.positions > 0
    assert omnibus((session.hit == 1).sum(axis=1), rates, DRAWS) > 0.01
    # The test can tell: what is sampled in this process passes too, and nearly greedy answers do not.
    for temperature, same in ((0.7, True), (0.01, False)):
        ours = sample(
            loaded,
            prompts,
            accepted,
            Sampling(seed=5, draws_per_prompt=DRAWS, temperature=temperature),
            streams=prompts,
        )
        assert (omnibus(ours.hits, rates, DRAWS) > 0.01) == same


def test_a_record_from_transformers_serve(transformers_serve: str, tmp_path: Path) -> None:
    facts = load_facts("world:tiny").facts[:2]
    protocol = Protocol(draws_per_prompt=1, max_new_tokens=4)
    outcome = run_mastery(EngineSpec(transformers_serve), facts, tmp_path / "m.parquet", protocol)
    table, about = read_table(tmp_path / "m.parquet", MASTERY, "mastery")
    assert table["fact"].to_pylist() == [fact.id for fact in facts]
    assert outcome.draws == 2 * 21
    assert about["engine"] == "completions/transformers"
    assert about["model"].startswith(str(model_folder("world:tiny")))
    assert about["dtype"] == about["device"] == "server"
    with pytest.raises(InputError, match="recorded with another"):
        run_mastery(EngineSpec("world:tiny"), facts, tmp_path / "m.parquet", protocol)
