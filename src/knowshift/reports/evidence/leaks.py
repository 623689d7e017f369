"""Which questions and answers of the test facts stand in the training facts, for every tuned model.

The records of a study name the training facts of a model by their ids alone. What these facts say is read from the
study's source of facts, if that is here and holds, by the digest in the manifest, the facts of then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.facts.sources.fetching import cached_entity_questions
from knowshift.facts.sources.load import load_facts
from knowshift.reports.evidence.answers import Column, RecordedAnswers
from knowshift.reports.evidence.run_folder import Run, read_cell_json

Bools = NDArray[np.bool_]

#: The test facts that are asked in a comparison, by what a model's training set (or the training split) holds of them.
ASKED = ("all", "answer_not_trained", "answer_trained", "question_not_trained")


@dataclass(frozen=True)
class Leaks:
    """Of every test fact (F of them), whether its answer and its question were trained; empty where that is not known.

    Answers and questions are compared as written, without aliases, and under whatever relation: a model reads and
    writes texts.
    """

    answer: Mapping[Column, Bools] = field(default_factory=dict)  # among the answers of the model's own training set
    question: Bools = field(default_factory=lambda: np.zeros(0, np.bool_))  # in the training split of the source
    unknown: str = ""  # why it is not known

    def inside(self, asked: str, models: Sequence[Column]) -> Bools:
        """The test facts of one of :data:`ASKED`, for each of several models at once."""
        answers = np.stack([self.answer[model] for model in models])
        found: dict[str, Bools] = {
            "all": np.ones_like(self.question),
            "answer_not_trained": np.asarray(~answers.any(axis=0)),
            "answer_trained": np.asarray(answers.all(axis=0)),
            "question_not_trained": ~self.question,
        }
        return found[asked]


def read_leaks(run: Run, answers: RecordedAnswers) -> Leaks:
    """Read the study's facts and what each model was tuned on."""
    try:
        facts = _facts(run)
    except InputError as error:
        return Leaks(unknown=str(error))
    trained = {(cell.setting, cell.draw): read_cell_json(cell, "record.json")["facts"] for cell in run.of("tuned")}
    named = answers.rows(0, list(answers.facts))
    gold = np.asarray([named[fact]["answer"] for fact in answers.facts], dtype=np.str_)
    asked = {fact.question for fact in facts.values() if fact.split == "train"}
    found: dict[Column, Bools] = {}
    for column in answers.columns:
        if column.setting is None or column.criterion or (column.setting, column.draw) not in trained:
            continue
        ids = trained[column.setting, column.draw]
        missing = next((name for name in ids if name not in facts), None)
        if missing is not None:
            return Leaks(unknown=f"{run.path}: a model was trained on fact {missing!r}, which the source has not")
        found[column] = np.isin(gold, np.asarray(sorted({facts[name].answer for name in ids}), dtype=np.str_))
    question = np.asarray([named[fact]["question"] in asked for fact in answers.facts], dtype=np.bool_)
    return Leaks(found, question)


def _facts(run: Run) -> Mapping[str, Fact]:
    """The facts of the study's source, by id; an InputError says why they cannot be had. The network is not asked."""
    name, told = run.config.get("facts"), run.manifest.get("source")
    digest = told.get("digest") if isinstance(told, dict) else None
    if not isinstance(name, str) or not isinstance(digest, str):
        raise InputError("the manifest names no source of facts with its digest")
    if name == "entity-questions" and cached_entity_questions() is None:
        raise InputError("entity-questions is not in the cache of this machine (knowshift facts entity-questions)")
    try:
        source = load_facts(name)
    except InputError:  # which would tell what lies at a path that somebody else's run names
        raise InputError(f"the facts {name} are not at hand") from None
    if source.digest() != digest:
        raise InputError(f"{source.name} holds other facts now (digest {source.digest()}) than the study's ({digest})")
    return {fact.id: fact for fact in source.facts}
