"""Sampling from any server with OpenAI's completions interface: vLLM, SGLang, llama.cpp, TGI, `transformers serve`.

The whole distribution must be sampled, and servers differ in what they do by themselves (a model's own top-k of 50,
llama.cpp's top-k of 40 and min-p of 0.05, greedy answers of `transformers serve`), so the fields that switch this off
are sent in each server's dialect. A server that draws several samples a request (n) gets one request a prompt, else
one a draw. Stop texts are sent only where the server leaves them in the text, since a hit must be seen in it.

The URL is that of the server (``http://host:8000`` or ``http://host:8000/v1``); a key is read from
``KNOWSHIFT_API_KEY``, else ``OPENAI_API_KEY``. A server's numbers are its own: records say which engine made them.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from knowshift.errors import InputError
from knowshift.models.cache import Ints
from knowshift.models.streams import stream_key
from knowshift.records import digest

#: Answers of a server that say "try again": too many requests, or trouble that may pass.
PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))


@dataclass(frozen=True)
class Dialect:
    """What a kind of server needs to be told beyond OpenAI's own fields."""

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    keeps_stops: bool = False  # a text ended by a stop text still holds it, with these fields
    generation_config: bool = False  # sampling is set by a JSON string of that name (`transformers serve`)


DIALECTS = {
    "vllm": Dialect("vllm", {"top_k": 0, "min_p": 0.0, "include_stop_str_in_output": True}, keeps_stops=True),
    "sglang": Dialect("sglang", {"top_k": -1, "min_p": 0.0, "no_stop_trim": True}, keeps_stops=True),
    "llamacpp": Dialect("llamacpp", {"top_k": 0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0}),
    "transformers": Dialect("transformers", generation_config=True),
    "openai": Dialect("openai"),
}


class ServerError(InputError):
    """The server cannot be used; one line says what it did. What was recorded stays."""


