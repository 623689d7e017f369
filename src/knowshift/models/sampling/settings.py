"""How texts are drawn and what counts as a hit: one value from the command down to the sampler."""

from __future__ import annotations

import math
from dataclasses import dataclass

from knowshift.errors import InputError, check_number, check_whole, nearest

#: Rules for what a hit is: the paper's plain substring, or at word boundaries (:mod:`knowshift.facts.grading`).
GRADINGS = ("substring", "word")


@dataclass(frozen=True)
class Sampling:
    """Independent draws from the whole distribution, without top-p or top-k; the defaults are the paper's (2.3).

    Raises:
        InputError: an unknown grading, a temperature that is not above 0, a number that is none.
    """

    draws_per_prompt: int = 10
    temperature: float = 0.7
    max_new_tokens: int = 32
    seed: int = 0
    #: "substring": a text is decided as soon as it holds an answer. "word": at word boundaries, decided when the word
    #: after the answer has begun.
    grading: str = "substring"

    def __post_init__(self) -> None:
        check_whole("draws of a prompt", self.draws_per_prompt, 1)
        check_whole("tokens of a draw", self.max_new_tokens, 1)
        check_whole("seed", self.seed)
        temperature = check_number("temperature", self.temperature, ": expected a number above 0", 0, math.inf)
        object.__setattr__(self, "temperature", temperature)
        if self.grading not in GRADINGS:
            raise InputError(f"grading {self.grading!r} is unknown{nearest(self.grading, GRADINGS)}")
