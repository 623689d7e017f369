"""What a user gives of a server: its URL, its key, how many requests at once and how long to wait for them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from knowshift.errors import InputError


@dataclass(frozen=True)
class Address:
    """A server's URL in parts.

    Attributes:
        shown: the URL for messages and records, without ``/v1`` and the model.
        secure: whether it is https.
        host: name or number of the machine.
        port: None for that of the scheme.
        base: the path before ``/v1``.
        model: what stands behind ``#``, if anything.
    """

    shown: str
    secure: bool
    host: str
    port: int | None
    base: str
    model: str | None

    @classmethod
    def parse(cls, url: str) -> Address:
        """The parts of ``http://host:port/v1#MODEL``. Raises InputError for what is no server's address."""
        expected = "expected http://host:port or https://host, with #MODEL behind it if need be"
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise InputError(f"{url}: not a server's address ({error}); {expected}") from None
        if parts.username is not None or parts.password is not None:
            raise InputError(f"a server's address with a user in it; {expected}, and a key in KNOWSHIFT_API_KEY")
        if parts.scheme not in ("http", "https") or not host or parts.query:
            raise InputError(f"{url}: not a server's address; {expected}")
        base = parts.path.rstrip("/").removesuffix("/v1")
        shown = f"{parts.scheme}://{parts.netloc}{base}"
        return cls(shown, parts.scheme == "https", host, port, base, unquote(parts.fragment) or None)


@dataclass(frozen=True)
class Settings:
    """How a server is asked.

    Attributes:
        concurrency: requests under way at once.
        timeout: seconds that one request may take.
        tries: attempts at one request before the run ends.
        pause: seconds between the first two attempts; it doubles from one to the next.
    """

    concurrency: int
    timeout: float
    tries: int
    pause: float

    @classmethod
    def read(cls, concurrency: int | None, timeout: float | None, tries: int | None, pause: float) -> Settings:
        """What is given, else what the environment says (docs/servers.md). Raises InputError for what is no number."""
        return cls(
            concurrency or int(_number("KNOWSHIFT_CONCURRENCY", 16, whole=True)),
            timeout or _number("KNOWSHIFT_TIMEOUT", 120.0),
            tries or int(_number("KNOWSHIFT_TRIES", 8, whole=True)),
            pause,
        )


def key_for(host: str) -> str | None:
    """The key to send. ``OPENAI_API_KEY`` is for OpenAI: another server gets it under its own name or not at all.

    Raises InputError for a key with characters that no header may hold.
    """
    names = ["KNOWSHIFT_API_KEY"]
    if host == "openai.com" or host.endswith(".openai.com"):
        names.append("OPENAI_API_KEY")
    for name in names:
        key = os.environ.get(name, "").strip()
        if key:
            if not (key.isascii() and key.isprintable()):
                raise InputError(f"{name}: has characters that no key has; expected printable ASCII")
            return key
    return None


def _number(name: str, default: float, whole: bool = False) -> float:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6 or (whole and value != int(value)):
        raise InputError(f"{name} is {text!r}; expected a {'whole ' if whole else ''}number above 0")
    return value
