"""A completions server whose next token depends on the last one, and which shows its log-probabilities."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from markov import Chain
from toy_server import Reply, Toy


class ChainToy(Toy):
    """Follows ``chain`` at a temperature of 0.7, and as logits at 0.7 say at any other.

    Attributes:
        shows: the form in which it shows log-probabilities: "lists" (OpenAI's completions), "content" (llama.cpp), or
            None.
        tempered: whether these are at the sampling temperature, and not at 1.
        bend: a power that they are changed by at other temperatures than 1.
        most_likely: how many it shows at most; it refuses more.
        counts: whether it counts tokens.
    """

    def __init__(self, chain: Chain) -> None:
        super().__init__("sglang")
        self.chain = {**chain, "is": {" a": 0.6, ".": 0.4}, " a": {".": 1.0}}  # what the engine asks to know it
        self.shows: str | None = "lists"
        self.tempered = False
        self.bend = 1.0
        self.most_likely = 20
        self.counts = True
        self.asked: list[dict[str, Any]] = []

    def tokens(self, text: str) -> list[str]:
        """As a tokenizer reads them: the longest first; characters that no token holds are tokens too."""
        known = sorted({token for following in self.chain.values() for token in following} | {*self.chain}, key=len)
        found = []
        while text:
            token = next((one for one in reversed(known) if text.startswith(one)), text[0])
            found.append(token)
            text = text[len(token) :]
        return found

    def complete(self, body: dict[str, Any]) -> Reply:
        if body.get("logprobs", 0) > self.most_likely:
            return self.json({"error": "too many logprobs"}, 400)
        self.asked.append(body)
        read = self.tokens(body["prompt"])
        choices, made = [], 0
        for child in range(body.get("n", 1)):
            rng = random.Random(f"{body.get('seed', 0) + child}")
            last, text, positions = read[-1], "", []
            while len(positions) < body["max_tokens"]:
                chances = self.at(last, body.get("temperature") or 0.05)  # nearly greedy where it is 0
                drawn = rng.choices(list(chances), list(chances.values()))[0]
                positions.append(
                    (drawn, chances if self.tempered else self.at(last, 1.0, body.get("temperature", 1.0)))
                )
                made += 1
                if drawn == ".":
                    break
                text, last = text + drawn, drawn
            choices.append(
                {
                    "text": text,
                    "finish_reason": "stop" if positions[-1][0] == "." else "length",
                    "logprobs": self.shown(positions, body.get("logprobs", 0)),
                }
            )
        used = {"prompt_tokens": len(read), "completion_tokens": made, "total_tokens": len(read) + made}
        return self.json({"model": "toy", "choices": choices, **({"usage": used} if self.counts else {})})

    def at(self, last: str, temperature: float, asked: float = 1.0) -> dict[str, float]:
        following: Mapping[str, float] = self.chain.get(last, {" a": 0.6, ".": 0.4})
        scale = 0.7 / temperature * (1.0 if asked == 1.0 else self.bend)
        weights = {token: share**scale for token, share in following.items() if share}
        total = sum(weights.values())
        return {token: weight / total for token, weight in weights.items()}

    def shown(self, positions: list[tuple[str, dict[str, float]]], count: int) -> Any:
        if not count or self.shows is None:
            return None
        rows = []
        for token, chances in positions:
            logs = sorted(((one, math.log(share)) for one, share in chances.items()), key=lambda item: -item[1])
            # The token drawn is shown too, beyond so many of the most likely.
            rows.append((token, dict(logs[:count]) | {one: value for one, value in logs if one == token}))
        if self.shows == "content":
            content = [
                {"token": token, "top_logprobs": [{"token": one, "logprob": value} for one, value in top.items()]}
                for token, top in rows
            ]
            return {"content": content}
        return {"tokens": [token for token, _ in rows], "top_logprobs": [top for _, top in rows]}
