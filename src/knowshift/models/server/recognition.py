"""Getting to know a server: its models and kind, how it spells a field, whether stop texts stay, what it shows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from knowshift.errors import KnowshiftWarning
from knowshift.models.server.completions import PATH, Answer, Completions
from knowshift.models.server.connection import Connection, RefusedError, ServerError
from knowshift.models.server.dialects import DIALECTS, LEFT_OUT, ORDINARY, Dialect
from knowshift.models.server.logprobs import Shown

#: Beginnings of which a model is likely to continue one at least.
OPENINGS = ("The capital of France is", "The", "It is said that the", "a")
#: How many of the most likely tokens are asked for, in the order in which it is tried: the most that vLLM gives by
#: default, and the most that OpenAI's own interface gives.
ASKED = (20, 5)
#: A temperature at which log-probabilities are looked at again: it must not change them, or divide them.
TRIED = 0.5
#: What number formats may make of a ratio.
TOLERANCE = 0.05


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
    """Completions with the fields that the server takes, each in the first spelling that it takes.

    All are sent at first. A server that does not take them is asked field by field. One that it refuses in every
    spelling is left out, with a warning, if it refuses an ordinary value too and so has no such sampler.

    Raises:
        ServerError: the server refuses a field that cannot be left out, a plain request, or all fields together.
    """
    slots = _slots(connection) if dialect.name == "llamacpp" else None

    def sending(chosen: Mapping[str, Any]) -> Completions:
        return Completions(connection, dialect.sending(chosen), model, slots)

    def refusal(chosen: Mapping[str, Any]) -> RefusedError | None:
        asked = sending(chosen)
        answer = asked.try_out(asked.body("a"))
        return answer if isinstance(answer, RefusedError) else None

    values = dialect.values()
    chosen = {name: spelled[0] for name, spelled in values.items()}
    if not values or (refused := refusal(chosen)) is None:
        return sending(chosen)
    plain = sending({})
    plain.ask(plain.body("a"))  # raises where the fields are not the reason
    for name, spelled in values.items():
        for value in spelled:
            if value is LEFT_OUT or (refused := refusal({name: value})) is None:
                chosen[name] = value
                break
        else:
            if name not in ORDINARY or refusal({name: ORDINARY[name]}) is None:
                tried = " or ".join(map(str, spelled))
                raise ServerError(f"{refused} (tried {name} {tried})")
            chosen[name] = LEFT_OUT
            warnings.warn(
                KnowshiftWarning(
                    f"{connection.url}: refuses {name} in every form and so has no such sampler; it is not sent"
                ),
                stacklevel=2,
            )
    completions = sending(chosen)
    completions.ask(completions.body("a"))
    return completions


def _slots(connection: Connection) -> int | None:
    """Texts that a llama.cpp server generates at once; None where it does not say."""
    told = connection.look("/props")
    slots = told.get("total_slots") if isinstance(told, dict) else None
    return slots if isinstance(slots, int) and not isinstance(slots, bool) and slots > 0 else None


def keeps_stop_texts(completions: Completions) -> bool:
    """Whether a stop text stays in the text that it ends: asks the most likely text, then again with a stop."""
    for prompt in OPENINGS:
        plain = completions.ask(completions.body(prompt, temperature=0.0, max_new_tokens=8))
        stop = "".join(plain.texts).strip()[:4]
        if not stop:
            continue
        ended = completions.try_out(completions.body(prompt, (stop,), temperature=0.0, max_new_tokens=8))
        return isinstance(ended, Answer) and any(stop in text for text in ended.texts)
    return False


def shown_by(completions: Completions) -> Shown | None:
    """What the server shows of a position; None where it shows nothing. Tried out.

    Raises:
        ServerError: it shows log-probabilities that a temperature changes in another way than dividing them.
    """
    for count in ASKED:
        at_one = _first(completions, count, 1.0)
        if at_one is not None and len(at_one) > 1:
            break
    else:
        return None
    tried = _first(completions, count, TRIED) or {}
    common = sorted(at_one.keys() & tried.keys(), key=lambda token: -at_one[token])
    steps = [(at_one[a] - at_one[b], tried[a] - tried[b]) for a, b in pairwise(common)]
    ratio = sum(after for _, after in steps) / max(sum(before for before, _ in steps), 1e-9) if steps else math.nan
    for told, tempered in ((1.0, False), (1 / TRIED, True)):
        if abs(ratio / told - 1) < TOLERANCE:
            return Shown(count, tempered)
    raise ServerError(
        f"{completions.connection.url}: its log-probabilities at a temperature of {TRIED} are neither those at 1 nor "
        f"those divided by it (their differences are {ratio:.3g} times as large); use --estimate hits"
    )


def _first(completions: Completions, count: int, temperature: float) -> Mapping[str, float] | None:
    answer = completions.try_out(completions.body(OPENINGS[0], temperature=temperature, likely=count))
    if isinstance(answer, RefusedError) or not answer.shown or not answer.shown[0]:
        return None
    return answer.shown[0][0].likely
