"""A fact, and the two texts every stage makes of it: completion prompts and the fine-tuning prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from knowshift.errors import InputError
from knowshift.facts.asking import QUESTION
from knowshift.facts.relations import RELATIONS

Split = Literal["train", "test"]
Domain = Literal["in_domain", "out_of_domain"]

DOMAINS: tuple[Domain, ...] = ("in_domain", "out_of_domain")
#: Mastery levels, 0 to 4: how well a model knows a fact (paper 2.3).
LEVELS = 5


@dataclass(frozen=True, slots=True)
class Fact:
    """One closed-book question with its answer (paper section 2).

    ``exposures`` is how often a pre-training corpus states the fact; it is known for invented and for
    pre-trained worlds only. ``prompts`` overrides the relation's completion prompts; the subject is filled in already,
    and ``{question}`` in them stands for the question, so that many facts may share one tuple.
    """

    id: str  # unique within a source, e.g. "P19.train.17"
    relation: str
    split: Split
    domain: Domain
    subject: str
    question: str
    answer: str
    aliases: tuple[str, ...] = ()
    exposures: int | None = None
    prompts: tuple[str, ...] = ()

    @property
    def accepted(self) -> tuple[str, ...]:
        """The answer, then its aliases; any of them in a text is a hit."""
        return (self.answer, *self.aliases)


def completion_prompts(fact: Fact) -> tuple[str, ...]:
    """The prompts that mastery samples from: the fact's own, else its relation's 21 with the subject filled in."""
    if fact.prompts:
        return tuple(prompt.replace(QUESTION, fact.question) for prompt in fact.prompts)
    relation = RELATIONS.get(fact.relation)
    if relation is None:
        raise InputError(
            f"fact {fact.id}: relation {fact.relation!r} has no completion prompts and the fact has none; "
            "expected a column 'prompts' in its table"
        )
    return tuple(prompt.replace("{subject}", fact.subject) for prompt in relation.completions)


def tuning_prompt(question: str) -> str:
    """The paper's fine-tuning prompt (section 2.2), without BOS, which the tokenizer adds once."""
    return f"<|question|> {question} <|answer|>"


def tuning_target(answer: str) -> str:
    """What the loss is taken on, without EOS."""
    return f" {answer} "
