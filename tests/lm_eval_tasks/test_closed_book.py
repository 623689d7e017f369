"""The tasks of the package, run by lm-eval: the same answers and grades as `knowshift evaluate`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from typer.testing import CliRunner

from knowshift.cli.app import app
from knowshift.errors import InputError
from knowshift.evaluation import evaluate, plain_question
from knowshift.facts.sources.load import load_facts
from knowshift.lm_eval_tasks import FOLDER, names
from knowshift.models.loading import load_model
from small_questions import small_rows, write_zip

FACTS = 100


def manager(**metadata: str) -> TaskManager:
    return TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=metadata)


def test_lm_eval_finds_what_evaluate_finds() -> None:
    loaded = load_model("world:tiny")
    facts = [fact for fact in load_facts("world:tiny").facts if fact.split == "test"][:FACTS]
    ours = evaluate(loaded, facts, {}, ask=plain_question).columns
    model = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=16)
    told = simple_evaluate(
        model, tasks=["knowshift_world_tiny"], task_manager=manager(), limit=FACTS, bootstrap_iters=0
    )
    assert told is not None
    results, samples = told["results"]["knowshift_world_tiny"], told["samples"]["knowshift_world_tiny"]
    assert [sample["doc"]["fact"] for sample in samples] == ours["fact"]
    assert [sample["arguments"][0][0] for sample in samples] == [plain_question(fact.question) for fact in facts]
    assert [sample["resps"][0][0] for sample in samples] == ours["text"]
    for rule in ("substring_hit", "word_hit"):
        assert [bool(sample[rule]) for sample in samples] == ours[rule]
        assert results[f"{rule},none"] == sum(ours[rule]) / FACTS
    assert 0 < results["substring_hit,none"] < 1


def test_entity_questions_come_from_the_path_in_the_metadata(tmp_path: Path) -> None:
    source = f"entity-questions:{write_zip(tmp_path / 'dataset.zip', small_rows())}"
    tasks = manager(facts=source).load(["knowshift_entity_questions"])
    assert tasks["groups"]["knowshift_entity_questions"].has_aggregation
    facts = load_facts(source).facts
    for domain in ("in_domain", "out_of_domain"):
        expected = [fact for fact in facts if fact.split == "test" and fact.domain == domain]
        documents = tasks["tasks"][f"knowshift_entity_questions_{domain}"].eval_docs
        assert documents["fact"] == [fact.id for fact in expected] != []
        assert documents["accepted"] == [list(fact.accepted) for fact in expected]


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, "EntityQuestions: no facts; expected entity-questions:PATH of the official zip or folder"),
        ({"facts": "world:tiny"}, "EntityQuestions: facts 'world:tiny'; expected entity-questions:PATH"),
        ({"facts": "entity-questions:/none.zip"}, "/none.zip"),
    ],
)
def test_a_path_that_is_missing_is_asked_for(metadata: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        manager(**metadata).load(["knowshift_entity_questions"])


def test_every_task_is_in_a_file_of_its_name() -> None:
    assert manager().all_tasks == names()
    assert len(names()) == 5


def test_the_command_prints_the_folder() -> None:
    plain = CliRunner().invoke(app, ["lm-eval-tasks"])
    assert plain.exit_code == 0
    assert plain.stdout == f"{FOLDER}\n"
    told = json.loads(CliRunner().invoke(app, ["lm-eval-tasks", "--json"]).stdout)
    assert told == {"folder": str(FOLDER), "tasks": names()}
