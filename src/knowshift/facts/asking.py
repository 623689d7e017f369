"""Completion prompts of one's own: their slots, and 21 for questions that belong to no relation."""

from __future__ import annotations

import re

from knowshift.facts.relations import SLOT
from knowshift.facts.words import unspaced

#: Stands for the question in a prompt of :class:`~knowshift.facts.fact.Fact`.
QUESTION = "{question}"

#: The slots of a prompt.
SLOTS = (SLOT, QUESTION)

# What looks like a slot: braces round a name, a number or nothing, and what other tools and data sets fill in.
_SLOT = re.compile(
    r"\{\{[^{}]*\}\}|\{[\w .-]*(?:[!:\[][^{}\s]*)?\}"  # {{subject}}, {Subject}, {0}, {}, {subject!r}
    r"|\[(?:[XYZ]|(?i:subject|sub|object|obj|answer|question|name|entity|blank|mask))\]"  # [X] of LAMA
    r"|<(?i:subject|sub|object|obj|answer|question|name|entity|blank|mask)>"
    r"|%s|%\(\w+\)s|\$\{\w*\}|\$(?:subject|question|name|entity)\b"
)

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


def unknown_slot(prompt: str, subject: str, question: str) -> str | None:
    """The first placeholder in ``prompt`` that nothing fills in, or None; what the fact's own texts hold is theirs."""
    for own in (question, subject):
        if _SLOT.search(own):
            prompt = prompt.replace(own, " ")
    return next((found[0] for found in _SLOT.finditer(prompt) if found[0] not in SLOTS), None)


def is_filled_in(prompt: str, subject: str, question: str) -> bool:
    """Whether ``prompt`` names the subject or the question in their own words, upper and lower case alike."""
    return any(_stands_in(own.casefold(), prompt.casefold()) for own in (question, subject))


def _stands_in(name: str, text: str) -> bool:
    """Whether ``name`` is in ``text`` and no part of a longer word there."""
    at = text.find(name)
    while at >= 0:
        before, after = text[:at][-1:], text[at + len(name) :][:1]
        if (not before.isalnum() or not name[0].isalnum() or unspaced(name[0])) and (
            not after.isalnum() or not name[-1].isalnum() or unspaced(name[-1])
        ):
            return True
        at = text.find(name, at + 1)
    return False
