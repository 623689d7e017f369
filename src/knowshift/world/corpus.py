"""The corpus: every fact stated as often as its exposures say, in many forms, shuffled once.

One sentence in five is a question with its answer, in one of 14 forms and 4 wordings. With a single form a base model
answers that form and fine-tuning on another reaches next to nothing; many forms make answering general. None of them
is the fine-tuning prompt or is set in marks like its own: a base model trained on those would answer it untuned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from knowshift.facts.fact import Fact, completion_prompts
from knowshift.facts.relations import RELATIONS

QUESTION_SHARE = 0.2

#: How a question and its answer are set on the page.
QUESTION_FORMS = (
    "Question: {q} Answer: {a}",
    "Q: {q} A: {a}",
    "{q} {a}.",
    "{q} The answer is {a}.",
    "Quiz: {q} Correct answer: {a}",
    "Someone asked: {q} The reply was {a}.",
    "Here is a question: {q} Here is its answer: {a}",
    "Teacher: {q} Pupil: {a}.",
    "{q} - {a}",
    "Ask: {q} Reply: {a}",
    "Problem. {q} Solution. {a}.",
    "They wondered: {q} It turned out to be {a}.",
    "{q} Surely {a}.",
    "Exam. {q} Key: {a}",
)


def wordings(fact: Fact) -> tuple[str, ...]:
    """The four ways to ask for a fact: the data set's question and three rewordings."""
    relation = RELATIONS[fact.relation]
    return (fact.question, *(text.replace("{subject}", fact.subject) for text in relation.rewordings))


def sentences(facts: Sequence[Fact], seed: int) -> Iterator[str]:
    """Every sentence of the corpus in its shuffled order; a fact occurs exactly ``exposures`` times."""
    rng = np.random.default_rng([seed, 3])
    exposures = np.array([fact.exposures or 0 for fact in facts])
    order = np.repeat(np.arange(len(facts)), exposures)
    rng.shuffle(order)
    asks = rng.random(len(order)) < QUESTION_SHARE
    # One draw per sentence, reduced by the number of choices: prompts differ in number between facts of a user's own.
    ways = rng.integers(1 << 30, size=(len(order), 2))
    for index, ask, (first, second) in zip(order.tolist(), asks.tolist(), ways.tolist(), strict=True):
        fact = facts[index]
        if ask:
            asked = wordings(fact)
            form = QUESTION_FORMS[first % len(QUESTION_FORMS)]
            yield form.replace("{q}", asked[second % len(asked)]).replace("{a}", fact.answer)
        else:
            prompts = completion_prompts(fact)
            yield f"{prompts[first % len(prompts)]} {fact.answer}."
