"""One part of the facts by a number that each fact has: how frequent its answer or subject is, how long its answer.

The facts of each mastery level and relation are sorted by the number and cut into equal parts, of which a training set
takes one: so the parts differ neither in how well the base knows the facts nor in what is asked. Facts of equal number
on both sides of a cut are divided by the seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.known_facts import KnownFacts
from knowshift.training.strategy import Draw, Kind, Strategy, setting
from knowshift.tuning.data.filling import filled

#: Beside the study's seed, that of the order of facts of equal number.
_TIES = 12


@dataclass(frozen=True)
class Parted(Strategy):
    """Facts of one part; a subclass says by which number. ``part`` is what a bench varies."""

    kind: ClassVar[Kind] = "data"
    part: int = setting(1, "which of the equal parts, ascending", least=1)
    parts: int = setting(4, "equal parts of the facts of each level and relation", least=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part > self.parts:
            raise InputError(f"{self.name}: part: expected a whole number of 1 to {self.parts}, found {self.part}")

    def numbers(self, known: KnownFacts) -> Mapping[str, int]:
        """The number that each training fact is sorted by, by fact id."""
        raise NotImplementedError

    def facts(self, draw: Draw) -> list[Fact]:
        """Raises :class:`InputError` where the part has fewer facts of a level."""
        kept = part_of(draw.known, self.numbers(draw.known), self.part, self.parts, draw.seed)
        return filled(draw, lambda fact: fact.id in kept, f"{self.name}, part {self.part} of {self.parts}")


def part_of(known: KnownFacts, numbers: Mapping[str, int], part: int, parts: int, seed: int) -> set[str]:
    """The ids of the training facts of one part: of each level and relation the ``part``-th of so many, ascending."""
    groups: dict[tuple[int, str], list[str]] = {}
    for fact in sorted(known.of("train"), key=lambda fact: fact.id):
        groups.setdefault((known.levels[fact.id], fact.relation), []).append(fact.id)
    rng = np.random.default_rng([seed, _TIES])
    kept: set[str] = set()
    for _, ids in sorted(groups.items()):
        ranked = sorted((ids[place] for place in rng.permutation(len(ids))), key=lambda one: numbers[one])
        kept.update(ranked[len(ids) * (part - 1) // parts : len(ids) * part // parts])
    return kept


@dataclass(frozen=True)
class AnswerFrequency(Parted):
    """By how many of the training facts with a mastery record have the answer, of whatever relation."""

    name: ClassVar[str] = "answer-frequency"
    about: ClassVar[str] = "facts with rare, or frequent, answers"
    source: ClassVar[str] = "ours; popularity as in Mallen et al. 2023, arXiv 2212.10511"

    def numbers(self, known: KnownFacts) -> Mapping[str, int]:
        members = known.of("train")
        frequency = Counter(fact.answer for fact in members)
        return {fact.id: frequency[fact.answer] for fact in members}


@dataclass(frozen=True)
class SubjectFrequency(Parted):
    """By how often the pre-training corpus states the fact, which its source must tell.

    An invented subject has one fact, so its exposures are the frequency of the subject. Kandpal et al. count documents
    that name subject and answer; Mallen et al. count views of the subject's page.
    """

    name: ClassVar[str] = "subject-frequency"
    about: ClassVar[str] = "facts about rare, or frequent, subjects, by exposures"
    source: ClassVar[str] = "ours; after Kandpal et al. 2023, arXiv 2211.08411; Mallen et al. 2023, arXiv 2212.10511"

    def numbers(self, known: KnownFacts) -> Mapping[str, int]:
        """Raises :class:`InputError` for a fact without exposures: nothing else tells how rare a subject is."""
        numbers = {}
        for fact in known.of("train"):
            if fact.exposures is None:
                raise InputError(
                    f"{self.name}: fact {fact.id!r} has no number of exposures; expected a world's facts, or a table "
                    "with a column 'exposures'"
                )
            numbers[fact.id] = fact.exposures
        return numbers


@dataclass(frozen=True)
class AnswerLength(Parted):
    """By the number of characters of the answer: facts are chosen without a tokenizer."""

    name: ClassVar[str] = "answer-length"
    about: ClassVar[str] = "facts with short, or long, answers, in characters"
    source: ClassVar[str] = "ours"

    def numbers(self, known: KnownFacts) -> Mapping[str, int]:
        return {fact.id: len(fact.answer) for fact in known.of("train")}
