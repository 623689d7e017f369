"""The 24 Wikidata relations of the study, their question patterns and completion prompts.

Relations, their split into in-domain and out-of-domain, and the question patterns: section 2 of the paper, after
EntityQuestions (Sciavolino et al. 2021). Mastery is measured with 21 completion prompts a relation, as in the paper;
the completion prompts and the rewordings in `relations.json` were written by this project and are not the paper's.

P131 and P276 share one question pattern, so a question alone does not name its relation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Literal

SLOT = "{subject}"


@dataclass(frozen=True, slots=True)
class Relation:
    """One relation. Every pattern holds `{subject}` exactly once."""

    id: str  # Wikidata property, "P19"
    name: str  # its English label, "place of birth"
    domain: Literal["in_domain", "out_of_domain"]
    subject_kind: str
    answer_kind: str
    question: str  # the data set's own pattern
    rewordings: tuple[str, ...]  # three other ways of asking
    completions: tuple[str, ...]  # 21 sentence beginnings that " " + answer completes

    def subject_of(self, question: str) -> str | None:
        """The subject of `question`, by exact prefix and suffix; None when it does not fit or the subject is empty."""
        prefix, suffix = self.question.split(SLOT)
        if not (question.startswith(prefix) and question.endswith(suffix)):
            return None
        # Prefix and suffix may overlap in a short question; the slice is then empty.
        return question[len(prefix) : len(question) - len(suffix)] or None


def _load() -> Mapping[str, Relation]:
    """Read `relations.json`, in file order."""
    text = resources.files(__package__).joinpath("relations.json").read_text(encoding="utf-8")
    relations: dict[str, Relation] = {}
    for row in json.loads(text):
        relation = Relation(
            id=row["id"],
            name=row["name"],
            domain=row["domain"],
            subject_kind=row["subject_kind"],
            answer_kind=row["answer_kind"],
            question=row["question"],
            rewordings=tuple(row["rewordings"]),
            completions=tuple(row["completions"]),
        )
        assert relation.id not in relations, relation.id
        relations[relation.id] = relation
    return MappingProxyType(relations)


RELATIONS: Mapping[str, Relation] = _load()
IN_DOMAIN: tuple[str, ...] = tuple(r.id for r in RELATIONS.values() if r.domain == "in_domain")
OUT_OF_DOMAIN: tuple[str, ...] = tuple(r.id for r in RELATIONS.values() if r.domain == "out_of_domain")
