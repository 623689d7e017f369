"""Three ways to spend draws on facts: all of them, until the level is certain, until it is sure enough.

``full`` makes every draw (the paper). ``exact`` asks prompt after prompt, with all draws of each, and stops a fact
when the draws left cannot change its level: the same levels, always. ``sequential`` makes draws in an order that is
random over prompts and draws, since draws from one prompt are correlated, and stops a fact when the draws made leave
one level plausible.

What ``sequential`` promises, at an error rate e: the draws are a fixed list of which a random part is seen, so
between the levels 1, 2, 3 and 4 an anytime-valid bound holds: the level differs from the one that all draws of this
run would have given with probability at most e, however often one looks (:func:`~.levels.plausible_hits`). Between
levels 0 and 1 no such bound can save draws, because one hit makes the difference and may hide among the last. There
the model's own probabilities decide: at each position of each draw the probability of the answer's first token is
known exactly, which tells how many hits the remaining draws will bring in expectation; a fact without a hit stops
when that expectation is at most :data:`REST` per e. This is an estimate, not a bound, and benchmarks/mastery.py
measures what it costs. An engine that shows no probabilities (a server) draws on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knowshift.models.sampling.philox import stream_key
from knowshift.probing.levels import certain_level, level_of, plausible_hits

Ints = NDArray[np.int64]

STOPPING = ("full", "exact", "sequential")
#: Error rate of ``sequential``; chosen with benchmarks/mastery.py, see docs/mastery.md.
ERROR = 0.2
#: Shares of the draws after which ``sequential`` looks.
LOOKS = (0.14, 0.3, 0.5, 0.75, 1.0)
#: Share of the prompts after which ``exact`` looks first: fewer can decide nothing but by great luck.
FIRST_LOOK = 0.76
#: ``sequential`` calls a fact level 0 when the remaining draws are expected to bring fewer hits than this times e.
REST = 1.0


@dataclass
class Asked:
    """The prompts of some facts, one after the other, and what has been drawn from them."""

    prompts: list[str]
    accepted: list[tuple[str, ...]]
    streams: list[str]
    facts: list[slice]  # the prompts of every fact
    names: list[str]  # fact ids
    draws: int  # of each prompt, at most

    def total(self, fact: int) -> int:
        """Draws that a fact has in all."""
        where = self.facts[fact]
        return int(where.stop - where.start) * self.draws


#: Opens a session on prompts: (prompts, accepted, streams, whether it must last for more than one round).
Open = Callable[[Sequence[str], Sequence[Sequence[str]], Sequence[str], bool], Any]
Found = tuple[NDArray[np.int8], int]  # draws [prompts, draws] as 1, 0 or -1 for not made; positions


def draw_full(open_session: Open, asked: Asked, seed: int, begun: Callable[[int], None]) -> Found:
    """Every draw of every prompt."""
    session = open_session(asked.prompts, asked.accepted, asked.streams, False)
    session.draw([np.arange(asked.draws)] * len(asked.prompts), begun)
    return session.hit, session.positions


def draw_exact(open_session: Open, asked: Asked, seed: int, begun: Callable[[int], None]) -> Found:
    """Prompt after prompt, in one seeded order for all facts, until each fact's level is certain."""
    hit = np.full((len(asked.prompts), asked.draws), -1, dtype=np.int8)
    positions, open_facts = 0, list(range(len(asked.facts)))
    longest = max((where.stop - where.start for where in asked.facts), default=0)
    order = np.random.default_rng([stream_key(seed, "prompts") >> 1, longest]).permutation(longest)
    looks = _looks(longest, (FIRST_LOOK, 0.85, 0.93, 1.0))
    done = 0
    for look in looks:
        chosen: list[int] = []
        for fact in open_facts:
            where = asked.facts[fact]
            # A fact with fewer prompts than others takes its own in the same order, in proportion.
            own = [where.start + int(p) for p in order if p < where.stop - where.start]
            size = len(own)
            chosen += own[-(-done * size // longest) : -(-look * size // longest)]
        chosen.sort()
        session = open_session(
            [asked.prompts[p] for p in chosen],
            [asked.accepted[p] for p in chosen],
            [asked.streams[p] for p in chosen],
            False,
        )
        session.draw([np.arange(asked.draws)] * len(chosen), begun)
        hit[chosen] = session.hit
        positions += session.positions
        open_facts = [fact for fact in open_facts if not _certain(hit, asked, fact)]
        done = look
        if not open_facts:
            break
    return hit, positions


def draw_sequential(
    open_session: Open, asked: Asked, seed: int, begun: Callable[[int], None], error: float = ERROR
) -> Found:
    """Draws in random order over prompts and draws, until one level is plausible for each fact."""
    session = open_session(asked.prompts, asked.accepted, asked.streams, True)
    orders = [
        np.random.default_rng(stream_key(seed, f"{name}/order")).permutation(asked.total(i))
        for i, name in enumerate(asked.names)
    ]
    nothing = np.empty(0, dtype=np.int64)
    open_facts = list(range(len(asked.facts)))
    done = [0] * len(asked.facts)
    for look in LOOKS:
        numbers = [nothing] * len(asked.prompts)
        for fact in open_facts:
            until = -(-round(look * 1000) * asked.total(fact) // 1000)
            pairs = np.sort(orders[fact][done[fact] : until])
            own, first = np.unique(pairs // asked.draws, return_index=True)
            for prompt, draws in zip(own.tolist(), np.split(pairs % asked.draws, first[1:]), strict=True):
                numbers[asked.facts[fact].start + prompt] = draws
            done[fact] = until
        session.draw(numbers, begun)
        open_facts = _unsure(session, asked, open_facts, error)
        if not open_facts:
            break
    return session.hit, session.positions


def _looks(count: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers up to ``count`` at these shares of it, each once."""
    return sorted({min(count, -(-round(share * 1000) * count // 1000)) for share in shares})


def _tally(hit: NDArray[np.int8], where: slice) -> tuple[int, int]:
    rows = hit[where]
    return int((rows == 1).sum()), int((rows >= 0).sum())


def _certain(hit: NDArray[np.int8], asked: Asked, fact: int) -> bool:
    hits, draws = _tally(hit, asked.facts[fact])
    return certain_level(hits, draws, asked.total(fact)) is not None


def _unsure(session: Any, asked: Asked, facts: Sequence[int], error: float) -> list[int]:
    """Those of the facts that need more draws."""
    unsure: list[int] = []
    hitless: list[int] = []
    for fact in facts:
        hits, draws = _tally(session.hit, asked.facts[fact])
        total = asked.total(fact)
        least, most = plausible_hits(hits, draws, total, error)
        if level_of(least, total) != level_of(most, total):
            (hitless if hits == 0 and level_of(most, total) <= 1 else unsure).append(fact)
    if hitless and getattr(session, "expected", None) is not None:
        rest = _rest(session, asked, hitless, REST * error)
        unsure += [fact for fact, more in zip(hitless, rest, strict=True) if not more <= REST * error]
    else:
        unsure += hitless
    return sorted(unsure)


def _rest(session: Any, asked: Asked, facts: Sequence[int], enough: float) -> list[float]:
    """Hits that the draws not yet made of each fact are expected to bring; NaN where the engine cannot tell.

    From the probabilities of the answer's first token; where that comes to more than ``enough``, the rest of the
    answer is looked at too, because a first token that many answers share overstates each of them.
    """
    begun, rates, remaining = [], [], []
    for fact in facts:
        where = asked.facts[fact]
        made = (session.hit[where] >= 0).sum(axis=1)
        own = np.flatnonzero(made)
        begun.append(where.start + own)
        rates.append(session.expected[where][own] / made[own, None])
        remaining.append(asked.total(fact) - int(made.sum()))
    rest = [float(rate.sum(axis=1).mean()) * left for rate, left in zip(rates, remaining, strict=True)]
    long = [i for i, more in enumerate(rest) if more > enough]
    if long:
        ratios = session.direct(np.concatenate([begun[i] for i in long]))
        for i, ratio in zip(long, np.split(ratios, np.cumsum([len(begun[i]) for i in long])[:-1]), strict=True):
            rest[i] = float((rates[i][:, 0] * ratio + rates[i][:, 1]).mean()) * remaining[i]
    return rest
