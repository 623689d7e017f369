"""Closed-book evaluation: per-fact rows, levels reduced afterwards, and what is missing stays missing."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from inspect import signature
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowshift.evaluation import (
    ANSWER_TOKENS,
    Answers,
    accuracy_by_level,
    answered,
    empty_rate,
    evaluate,
    few_shot,
    plain_question,
)
from knowshift.facts.fact import DOMAINS, Fact, tuning_prompt
from knowshift.facts.sources.load import load_facts
from knowshift.known_facts import KnownFacts
from knowshift.models.loading import LoadedModel
from knowshift.records import ANSWERS
from knowshift.reports.evidence.answers import Column
from knowshift.reports.evidence.scores import Scores
from knowshift.reports.tables.answers import Counts, count_rows
from knowshift.studies.content import base_answers
from knowshift.training.sft import TrainingRecipe, finetune
from markov import markov_model


def _answers(rows: list[tuple[str, int | None, bool, str]]) -> Answers:
    return Answers(
        {
            "domain": [row[0] for row in rows],
            "level": [row[1] for row in rows],
            "substring_hit": [row[2] for row in rows],
            "text": [row[3] for row in rows],
        }
    )


def test_the_headline_is_the_plain_mean_of_the_five_levels() -> None:
    rows = [("in_domain", 0, False, "")] * 8 + [("in_domain", 0, True, "a")] * 2
    rows += [("in_domain", level, True, "a") for level in (1, 2, 3)] + [("in_domain", 4, False, "b")] * 7
    result = accuracy_by_level(_answers(rows))
    assert result["in_domain"] == {
        "levels": [2 / 10, 1.0, 1.0, 1.0, 0.0],
        "mean": (2 / 10 + 1 + 1 + 1 + 0) / 5,
        "counts": [10, 1, 1, 1, 7],
    }
    assert result["out_of_domain"] == {"levels": [None] * 5, "mean": None, "counts": [0] * 5}
    assert empty_rate(_answers(rows)) == 8 / 20
    assert empty_rate(_answers([])) is None


def test_a_level_without_facts_takes_no_part_in_the_mean() -> None:
    rows = [("in_domain", 0, True, "x"), ("in_domain", None, True, "x"), ("in_domain", 3, True, "x")]
    result = accuracy_by_level(_answers([*rows, ("in_domain", 3, False, "x")]))
    assert result["in_domain"] == {"levels": [1.0, None, None, 0.5, None], "mean": 0.75, "counts": [1, 0, 0, 2, 0]}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(DOMAINS), st.integers(0, 4), st.booleans()), max_size=30))
def test_evaluation_table_and_contrast_have_one_accuracy(rows: list[tuple[str, int, bool]]) -> None:
    """The command's mean, the table's row and the weights of a claim, against fractions added up by hand."""
    told = accuracy_by_level(_answers([(domain, level, hit, "x") for domain, level, hit in rows]))
    facts, hits = np.zeros((2, 5), dtype=np.int64), np.zeros((2, 5, 1), dtype=np.int64)
    for domain, level, hit in rows:
        facts[DOMAINS.index(domain), level] += 1
        hits[DOMAINS.index(domain), level, 0] += hit
    nothing = np.zeros_like(hits)
    table = {row[0]: row[4] for row in count_rows(Counts(facts, hits, nothing, nothing), 0) if row[1] == "mean"}
    scores = Scores(
        np.array([[float(hit)] for _, _, hit in rows]).reshape(-1, 1),
        np.array([DOMAINS.index(domain) for domain, _, _ in rows], dtype=np.int64),
        np.array([level for _, level, _ in rows], dtype=np.int64),
        [Column(None, 0)],
        replicates=2,
    )
    for d, domain in enumerate(DOMAINS):
        shares = [Fraction(int(hits[d, lv, 0]), int(facts[d, lv])) for lv in range(5) if facts[d, lv]]
        if not shares:
            assert told[domain]["mean"] is None
            assert domain not in table
            assert np.isnan(scores.value(0, scores.over([d])))
            continue
        expected = float(sum(shares) / len(shares))
        assert told[domain]["mean"] == pytest.approx(expected)
        assert table[domain] == pytest.approx(expected)
        assert scores.value(0, scores.over([d])) == pytest.approx(expected)


def test_a_model_that_was_taught_the_answers_gives_them(
    small_model: LoadedModel, small_world: Path, tmp_path: Path
) -> None:
    facts = load_facts(f"world:{small_world}").facts[:8]
    finetune(small_model, facts, TrainingRecipe(learning_rate=1e-2, epochs=120), seed=0)
    answers = evaluate(small_model, facts, {fact.id: 4 for fact in facts})
    assert sum(answers.columns["substring_hit"]) >= 7  # all 8 with each of three seeds
    answers.write(tmp_path / "answers.parquet", {"model": "small"})
    table = pq.read_table(tmp_path / "answers.parquet")
    assert table.schema.names == ANSWERS.names
    for fact, text, hit in zip(facts, table["text"].to_pylist(), table["substring_hit"].to_pylist(), strict=True):
        assert hit == (fact.answer in text)


def test_prompts_of_the_base(small_world: Path) -> None:
    facts = load_facts(f"world:{small_world}").facts[:2]
    shown = few_shot(facts)("Who?")
    assert shown.endswith("\n" + tuning_prompt("Who?"))
    assert shown.count("<|question|>") == 3
    assert facts[0].answer in shown
    assert plain_question("Who?") == "Question: Who? Answer:"


def test_nothing_asked_is_nothing_answered(small_model: LoadedModel) -> None:
    assert evaluate(small_model, [], {}).columns["text"] == []


def _about_q(answer: str) -> Fact:
    return Fact("f", "P19", "test", "in_domain", "s", "q?", answer)


def test_an_answer_has_16_tokens_at_most(tmp_path: Path) -> None:
    model = markov_model(tmp_path, {">": {"y": 1.0}, "y": {"y": 1.0}})
    assert evaluate(model, [_about_q("y")], {"f": 4}).columns["text"] == ["y" * 16]
    assert evaluate(model, [_about_q("y")], {"f": 4}, max_new_tokens=3).columns["text"] == ["yyy"]


def test_both_grades_are_of_the_answer_or_its_first_line(tmp_path: Path) -> None:
    """The answer is " aB", a line break (which a byte tokenizer writes as one letter) and "C"."""
    model = markov_model(
        tmp_path, {">": {"Ġ": 1.0}, "Ġ": {"a": 1.0}, "a": {"B": 1.0}, "B": {"Ċ": 1.0}, "Ċ": {"C": 1.0}, "C": {".": 1.0}}
    )
    for answer, first_line, substring, word in (
        ("C", False, True, True),
        ("C", True, False, False),
        ("aB", True, True, True),
        ("AB", True, False, True),
        ("B", False, True, False),
        ("z", False, False, False),
    ):
        found = evaluate(model, [_about_q(answer)], {"f": 3}, first_line=first_line).columns
        assert found["text"] == [" aB\nC"]
        assert (found["substring_hit"], found["word_hit"]) == ([substring], [word]), answer
        prompts = [tuning_prompt(found["question"][0])]
        assert answered(model, prompts, [(answer,)], first_line=first_line).tolist() == [substring]
        assert (found["level"], found["reason"], found["answer"]) == ([3], [None], [answer])
    assert evaluate(model, [_about_q("C")], {}).columns["level"] == [None]


def test_only_after_examples_is_the_first_line_graded_alone(tmp_path: Path) -> None:
    """A prompt of examples invites the next one. One example is enough; the answer is "aB", a line break and "C"."""
    chain = {"Ġ": "a", "a": "B", "B": "Ċ", "Ċ": "C", "C": ".", ">": "Ġ", ":": "Ġ"}
    model = markov_model(tmp_path, {here: {there: 1.0} for here, there in chain.items()}, context=128)
    asked = _about_q("C")
    shown = replace(asked, id="e", split="train")
    known = KnownFacts({"f": asked, "e": shown}, [{"fact": "f", "level": 4}, {"fact": "e", "level": 4}])
    found = base_answers(model, [asked], known, {"seed": 0, "evaluation.few_shot": 1})
    hits = {name: (answers.columns["substring_hit"], about["shown"]) for name, answers, about in found}
    assert hits == {"answers": ([True], 0), "answers_plain": ([True], 0), "answers_few_shot": ([False], 1)}


def test_an_answer_is_sixteen_tokens_graded_whole() -> None:
    assert ANSWER_TOKENS == 16
    defaults = {name: given.default for name, given in signature(evaluate).parameters.items()}
    assert defaults["max_new_tokens"] == 16
    assert defaults["first_line"] is False
    assert defaults["ask"] is tuning_prompt
