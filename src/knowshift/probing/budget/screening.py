"""A first look at many facts: which of them a model may know, from a few prompts that are read and no text.

Most facts are unknown to a small model, and measuring mastery of all to find the known ones takes hours. The
probability of an answer right behind a few prompts tells most of them, at a small part of the cost. The look says
nothing of how well a fact is known; mastery measures that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from knowshift.facts.fact import Fact, completion_prompts
from knowshift.models.loading import LoadedModel
from knowshift.models.sampling.expected import ExpectedSession
from knowshift.models.sampling.session import prompts_that_stay
from knowshift.probing.budget.plan import balanced_order
from knowshift.probing.measure import Protocol
from knowshift.system.allocator import give_back

#: Prompts of a fact that are read.
PROMPTS = 3
#: Prompts read together.
BATCH = 384
#: What the prompts of a fact promise (:meth:`.ExpectedSession.read`) where it is likely known. On a real model two
#: thirds of the facts with R of 0.25 and more promise as much, and one in twenty of the others (benchmarks/look.py).
LIKELY = 0.01


def few_prompts(
    facts: Sequence[Fact],
    seed: int,
    count: int = PROMPTS,
    wordings: Callable[[Fact], Sequence[str]] = completion_prompts,
) -> Iterator[Fact]:
    """The facts with ``count`` of their prompts, the same seeded choice for all facts of a relation.

    ``wordings`` gives the prompts of a fact.
    """
    chosen: dict[tuple[str, int], list[int]] = {}
    for fact in facts:
        own = wordings(fact)
        key = (fact.relation, len(own))
        if key not in chosen:
            order = np.random.default_rng([seed, 21, len(chosen)]).permutation(len(own))
            chosen[key] = sorted(order[:count].tolist())
        yield replace(fact, prompts=tuple(own[number] for number in chosen[key]))


def promised(
    engine: LoadedModel, facts: Sequence[Fact], told: Callable[[int], bool] = lambda count: True
) -> dict[str, float]:
    """What the first prompts of each fact promise on the mean, by its id: about the probability of an answer.

    Args:
        told: hears after each batch how many facts are done; the look ends there if it returns False. It is asked
            before the first batch too.

    Raises:
        InputError: as :class:`.ExpectedSession`.
    """
    size = max(1, min(BATCH, prompts_that_stay(engine)) // PROMPTS)
    promises: dict[str, float] = {}
    for start in range(0, len(facts), size):
        if not told(start):
            break
        promises |= _read(engine, facts[start : start + size])
        give_back()
    else:
        told(len(facts))
    return promises


def _read(engine: LoadedModel, facts: Sequence[Fact]) -> dict[str, float]:
    asked = [(fact, prompt) for fact in facts for prompt in completion_prompts(fact)[:PROMPTS]]
    session = ExpectedSession(
        engine,
        [prompt for _, prompt in asked],
        [fact.accepted for fact, _ in asked],
        Protocol(estimate="expected"),
        1,
        streams=[fact.id for fact, _ in asked],
    )
    found: dict[str, list[float]] = {}
    for (fact, _), promise in zip(asked, session.read().tolist(), strict=True):
        found.setdefault(fact.id, []).append(promise)
    return {name: sum(own) / len(own) for name, own in found.items()}


@dataclass(frozen=True)
class Share:
    """How many facts of each pool are kept, and how they are found.

    Attributes:
        train: of the training facts.
        test: of the test facts of each domain.
        times: how many times as many are looked at.
        likely: share of the kept that promise most; the others are a seeded choice of the rest.
    """

    train: int
    test: int
    times: float = 5.0
    likely: float = 2 / 3

    def looked_at(self, facts: Sequence[Fact], seed: int) -> list[Fact]:
        """The facts of each pool that are looked at, balanced over relations."""
        chosen = []
        for pool, count in self._pools(facts):
            order = balanced_order([fact.relation for fact in pool], seed)
            chosen += [pool[place] for place in order[: int(np.ceil(count * self.times))]]
        return chosen

    def kept(self, promises: Mapping[str, float], facts: Sequence[Fact], seed: int) -> list[Fact]:
        """Of the facts that were looked at those that are kept, in the order of ``facts``."""
        rng = np.random.default_rng([seed, 22])
        names: set[str] = set()
        for pool, count in self._pools([fact for fact in facts if fact.id in promises]):
            best = sorted(pool, key=lambda fact: -promises[fact.id])
            top = min(len(best), round(count * self.likely))
            rest = rng.permutation(len(best) - top)[: count - top] + top
            names |= {best[place].id for place in (*range(top), *rest.tolist())}
        return [fact for fact in facts if fact.id in names]

    def _pools(self, facts: Sequence[Fact]) -> Iterator[tuple[list[Fact], int]]:
        yield [fact for fact in facts if fact.split == "train"], self.train
        for domain in ("in_domain", "out_of_domain"):
            yield [fact for fact in facts if fact.split == "test" and fact.domain == domain], self.test
