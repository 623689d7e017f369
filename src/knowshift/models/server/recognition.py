"""Getting to know a server: its models, its kind, how its version spells a field, whether stop texts stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from knowshift.models.server.completions import PATH, Completions
from knowshift.models.server.connection import Connection, RefusedError, ServerError
from knowshift.models.server.dialects import DIALECTS, Dialect

#: Answers of a server that does not take a request as it is written.
BAD_REQUEST = frozenset((400, 422))
#: Beginnings of which a model is likely to continue one at least.
OPENINGS = ("The capital of France is", "The", "It is said that the", "a")


def listed_models(connection: Connection) -> list[dict[str, Any]]:
    """The models listed; none where the server has no list (`transformers serve` lists a cache, or fails)."""
    answer = connection.look("/v1/models")
    listed = answer.get("data") if isinstance(answer, dict) else None
    entries = listed if isinstance(listed, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]


def chosen_model(
    connection: Connection, listed: Sequence[Mapping[str, Any]], named: str | None
) -> tuple[str | None, str]:
    """(The model's name to send, its name for records).

    If none was ``named``, asks for a completion without a name: where the server gives one and says of which model,
    no name is sent.
    """
    if named is not None:
        return named, named
    names = [str(entry["id"]) for entry in listed]
    try:
        answer = connection.ask("POST", PATH, {"prompt": "a", "max_tokens": 1})
        if isinstance(answer, dict) and answer.get("model"):
            return None, str(answer["model"])
    except RefusedError:
        if not names:
            raise
    if len(names) != 1:
        found = ", ".join(names[:5]) or "none"
        url = connection.url
        raise ServerError(f"{url}: lists {len(names)} models ({found}); name one as {url}#MODEL")
    return names[0], names[0]


def recognised_dialect(connection: Connection, listed: Sequence[Mapping[str, Any]], model: str | None) -> Dialect:
    """The dialect of the server's kind, with all spellings of its versions; OpenAI's for a kind not known."""
    owners = {str(entry.get("owned_by", "")).lower() for entry in listed}
    for name in ("vllm", "sglang", "llamacpp"):
        if name in owners:
            return DIALECTS[name]
    if len(listed) == 1 and listed[0].get("owned_by") == listed[0]["id"]:
        return DIALECTS["tgi"]
    # `transformers serve` is the one that refuses a field it does not know, and says so.
    named = {"model": model} if model else {}
    try:
        connection.ask("POST", PATH, {**named, "prompt": "a", "max_tokens": 1, "knowshift_probe": 1})
    except RefusedError as error:
        if "Unexpected fields" in str(error):
            return DIALECTS["transformers"]
    return DIALECTS["openai"]


def open_completions(connection: Connection, dialect: Dialect, model: str | None) -> Completions:
    """Completions in the first spelling that the server takes; only a bad request moves on to the next.

    Raises:
        ServerError: the server refuses every spelling, or one for another reason.
    """
    if not dialect.spellings:
        return Completions(connection, dialect, model)
    last: RefusedError | None = None
    for spelled in dialect.spelled():
        completions = Completions(connection, spelled, model)
        try:
            connection.ask("POST", PATH, completions.body("a"))
        except RefusedError as refused:
            if refused.status not in BAD_REQUEST:
                raise
            last = refused
        else:
            return completions
    raise ServerError(f"{last} (tried {dialect.tried()})")


def keeps_stop_texts(completions: Completions) -> bool:
    """Whether a stop text stays in the text that it ends: asks the most likely text, then again with a stop."""
    for prompt in OPENINGS:
        plain, _ = completions.ask(completions.body(prompt, temperature=0.0, max_new_tokens=8))
        stop = "".join(plain).strip()[:4]
        if not stop:
            continue
        try:
            ended, _ = completions.ask(completions.body(prompt, (stop,), temperature=0.0, max_new_tokens=8))
        except RefusedError:
            return False
        return any(stop in text for text in ended)
    return False
