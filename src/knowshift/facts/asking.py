"""Completion prompts from users: their slots; and 21 generic ones for questions that belong to no relation."""

from __future__ import annotations

import re
import unicodedata

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
    r"|%s(?!\w)|%\(\w+\)s|\$\{\w*\}|\$(?:subject|question|name|entity)\b"
)

# What stands before an argument in braces: "\\textbf", "\\frac{1}", "x^".
_LATEX = re.compile(r"(?:\\[A-Za-z]+\*?(?:\{[^{}]*\})*|[\^_])$")
_NEAR = 80  # characters before a brace that are looked at

#: As many as a relation has; " " + answer continues each. Written by this project.
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
    """The first placeholder in ``prompt`` that nothing fills in, or None; those of the fact's texts do not count."""
    prompt = _composed(prompt)
    for own in (_composed(question), _composed(subject)):
        if _SLOT.search(own):
            prompt = prompt.replace(own, " ")
    return next((found[0] for found in _SLOT.finditer(prompt) if found[0] not in SLOTS and not _is_markup(found)), None)


def slot_in_question(question: str, subject: str) -> str | None:
    """The first placeholder in ``question``, which has no slots, or None; those in the subject do not count."""
    own = subject.casefold()
    return next(
        (found[0] for found in _SLOT.finditer(question) if found[0].casefold() not in own and not _is_markup(found)),
        None,
    )


def is_filled_in(prompt: str, subject: str, question: str) -> bool:
    """Whether ``prompt`` names the subject or the question in their own words, upper and lower case alike."""
    text = _composed(prompt).casefold()
    return any(_stands_in(_composed(own).casefold(), text) for own in (question, subject))


def _composed(text: str) -> str:
    """The text with every accent in its letter (NFC), so that "Café" is one text however it is stored."""
    return unicodedata.normalize("NFC", text)


def _is_markup(found: re.Match[str]) -> bool:
    """Whether what looks like a slot is an argument in LaTeX, or a tag of XML around a slot or behind one."""
    text, slot = found.string, found[0]
    if slot[0] == "{" and slot not in SLOTS:
        return _LATEX.search(text, max(0, found.start() - _NEAR), found.start()) is not None
    if slot[0] != "<" or not any(known in text for known in SLOTS):
        return False
    return f"</{slot[1:]}" in text or slot == "<answer>"


def _stands_in(name: str, text: str) -> bool:
    """Whether ``name`` is in ``text`` and no part of a longer word there."""
    at = text.find(name)
    while at >= 0:
        end = at + len(name)
        before, after = text[at - 1 : at], text[end : end + 1]
        if (not before.isalnum() or not name[0].isalnum() or unspaced(name[0])) and (
            not after.isalnum() or not name[-1].isalnum() or unspaced(name[-1])
        ):
            return True
        at = text.find(name, at + 1)
    return False
