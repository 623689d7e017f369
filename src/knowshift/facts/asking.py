"""Completion prompts for questions that belong to no relation: 21 ways to lead up to an answer, for any question."""

from __future__ import annotations

#: Stands for the question in a prompt of :class:`~knowshift.facts.fact.Fact`.
QUESTION = "{question}"

#: As many as a relation has. Each ends where " " + answer goes on; written by this project.
GENERIC: tuple[str, ...] = (
    "Question: {question}\nAnswer:",
    "Q: {question}\nA:",
    "Question: {question} Answer:",
    "Q: {question} A:",
    "{question}\nAnswer:",
    "{question} The answer is",
    "{question}\nThe answer is",
    "{question} The correct answer is",
    "{question}\nThe correct answer:",
    'The answer to the question "{question}" is',
    'The correct answer to "{question}" is',
    'When asked "{question}", the right thing to say is',
    'To the question "{question}" the short answer is',
    'Somebody wanted to know: "{question}" They were told that it is',
    "Trivia question: {question}\nTrivia answer:",
    "Quiz question: {question}\nSolution:",
    "The quiz asked: {question} The right answer was",
    "Here is a question and its answer.\nQuestion: {question}\nAnswer:",
    "Answer the following question.\n{question}\nAnswer:",
    "A short answer to a question of general knowledge.\nQuestion: {question}\nShort answer:",
    "I was asked: {question} I answered:",
)
