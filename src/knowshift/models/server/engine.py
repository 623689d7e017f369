"""Sampling from any server with OpenAI's completions interface: vLLM, SGLang, llama.cpp, TGI, `transformers serve`.

The whole distribution must be sampled, and servers differ in what they do by themselves (a model's own top-k of 50,
llama.cpp's top-k of 40 and min-p of 0.05, greedy answers of `transformers serve`), so the fields that switch this off
are sent in each server's dialect. What a server can do is tried out, not believed: how its version spells these fields,
whether one request returns as many texts as a prompt has draws (else each draw is a request), and whether a stop text
stays in the text it ends (else none is sent, since a hit must be seen).

The URL is that of the server (``http://host:8000`` or ``http://host:8000/v1``), with ``#NAME`` behind it where the
server has several models. Settings come from the environment, see docs/servers.md. A server's numbers are its own:
records say which engine made them.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import os
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from knowshift.errors import InputError
from knowshift.files import digest
from knowshift.models.sampling.cache import Ints
from knowshift.models.sampling.philox import stream_key
from knowshift.models.sampling.settings import Sampling
from knowshift.models.server.dialects import DIALECTS, Dialect

#: Answers of a server that say "try again": too many requests, or trouble that may pass.
PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))
#: Answers of a server that does not take a request as it is written.
BAD_REQUEST = frozenset((400, 422))
#: Seconds between two attempts at most, where the server does not ask for more.
LONGEST_PAUSE = 30.0
#: Seconds that a connection may take to open; what follows has the time of a request.
CONNECT = 10.0
#: Bytes of an answer at most; that of ten texts of 32 tokens has some thousand.
LARGEST_ANSWER = 16 << 20
#: Stop texts in one request: OpenAI's limit, which others share.
STOPS = 4

_COMPLETIONS = "/v1/completions"
#: Beginnings of which a model is likely to continue one at least.
_OPENINGS = ("The capital of France is", "The", "It is said that the", "a")


class ServerError(InputError):
    """The server cannot be used; one line says what it did. What was recorded stays."""


class _RefusedError(ServerError):
    """The server understood a request and will not serve it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _StoppedError(Exception):
    """Somebody else's request has failed, or the user has interrupted: this one need not go on."""


