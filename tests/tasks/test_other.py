"""Tasks by name: lm-eval's own numbers, and what is refused in one line before anything is measured."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from knowshift.errors import InputError
from knowshift.facts.sources.load import load_facts
from knowshift.lm_eval_tasks import FOLDER
from knowshift.models.loading import LoadedModel, load_model
from knowshift.records import TASKS, as_table
from knowshift.tasks.harness import check_names, choose_documents
from knowshift.tasks.other import HarnessTask, check_tasks, columns_of, read_tasks

TASK = "knowshift_world_tiny"


def test_a_task_of_lm_eval_has_its_scores() -> None:
    base, source = load_model("world:tiny"), load_facts("world:tiny")
    tasks = read_tasks(["completion", TASK, "text_loss"], limit=12, seed=3, source="world:tiny", facts=source.facts)
    measured = [one for task in tasks for one in task.measure(base)]
    names = [(one.task, one.metric) for one in measured]
    assert names == [
        ("text_loss", "nats_per_token"),
        ("completion", "accuracy"),
        (TASK, "substring_hit"),
        (TASK, "word_hit"),
    ]
    chosen = [int(item) for item in measured[-1].items]
    model = HFLM(pretrained=base.model, tokenizer=base.tokenizer, batch_size=8)
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False)
    told = simple_evaluate(model, tasks=[TASK], task_manager=manager, samples={TASK: chosen}, bootstrap_iters=0)
    assert told is not None
    samples = told["samples"][TASK]
    for one in measured[2:]:
        assert one.score == told["results"][TASK][f"{one.metric},none"]
        assert one.values == [float(sample[one.metric]) for sample in samples]
        assert one.texts == [sample["resps"][0][0] for sample in samples]
        assert one.higher_is_better
        assert 0 < one.score < 1
    table = as_table(TASKS, columns_of(measured, {"criterion": "random", "fraction": "0.2"}))
    assert len(table) == 4 * 12
    assert set(table["fraction"].to_pylist()) == {"0.2"}


#: Two-way questions; F1 is of all documents alone, and the points of a document are no number.
MADE = """
from datasets import Dataset

def documents(**_):
    rows = [{"question": f"Is {i} even?", "options": ["yes", "no"], "answer": i % 2} for i in range(30)]
    return {"test": Dataset.from_list(rows)}

def wide(doc, results):
    return {"points": [1.0]}
"""
YAML = """
task: made
custom_dataset: !function made.documents
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: options
"""
COUNTED = "metric_list: [{metric: f1, aggregation: f1}, {metric: acc, aggregation: mean, higher_is_better: true}]\n"
POINTS = "process_results: !function made.wide\nmetric_list: [{metric: points, aggregation: mean}]\n"


def made(folder: Path, metrics: str) -> HarnessTask:
    (folder / "made.py").write_text(MADE)
    (folder / "made.yaml").write_text(YAML + metrics)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    (leaf,) = choose_documents([manager.load(["made"])["tasks"]["made"]], 20, 1)
    return HarnessTask(leaf, 1)


def test_a_metric_of_all_documents_has_no_number_of_one(tmp_path: Path, small_model: LoadedModel) -> None:
    f1, acc = made(tmp_path, COUNTED).measure(small_model)
    assert (f1.metric, acc.metric) == ("f1", "acc")
    assert f1.values == [None] * 20
    assert acc.score == sum(v for v in acc.values if v) / 20
    assert 0 <= f1.score <= 1
    assert f1.texts == [None] * 20  # what is asked as a loglikelihood writes nothing


def test_a_metric_that_is_no_number_is_refused_in_one_line(tmp_path: Path, small_model: LoadedModel) -> None:
    with pytest.raises(InputError, match=r"^restoration\.tasks made: ") as told:
        made(tmp_path, POINTS).measure(small_model)
    assert "\n" not in str(told.value)


#: Asked in one process of its own: the list of all of lm-eval's tasks takes seconds.
REFUSED = {
    "gsm8q": "restoration.tasks 'gsm8q': lm-eval knows no such task; nearest: gsm8k",
    "text_los": "restoration.tasks 'text_los': lm-eval knows no such task; nearest: text_loss",
    "humaneval": "restoration.tasks humaneval: humaneval runs code of the model",
    "gsm8k": "",
}


def test_unknown_tasks_are_refused_with_the_nearest_name() -> None:
    code = (
        "import sys\nfrom knowshift.tasks.other import check_tasks\nfrom knowshift.errors import InputError\n"
        "for name in sys.argv[1:]:\n try: print(check_tasks([name]) or '')\n except InputError as error: print(error)"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    said = subprocess.run(
        [sys.executable, "-c", code, *REFUSED], capture_output=True, text=True, check=True, env=offline
    )
    lines = said.stdout.splitlines()
    assert len(lines) == len(REFUSED)
    for line, words in zip(lines, REFUSED.values(), strict=True):
        assert line.startswith(words)
        assert bool(line) == bool(words)


def test_lm_eval_that_is_missing_is_one_line_and_own_tasks_need_none(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def missing(name: str, *more: Any, **named: Any) -> Any:
        if name.split(".")[0] in ("evaluate", "lm_eval"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return imported(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    check_tasks(["text_loss", "completion"])
    with pytest.raises(
        InputError, match=r"^restoration\.tasks: lm-eval is not installed .*pip install 'knowshift\[lm-eval\]'"
    ):
        check_names("restoration.tasks", [TASK])


def test_texts_that_nothing_reads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected text_loss among restoration"):
        check_tasks(["completion"], tmp_path / "text.txt")
    with pytest.raises(InputError, match="no such file"):
        check_tasks(["text_loss"], tmp_path / "text.txt")
