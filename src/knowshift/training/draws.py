"""Drawing training sets of one mastery level, balanced over relations (paper 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, zip_longest

import numpy as np

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.known_facts import KnownFacts


def draw_training_set(known: KnownFacts, *, level: int, size: int | None, draw: int, seed: int) -> list[Fact]:
    """The facts of one training set, in training order: of the training split, and of one mastery level.

    Relations take turns in a random order, each giving its next random fact, until ``size`` is reached; a relation
    that has run out is passed over. Sets of one ``(level, draw, seed)`` are nested: the 240 are among the 960, so that
    sizes are compared within a draw. Which fact is drawn depends on the ids, not on the order of the record.

    Args:
        size: number of facts; None for all of the level.
        draw: number of the random draw, from 0.

    Raises:
        InputError: more facts asked than the level has.
    """
    queues: dict[str, list[Fact]] = {}
    for fact in sorted(known.of("train", level), key=lambda fact: fact.id):
        queues.setdefault(fact.relation, []).append(fact)
    available = sum(len(queue) for queue in queues.values())
    if size is None:
        size = available
    if size > available or available == 0:
        raise InputError(f"level {level}: {size} training facts asked, {available} available")
    rng = np.random.default_rng([seed, level, draw])
    shuffled = [[queues[name][i] for i in rng.permutation(len(queues[name]))] for name in sorted(queues)]
    chosen: list[Fact] = []
    turn = 0
    while len(chosen) < size:
        for index in rng.permutation(len(shuffled)):
            if turn < len(shuffled[index]) and len(chosen) < size:
                chosen.append(shuffled[index][turn])
        turn += 1
    return chosen


def draw_mixed_set(known: KnownFacts, *, levels: Sequence[int], size: int, draw: int, seed: int) -> list[Fact]:
    """A training set of several mastery levels, in training order: the levels take turns.

    Each gives the facts of its own set of the same ``draw`` in their order (:func:`draw_training_set`), so that what a
    mixed set holds of a level is the beginning of that level's set; a level that has run out is passed over.

    Raises:
        InputError: more facts asked than the levels have together.
    """
    sets = [
        draw_training_set(known, level=level, size=None, draw=draw, seed=seed)
        for level in levels
        if known.of("train", level)
    ]
    available = sum(map(len, sets))
    if size > available:
        raise InputError(f"levels {list(levels)}: {size} training facts asked, {available} available")
    turns = (fact for turn in zip_longest(*sets) for fact in turn if fact is not None)
    return list(islice(turns, size))


def level_counts(levels: Sequence[int]) -> list[int]:
    """Facts of each level 0..4."""
    return [sum(1 for level in levels if level == wanted) for wanted in range(5)]
