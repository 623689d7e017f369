"""Attempts and pauses, keys and redirections, connections that close."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from knowshift.errors import InputError
from knowshift.models.server.connection import Connection, ServerError
from knowshift.models.server.engine import CompletionsServer
from knowshift.models.server.settings import Address, Settings
from toy_server import KEY, Reply, Toy, draw, mastery_command, serving


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
    idle = server.completions.connection._idle
    assert idle
    for connection in idle:
        connection.sock.shutdown(socket.SHUT_RDWR)
    assert (draw(server).hit >= 0).all()


def test_a_server_that_is_down_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with serving(Toy()) as toy:
        url = toy.url
    status, told = mastery_command(monkeypatch, capsys, url, tmp_path)
    assert status == 2
    assert f"knowshift: {url}: no server answers ([Errno 111] Connection refused)" in told
    assert not (tmp_path / "m.parquet.parts").exists()
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and says nothing
        monkeypatch.setenv("KNOWSHIFT_TIMEOUT", "0.2")
        with pytest.raises(ServerError, match=r"no server answers \(nothing within 0.2 s\)"):
            CompletionsServer(f"http://127.0.0.1:{mute.getsockname()[1]}")


def test_a_server_that_goes_down_under_way() -> None:
    with serving(Toy()) as toy:
        server = CompletionsServer(toy.url)
    server.completions.connection.hang_up()  # the thread that holds this connection would go on answering
    with pytest.raises(ServerError, match=r"no answer to /v1/completions in 2 attempts, the last: .*refused"):
        draw(server)


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


def test_a_socket_that_goes_between_look_and_use() -> None:
    class Closing:
        """A connection that the thread which reads it closes just after it was looked at."""

        looked = 0

        @property
        def sock(self) -> Any:
            self.looked += 1
            return held if self.looked == 1 else None

    class Held:
        shut = False

        def shutdown(self, how: int) -> None:
            self.shut = True

    held = Held()
    pool = Connection(Address.parse("http://127.0.0.1:1"), None, Settings.read(None, None, None, 0.0))
    pool._busy.add(Closing())  # type: ignore[arg-type]
    pool.hang_up()
    assert held.shut
