"""Sampling from any server with OpenAI's completions interface: vLLM, SGLang, llama.cpp, TGI, `transformers serve`.

The whole distribution must be sampled, and servers differ in what they do by themselves (a model's own top-k of 50,
llama.cpp's top-k of 40 and min-p of 0.05, greedy answers of `transformers serve`), so the fields that switch this off
are sent in each server's dialect. What a server can do is tried out, not believed: how its version spells these fields,
how many of a prompt's draws one request returns, and whether a stop text stays in the text it ends (else none is sent,
since a hit must be seen).

The URL is that of the server (``http://host:8000`` or ``http://host:8000/v1``), with ``#NAME`` behind it where the
server has several models. Settings come from the environment, see docs/servers.md. A server's numbers are its own:
records say which engine made them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from knowshift.errors import InputError
from knowshift.files import digest
from knowshift.models.sampling.settings import Sampling
from knowshift.models.server.connection import Connection, ServerError
from knowshift.models.server.direct import DirectSession
from knowshift.models.server.logprobs import Shown
from knowshift.models.server.recognition import (
    chosen_model,
    keeps_stop_texts,
    listed_models,
    open_completions,
    recognised_dialect,
    shown_by,
)
from knowshift.models.server.session import Served, ServerSession
from knowshift.models.server.settings import Address, Settings, key_for


class _Sessions:
    """Sessions on the servers of one model, which share their prompts."""

    _all: Sequence[CompletionsServer]

    def session(
        self,
        prompts: Sequence[str],
        accepted: Sequence[Sequence[str]],
        sampling: Sampling,
        *,
        streams: Sequence[str],
    ) -> ServerSession:
        """Prompts to draw from, with the servers' own random numbers."""
        return ServerSession([server.served for server in self._all], prompts, accepted, sampling, streams)

    def expected(
        self,
        prompts: Sequence[str],
        accepted: Sequence[Sequence[str]],
        sampling: Sampling,
        texts: int,
        *,
        streams: Sequence[str],
    ) -> DirectSession:
        """Prompts to estimate R of, with the servers' own random numbers and log-probabilities."""
        served = [server.served for server in self._all]
        return DirectSession(served, self._all[0].shown, prompts, accepted, sampling, texts, streams)


class CompletionsServer(_Sessions):
    """One completions server, asked concurrently; an engine for :func:`knowshift.probing.measure_mastery`.

    Args:
        url: of the server, with or without ``/v1``; ``#NAME`` names the model.
        model: the model's name there, where the URL does not give it; None asks without a name, or for the only
            model listed.
        concurrency: requests under way at once (``KNOWSHIFT_CONCURRENCY``, 16).
        timeout: seconds that one request may take (``KNOWSHIFT_TIMEOUT``, 120).
        tries: attempts at one request before the run ends (``KNOWSHIFT_TRIES``, 8); waits between them double from
            ``pause`` seconds.

    Attributes:
        url: of the server, for messages.
        model: its name for records.
        keeps_stops: whether a stop text stays in the text that it ends.

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
        self._settings = Settings.read(concurrency, timeout, tries, pause)
        address = Address.parse(url)
        self.url = address.shown
        connection = Connection(address, key_for(address.host), self._settings)
        listed = listed_models(connection)
        sent, self.model = chosen_model(connection, listed, model or address.model)
        self._told = next((entry for entry in listed if entry["id"] == self.model), {})
        self.completions = open_completions(connection, recognised_dialect(connection, listed, sent), sent)
        self.keeps_stops = keeps_stop_texts(self.completions)
        self._all = (self,)
        self.served = Served(self.completions, self._settings.concurrency, self.keeps_stops)

    def told(self) -> dict[str, Any]:
        """What the server tells of its model beyond the name."""
        meta = self._told.get("meta")
        known = meta if isinstance(meta, dict) else {}  # llama.cpp
        told = {name: known.get(name) for name in ("n_params", "n_vocab", "size")}
        return told | {name: self._told.get(name) for name in ("root", "max_model_len")}  # vLLM, SGLang

    def about(self) -> dict[str, Any]:
        """What records say. ``identity`` is of what the server tells of its model; it does not show its weights."""
        kind = self.completions.dialect.name
        return {
            "engine": f"completions/{kind}",
            "model": self.model,
            "identity": digest([kind, self.model, self.told()]),
            "dtype": "server",
            "device": "server",
        }

    @cached_property
    def shown(self) -> Shown:
        """What the server shows of the next token; tried out once.

        Raises:
            ServerError: it shows no log-probabilities, or such as cannot be read.
        """
        found = shown_by(self.completions)
        if found is None:
            raise ServerError(
                f"{self.url}: shows no log-probabilities, which --estimate expected needs; use --estimate hits"
            )
        return found

    def check_expected(self) -> None:
        """Raises ServerError where :meth:`expected` cannot work."""
        _ = self.shown


class SeveralServers(_Sessions):
    """Servers of one model, asked together as one engine: they share the prompts of every session.

    Args:
        urls: of the servers, each as for :class:`CompletionsServer`.

    Raises:
        ServerError: one of them cannot be used.
        InputError: one is named twice, or two are of different kinds or models, by what they tell of them.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        for number, url in enumerate(urls):
            if Address.parse(url) in map(Address.parse, urls[:number]):
                raise InputError(f"{url}: named twice; expected servers of different addresses")
        first, *others = self._all = [CompletionsServer(url) for url in urls]
        for other in others:
            if other.about() != first.about():
                raise InputError(
                    f"{first.url} and {other.url}: expected one kind of server with one model, got {_model(first)} and "
                    f"{_model(other)}"
                )

    def about(self) -> dict[str, Any]:
        """What records say, which is the same of each of them."""
        return self._all[0].about()

    def check_expected(self) -> None:
        """Raises ServerError where :meth:`expected` cannot work on all of them alike."""
        first, *others = self._all
        for other in others:
            if other.shown != first.shown:
                raise ServerError(
                    f"{first.url} and {other.url}: expected servers that show alike, got {first.shown} and "
                    f"{other.shown}"
                )


def _model(server: CompletionsServer) -> str:
    told = ", ".join(f"{name} {value}" for name, value in server.told().items() if value is not None)
    return f"{server.about()['engine']} {server.model!r}" + (f" ({told})" if told else "")
