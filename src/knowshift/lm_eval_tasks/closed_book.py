"""What the YAML files name: the documents, the prompt and the grading of closed-book questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from knowshift.errors import InputError
from knowshift.evaluation import plain_question
from knowshift.facts.grading import Grader
from knowshift.facts.sources.load import load_facts

#: The source that the tasks of EntityQuestions take.
SCHEME = "entity-questions"


def documents(source: str | None = None, facts: str | None = None, domain: str | None = None, **_: Any) -> Any:
    """The test facts of a source, a document each: {"test": Dataset}.

    Args:
        source: as in :func:`knowshift.load_facts`; where not given, ``facts``.
        facts: from lm-eval's ``--metadata '{"facts": "entity-questions:PATH"}'``.
        domain: "in_domain" or "out_of_domain"; both where not given.

    Raises:
        InputError: no source, one that cannot be read, or one without such facts.
    """
    from datasets import Dataset

    if source is None:
        if facts is None or facts.partition(":")[0] != SCHEME:
            found = "no facts" if facts is None else f"facts {str(facts)[:200]!r}"
            raise InputError(
                f"EntityQuestions: {found}; expected {SCHEME}:PATH of the official zip or folder "
                f'(lm_eval --metadata \'{{"facts": "{SCHEME}:PATH"}}\', or --facts of an audit)'
            )
        source = facts
    chosen = [fact for fact in load_facts(source).facts if fact.split == "test" and domain in (None, fact.domain)]
    if not chosen:
        raise InputError(f"{source}: no test facts {domain or ''}; expected one at least")
    rows = [
        {
            "fact": fact.id,
            "relation": fact.relation,
            "domain": fact.domain,
            "question": fact.question,
            "answer": fact.answer,
            "accepted": list(fact.accepted),
        }
        for fact in chosen
    ]
    return {"test": Dataset.from_list(rows)}


def prompt(document: Mapping[str, Any]) -> str:
    """The question in a form that base models know."""
    return plain_question(document["question"])


def grades(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1.0 where the text holds an accepted answer, by each rule of :mod:`knowshift.facts.grading`."""
    grader = Grader(document["accepted"], document["fact"])
    return {"substring_hit": float(grader.substring(results[0])), "word_hit": float(grader.word(results[0]))}
