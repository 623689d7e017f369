"""Completions of one model on a server: the request in the server's dialect, and the answer, checked."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from knowshift.models.sampling.philox import stream_key
from knowshift.models.sampling.settings import Sampling
from knowshift.models.server.connection import PASSING, Connection, RefusedError, ServerError
from knowshift.models.server.dialects import Dialect
from knowshift.models.server.logprobs import Position, positions_of

PATH = "/v1/completions"
#: Stop texts in one request: OpenAI's limit, which others share.
STOPS = 4
#: Statuses of a server that does not take a request as it is written. Some say 500 to a field that they cannot serve
#: (earlier llama.cpp to `n`), so what is tried out counts it as a refusal and not as trouble that may pass.
NOT_AS_WRITTEN = frozenset((400, 422, 500, 501))


@dataclass(frozen=True)
class Answer:
    """What a request has brought."""

    texts: list[str]
    full: list[bool]  # for each text, whether it ended at the limit of tokens
    shown: list[list[Position]]  # for each text, what its positions could have been, where that was asked for
    made: int | None  # tokens generated, as far as the server counts them
    read: int | None  # tokens of the prompt, likewise
    total: int  # tokens processed, 0 where the server does not say


@dataclass(frozen=True)
class Drawn:
    """Texts of one prompt, from as many requests as it took."""

    texts: list[str]
    shown: list[list[Position]]  # as in :class:`Answer`
    read: int | None
    total: int


class Completions:
    """Asks one model on a server for texts, from any number of threads.

    Args:
        connection: to the server.
        dialect: one spelling of each field that the server takes beyond OpenAI's.
        model: sent with every request; None where the server needs no name.
        slots: texts that the server generates at once, where it says so (llama.cpp).
    """

    def __init__(self, connection: Connection, dialect: Dialect, model: str | None, slots: int | None = None) -> None:
        self.connection, self.dialect, self.model, self.slots = connection, dialect, model, slots
        self._lock = threading.Lock()
        self._at_once: dict[int, int] = {}
        #: Whether the server counts the tokens of the first of several texts only (llama.cpp); tried out with them.
        self._counts_first = False

    def body(
        self,
        prompt: str,
        stops: Sequence[str] = (),
        *,
        seed: int = 0,
        texts: int = 1,
        temperature: float = 1.0,
        max_new_tokens: int = 1,
        likely: int = 0,
    ) -> dict[str, Any]:
        """The request for so many texts from the whole distribution; at most :data:`STOPS` stop texts are sent.

        ``likely`` asks for so many of the most likely tokens at each position.
        """
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
        if likely:
            body["logprobs"] = likely
        if stops:
            body["stop"] = list(stops)[:STOPS]
        if self.dialect.generation_config:
            # Given whole, since `transformers serve` samples only if told so here.
            told = {"do_sample": temperature > 0, "top_p": 1.0, "top_k": 0, "max_new_tokens": max_new_tokens}
            body["generation_config"] = json.dumps({**told, "temperature": temperature or 1.0})
        return body

    def ask(
        self, body: dict[str, Any], *, passing: Collection[int] = PASSING, stopped: threading.Event | None = None
    ) -> Answer:
        """What a request of :meth:`body` brings.

        Raises:
            ServerError: see :meth:`Connection.ask`; or the answer is not a completion.
        """
        answer = self.connection.ask("POST", PATH, body, passing=passing, stopped=stopped)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or not all(
            isinstance(choice, dict) and isinstance(choice.get("text"), str) for choice in choices
        ):
            told = self.connection.short(answer)
            raise ServerError(f"{self.connection.url}: expected a completion with choices of text, got {told}")
        usage = answer.get("usage")
        counted = usage if isinstance(usage, dict) else {}
        read, made, total = (
            _count(counted.get(name)) for name in ("prompt_tokens", "completion_tokens", "total_tokens")
        )
        full = [choice.get("finish_reason") == "length" for choice in choices]
        shown = [positions_of(choice) for choice in choices]
        return Answer([choice["text"] for choice in choices], full, shown, made, read, total or 0)

    def try_out(self, body: dict[str, Any]) -> Answer | RefusedError:
        """The answer to a request, or why the server does not take it as it is written.

        Raises:
            ServerError: the server refuses it for another reason, or does not answer.
        """
        try:
            return self.ask(body, passing=PASSING - NOT_AS_WRITTEN)
        except RefusedError as refused:
            if refused.status not in NOT_AS_WRITTEN:
                raise
            return refused

    def at_once(self, texts: int) -> int:
        """How many of so many texts one request returns; tried out once.

        A server that refuses as many is asked for fewer, first of all for as many as it has slots, and the most that
        it gives is found by halving. One that returns another number than it was asked for gets a request a text: it
        does not say which texts it has left out.
        """
        most = min(texts, self.slots or texts)
        if most == 1:
            return 1
        with self._lock:
            known = self._at_once.get(most)
        if known is None:
            known = self._tried_at_once(most)
            with self._lock:
                self._at_once[most] = known
        return known

    def _tried_at_once(self, most: int) -> int:
        given = self._given(most)
        if given is not None:
            return most if given == most else 1
        self.ask(self.body("a"))  # raises where the number of texts was not the reason
        least = 1
        while most - least > 1:
            middle = (least + most) // 2
            if self._given(middle) == middle:
                least = middle
            else:
                most = middle
        return least

    def _given(self, texts: int) -> int | None:
        """How many texts a request of so many brings; None where the server refuses it."""
        answer = self.try_out(self.body("a", texts=texts))
        if isinstance(answer, RefusedError):
            return None
        self._counts_first = answer.made is not None and answer.made < sum(answer.full)
        return len(answer.texts)

    def texts(
        self,
        prompt: str,
        stops: Sequence[str],
        sampling: Sampling,
        key: str,
        draws: int,
        stopped: threading.Event | None = None,
        *,
        at_once: int | None = None,
        likely: int = 0,
    ) -> Drawn:
        """So many texts for one prompt.

        ``key`` and the seed of ``sampling`` name the random numbers; ``at_once`` is how many texts one request is for
        at most, all where not given; ``likely`` is that of :meth:`body`. What is under way ends soon after ``stopped``
        is set.

        Raises:
            ServerError: see :meth:`ask`; or texts are missing or cut short.
        """
        drawn = Drawn([], [], None, 0)
        step = draws if at_once is None else at_once
        for turn in range(0, draws, step):
            wanted = min(step, draws - turn)
            # Children of a request use the seeds that follow it, so the seeds of requests lie `draws` apart.
            block = stream_key(sampling.seed, f"{key}/{turn}") % ((1 << 31) // max(draws, 1))
            body = self.body(
                prompt,
                stops,
                seed=block * draws,
                texts=wanted,
                temperature=sampling.temperature,
                max_new_tokens=sampling.max_new_tokens,
                likely=likely,
            )
            answer = self.ask(body, stopped=stopped)
            if len(answer.texts) != wanted:
                # Not filled up: a server that drops some texts (empty or equal ones) would bend the hit rate.
                url = self.connection.url
                raise ServerError(
                    f"{url}: gave {len(answer.texts)} of {wanted} texts for {prompt!r}; expected all of them"
                )
            self._check_whole(answer, sampling.max_new_tokens)
            drawn = Drawn(
                drawn.texts + answer.texts, drawn.shown + answer.shown, answer.read, drawn.total + answer.total
            )
        return drawn

    def _check_whole(self, answer: Answer, most: int) -> None:
        """Refuse texts that the server has cut: those that ended at the limit have that many tokens each."""
        full = sum(answer.full[:1] if self._counts_first else answer.full)
        if answer.made is not None and answer.made < most * full:
            raise ServerError(
                f"{self.connection.url}: cut {full} of {len(answer.texts)} texts after {answer.made} tokens in all; "
                f"expected {most} each (does the prompt fit into its context, is its own limit lower?)"
            )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
