"""Tasks that a world's own sentences make: the loss on sentences never read, and completing those about known facts.

The corpus of a world writes each fact as often as its exposures say (:mod:`knowshift.world.corpus`). A fact that it
never wrote is in no sentence that the base has read: of such test facts are the sentences of :func:`held_out`, in the
patterns of the corpus. The facts of :class:`Completion` are those written most often. Training facts of a study take no
part in either, and no prompt is the fine-tuning prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from knowshift.errors import InputError
from knowshift.facts.fact import Fact, completion_prompts
from knowshift.facts.relations import RELATIONS
from knowshift.models.loading import LoadedModel
from knowshift.models.sampling.session import greedy
from knowshift.tasks.measured import Measured, weighted_mean
from knowshift.world.corpus import sentences

NAME = "completion"
#: Sentences of each fact that was never written.
EACH = 4
#: The share of a world's test facts that count as well known, those written most often; and how many at least.
KNOWN, FEWEST = 0.05, 40
#: Tokens of a completion at most.
TOKENS = 16


def held_out(facts: Sequence[Fact], limit: int | None, seed: int, source: str) -> list[str]:
    """Sentences in a world's language that its corpus does not have, at most so many, seeded.

    Raises:
        InputError: the source says of no test fact that it was never written.
    """
    never = [
        replace(fact, exposures=EACH)
        for fact in facts
        if fact.split == "test" and fact.exposures == 0 and fact.relation in RELATIONS
    ]
    if not never:
        raise InputError(
            f"text_loss: {source} has no test fact that its corpus never wrote; expected a world that has some, or a "
            "text of your own (restoration.texts)"
        )
    return list(sentences(never, _seed(seed, 26)))[:limit]


@dataclass(frozen=True)
class Completion:
    """A sentence of the corpus about each of some facts, up to the answer: right where the answer comes next."""

    facts: Sequence[Fact]
    prompts: Sequence[str]

    @classmethod
    def of(cls, facts: Sequence[Fact], limit: int | None, seed: int, source: str) -> Completion:
        """Of the test facts that a world's corpus wrote most often, at most so many, each in one of its patterns.

        Raises:
            InputError: the source does not say how often its facts were written.
        """
        written = [fact for fact in facts if fact.split == "test" and fact.exposures]
        if not written:
            raise InputError(
                f"completion: {source} does not say how often its test facts were written; expected a world"
            )
        often = sorted((fact.exposures or 0 for fact in written), reverse=True)
        least = often[min(len(often), max(FEWEST, round(KNOWN * len(often)))) - 1]
        known = [fact for fact in written if (fact.exposures or 0) >= least]
        rng = np.random.default_rng(_seed(seed, 27))
        chosen = [known[i] for i in sorted(rng.permutation(len(known))[:limit].tolist())]
        ways = [completion_prompts(fact) for fact in chosen]
        return cls(chosen, [some[int(rng.integers(len(some)))] for some in ways])

    def measure(self, loaded: LoadedModel) -> list[Measured]:
        """The share of greedy completions that begin with an accepted answer."""
        texts = greedy(loaded, self.prompts, max_new_tokens=TOKENS)
        values = [float(begins(text, fact.accepted)) for text, fact in zip(texts, self.facts, strict=True)]
        weights = [1.0] * len(values)
        return [Measured(NAME, "accuracy", True, weighted_mean(values, weights), self.prompts, values, weights, texts)]


def begins(text: str, accepted: Sequence[str]) -> bool:
    """Whether a text begins with an accepted answer that no letter or digit goes on."""
    start = text.lstrip()
    return any(start.startswith(answer) and not start[len(answer) :][:1].isalnum() for answer in accepted)


def _seed(seed: int, stream: int) -> int:
    return int(np.random.default_rng([seed, stream]).integers(2**31))
