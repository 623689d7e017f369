"""URLs, keys and numbers that a user gives of a server."""

from __future__ import annotations

import pytest

from knowshift.errors import InputError
from knowshift.models.server.engine import CompletionsServer
from knowshift.models.server.settings import key_for
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
