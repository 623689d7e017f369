"""Fetching the data set from a real server on loopback that breaks off, sends something else, or says no."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from knowshift.errors import InputError
from knowshift.facts.sources import fetching
from knowshift.facts.sources.entity_questions import check_archive
from knowshift.facts.sources.fetching import fetch_entity_questions
from knowshift.facts.sources.load import load_facts
from small_questions import small_rows, write_zip


@dataclass
class Server:
    """What it serves and how it misbehaves."""

    body: bytes
    url: str = ""
    status: int = 200
    lengths: bool = True
    cut: int | None = None  # bytes after which it breaks off
    asked: int = 0

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked += 1
        if self.status != 200:
            handler.send_error(self.status)
            return
        handler.send_response(200)
        if self.lengths:
            handler.send_header("Content-Length", str(len(self.body)))
        handler.end_headers()
        handler.wfile.write(self.body[: self.cut])


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_zip(tmp_path_factory.mktemp("made") / "dataset.zip", small_rows()).read_bytes()


@pytest.fixture
def server(body: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    served = Server(body)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.answer(self)

        def log_message(self, *words: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *words: object) -> None:
            pass  # clients that hang up are part of these tests

    listening = Quiet(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{listening.server_port}/dataset.zip"
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    listening.shutdown()
    thread.join()
    listening.server_close()


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refused(url: str, folder: Path) -> str:
    """What is said, in one line that tells what to do."""
    with pytest.raises(InputError) as caught:
        fetch_entity_questions(url, folder)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert url in said
    assert "pass entity-questions:PATH" in said
    return said


@pytest.mark.parametrize("watched", [True, False])
def test_the_zip_is_fetched_once(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    monkeypatch.setattr(fetching, "is_watched", lambda: watched)
    path = fetch_entity_questions(server.url, tmp_path / "cache")
    assert path == tmp_path / "cache" / "entity-questions.zip"
    assert path.read_bytes() == server.body
    assert left_in(tmp_path / "cache") == {"entity-questions.zip"}
    assert fetch_entity_questions(server.url, tmp_path / "cache") == path
    assert server.asked == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert ("100%" in printed.err) == watched
    assert bool(printed.err) == watched


def test_a_transfer_that_breaks_off_leaves_nothing_and_can_be_run_again(server: Server, tmp_path: Path) -> None:
    server.cut = 1000
    said = refused(server.url, tmp_path)
    assert "cannot be fetched" in said
    assert "1000 bytes read" in said
    assert left_in(tmp_path) == set()
    server.cut = None
    assert fetch_entity_questions(server.url, tmp_path).read_bytes() == server.body


@pytest.mark.parametrize("fault", ["a page", "a flipped byte", "a missing relation", "the first half"])
def test_what_is_not_the_data_set_is_refused_and_removed(server: Server, tmp_path: Path, fault: str) -> None:
    rows = small_rows()
    whole = bytearray(server.body)
    whole[len(whole) // 3] ^= 0xFF
    del rows["dataset/test/P50.test.json"]
    spoilt, word = {
        "a page": (b"<html>moved</html>", "not a readable zip"),
        "a flipped byte": (bytes(whole), "while decompressing"),
        "a missing relation": (write_zip(tmp_path / "p50.zip", rows).read_bytes(), "relation P50 is missing"),
        "the first half": (server.body[: len(server.body) // 2], "not a readable zip"),
    }[fault]
    good, server.body = server.body, spoilt
    server.lengths = fault != "the first half"  # without a length only the check can tell
    folder = tmp_path / "cache"
    said = refused(server.url, folder)
    for words in (f"{len(spoilt)} bytes", "not the data set", word):
        assert words in said
    assert left_in(folder) == set()
    server.body = good
    assert fetch_entity_questions(server.url, folder).read_bytes() == good


@pytest.mark.parametrize(("status", "says"), [(404, "404 Client Error: Not Found"), (503, "503 Server Error")])
def test_a_server_that_says_no(server: Server, tmp_path: Path, status: int, says: str) -> None:
    server.status = status
    assert says in refused(server.url, tmp_path)
    assert server.asked == 1
    assert left_in(tmp_path) == set()


def test_no_server(tmp_path: Path) -> None:
    assert "refused" in refused("http://127.0.0.1:9/dataset.zip", tmp_path)
    assert left_in(tmp_path) == set()


@pytest.mark.parametrize("lengths", [True, False])
def test_the_size_of_a_body_is_bounded(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lengths: bool
) -> None:
    server.lengths = lengths
    monkeypatch.setattr(fetching, "LARGEST_BODY", len(server.body) - 1)
    with pytest.raises(InputError, match=rf"{server.url}: more than {len(server.body) - 1} bytes; expected at most"):
        fetch_entity_questions(server.url, tmp_path)
    assert left_in(tmp_path) == set()
    monkeypatch.setattr(fetching, "LARGEST_BODY", len(server.body))
    assert fetch_entity_questions(server.url, tmp_path).read_bytes() == server.body


def test_a_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = refused(server.url, tmp_path / "file" / "cache")
    assert f"{tmp_path / 'file' / 'cache' / 'entity-questions.zip'}: cannot be fetched" in said
    assert "Not a directory" in said


@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_offline_asks_nobody_and_says_what_to_do(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert "offline (HF_HUB_OFFLINE); download " in refused(server.url, tmp_path / "cache")
    assert server.asked == 0
    assert not (tmp_path / "cache").exists()


def test_the_bare_source_uses_the_users_cache(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(fetching, "URL", server.url)
    source = load_facts("entity-questions")
    assert len(source.facts) == 68
    check_archive(tmp_path / "knowshift" / "entity-questions.zip")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load_facts("entity-questions").digest() == source.digest()
    assert server.asked == 1


def test_several_at_once_end_well(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: fetch_entity_questions(server.url, tmp_path), range(4)))
    assert paths == {tmp_path / "entity-questions.zip"}
    assert paths.pop().read_bytes() == server.body
    assert left_in(tmp_path) == {"entity-questions.zip"}
