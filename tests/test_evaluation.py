"""Closed-book evaluation: per-fact rows, levels reduced afterwards, and what is missing stays missing."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from knowshift.evaluation import Answers, accuracy_by_level, empty_rate, evaluate, few_shot, plain_question
from knowshift.facts.fact import tuning_prompt
from knowshift.facts.sources import load_facts
from knowshift.finetune.training import TrainingRecipe, finetune
from knowshift.models.loading import LoadedModel
from knowshift.records import ANSWERS


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


def test_a_level_without_facts_leaves_the_mean_open() -> None:
    result = accuracy_by_level(_answers([("in_domain", 0, True, "x"), ("in_domain", None, True, "x")]))
    assert result["in_domain"]["levels"] == [1.0, None, None, None, None]
    assert result["in_domain"]["mean"] is None


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
