"""The most likely tokens at each position of a completion, in both forms in which servers return them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Position:
    """One position of a text: the token drawn, and the log-probabilities of the most likely ones by their text."""

    token: str
    likely: Mapping[str, float]


@dataclass(frozen=True)
class Shown:
    """What a server shows: so many of the most likely tokens of a position, at a temperature of 1 or at its own."""

    count: int
    tempered: bool  # whether log-probabilities are those at the sampling temperature

    def chances(self, position: Position, temperature: float) -> dict[str, float]:
        """Probabilities at the sampling temperature of the most likely tokens, given that one of them is drawn."""
        scale = 1.0 if self.tempered else 1 / temperature
        most = sorted(position.likely.items(), key=lambda item: -item[1])[: self.count]
        if not most:
            return {}
        weights = {token: math.exp(scale * (value - most[0][1])) for token, value in most}
        total = sum(weights.values())
        return {token: weight / total for token, weight in weights.items()}


def positions_of(choice: Mapping[str, Any]) -> list[Position]:
    """The positions of one text of a completion; none where the server shows nothing that can be read.

    OpenAI's completions give lists of ``tokens`` and of ``top_logprobs`` by token; its chat, and llama.cpp for both, a
    list ``content`` of tokens with ``top_logprobs``, a list.
    """
    told = choice.get("logprobs")
    if not isinstance(told, dict):
        return []
    found: list[Position] = []
    if isinstance(told.get("content"), list):
        for entry in told["content"]:
            likely = entry.get("top_logprobs") if isinstance(entry, dict) else None
            if not isinstance(likely, list) or not all(isinstance(one, dict) for one in likely):
                return []
            pairs = [(one.get("token"), one.get("logprob")) for one in likely]
            found.append(Position(str(entry.get("token")), _numbers(pairs)))
        return found
    tokens, tops = told.get("tokens"), told.get("top_logprobs")
    if not isinstance(tokens, list) or not isinstance(tops, list) or len(tokens) != len(tops):
        return []
    for token, top in zip(tokens, tops, strict=True):
        if not isinstance(top, dict):
            return []
        found.append(Position(str(token), _numbers(list(top.items()))))
    return found


def _numbers(pairs: Sequence[tuple[Any, Any]]) -> dict[str, float]:
    return {
        token: float(value)
        for token, value in pairs
        if isinstance(token, str) and isinstance(value, int | float) and math.isfinite(value)
    }