class CompletionsServer:
    """One completions server, asked concurrently; an engine for :func:`knowshift.probing.measure_mastery`.

    Args:
        url: of the server, with or without ``/v1``; ``#NAME`` names the model.
        model: the model's name there, where the URL does not give it; None asks without a name, or for the only
            model listed.
        concurrency: requests under way at once (``KNOWSHIFT_CONCURRENCY``, 16).
        timeout: seconds that one request may take (``KNOWSHIFT_TIMEOUT``, 120).
        tries: attempts at one request before the run ends (``KNOWSHIFT_TRIES``, 8); waits between them double from
            ``pause`` seconds.

    Raises:
        ServerError: the server does not answer, has no or several models, or refuses a completion.
        InputError: the URL or a setting is not one.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        concurrency: int | None = None,
        timeout: float | None = None,
        tries: int | None = None,
        pause: float = 0.5,
    ) -> None:
        self.concurrency = concurrency or int(_setting("KNOWSHIFT_CONCURRENCY", 16, whole=True))
        self._timeout = timeout or _setting("KNOWSHIFT_TIMEOUT", 120.0)
        self._tries = tries or int(_setting("KNOWSHIFT_TRIES", 8, whole=True))
        self._pause = pause
        self.url, self._secure, self._host, self._port, self._base, named = _address(url)
        self._key = _key(self._host)
        self._headers = {"Content-Type": "application/json", "User-Agent": "knowshift"}
        if self._key:
            self._headers["Authorization"] = f"Bearer {self._key}"
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._busy: set[http.client.HTTPConnection] = set()
        self._named = model or named  # sent with every request, if a model must be named
        self._many: dict[int, bool] = {}
        self.dialect = DIALECTS["openai"]
        listed = self._models()
        self.model = self._chosen(listed)
        self._told = next((entry for entry in listed if entry["id"] == self.model), {})
        self.dialect = self._spelled(self._dialect(listed))
        self.keeps_stops = self._leaves_stops()

    def about(self) -> dict[str, Any]:
        """What records say. ``identity`` is of what the server tells of its model; it does not show its weights."""
        meta = self._told.get("meta")
        known = meta if isinstance(meta, dict) else {}  # llama.cpp
        told = {name: known.get(name) for name in ("n_params", "n_vocab", "size")}
        told |= {name: self._told.get(name) for name in ("root", "max_model_len")}  # vLLM, SGLang
        return {
            "engine": f"completions/{self.dialect.name}",
            "model": self.model,
            "identity": digest([self.dialect.name, self.model, told]),
            "dtype": "server",
            "device": "server",
        }

    def session(
        self,
        prompts: Sequence[str],
        accepted: Sequence[Sequence[str]],
        sampling: Sampling,
        *,
        streams: Sequence[str],
    ) -> ServerSession:
        """Prompts to draw from, with the server's own random numbers."""
        return ServerSession(self, prompts, accepted, sampling, streams)

    def gives(self, texts: int) -> bool:
        """Whether one request returns so many texts; tried out once."""
        if texts == 1:
            return True
        with self._lock:
            known = self._many.get(texts)
        if known is None:
            body = self._body("a", (), 0, texts, 1.0, 1)
            try:
                # llama.cpp says 500 to an n it does not know, so that status is no passing trouble here.
                choices, _ = self._read(self._ask("POST", _COMPLETIONS, body, passing=PASSING - {500}), 1)
                known = len(choices) == texts
            except _RefusedError as refused:
                try:
                    self._read(self._ask("POST", _COMPLETIONS, self._body("a", (), 0, 1, 1.0, 1)), 1)
                except _RefusedError:
                    raise refused from None  # n was not the reason
                known = False
            with self._lock:
                self._many[texts] = known
        return known

    def texts(
        self,
        prompt: str,
        accepted: Sequence[str],
        sampling: Sampling,
        key: str,
        draws: int,
        many: bool = True,
        stopped: threading.Event | None = None,
    ) -> tuple[list[str], int]:
        """So many texts for one prompt, and the tokens the server says it has processed (0 if it does not say).

        ``many`` asks for all of them at once. What is under way ends soon after ``stopped`` is set.
        """
        texts: list[str] = []
        used = 0
        wanted = draws if many else 1
        for turn in range(0, draws, wanted):
            # Children of a request use the seeds that follow it, so the seeds of requests lie `draws` apart.
            block = stream_key(sampling.seed, f"{key}/{turn}") % ((1 << 31) // max(draws, 1))
            most = sampling.max_new_tokens
            body = self._body(prompt, accepted, block * draws, wanted, sampling.temperature, most)
            got, tokens = self._read(self._ask("POST", _COMPLETIONS, body, stopped=stopped), most)
            if len(got) != wanted:
                # Not filled up: a server that drops some texts (empty or equal ones) would bend the hit rate.
                raise ServerError(f"{self.url}: gave {len(got)} of {wanted} texts for {prompt!r}; expected all of them")
            texts += got
            used += tokens
        return texts, used

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

    # -- one request ------------------------------------------------------------------------------------------

    def _body(
        self, prompt: str, accepted: Sequence[str], seed: int, n: int, temperature: float, max_new_tokens: int
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "prompt": prompt,
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": 1.0,
            "seed": seed,
            **self.dialect.fields,
        }
        for name in self.dialect.without:
            del body[name]
        if self._named:
            body["model"] = self._named
        if n > 1:
            body["n"] = n
        if accepted:
            body["stop"] = list(accepted)[:STOPS]
        if self.dialect.generation_config:
            # Given whole, since `transformers serve` samples only if told so here.
            told = {"do_sample": temperature > 0, "top_p": 1.0, "top_k": 0, "max_new_tokens": max_new_tokens}
            body["generation_config"] = json.dumps({**told, "temperature": temperature or 1.0})
        return body

    def _read(self, answer: Any, max_new_tokens: int) -> tuple[list[str], int]:
        """The texts of an answer and its tokens, checked."""
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or not all(
            isinstance(choice, dict) and isinstance(choice.get("text"), str) for choice in choices
        ):
            raise ServerError(f"{self.url}: expected a completion with choices of text, got {self._short(answer)}")
        usage = answer.get("usage")
        told = usage if isinstance(usage, dict) else {}
        made, total = (_count(told.get(name)) for name in ("completion_tokens", "total_tokens"))
        full = sum(choice.get("finish_reason") == "length" for choice in choices)
        if full and made is not None:
            # Texts that ended at the limit have that many tokens each; some servers count one text only.
            least = max_new_tokens * (full if made > max_new_tokens else 1)
            if made < least:
                raise ServerError(
                    f"{self.url}: cut {full} of {len(choices)} texts after {made} tokens in all; expected "
                    f"{max_new_tokens} each (does the prompt fit into its context, is its own limit lower?)"
                )
        return [choice["text"] for choice in choices], total or 0

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        passing: Collection[int] = PASSING,
        stopped: threading.Event | None = None,
    ) -> Any:
        """One request, tried again while the trouble may pass; the parsed JSON answer."""
        payload = None if body is None else json.dumps(body).encode()
        stopped = stopped or threading.Event()
        trouble = ""
        for attempt in range(self._tries):
            if stopped.is_set():
                raise _StoppedError
            pause = min(LONGEST_PAUSE, self._pause * 2**attempt) * random.uniform(0.75, 1.25)
            try:
                status, headers, text = self._send(method, path, payload, stopped)
            except TimeoutError:
                trouble = f"nothing within {self._timeout:g} s"
            except (OSError, http.client.HTTPException) as error:
                trouble = str(error) or type(error).__name__
            else:
                if status < 300:
                    try:
                        return json.loads(text)
                    except (ValueError, RecursionError):
                        raise ServerError(f"{self.url}: expected JSON from {path}, got {self._short(text)}") from None
                trouble = f"status {status}: {self._short(text)}"
                if status not in passing:
                    raise self._refusal(path, status, headers, trouble)
                asked = _retry_after(headers.get("Retry-After"))
                if asked > self._timeout:
                    raise ServerError(f"{self.url}: asks to come back in {asked:.0f} s ({trouble})")
                pause = max(pause, asked)
            if attempt + 1 < self._tries:
                stopped.wait(pause)
        if stopped.is_set():
            raise _StoppedError
        raise ServerError(f"{self.url}: no answer to {path} in {self._tries} attempts, the last: {trouble}")

    def _refusal(self, path: str, status: int, headers: http.client.HTTPMessage, trouble: str) -> _RefusedError:
        if status < 400:
            where = self._short(headers.get("Location", "nowhere"))
            says = f"sends {path} on to {where} (status {status}), which is not followed; give the address itself"
        elif status in (401, 403) and not self._key:
            says = f"wants a key ({trouble}); set KNOWSHIFT_API_KEY"
        elif status in (401, 403):
            says = f"does not accept the key in the environment ({trouble})"
        else:
            says = f"refuses {path} with {trouble}"
        return _RefusedError(f"{self.url}: {says}", status)

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
                    raise _StoppedError from None
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=min(CONNECT, self._timeout))
        connection.connect()
        connection.sock.settimeout(self._timeout)
        return self._exchange(connection, method, path, payload)

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, payload: bytes | None
    ) -> tuple[int, http.client.HTTPMessage, str]:
        with self._lock:
            self._busy.add(connection)
        kept = False
        try:
            until = time.monotonic() + self._timeout
            connection.request(method, self._base + path, payload, self._headers)
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

    def _short(self, value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value)
        if self._key:
            text = text.replace(self._key, "***")  # servers like to quote the key that they refuse
        return " ".join(text.split())[:200] or "nothing"

    # -- getting to know the server ---------------------------------------------------------------------------

    def _models(self) -> list[dict[str, Any]]:
        """The models listed; none where the server has no list (`transformers serve` lists a cache, or fails).

        The first request of all: a server that is not there is told at once, without further attempts.
        """
        try:
            status, headers, text = self._send("GET", "/v1/models", None, threading.Event())
        except TimeoutError:
            raise ServerError(f"{self.url}: no server answers (nothing within {self._timeout:g} s)") from None
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{self.url}: no server answers ({error or type(error).__name__})") from None
        if status in (401, 403) or 300 <= status < 400:
            raise self._refusal("/v1/models", status, headers, f"status {status}: {self._short(text)}")
        try:
            answer = json.loads(text) if status < 300 else {}
        except (ValueError, RecursionError):
            return []
        listed = answer.get("data") if isinstance(answer, dict) else None
        entries = listed if isinstance(listed, list) else []
        return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]

    def _chosen(self, listed: list[dict[str, Any]]) -> str:
        """The model's name for records; asks for a completion without naming one, if none was named."""
        if self._named is None:
            names = [str(entry["id"]) for entry in listed]
            try:
                answer = self._ask("POST", _COMPLETIONS, {"prompt": "a", "max_tokens": 1})
                if isinstance(answer, dict) and answer.get("model"):
                    return str(answer["model"])
            except _RefusedError:
                if not names:
                    raise
            if len(names) != 1:
                found = ", ".join(names[:5]) or "none"
                raise ServerError(f"{self.url}: lists {len(names)} models ({found}); name one as {self.url}#MODEL")
            self._named = names[0]
        return self._named

    def _dialect(self, listed: list[dict[str, Any]]) -> Dialect:
        owners = {str(entry.get("owned_by", "")).lower() for entry in listed}
        for name in ("vllm", "sglang", "llamacpp"):
            if name in owners:
                return DIALECTS[name]
        if len(listed) == 1 and listed[0].get("owned_by") == listed[0]["id"]:
            return DIALECTS["tgi"]
        # `transformers serve` is the one that refuses a field it does not know, and says so.
        named = {"model": self._named} if self._named else {}
        try:
            self._ask("POST", _COMPLETIONS, {**named, "prompt": "a", "max_tokens": 1, "knowshift_probe": 1})
        except _RefusedError as error:
            if "Unexpected fields" in str(error):
                return DIALECTS["transformers"]
        return DIALECTS["openai"]

    def _spelled(self, dialect: Dialect) -> Dialect:
        """The dialect with the first spellings that the server takes; only a bad request moves on to the next."""
        if not dialect.spellings:
            return dialect
        last: _RefusedError | None = None
        for self.dialect in dialect.spelled():
            try:
                self._ask("POST", _COMPLETIONS, self._body("a", (), 0, 1, 1.0, 1))
            except _RefusedError as refused:
                if refused.status not in BAD_REQUEST:
                    raise
                last = refused
            else:
                return self.dialect
        raise ServerError(f"{last} (tried {dialect.tried()})")

    def _leaves_stops(self) -> bool:
        """Whether a stop text stays in the text that it ends: asks the most likely text, then again with a stop."""
        for prompt in _OPENINGS:
            plain, _ = self._read(self._ask("POST", _COMPLETIONS, self._body(prompt, (), 0, 1, 0.0, 8)), 8)
            stop = "".join(plain).strip()[:4]
            if not stop:
                continue
            try:
                ended, _ = self._read(self._ask("POST", _COMPLETIONS, self._body(prompt, (stop,), 0, 1, 0.0, 8)), 8)
            except _RefusedError:
                return False
            return any(stop in text for text in ended)
        return False


