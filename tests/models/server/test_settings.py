"""URLs, keys and numbers that a user gives of a server."""

from __future__ import annotations

import pytest

from knowshift.errors import InputError
from knowshift.models.server.engine import CompletionsServer
from knowshift.models.server.settings import Address, Settings, key_for
from toy_server import KEY, Toy


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


def test_openais_key_goes_to_openai_alone(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    CompletionsServer(toy.url)
    assert all(headers["Authorization"] is None for headers in toy.headers)
    for host in ("api.openai.com", "openai.com"):
        assert key_for(host) == KEY
    for host in ("openai.com.example.org", "notopenai.com", "localhost"):
        assert key_for(host) is None


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://h:8000", Address("http://h:8000", False, "h", 8000, "", None)),
        ("http://h:8000/v1", Address("http://h:8000", False, "h", 8000, "", None)),
        ("http://h:8000/v1/", Address("http://h:8000", False, "h", 8000, "", None)),
        ("https://h/some/where/v1#a/b", Address("https://h/some/where", True, "h", None, "/some/where", "a/b")),
        ("https://h#a%20b", Address("https://h", True, "h", None, "", "a b")),
        ("http://[::1]:80/v1#", Address("http://[::1]:80", False, "::1", 80, "", None)),
    ],
)
def test_a_url_in_parts(url: str, parts: Address) -> None:
    assert Address.parse(url) == parts


def test_settings_are_given_or_of_the_environment_or_of_the_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KNOWSHIFT_TRIES")
    assert Settings.read(None, None, None, 0.5) == Settings(concurrency=16, timeout=120.0, tries=8, pause=0.5)
    for name, value in (("CONCURRENCY", "3"), ("TIMEOUT", "2.5"), ("TRIES", " 999999 ")):
        monkeypatch.setenv(f"KNOWSHIFT_{name}", value)
    assert Settings.read(None, None, None, 1.0) == Settings(concurrency=3, timeout=2.5, tries=999_999, pause=1.0)
    assert Settings.read(5, 6.5, 7, 1.0) == Settings(concurrency=5, timeout=6.5, tries=7, pause=1.0)
    monkeypatch.setenv("KNOWSHIFT_TRIES", "1000000")
    with pytest.raises(InputError, match="KNOWSHIFT_TRIES is '1000000'"):
        Settings.read(None, None, None, 1.0)
