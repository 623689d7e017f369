"""The relation table: its shape, its wording rules, and that question patterns invert."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowshift.facts.relations import IN_DOMAIN, OUT_OF_DOMAIN, RELATIONS, SLOT, Relation

EACH = pytest.mark.parametrize("relation", RELATIONS.values(), ids=RELATIONS.keys())


def test_ids_and_order_are_the_papers() -> None:
    assert IN_DOMAIN == ("P17", "P19", "P20", "P36", "P69", "P131", "P159", "P276", "P495", "P740")
    assert " ".join(OUT_OF_DOMAIN) == "P26 P40 P50 P106 P112 P127 P136 P170 P175 P176 P264 P407 P413 P800"
    assert tuple(RELATIONS) == IN_DOMAIN + OUT_OF_DOMAIN
    assert {r.domain for r in RELATIONS.values()} == {"in_domain", "out_of_domain"}
    assert all(key == relation.id for key, relation in RELATIONS.items())


def test_table_and_rows_are_read_only() -> None:
    with pytest.raises(TypeError):
        RELATIONS["P1"] = RELATIONS["P19"]  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        RELATIONS["P19"].name = "x"  # type: ignore[misc]


@EACH
def test_counts_and_wording_rules(relation: Relation) -> None:
    assert len(relation.completions) == 21
    assert len(relation.rewordings) == 3
    for text in (relation.question, *relation.rewordings, *relation.completions):
        assert text.count(SLOT) == 1
        assert text == " ".join(text.split())
        assert "<|question|>" not in text
        assert "<|answer|>" not in text
    for asked in (relation.question, *relation.rewordings):
        assert asked.endswith("?")
    for beginning in relation.completions:
        assert beginning[-1].isalpha() or beginning.endswith(SLOT)
        words = beginning.lower().split()
        assert not {"he", "she", "his", "her", "him", "hers"} & set(words), "presupposes gender"
        assert words[-1] not in {"a", "an", "the"}, "a dangling article fits only some answers"


def test_only_the_official_shared_question_repeats() -> None:
    seen = Counter(text.lower() for r in RELATIONS.values() for text in (r.question, *r.rewordings, *r.completions))
    assert len(seen) == 24 * 25 - 1
    assert {text for text, count in seen.items() if count > 1} == {"where is {subject} located?"}
    assert RELATIONS["P131"].question == RELATIONS["P276"].question


@EACH
@given(subject=st.text(min_size=1))
def test_question_inverts_to_its_subject(relation: Relation, subject: str) -> None:
    assert relation.subject_of(relation.question.replace(SLOT, subject)) == subject


@EACH
def test_what_does_not_fit_has_no_subject(relation: Relation) -> None:
    question = relation.question.replace(SLOT, "Ada")
    assert relation.subject_of(question) == "Ada"
    assert relation.subject_of(relation.question.replace(SLOT, "")) is None
    assert relation.subject_of(question + " ") is None
    assert relation.subject_of(" " + question) is None
    assert relation.subject_of("") is None


def test_overlapping_prefix_and_suffix_have_no_subject() -> None:
    relation = dataclasses.replace(RELATIONS["P19"], question="was {subject} was")
    assert relation.subject_of("was was") is None
    assert relation.subject_of("was  was") is None


def test_questions_of_the_data_set() -> None:
    asked = "Where was Henry Howard, 19th Earl of Suffolk educated?"
    assert RELATIONS["P69"].subject_of(asked) == "Henry Howard, 19th Earl of Suffolk"
    assert RELATIONS["P40"].subject_of("Who is Charles I of England's child?") == "Charles I of England"
    assert RELATIONS["P19"].subject_of(asked) is None
