"""Attempts and pauses, keys and redirections, connections that close."""

from __future__ import annotations

import contextlib
import email.utils
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from knowshift.errors import InputError
from knowshift.models.server import connection
from knowshift.models.server.connection import Connection, RefusedError, ServerError
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


class Recording(threading.Event):
    """Nobody waits: the seconds asked for are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waited.append(timeout)
        return False


def pool(url: str, tries: int = 5, timeout: float = 20.0, pause: float = 1.0) -> Connection:
    return Connection(Address.parse(url), None, Settings.read(1, timeout, tries, pause))


@pytest.mark.parametrize(
    ("longest", "headers", "seconds"),
    [(30.0, {}, [1, 2, 4, 8]), (3.0, {}, [1, 2, 3, 3]), (30.0, {"Retry_After": "6"}, [6, 6, 6, 8])],
)
def test_pauses_double_up_to_the_longest_unless_the_server_asks_for_more(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, longest: float, headers: dict[str, str], seconds: list[float]
) -> None:
    monkeypatch.setattr(connection, "LONGEST_PAUSE", longest)
    toy.always, toy.spoil = True, lambda body: toy.json({}, 503, **headers)
    waits = Recording()
    with pytest.raises(ServerError, match=r"no answer to /x in 5 attempts, the last: status 503: \{\}"):
        pool(toy.url).ask("POST", "/x", {"prompt": "p"}, stopped=waits)
    assert toy.paths == ["/x"] * 5
    assert waits.waited == pytest.approx(seconds, rel=0.25)  # two hosts do not come back at one moment
    assert waits.waited != seconds


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_status_that_may_pass_is_tried_again(toy: Toy, status: int) -> None:
    answers = [toy.json({}, status), toy.json({"fine": 1})]
    toy.always, toy.spoil = True, lambda body: answers.pop(0)
    assert pool(toy.url).ask("POST", "/x", {"prompt": "p"}, stopped=Recording()) == {"fine": 1}


@pytest.mark.parametrize("status", [300, 400, 401, 403, 404, 405, 409, 410, 413, 422, 499, 501, 505])
def test_any_other_status_is_final(toy: Toy, status: int) -> None:
    toy.always, toy.spoil = True, lambda body: toy.json({}, status)
    with pytest.raises(RefusedError, match=f"status {status}") as caught:
        pool(toy.url).ask("POST", "/x", {"prompt": "p"}, stopped=Recording())
    assert caught.value.status == status
    assert len(toy.paths) == 1


def test_seconds_of_retry_after() -> None:
    retry_after = connection._retry_after
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert retry_after(date) == pytest.approx(100, abs=3)
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert [retry_after(told) for told in ("2.5", "0", "-3", "soon", "", None)] == [2.5, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_an_answer_asked_for_too_late_ends_the_run(toy: Toy) -> None:
    toy.always, toy.spoil = True, lambda body: toy.json({}, 429, Retry_After="20.1")
    with pytest.raises(ServerError, match="asks to come back in 20 s"):
        pool(toy.url, timeout=20.0).ask("POST", "/x", {"prompt": "p"}, stopped=Recording())
    assert len(toy.paths) == 1


def test_an_answer_is_bounded_in_bytes(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.always, toy.spoil = True, lambda body: toy.json("x" * 998)
    assert pool(toy.url).ask("POST", "/x", {"a": 1}) == "x" * 998
    monkeypatch.setattr(connection, "LARGEST_ANSWER", 999)
    with pytest.raises(ServerError, match="answers /x with more than 999 bytes"):
        pool(toy.url).ask("POST", "/x", {"a": 1})


def test_an_answer_that_drips_is_bounded_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            client, _ = listening.accept()
            with client, contextlib.suppress(OSError):
                client.recv(1 << 16)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                for _ in range(1000):
                    client.sendall(b" ")
                    time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(ServerError, match=r"in 1 attempts, the last: nothing within 0\.3 s$"):
            pool(f"http://127.0.0.1:{listening.getsockname()[1]}", tries=1, timeout=0.3).ask("POST", "/x", {})
        assert 0.3 <= time.monotonic() - began < 10


def test_opening_a_connection_has_a_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT", 0.3)
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(2):  # nobody takes them, and there is room for no more
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        began = time.monotonic()
        with pytest.raises(ServerError, match="no answer to /x in 1 attempts"):
            pool(f"http://127.0.0.1:{full.getsockname()[1]}", tries=1, timeout=20.0).ask("POST", "/x", {})
        assert time.monotonic() - began < 10


def test_what_a_server_says_is_quoted_in_200_characters(toy: Toy) -> None:
    toy.always, toy.spoil = True, lambda body: (400, {}, b"a \n\t b" + b"x" * 1000)
    with pytest.raises(RefusedError) as caught:
        pool(toy.url).ask("POST", "/x", {})
    assert str(caught.value) == f"{toy.url}: refuses /x with status 400: a b" + "x" * 197


def test_requests_one_after_the_other_share_a_connection(toy: Toy) -> None:
    one = pool(toy.url)
    for _ in range(5):
        one.ask("POST", "/x", {"prompt": "p"})
    assert len(toy.clients) == 1
    toy.always, toy.spoil = True, lambda body: toy.json({}, Connection="close")
    for _ in range(3):
        one.ask("POST", "/x", {"prompt": "p"})
    assert len(toy.clients) == 3


def test_a_server_below_a_path(toy: Toy) -> None:
    server = CompletionsServer(f"{toy.url}/some/where/v1")
    draw(server)
    assert server.url == f"{toy.url}/some/where"
    assert set(toy.paths) == {"/some/where/v1/models", "/some/where/v1/completions"}


def test_a_connection_that_was_closed_while_idle_costs_no_attempt(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWSHIFT_TRIES", "1")
    server = CompletionsServer(toy.url)
    idle = server.completions.connection._idle
    assert idle
    for held in idle:
        held.sock.shutdown(socket.SHUT_RDWR)
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
    one = pool("http://127.0.0.1:1")
    one._busy.add(Closing())  # type: ignore[arg-type]
    one.hang_up()
    assert held.shut