class CompletionsServer:
    """One completions server, asked concurrently; an engine for :func:`knowshift.mastery.measure_mastery`.

    Args:
        url: of the server, with or without ``/v1``.
        model: the model's name there, which may also stand in the URL (``http://host:8000#NAME``); None asks
            without a name, or for the only model listed.
        concurrency: requests under way at once.
        timeout: seconds that one request may take.
        tries: attempts at one request before the run ends; waits between them double from ``pause`` seconds.

    Raises:
        ServerError: the server does not answer, has no or several models, or refuses a completion.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        concurrency: int = 16,
        timeout: float = 120.0,
        tries: int = 6,
        pause: float = 0.5,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{url}: expected http://host:port or https://host")
        self.url, self._parts = url, parts
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        self._tries, self._timeout, self._pause = tries, timeout, pause
        self.concurrency = concurrency
        self._local = threading.local()
        key = os.environ.get("KNOWSHIFT_API_KEY") or os.environ.get("OPENAI_API_KEY")
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._named = model or parts.fragment or None  # sent with every request, if a model must be named
        self.dialect = DIALECTS["openai"]
        listed = self._models()
        self.model = self._chosen(listed)
        self.dialect = self._dialect(listed)
        self.many = self._gives_many()

    def about(self) -> dict[str, Any]:
        """What records say. ``identity`` is of the names only: a server does not show its weights."""
        return {
            "engine": f"completions/{self.dialect.name}",
            "model": self.model,
            "identity": digest([self.dialect.name, self.model]),
            "dtype": "server",
            "device": "server",
        }

    def session(
        self,
        prompts: Sequence[str],
        accepted: Sequence[Sequence[str]],
        *,
        keys: Sequence[str],
        seed: int,
        draws: int = 10,
        temperature: float = 0.7,
        max_new_tokens: int = 32,
    ) -> ServerSession:
        """Prompts to draw from, with the server's own random numbers."""
        return ServerSession(self, prompts, accepted, keys, seed, draws, temperature, max_new_tokens)

    # -- requests ---------------------------------------------------------------------------------------------

    def texts(
        self,
        prompt: str,
        accepted: Sequence[str],
        key: str,
        seed: int,
        draws: int,
        temperature: float,
        max_new_tokens: int,
    ) -> tuple[list[str], int]:
        """So many texts for one prompt, and the tokens the server says it has processed (0 if it does not say)."""
        texts: list[str] = []
        used = 0
        rounds = 0
        while len(texts) < draws:
            wanted = draws - len(texts) if self.many else 1
            # Children of a request use the seeds that follow it, so the seeds of requests lie `draws` apart.
            block = stream_key(seed, f"{key}/{rounds}") % ((1 << 31) // max(draws, 1))
            body = self._body(prompt, accepted, block * draws, wanted, temperature, max_new_tokens)
            answer = self._post(body)
            got, tokens = self._read(answer, max_new_tokens)
            texts += got[:wanted]
            used += tokens
            rounds += 1
            if rounds > 2 * draws:
                raise ServerError(
                    f"{self.url}: gave {len(texts)} of {draws} texts for {prompt!r} in {rounds} requests; "
                    "expected at least one a request"
                )
        return texts, used

    def _body(
        self,
        prompt: str,
        accepted: Sequence[str],
        seed: int,
        n: int,
        temperature: float,
        max_new_tokens: int,
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            **({"model": self._named} if self._named else {}),
            "prompt": prompt,
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": 1.0,
            "seed": seed,
            **self.dialect.fields,
        }
        if n > 1:
            body["n"] = n
        if self.dialect.keeps_stops and accepted:
            body["stop"] = list(accepted)[:4]  # OpenAI's limit, which others share
        if self.dialect.generation_config:
            # Given whole, since `transformers serve` samples only if told so here.
            body["generation_config"] = json.dumps(
                {
                    "do_sample": True,
                    "temperature": temperature,
                    "top_p": 1.0,
                    "top_k": 0,
                    "max_new_tokens": max_new_tokens,
                }
            )
        return body

    def _read(self, answer: Any, max_new_tokens: int) -> tuple[list[str], int]:
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or not all(isinstance(c, dict) and "text" in c for c in choices):
            raise ServerError(f"{self.url}: expected a completion with choices, got {_short(answer)}")
        usage = answer.get("usage") or {}
        made = usage.get("completion_tokens")
        full = all(choice.get("finish_reason") == "length" for choice in choices)
        if choices and full and isinstance(made, int) and made < len(choices) * max_new_tokens:
            raise ServerError(
                f"{self.url}: cuts texts at {made} tokens for {len(choices)} choices; expected {max_new_tokens} each"
            )
        return [choice["text"] or "" for choice in choices], int(usage.get("total_tokens") or 0)

    def _post(self, body: Mapping[str, Any]) -> Any:
        return self._ask("POST", "/v1/completions", body)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """One request, tried again while the trouble may pass; the parsed JSON answer."""
        payload = None if body is None else json.dumps(body).encode()
        trouble = "nothing"
        for attempt in range(self._tries):
            if attempt:
                time.sleep(self._pause * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))
            try:
                status, text = self._send(method, path, payload)
            except (OSError, http.client.HTTPException) as error:
                trouble = str(error) or type(error).__name__
                continue
            if status < 300:
                try:
                    return json.loads(text)
                except ValueError:
                    raise ServerError(f"{self.url}{path}: expected JSON, got {_short(text)}") from None
            trouble = f"status {status}: {_short(text)}"
            if status not in PASSING:
                raise ServerError(f"{self.url}: refuses {path} with {trouble}")
        raise ServerError(f"{self.url}: no answer to {path} in {self._tries} attempts, the last: {trouble}")

    def _send(self, method: str, path: str, payload: bytes | None) -> tuple[int, str]:
        """One attempt, on this thread's connection, which is kept open between requests."""
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
            connection = kind(self._parts.hostname or "", self._parts.port, timeout=self._timeout)
            self._local.connection = connection
        try:
            connection.request(method, self._base + path, payload, self._headers)
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")
        except BaseException:
            connection.close()
            self._local.connection = None
            raise

    # -- getting to know the server ---------------------------------------------------------------------------

    def _models(self) -> list[dict[str, Any]]:
        """The models listed; none where the server has no list (`transformers serve` lists a cache, or fails)."""
        for attempt in range(self._tries):
            if attempt:
                time.sleep(self._pause * 2 ** (attempt - 1))
            try:
                status, text = self._send("GET", "/v1/models", None)
            except (OSError, http.client.HTTPException) as error:
                trouble = str(error) or type(error).__name__
                continue
            try:
                answer = json.loads(text) if status < 300 else {}
            except ValueError:
                return []
            listed = answer.get("data") if isinstance(answer, dict) else None
            return [entry for entry in listed or [] if isinstance(entry, dict) and entry.get("id")]
        raise ServerError(f"{self.url}: no server answers ({trouble})")

    def _chosen(self, listed: list[dict[str, Any]]) -> str:
        """The model's name for records; asks for a completion without naming one, if none was named."""
        if self._named is None:
            try:
                answer = self._post({"prompt": "a", "max_tokens": 1})
                if isinstance(answer, dict) and answer.get("model"):
                    return str(answer["model"])
            except ServerError as error:
                if "refuses" not in str(error):
                    raise
            names = [str(entry["id"]) for entry in listed]
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
        # `transformers serve` is the one that refuses a field it does not know, and says so.
        named = {"model": self._named} if self._named else {}
        try:
            self._post({**named, "prompt": "a", "max_tokens": 1, "knowshift_probe": 1})
        except ServerError as error:
            if "Unexpected fields" in str(error):
                return DIALECTS["transformers"]
        return DIALECTS["openai"]

    def _gives_many(self) -> bool:
        """Whether one request can return several texts."""
        try:
            answer = self._post(self._body("a", (), 0, 2, 1.0, 1))
        except ServerError as error:
            if "refuses" not in str(error):
                raise
            self._post(self._body("a", (), 0, 1, 1.0, 1))  # if this too is refused, n was not the reason
            return False
        return len(self._read(answer, 1)[0]) == 2


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
        keys: Sequence[str],
        seed: int,
        draws: int,
        temperature: float,
        max_new_tokens: int,
    ) -> None:
        self._server, self._prompts, self._accepted, self._keys = server, prompts, accepted, keys
        self._settings = (temperature, max_new_tokens)
        self._seed = seed
        self.hit = np.full((len(prompts), draws), -1, dtype=np.int8)
        self.positions = 0

    def draw(self, numbers: Sequence[Ints], begun: Callable[[int], None] = lambda count: None) -> None:
        """As many draws of every prompt as it is given numbers; ``begun`` hears of prompts that are done."""
        stopped = threading.Event()
        lock = threading.Lock()

        def ask(index: int) -> None:
            if stopped.is_set():
                return
            accepted = self._accepted[index]
            mine = numbers[index]
            # The numbers name the round, so that no two rounds of a prompt use the same seeds.
            key = f"{self._keys[index]}/{int(mine[0])}"
            try:
                texts, used = self._server.texts(
                    self._prompts[index], accepted, key, self._seed, len(mine), *self._settings
                )
            except BaseException:
                stopped.set()
                raise
            self.hit[index, mine] = [any(answer in text for answer in accepted) for text in texts]
            with lock:
                self.positions += used
                begun(1)

        pool = ThreadPoolExecutor(self._server.concurrency)
        futures = [pool.submit(ask, index) for index in range(len(self._prompts)) if len(numbers[index])]
        try:
            for future in futures:
                future.result()
        finally:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return " ".join(text.split())[:200]
