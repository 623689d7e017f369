"""Closed-book evaluation: greedy answers to the fine-tuning prompt, graded per fact, reduced by level afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knowshift.facts.fact import DOMAINS, Fact, tuning_prompt, tuning_target
from knowshift.facts.grading import Grader, substring_hit
from knowshift.models.loading import LoadedModel
from knowshift.models.sampling.session import greedy
from knowshift.records import ANSWERS, write_table
from knowshift.statistics.accuracy import domain_accuracy

#: Tokens of an answer at most (paper 2.2).
ANSWER_TOKENS = 16

Ask = Callable[[str], str]


def plain_question(question: str) -> str:
    """A form that base models know: facts answered here alone are lost to the form of the fine-tuning prompt."""
    return f"Question: {question} Answer:"


def few_shot(examples: Sequence[Fact]) -> Ask:
    """The fine-tuning prompt after answered examples in the same form, one a line."""
    shown = "".join(f"{tuning_prompt(fact.question)}{tuning_target(fact.answer).rstrip()}\n" for fact in examples)
    return lambda question: shown + tuning_prompt(question)


@dataclass(frozen=True)
class Answers:
    """Columns of ``records.ANSWERS``, in the order of the facts asked."""

    columns: dict[str, list[Any]]

    def write(self, path: Path, about: Mapping[str, Any]) -> None:
        write_table(path, ANSWERS, self.columns, about)


def evaluate(
    loaded: LoadedModel,
    facts: Sequence[Fact],
    levels: Mapping[str, int],
    *,
    ask: Ask = tuning_prompt,
    first_line: bool = False,
    max_new_tokens: int = ANSWER_TOKENS,
) -> Answers:
    """Greedy answers of one model to the facts' questions (paper 2.2).

    Args:
        levels: the *base* model's mastery level by fact id.
        ask: turns a question into the prompt.
        first_line: grade only what stands before a line break, where a prompt of examples invites the next example.

    A question whose prompt does not fit into the model's context is kept with a reason, and does not count as wrong.

    Raises:
        InputError: an answer that cannot be graded, or a prompt with a token that the model has no embedding for.
    """
    graders = [Grader.of(fact) for fact in facts]  # before the model's work: an answer that cannot be graded is refused
    prompts = [ask(fact.question) for fact in facts]
    reasons = _unanswerable(loaded, prompts, max_new_tokens)
    fitting = [prompt for prompt, reason in zip(prompts, reasons, strict=True) if reason is None]
    answered = iter(greedy(loaded, fitting, max_new_tokens=max_new_tokens) if fitting else [])
    texts = [next(answered) if reason is None else None for reason in reasons]

    def grade(rule: Callable[[Grader, str], bool]) -> list[bool | None]:
        return [
            None if text is None else rule(grader, _counted(text, first_line))
            for grader, text in zip(graders, texts, strict=True)
        ]

    return Answers(
        {
            "fact": [fact.id for fact in facts],
            "relation": [fact.relation for fact in facts],
            "split": [fact.split for fact in facts],
            "domain": [fact.domain for fact in facts],
            "level": [levels.get(fact.id) for fact in facts],
            "question": [fact.question for fact in facts],
            "answer": [fact.answer for fact in facts],
            "text": texts,
            "substring_hit": grade(Grader.substring),
            "word_hit": grade(Grader.word),
            "reason": reasons,
        }
    )


def _counted(text: str, first_line: bool) -> str:
    """What of an answer is graded."""
    return text.lstrip().split("\n")[0] if first_line else text


def answered(
    loaded: LoadedModel,
    prompts: Sequence[str],
    accepted: Sequence[Sequence[str]],
    *,
    first_line: bool = False,
    max_new_tokens: int = ANSWER_TOKENS,
) -> NDArray[np.bool_]:
    """Whether each greedy answer holds an accepted one, by the substring rule (paper 2.3): bool [prompts].

    Raises:
        InputError: an answer that cannot be graded, a prompt that does not fit.
    """
    texts = greedy(loaded, prompts, max_new_tokens=max_new_tokens)
    hits = [substring_hit(_counted(text, first_line), own) for text, own in zip(texts, accepted, strict=True)]
    return np.array(hits, dtype=bool)


def _unanswerable(loaded: LoadedModel, prompts: Sequence[str], max_new_tokens: int) -> list[str | None]:
    """Why each prompt cannot be answered; None where it can."""
    room = loaded.context
    reasons: list[str | None] = [None] * len(prompts)
    doubtful = [i for i, prompt in enumerate(prompts) if loaded.encoder.may_not_fit(prompt, max_new_tokens)]
    for i, ids in zip(doubtful, loaded.encoder.prompts([prompts[i] for i in doubtful]), strict=True):
        if room is not None and len(ids) + max_new_tokens > room:
            reasons[i] = (
                f"prompt of {len(ids)} tokens and {max_new_tokens} new ones do not fit into a context of {room}"
            )
    return reasons


def accuracy_by_level(answers: Answers, grade: str = "substring_hit") -> dict[str, dict[str, Any]]:
    """Accuracy of each domain: ``levels`` [a0..a4], their plain ``mean`` (the paper's headline), ``counts`` [n0..n4].

    Fractions of 1. A level without facts is None and takes no part in the mean (:func:`domain_accuracy`).
    """
    columns = answers.columns
    result: dict[str, dict[str, Any]] = {}
    for domain in DOMAINS:
        counts, hits = [0] * 5, [0] * 5
        for its_domain, level, hit in zip(columns["domain"], columns["level"], columns[grade], strict=True):
            if its_domain == domain and level is not None and hit is not None:
                counts[level] += 1
                hits[level] += bool(hit)
        shares = [hit / count if count else None for hit, count in zip(hits, counts, strict=True)]
        result[domain] = {"levels": shares, "mean": domain_accuracy(hits, counts), "counts": counts}
    return result


def empty_rate(answers: Answers) -> float | None:
    """Share of answers without text: the model lost the form rather than the knowledge. None without answers."""
    texts = [text for text in answers.columns["text"] if text is not None]
    return sum(1 for text in texts if not text.strip()) / len(texts) if texts else None
