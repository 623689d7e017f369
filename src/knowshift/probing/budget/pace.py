"""How many facts fit into a budget: rounds of facts are measured, each larger, and the rest is arithmetic.

A first round of one fact a process is a warm-up and says whether there is time for more. A fact takes less in a large
batch, as those of the run are, so the next round is as large as surely fits, up to a part of the run, and so on until
no larger one fits. All that they measure counts: where time is short, the rounds are the run.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.models.loading import LoadedModel
from knowshift.probing.budget.plan import Budget, Plan, balanced_order
from knowshift.probing.crew import Crew, of_worker
from knowshift.probing.measure import Engine, MasteryRecord, Protocol, measure_mastery
from knowshift.system.progress import duration
from knowshift.system.workers import results

#: Share of the time left that is kept back.
MARGIN = 0.15
#: Facts differ in what they take: the standard deviation is taken to be half of the mean, so that the pace of k facts
#: is taken to be slower by 0.5 / sqrt(k) than they were.
SPREAD = 0.5

#: What one fact more in a batch takes at least, as a share of the mean.
LEAST = 0.25

#: Measures a batch of facts in each process; the seconds and the record of each.
Ask = Callable[[Sequence[Sequence[Fact]]], list[tuple[float, MasteryRecord]]]


@dataclass
class Pace:
    """What batches of facts take, as rounds tell, where parts of ``part`` facts are shared out to ``workers``."""

    workers: int
    part: int
    measured: int = 0  # facts of the last round, over all processes
    sizes: list[int] = field(default_factory=list)  # of a batch of each round, rising
    seconds: list[float] = field(default_factory=list)  # that it took, none less than one before

    def add(self, size: int, seconds: float, measured: int) -> None:
        """A round of batches of ``size`` facts, larger than before, and ``measured`` in all."""
        self.sizes.append(size)
        self.seconds.append(max([seconds, *self.seconds]))
        self.measured = measured

    def batch(self, facts: int) -> float:
        """Seconds to plan for one batch.

        Between two rounds' where it is smaller than the last. Where it is larger, each fact more is taken to need what
        one more has needed between the last two rounds: batches take less and less for each, so that is an upper bound
        but for chance, and at least a quarter of the mean.
        """
        if facts <= 0:
            return 0.0
        size, took = self.sizes[-1], self.seconds[-1]
        if facts > size:
            mean, more = took / size, took / size
            if len(self.sizes) > 1:
                more = (took - self.seconds[-2]) / (size - self.sizes[-2])
            seconds = took + (facts - size) * float(np.clip(more, LEAST * mean, mean))
        else:
            seconds = float(np.interp(facts, self.sizes, self.seconds))
        return float(seconds * (1 + SPREAD / np.sqrt(self.measured)))

    def seconds_of(self, facts: int) -> float:
        """Seconds to plan for a run of so many facts: those of the process that has most to do."""
        parts, rest = divmod(facts, self.part)
        rounds, more = divmod(parts, self.workers)
        # The last part, smaller than others, is made beside them where a process is free.
        return rounds * self.batch(self.part) + (self.batch(self.part) if more else self.batch(rest))

    def fitting(self, left: float, facts: int) -> int:
        """How many of ``facts`` are done in the seconds left, less the margin; 0 where not even one is."""
        return _fitting(self.seconds_of, left, facts)

    def next_size(self, left: float) -> int:
        """Facts of a batch of the next round; 0 where there is no time for a larger one than the last."""
        size = _fitting(self.batch, left, self.part)
        return size if size > self.sizes[-1] else 0


def _fitting(seconds_of: Callable[[int], float], left: float, facts: int) -> int:
    return max(0, bisect_right(range(facts + 1), left * (1 - MARGIN), key=seconds_of) - 1)


def plan_budget(
    budget: Budget,
    crew: Crew,
    facts: Sequence[Fact],
    protocol: Protocol,
    order: Sequence[int] | None = None,
    pacing: Callable[[int], None] = lambda facts: None,
) -> tuple[Plan, list[MasteryRecord]]:
    """Measure rounds of facts, and choose as many more as then fit into the budget, the first of an order.

    Args:
        pacing: called with the facts measured, before the first round and after each.

    Returns:
        The facts chosen, and the records of those that are measured already.

    Raises:
        InputError: not even one fact fits.
    """
    if budget.left <= 0:
        raise InputError(f"budget {duration(budget.seconds)}: the start alone took {_used(budget)}; expected more")
    first = balanced_order([fact.relation for fact in facts], protocol.seed) if order is None else order
    part = crew.spec.part
    workers = crew.pool(-(-len(facts) // part))
    pace = Pace(1 if workers is None else crew.workers, part)

    def ask(batches: Sequence[Sequence[Fact]]) -> list[tuple[float, MasteryRecord]]:
        if workers is None:
            return [_timed(crew.engine, batch, protocol) for batch in batches]
        return list(results(workers[0], _timed_in_worker, [(list(batch), protocol) for batch in batches], None))

    pacing(0)
    begun = measure_pace(budget, ask, [facts[place] for place in first], pace, pacing)
    measured = sum(len(record.columns["fact"]) for record in begun)
    if budget.left < 0 and len(pace.sizes) == 1:
        raise InputError(
            f"budget {duration(budget.seconds)}: too small for one fact, which takes {pace.seconds[0]:.2g} s here, "
            f"{_used(budget)} with the start; expected more"
        )
    count = measured + pace.fitting(budget.left, len(facts) - measured)
    speed = pace.measured / pace.seconds[-1]
    return Plan.of_sample(budget.seconds, facts, count, protocol.seed, speed, order), begun


def _used(budget: Budget) -> str:
    return duration(time.monotonic() - budget.began)


def measure_pace(
    budget: Budget, ask: Ask, facts: Sequence[Fact], pace: Pace, pacing: Callable[[int], None] = lambda facts: None
) -> list[MasteryRecord]:
    """Measure rounds of the first facts, told to ``pace``; their records."""
    begun: list[MasteryRecord] = []
    size, at = 1, 0
    while True:
        some = facts[at : at + size * pace.workers]
        batches = [some[first : first + size] for first in range(0, len(some), size)]
        found = ask(batches)
        begun += [record for _, record in found]
        at += len(some)
        pacing(at)
        pace.add(size, max(seconds for seconds, _ in found), len(some))
        if at >= len(facts) or size >= pace.part:
            return begun
        size = pace.next_size(budget.left)
        if not size:
            return begun


def _timed(engine: LoadedModel | Engine, facts: Sequence[Fact], protocol: Protocol) -> tuple[float, MasteryRecord]:
    began = time.monotonic()
    record = measure_mastery(engine, facts, protocol)
    return time.monotonic() - began, record


def _timed_in_worker(facts: list[Fact], protocol: Protocol) -> tuple[float, MasteryRecord]:
    engine, _ = of_worker()
    return _timed(engine, facts, protocol)
