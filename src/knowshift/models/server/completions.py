"""Completions of one model on a server: the request in the server's dialect, and the answer, checked."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Sequence
from typing import Any

from knowshift.models.sampling.philox import stream_key
from knowshift.models.sampling.settings import Sampling
from knowshift.models.server.connection import PASSING, Connection, RefusedError, ServerError
from knowshift.models.server.dialects import Dialect

PATH = "/v1/completions"
#: Stop texts in one request: OpenAI's limit, which others share.
STOPS = 4


class Completions:
    """Asks one model on a server for texts, from any number of threads.

    Args:
        connection: to the server.
        dialect: one spelling of each field that the server takes beyond OpenAI's.
        model: sent with every request; None where the server needs no name.
    """

    def __init__(self, connection: Connection, dialect: Dialect, model: str | None) -> None:
        self.connection, self.dialect, self.model = connection, dialect, model
        self._lock = threading.Lock()
        self._gives: dict[int, bool] = {}

    def body(
        self,
        prompt: str,
        stops: Sequence[str] = (),
        *,
        seed: int = 0,
        texts: int = 1,
        temperature: float = 1.0,
        max_new_tokens: int = 1,
    ) -> dict[str, Any]:
        """The request for so many texts from the whole distribution; at most :data:`STOPS` stop texts are sent."""
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
        if self.model:
            body["model"] = self.model
        if texts > 1:
            body["n"] = texts
        if stops:
            body["stop"] = list(stops)[:STOPS]
        if self.dialect.generation_config:
            # Given whole, since `transformers serve` samples only if told so here.
            told = {"do_sample": temperature > 0, "top_p": 1.0, "top_k": 0, "max_new_tokens": max_new_tokens}
            body["generation_config"] = json.dumps({**told, "temperature": temperature or 1.0})
        return body

    def ask(
        self, body: dict[str, Any], *, passing: Collection[int] = PASSING, stopped: threading.Event | None = None
    ) -> tuple[list[str], int]:
        """The texts that a request of :meth:`body` gives, and the tokens processed (0 if the server does not say).

        Raises:
            ServerError: see :meth:`Connection.ask`; or the answer is not a completion, or cuts texts short.
        """
        answer = self.connection.ask("POST", PATH, body, passing=passing, stopped=stopped)
        url, most = self.connection.url, body["max_tokens"]
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or not all(
            isinstance(choice, dict) and isinstance(choice.get("text"), str) for choice in choices
        ):
            raise ServerError(f"{url}: expected a completion with choices of text, got {self.connection.short(answer)}")
        usage = answer.get("usage")
        told = usage if isinstance(usage, dict) else {}
        made, total = (_count(told.get(name)) for name in ("completion_tokens", "total_tokens"))
        full = sum(choice.get("finish_reason") == "length" for choice in choices)
        if full and made is not None:
            # Texts that ended at the limit have that many tokens each; some servers count one text only.
            least = most * (full if made > most else 1)
            if made < least:
                raise ServerError(
                    f"{url}: cut {full} of {len(choices)} texts after {made} tokens in all; expected "
                    f"{most} each (does the prompt fit into its context, is its own limit lower?)"
                )
        return [choice["text"] for choice in choices], total or 0

    def gives(self, texts: int) -> bool:
        """Whether one request returns so many texts; tried out once."""
        if texts == 1:
            return True
        with self._lock:
            known = self._gives.get(texts)
        if known is None:
            try:
                # llama.cpp says 500 to an n it does not know, so that status is no passing trouble here.
                got, _ = self.ask(self.body("a", texts=texts), passing=PASSING - {500})
                known = len(got) == texts
            except RefusedError as refused:
                try:
                    self.ask(self.body("a"))
                except RefusedError:
                    raise refused from None  # n was not the reason
                known = False
            with self._lock:
                self._gives[texts] = known
        return known

    def texts(
        self,
        prompt: str,
        stops: Sequence[str],
        sampling: Sampling,
        key: str,
        draws: int,
        stopped: threading.Event | None = None,
        *,
        many: bool = True,
    ) -> tuple[list[str], int]:
        """So many texts for one prompt, and the tokens the server says it has processed (0 if it does not say).

        ``key`` and the seed of ``sampling`` name the random numbers; ``many`` asks for all texts at once. What is under
        way ends soon after ``stopped`` is set.
        """
        texts: list[str] = []
        used = 0
        wanted = draws if many else 1
        for turn in range(0, draws, wanted):
            # Children of a request use the seeds that follow it, so the seeds of requests lie `draws` apart.
            block = stream_key(sampling.seed, f"{key}/{turn}") % ((1 << 31) // max(draws, 1))
            body = self.body(
                prompt,
                stops,
                seed=block * draws,
                texts=wanted,
                temperature=sampling.temperature,
                max_new_tokens=sampling.max_new_tokens,
            )
            got, tokens = self.ask(body, stopped=stopped)
            if len(got) != wanted:
                # Not filled up: a server that drops some texts (empty or equal ones) would bend the hit rate.
                url = self.connection.url
                raise ServerError(f"{url}: gave {len(got)} of {wanted} texts for {prompt!r}; expected all of them")
            texts += got
            used += tokens
        return texts, used


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
