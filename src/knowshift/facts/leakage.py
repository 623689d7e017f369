"""How much of the test set also stands in the training set: whole questions, and answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from knowshift.facts.fact import Fact

#: A relation, a question, its answers.
Row = tuple[str, str, tuple[str, ...]]


@dataclass(frozen=True)
class Leakage:
    """Counts over the distinct in-domain test questions, each counted once however often it stands in the test set."""

    test_questions: int
    questions: int  # of these, how many also stand in the training rows of the same relation
    answer_overlap: (
        float | None
    )  # share with an answer that the same relation's training rows also give; None if no test


def measure(test: Iterable[Row], train: Iterable[Row]) -> Leakage:
    """Leakage from training rows into test rows, both of one domain. Questions are compared as written."""
    asked: set[str] = set()
    questions: set[tuple[str, str]] = set()
    answers: set[tuple[str, str]] = set()
    for relation, question, given in train:
        questions.add((relation, question))
        answers.update((relation, answer) for answer in given)
    leaked = overlapping = 0
    for relation, question, given in test:
        if question in asked:
            continue
        asked.add(question)
        leaked += (relation, question) in questions
        overlapping += any((relation, answer) in answers for answer in given)
    return Leakage(len(asked), leaked, overlapping / len(asked) if asked else None)


def leakage(facts: Iterable[Fact]) -> Leakage:
    """Leakage among in-domain facts. Answers are compared without their aliases."""
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    for fact in facts:
        if fact.domain == "in_domain":
            rows[fact.split].append((fact.relation, fact.question, (fact.answer,)))
    return measure(rows["test"], rows["train"])


def without_leaked(facts: tuple[Fact, ...]) -> tuple[Fact, ...]:
    """Drop every test fact, of either domain, whose question is asked in training, under whatever relation.

    Wider than :class:`Leakage` counts: a model reads the question, not the relation, and P131 and P276 ask alike.
    """
    trained = {fact.question for fact in facts if fact.split == "train"}
    return tuple(fact for fact in facts if fact.split == "train" or fact.question not in trained)
