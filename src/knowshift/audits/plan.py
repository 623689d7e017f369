"""What an audit asks: which facts, with which prompts, and which facts are shown as examples."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from knowshift.audits.forms import SHOWN
from knowshift.errors import InputError
from knowshift.facts.asking import GENERIC
from knowshift.facts.fact import Fact, completion_prompts
from knowshift.facts.relations import RELATIONS
from knowshift.models.sampling.settings import Sampling
from knowshift.probing.budget.plan import balanced_order
from knowshift.probing.budget.screening import few_prompts


@dataclass(frozen=True)
class Manner:
    """How much each fact is asked.

    Attributes:
        prompts: completion prompts of a fact.
        texts: of each prompt; None: as many as their spread asks for.
        tokens: of a text.
        part: facts in a part of a measurement; None: as ever.
    """

    prompts: int
    texts: int | None = None
    tokens: int = Sampling.max_new_tokens
    part: int | None = None


#: With fewer prompts more facts fit into a budget, and the mean over facts is known better for it; seven still show a
#: fact in several wordings.
USUAL = Manner(7)
#: The same, further, for a model that takes seconds for a fact: what a budget has time for is then few facts, and facts
#: differ more than the texts of one.
BRIEF = Manner(4, 2, 16, 96)
#: Facts beyond which some are set aside as examples of the form "few-shot".
ENOUGH = 6 * SHOWN


@dataclass(frozen=True)
class Asked:
    """Facts to ask, each with its own few prompts, and facts that are shown with their answers."""

    facts: tuple[Fact, ...]
    examples: tuple[Fact, ...]


@dataclass(frozen=True)
class Screened:
    """Facts, how many of them a first look has seen, and the names of those that are likely known."""

    facts: tuple[Fact, ...]
    looked_at: int
    likely: frozenset[str]

    def order(self, seed: int) -> list[int]:
        """Places of facts as a budget takes them: likely known and others by turns, each balanced over relations."""
        parts: list[list[int]] = []
        for likely in (True, False):
            own = [place for place, fact in enumerate(self.facts) if (fact.id in self.likely) == likely]
            parts.append([own[i] for i in balanced_order([self.facts[place].relation for place in own], seed)])
        turns = itertools.chain.from_iterable(itertools.zip_longest(*parts))
        return [place for place in turns if place is not None]

    def among(self, facts: Sequence[Fact]) -> int:
        """How many of some facts are likely known."""
        return sum(fact.id in self.likely for fact in facts)


def facts_to_ask(facts: Sequence[Fact], seed: int, prompts: int = USUAL.prompts) -> Asked:
    """All facts but the examples, a seeded choice, equal ones once; every relation has a seeded choice of prompts.

    Raises:
        InputError: no facts.
    """
    if not facts:
        raise InputError("no facts to ask")
    facts = list({(fact.question, fact.accepted): fact for fact in reversed(facts)}.values())[::-1]
    rng = np.random.default_rng([seed, 20])
    shown = set(rng.permutation(len(facts))[:SHOWN].tolist()) if len(facts) >= ENOUGH else set()
    others = [fact for place, fact in enumerate(facts) if place not in shown]
    return Asked(tuple(few_prompts(others, seed, prompts, _wordings)), tuple(facts[place] for place in sorted(shown)))


def _wordings(fact: Fact) -> tuple[str, ...]:
    """The fact's own prompts, or the relation's; generic ones for a question without a known relation."""
    if fact.prompts:
        return fact.prompts
    return completion_prompts(fact) if fact.relation in RELATIONS else GENERIC
