"""Servers of our own on loopback, asked with short pauses and few attempts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from knowshift.models.server import connection
from toy_server import Toy, serving


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KNOWSHIFT_API_KEY", "OPENAI_API_KEY", "KNOWSHIFT_CONCURRENCY", "KNOWSHIFT_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KNOWSHIFT_TRIES", "2")
    monkeypatch.setattr(connection, "LONGEST_PAUSE", 0.01)


@pytest.fixture
def toy() -> Iterator[Toy]:
    with serving(Toy()) as running:
        yield running
