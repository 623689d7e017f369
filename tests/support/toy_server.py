"""A small completions server on loopback, which may misbehave, and what draws from it."""

from __future__ import annotations

import json
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from knowshift.cli.app import main
from knowshift.models.sampling.settings import Sampling
from knowshift.models.server.engine import CompletionsServer
from knowshift.probing import engines

Reply = tuple[int, dict[str, str], bytes]


KEY = "sk-of-the-test"
#: By which servers refuse what they cannot serve.
STATUSES = st.sampled_from((400, 422, 500, 501))


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
        self.paths: list[str] = []
        self.clients: set[Any] = set()  # an address for each connection
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        self.url = ""

    def answer(self, method: str, path: str, body: dict[str, Any]) -> Reply:
        if path.endswith("/v1/models"):
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
        disable_nagle_algorithm = True  # head and body are two packets, of which the second would wait

        def do_GET(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            with toy.lock:
                toy.headers.append(self.headers)
                toy.paths.append(self.path)
                toy.clients.add(self.client_address)
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


def draw(server: CompletionsServer, prompts: int = 3, draws: int = 10, seed: int = 0) -> Any:
    names = [f"capital {i}" for i in range(prompts)]
    session = server.session(names, [["Lima"]] * prompts, Sampling(seed=seed, draws_per_prompt=draws), streams=names)
    session.draw([np.arange(draws)] * prompts)
    return session


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


def mastery_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str, folder: Path, *more: str
) -> tuple[int, str]:
    """`knowshift mastery URL` with parts of one fact: exit status, and standard error."""
    facts = folder / "facts.jsonl"
    facts.write_text("".join(json.dumps(row) + "\n" for row in TABLE))
    monkeypatch.setattr(engines, "PART", 1)
    words = ["mastery", url, "--facts", str(facts), "--output", str(folder / "m.parquet"), "--json", *more]
    monkeypatch.setattr(sys, "argv", ["knowshift", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), capsys.readouterr().err
