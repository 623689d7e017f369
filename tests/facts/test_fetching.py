"""Fetching the data set from a real server on loopback that breaks off, forgets Range, lies, or says no."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
    """What it serves and how it misbehaves; ``asked`` holds the Range header of every request ("" without one)."""

    body: bytes
    url: str = ""
    tag: str = '"one"'
    ranges: bool = True
    status: int = 200
    lengths: bool = True
    cuts: list[int] = field(default_factory=list)  # bytes after which each of the next answers breaks off
    asked: list[str] = field(default_factory=list)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range", "")
        self.asked.append(wanted)
        start = 0
        if self.status != 200:
            handler.send_error(self.status)
            return
        fits = not handler.headers.get("If-Range") or handler.headers["If-Range"] == self.tag
        if wanted and self.ranges and fits:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(self.body):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(self.body)}")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        else:
            handler.send_response(200)
        handler.send_header("ETag", self.tag)
        if self.lengths:
            handler.send_header("Content-Length", str(len(self.body) - start))
        handler.end_headers()
        end = start + self.cuts.pop(0) if self.cuts else len(self.body)
        handler.wfile.write(self.body[start:end])


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

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{listening.server_port}/dataset.zip"
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    listening.shutdown()
    thread.join()
    listening.server_close()


def fetch(server: Server, folder: Path) -> Path:
    return fetch_entity_questions(server.url, folder, pause=0.0)


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"entity-questions.zip.lock"}


def test_the_zip_is_fetched_once(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fetch(server, tmp_path)
    assert path.read_bytes() == server.body
    assert left_in(tmp_path) == {"entity-questions.zip"}
    assert fetch(server, tmp_path) == path
    assert server.asked == [""]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "EntityQuestions" in printed.err


def test_a_broken_transfer_is_taken_up_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cuts = [1000, 500]
    assert fetch(server, tmp_path).read_bytes() == server.body
    assert server.asked == ["", "bytes=1000-", "bytes=1500-"]
    assert left_in(tmp_path) == {"entity-questions.zip"}


def test_a_later_run_goes_on_from_an_earlier_one(server: Server, tmp_path: Path) -> None:
    server.cuts = [1000, 1, 1, 1]
    with pytest.raises(InputError, match=r"transfer failed .* with 1003 bytes kept; run again to go on, or download"):
        fetch(server, tmp_path)
    assert not (tmp_path / "entity-questions.zip").exists()
    assert fetch(server, tmp_path).read_bytes() == server.body
    assert server.asked[-1] == "bytes=1003-"


def test_a_server_without_range_sends_it_all_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts = [1000]
    assert fetch(server, tmp_path).read_bytes() == server.body
    assert server.asked == ["", "bytes=1000-"]


def test_a_weak_tag_joins_no_halves(server: Server, tmp_path: Path) -> None:
    server.tag = 'W/"one"'
    server.cuts = [1000]
    assert fetch(server, tmp_path).read_bytes() == server.body
    assert server.asked == ["", ""]


def test_halves_of_two_files_are_never_joined(server: Server, tmp_path: Path) -> None:
    server.cuts = [1000, 0, 0, 0]
    with pytest.raises(InputError, match="1000 bytes kept"):
        fetch(server, tmp_path)
    rows = small_rows()
    rows["dataset/train/P17.train.json"][0]["answers"] = ["another"]
    server.body = write_zip(tmp_path / "other.zip", rows).read_bytes()
    server.tag = '"two"'
    assert fetch(server, tmp_path).read_bytes() == server.body


def test_a_whole_part_from_before_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "entity-questions.zip.part").write_bytes(server.body)
    (tmp_path / "entity-questions.zip.part.validator").write_text(server.tag)
    assert fetch(server, tmp_path).read_bytes() == server.body
    assert server.asked == [f"bytes={len(server.body)}-"]


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "entity-questions.zip.part").write_bytes(server.body + b"more")
    (tmp_path / "entity-questions.zip.part.validator").write_text(server.tag)
    assert fetch(server, tmp_path).read_bytes() == server.body


@pytest.mark.parametrize("fault", ["a page", "a flipped byte", "a missing relation", "the first half"])
def test_what_is_not_the_data_set_is_refused_and_removed(server: Server, tmp_path: Path, fault: str) -> None:
    rows = small_rows()
    whole = bytearray(server.body)
    whole[len(whole) // 3] ^= 0xFF
    del rows["dataset/test/P50.test.json"]
    spoilt, word = {
        "a page": (b"<html>moved</html>", "not a readable zip"),
        "a flipped byte": (bytes(whole), "entity-questions.zip.part"),
        "a missing relation": (write_zip(tmp_path / "p50.zip", rows).read_bytes(), "relation P50 is missing"),
        "the first half": (server.body[: len(server.body) // 2], "not a readable zip"),
    }[fault]
    good, server.body = server.body, spoilt
    server.lengths = fault != "the first half"  # without a length only the check can tell
    folder = tmp_path / "cache"
    with pytest.raises(InputError) as caught:
        fetch(server, folder)
    for words in (server.url, f"{len(spoilt)} bytes", "not the data set", word, "entity-questions:PATH"):
        assert words in str(caught.value)
    assert left_in(folder) == set()
    server.body = good
    assert fetch(server, folder).read_bytes() == good


def test_a_refusal_is_final_and_a_fault_of_the_server_is_not(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(InputError, match=r"answered 404 Not Found; download .* pass entity-questions:PATH"):
        fetch(server, tmp_path)
    assert len(server.asked) == 1
    server.status = 503
    with pytest.raises(InputError, match="answered 503"):
        fetch(server, tmp_path)
    assert len(server.asked) == 1 + fetching.ATTEMPTS
    assert left_in(tmp_path) == set()


def test_no_server_and_too_large_a_body(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"transfer failed .*refused.* with 0 bytes kept"):
        fetch_entity_questions("http://127.0.0.1:9/dataset.zip", tmp_path, pause=0.0)
    monkeypatch.setattr(fetching, "LARGEST_BODY", 1000)
    with pytest.raises(InputError, match="expected at most 1000"):
        fetch(server, tmp_path)
    server.lengths = False
    with pytest.raises(InputError, match="more than 1000 bytes"):
        fetch(server, tmp_path)


def test_a_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot keep the data set there"):
        fetch(server, tmp_path / "file" / "cache")


@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_offline_asks_nobody_and_says_what_to_do(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    with pytest.raises(InputError, match=r"offline \(HF_HUB_OFFLINE\); download .* and pass entity-questions:PATH"):
        fetch(server, tmp_path / "cache")
    assert server.asked == []
    assert not (tmp_path / "cache").exists()


def test_the_bare_source_uses_the_users_cache(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(fetching, "URL", server.url)
    source = load_facts("entity-questions")
    assert len(source.facts) == 68
    check_archive(tmp_path / "knowshift" / "entity-questions.zip")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load_facts("entity-questions").digest() == source.digest()
    assert len(server.asked) == 1


def test_two_at_once_fetch_once(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: fetch(server, tmp_path), range(4)))
    assert paths == {tmp_path / "entity-questions.zip"}
    assert server.asked == [""]