class ServerSession:
    """Prompts to draw from on a server, round by round.

    Attributes:
        hit: int8 [prompts, draws], 1 for a draw that holds an accepted answer, 0 for one that does not, -1 for one
            that has not been made.
        positions: the tokens the server says it has processed.
    """

    def __init__(
        self,
        server: CompletionsServer,
        prompts: Sequence[str],
        accepted: Sequence[Sequence[str]],
        sampling: Sampling,
        streams: Sequence[str],
    ) -> None:
        self._server, self._prompts, self._accepted, self._streams = server, prompts, accepted, streams
        self._sampling = sampling
        self._many = server.gives(sampling.draws_per_prompt)
        self.hit = np.full((len(prompts), sampling.draws_per_prompt), -1, dtype=np.int8)
        self.positions = 0

    def draw(self, numbers: Sequence[Ints], begun: Callable[[int], None] = lambda count: None) -> None:
        """As many draws of every prompt as it is given numbers; ``begun`` hears of prompts that are done.

        A request that fails for good ends the others at once, and so does an interrupt: the threads that wait for an
        answer are not waited for.
        """
        asked = [index for index in range(len(self._prompts)) if len(numbers[index])]
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in asked:
            todo.put(index)
        done: queue.SimpleQueue[tuple[int, list[str], int] | BaseException] = queue.SimpleQueue()
        stopped = threading.Event()

        def work() -> None:
            while not stopped.is_set():
                try:
                    index = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((index, *self._texts(index, numbers[index], stopped)))
                except BaseException as error:
                    done.put(error)
                    return

        threads = [threading.Thread(target=work, daemon=True) for _ in asked[: self._server.concurrency]]
        for thread in threads:
            thread.start()
        try:
            for _ in asked:
                found = done.get()
                if isinstance(found, BaseException):
                    raise found
                index, texts, used = found
                accepted = self._accepted[index]
                self.hit[index, numbers[index]] = [any(answer in text for answer in accepted) for text in texts]
                self.positions += used
                begun(1)
        except BaseException:
            stopped.set()
            self._server.hang_up()
            raise

    def _texts(self, index: int, numbers: Ints, stopped: threading.Event) -> tuple[list[str], int]:
        # The first number names the round, so that no two rounds of a prompt use the same seeds.
        key = f"{self._streams[index]}/{int(numbers[0])}"
        stops = self._accepted[index] if self._server.keeps_stops else ()
        return self._server.texts(self._prompts[index], stops, self._sampling, key, len(numbers), self._many, stopped)


def _address(url: str) -> tuple[str, bool, str, int | None, str, str | None]:
    """The URL for messages and records, whether it is https, host, port, path before ``/v1``, and the model named."""
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
    return shown, parts.scheme == "https", host, port, base, unquote(parts.fragment) or None


def _key(host: str) -> str | None:
    """The key to send. ``OPENAI_API_KEY`` is for OpenAI: another server gets it under its own name or not at all."""
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


def _setting(name: str, default: float, whole: bool = False) -> float:
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


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
