"""HTTP to one server: a pool of connections, attempts and pauses, refusals, and hanging up on requests under way.

It stands on http.client because an interrupt must end requests under way: closing an httpx client (httpx2 2.16) or its
response from another thread does not wake a thread that waits for the headers or the body of an answer, which goes on
to its timeout.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

from knowshift.errors import InputError
from knowshift.models.server.settings import Address, Settings

#: Answers of a server that say "try again": too many requests, or trouble that may pass.
PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))
#: Seconds between two attempts at most, where the server does not ask for more.
LONGEST_PAUSE = 30.0
#: Seconds that a connection may take to open; what follows has the time of a request.
CONNECT = 10.0
#: Bytes of an answer at most; that of ten texts of 32 tokens has some thousand.
LARGEST_ANSWER = 16 << 20


class ServerError(InputError):
    """The server cannot be used; one line says what it did. What was recorded stays."""


class RefusedError(ServerError):
    """The server understood a request and will not serve it; ``status`` is that of its answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class StoppedError(Exception):
    """Another request has failed, or the user has interrupted: this one need not go on."""


class Connection:
    """Requests to one server, from any number of threads; ``url`` is for messages.

    Args:
        address: of the server.
        key: sent with every request, and blotted out of every message.
        settings: timeout, attempts and the pauses between them.
    """

    def __init__(self, address: Address, key: str | None, settings: Settings) -> None:
        self.url = address.shown
        self._address, self._key, self._settings = address, key, settings
        self._headers = {"Content-Type": "application/json", "User-Agent": "knowshift"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._busy: set[http.client.HTTPConnection] = set()

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        passing: Collection[int] = PASSING,
        stopped: threading.Event | None = None,
    ) -> Any:
        """The parsed JSON answer to a request, which is tried again while the trouble may pass.

        Raises:
            RefusedError: a status that is not in ``passing``.
            ServerError: no answer in all attempts, or one that is not JSON.
            StoppedError: ``stopped`` was set.
        """
        payload = None if body is None else json.dumps(body).encode()
        stopped = stopped or threading.Event()
        settings, trouble = self._settings, ""
        for attempt in range(settings.tries):
            if stopped.is_set():
                raise StoppedError
            pause = min(LONGEST_PAUSE, settings.pause * 2**attempt) * random.uniform(0.75, 1.25)
            try:
                status, headers, text = self._send(method, path, payload, stopped)
            except TimeoutError:
                trouble = f"nothing within {settings.timeout:g} s"
            except (OSError, http.client.HTTPException) as error:
                trouble = str(error) or type(error).__name__
            else:
                if status < 300:
                    try:
                        return json.loads(text)
                    except (ValueError, RecursionError):
                        raise ServerError(f"{self.url}: expected JSON from {path}, got {self.short(text)}") from None
                trouble = f"status {status}: {self.short(text)}"
                if status not in passing:
                    raise self._refusal(path, status, headers, trouble)
                asked = _retry_after(headers.get("Retry-After"))
                if asked > settings.timeout:
                    raise ServerError(f"{self.url}: asks to come back in {asked:.0f} s ({trouble})")
                pause = max(pause, asked)
            if attempt + 1 < settings.tries:
                stopped.wait(pause)
        if stopped.is_set():
            raise StoppedError
        raise ServerError(f"{self.url}: no answer to {path} in {settings.tries} attempts, the last: {trouble}")

    def look(self, path: str) -> Any:
        """The parsed JSON that the server holds at ``path``, or None where it holds none; asked once.

        This is the first request of all: a server that is not there is told at once, without further attempts.

        Raises:
            ServerError: no server answers, it wants a key or another one, or sends on to another address.
        """
        try:
            status, headers, text = self._send("GET", path, None, threading.Event())
        except TimeoutError:
            raise ServerError(f"{self.url}: no server answers (nothing within {self._settings.timeout:g} s)") from None
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{self.url}: no server answers ({error or type(error).__name__})") from None
        if status in (401, 403) or 300 <= status < 400:
            raise self._refusal(path, status, headers, f"status {status}: {self.short(text)}")
        try:
            return json.loads(text) if status < 300 else None
        except (ValueError, RecursionError):
            return None

    def hang_up(self) -> None:
        """Close every connection, those with a request under way too."""
        with self._lock:
            idle, self._idle = self._idle, []
            busy = list(self._busy)
        for connection in idle:
            connection.close()
        for connection in busy:
            held = connection.sock  # looked at once: the thread that uses it may close it at any moment
            if held is not None:
                with contextlib.suppress(OSError):  # closed by itself in the meantime
                    held.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads it, unlike close()

    def short(self, value: Any) -> str:
        """What a server said, for a message: one line of 200 characters at most, without the key."""
        text = value if isinstance(value, str) else json.dumps(value)
        if self._key:
            text = text.replace(self._key, "***")  # servers like to quote the key that they refuse
        return " ".join(text.split())[:200] or "nothing"

    def _refusal(self, path: str, status: int, headers: http.client.HTTPMessage, trouble: str) -> RefusedError:
        if status < 400:
            where = self.short(headers.get("Location", "nowhere"))
            says = f"sends {path} on to {where} (status {status}), which is not followed; give the address itself"
        elif status in (401, 403) and not self._key:
            says = f"wants a key ({trouble}); set KNOWSHIFT_API_KEY"
        elif status in (401, 403):
            says = f"does not accept the key in the environment ({trouble})"
        else:
            says = f"refuses {path} with {trouble}"
        return RefusedError(f"{self.url}: {says}", status)

    def _send(
        self, method: str, path: str, payload: bytes | None, stopped: threading.Event
    ) -> tuple[int, http.client.HTTPMessage, str]:
        """One attempt; status, headers and text of the answer. Redirections are not followed, so no key goes astray."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is not None:
            try:
                return self._exchange(connection, method, path, payload)
            except (ConnectionError, http.client.BadStatusLine):
                # Closed by the server while it was idle: no fault of this request. Or by hang_up.
                if stopped.is_set():
                    raise StoppedError from None
        kind = http.client.HTTPSConnection if self._address.secure else http.client.HTTPConnection
        timeout = self._settings.timeout
        connection = kind(self._address.host, self._address.port, timeout=min(CONNECT, timeout))
        connection.connect()
        connection.sock.settimeout(timeout)
        return self._exchange(connection, method, path, payload)

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, payload: bytes | None
    ) -> tuple[int, http.client.HTTPMessage, str]:
        with self._lock:
            self._busy.add(connection)
        kept = False
        try:
            until = time.monotonic() + self._settings.timeout
            connection.request(method, self._address.base + path, payload, self._headers)
            response = connection.getresponse()
            parts: list[bytes] = []
            while part := response.read1(1 << 16):
                parts.append(part)
                if time.monotonic() > until:
                    raise TimeoutError
                if sum(map(len, parts)) > LARGEST_ANSWER:
                    raise ServerError(f"{self.url}: answers {path} with more than {LARGEST_ANSWER} bytes")
            if response.length:
                raise http.client.IncompleteRead(b"".join(parts), response.length)
            kept = not response.will_close
            response.close()  # read1 does not do so by itself, and an open one keeps the connection from further use
            return response.status, response.headers, b"".join(parts).decode("utf-8", "replace")
        finally:
            with self._lock:
                self._busy.discard(connection)
                if kept:
                    self._idle.append(connection)
            if not kept:
                connection.close()


def _retry_after(told: str | None) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 for none."""
    if not told:
        return 0.0
    try:
        return max(0.0, float(told))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(told).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
