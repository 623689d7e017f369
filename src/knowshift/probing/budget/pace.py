"""How many facts fit into a budget: a few are measured as the run will measure them, and the rest is arithmetic.

What is measured here is thrown away. A fact's row depends, but for rounding, on nothing else, and the parts of the run
are then those of a run of the chosen facts without a budget.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.models.loading import LoadedModel
from knowshift.probing.budget.plan import Budget, Plan, balanced_order
from knowshift.probing.crew import Crew, of_worker
from knowshift.probing.measure import Engine, Protocol, measure_mastery
from knowshift.system.progress import duration
from knowshift.system.workers import results

#: Share of a budget that the pace is measured for, but at least until one fact is known.
SHARE = 0.1
#: Share of the time then left that is kept back.
MARGIN = 0.15
#: Facts differ in what they take: the standard deviation is taken to be half of the mean, so that the pace of k facts
#: is taken to be slower by 0.5 / sqrt(k) than they were.
SPREAD = 0.5

#: Measures a batch of facts in each process; the seconds that each took.
Ask = Callable[[Sequence[Sequence[Fact]]], list[float]]


@dataclass(frozen=True)
class Pace:
    """What a fact takes, and how the run shares facts out: parts of ``part`` facts to ``workers`` processes."""

    seconds: float  # of one process for one fact, in the last and largest batch
    measured: int  # facts in that batch, over all processes
    workers: int
    part: int

    def alone(self, facts: int) -> int:
        """How many of so many facts the busiest process measures."""
        parts, rest = divmod(facts, self.part)
        rounds, more = divmod(parts, self.workers)
        # The last part, smaller than others, is made beside them where a process is free.
        return rounds * self.part + (self.part if more else rest)

    def seconds_of(self, facts: int) -> float:
        """Seconds to plan for so many facts."""
        return self.alone(facts) * self.seconds * (1 + SPREAD / math.sqrt(self.measured))

    def fitting(self, left: float, facts: int) -> int:
        """How many of ``facts`` are done in the seconds left, less the margin; 0 where not even one is."""
        return max(0, bisect_right(range(facts + 1), left * (1 - MARGIN), key=self.seconds_of) - 1)


def plan_budget(
    budget: Budget, crew: Crew, facts: Sequence[Fact], protocol: Protocol, order: Sequence[int] | None = None
) -> Plan:
    """Measure the pace, and choose as many facts as fit into what is then left of the budget, the first of an order.

    Raises:
        InputError: not even one fact fits.
    """
    if budget.left <= 0:
        took = duration(budget.seconds - budget.left)
        raise InputError(f"budget {duration(budget.seconds)}: the start alone took {took}; expected more")
    part = crew.spec.part
    workers = crew.pool(-(-len(facts) // part))
    if workers is None:

        def ask(batches: Sequence[Sequence[Fact]]) -> list[float]:
            return [_seconds(crew.engine, batch, protocol) for batch in batches]

        pace = measure_pace(budget, ask, facts, protocol.seed, 1, part, order)
    else:
        pool, _ = workers
        pace = measure_pace(budget, _ask_in(pool, protocol), facts, protocol.seed, crew.workers, part, order)
    left = budget.left
    count = pace.fitting(left, len(facts))
    if not count:
        needed = budget.seconds - left + pace.seconds_of(1) / (1 - MARGIN)
        raise InputError(
            f"budget {duration(budget.seconds)}: too small for one fact, which takes {pace.seconds:.2g} s here, "
            f"after {duration(budget.seconds - left)} to start and to measure that; expected about {duration(needed)} "
            "at least"
        )
    speed = count / (pace.alone(count) * pace.seconds)
    return Plan.of_sample(budget.seconds, facts, count, protocol.seed, speed, order)


def measure_pace(
    budget: Budget,
    ask: Ask,
    facts: Sequence[Fact],
    seed: int,
    workers: int,
    part: int,
    order: Sequence[int] | None = None,
) -> Pace:
    """Measure batches, each twice the last, of the facts that a budget takes first.

    The first batch is a warm-up too. A fact takes less in a large batch, as those of the run are, so the last counts.
    """
    if order is None:
        order = balanced_order([fact.relation for fact in facts], seed)
    size, at, spent = 1, 0, 0.0
    while True:
        some = order[at : at + size * workers]
        batches = [[facts[place] for place in some[first : first + size]] for first in range(0, len(some), size)]
        took = ask(batches)
        spent += max(took)
        measured = sum(map(len, batches))
        pace = Pace(sum(took) / measured, measured, workers, part)
        at += size * workers
        size *= 2
        enough = pace.fitting(budget.left, len(facts)) == len(facts)
        if enough or at >= len(facts) or size > part or spent + 2 * max(took) > SHARE * budget.seconds:
            return pace


def _seconds(engine: LoadedModel | Engine, facts: Sequence[Fact], protocol: Protocol) -> float:
    began = time.monotonic()
    measure_mastery(engine, facts, protocol)
    return time.monotonic() - began


def _ask_in(pool: ProcessPoolExecutor, protocol: Protocol) -> Ask:
    def ask(batches: Sequence[Sequence[Fact]]) -> list[float]:
        return list(results(pool, _seconds_in_worker, [(list(batch), protocol) for batch in batches], None))

    return ask


def _seconds_in_worker(facts: list[Fact], protocol: Protocol) -> float:
    engine, _ = of_worker()
    return _seconds(engine, facts, protocol)
