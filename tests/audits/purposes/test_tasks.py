"""Tasks of lm-eval as items: scores are lm-eval's own, nothing leaks into the process, bad ones are refused."""

from __future__ import annotations

import logging
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager, manager

from knowshift.audits.purposes.kept import Kept
from knowshift.audits.purposes.purpose import Together
from knowshift.audits.purposes.tasks import Tasks, read_tasks
from knowshift.errors import InputError
from knowshift.models.loading import LoadedModel, load_model
from knowshift.tasks.harness import choose_documents

TASK = "knowshift_world_tiny"

#: Two-way questions, asked after two answered ones.
CHOICES = """
task: {name}
custom_dataset: !function made.documents
test_split: test
fewshot_split: shown
num_fewshot: 2
output_type: {output}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{target}"
doc_to_choice: "{choices}"
metric_list: {metrics}
"""
MADE = """
from datasets import Dataset

def documents(**_):
    rows = [{"question": f"Is {i} even?", "options": ["yes", "no"], "answer": i % 2} for i in range(40)]
    return {"test": Dataset.from_list(rows[:30]), "shown": Dataset.from_list(rows[30:])}

def wide(doc, results):
    return {"points": 50.0, "listed": [1.0]}
"""


def made(folder: Path, name: str, metrics: str, **more: str) -> Any:
    """A task of a folder of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "made.py").write_text(MADE)
    given = {"output": "multiple_choice", "target": "answer", "choices": "options", "metrics": metrics, **more}
    (folder / f"{name}.yaml").write_text(CHOICES.format(name=name, **given) + more.get("end", ""))
    return TaskManager(include_path=str(folder), include_defaults=False).load([name])["tasks"][name]


def metrics(*names: str) -> str:
    """A list of metrics in YAML; only F1 is no mean over documents."""
    told = [
        f"{{metric: {name}, aggregation: {'f1' if name == 'f1' else 'mean'}, higher_is_better: true}}" for name in names
    ]
    return f"[{', '.join(told)}]"


def test_scores_are_those_of_lm_eval(tmp_path: Path, small_model: LoadedModel) -> None:
    """Of documents with few-shot examples and choices; the first metric gives no number, the second does."""
    task = made(tmp_path / "tasks", "even", metrics("f1", "acc", "acc_norm"))
    tasks = Tasks(tuple(choose_documents([task], 12, 3)), 3, ("even",))
    assert len(tasks) == 12
    tasks.find_metrics(small_model)
    assert tasks.name == "even (acc)"
    found = tasks.scores(small_model, range(12))

    chosen = sorted(int(document["question"].split()[1]) for document in tasks.leaves[0].documents)
    theirs = made(tmp_path / "tasks", "even", metrics("f1", "acc", "acc_norm"))
    theirs.set_fewshot_seed(3)
    model = HFLM(pretrained=small_model.model, tokenizer=small_model.tokenizer, batch_size=8)
    told = evaluator.evaluate(
        model, {"tasks": {"even": theirs}, "groups": {}}, samples={"even": chosen}, bootstrap_iters=0
    )
    assert told is not None
    assert [sample["doc_id"] for sample in told["samples"]["even"]] == chosen
    assert found.tolist() == [sample["acc"] for sample in told["samples"]["even"]]
    assert 0 < found.mean() < 1  # a model that always says the same
    assert tasks.scores(small_model, [7, 2]).tolist() == found[[7, 2]].tolist()
    assert tasks.scores(small_model, []).shape == (0,)


def test_a_task_without_a_share_is_refused(tmp_path: Path, small_model: LoadedModel) -> None:
    task = made(tmp_path, "wide", metrics("points", "listed"), end="process_results: !function made.wide\n")
    tasks = Tasks(tuple(choose_documents([task], 5, 0)), 0, ("wide",))
    with pytest.raises(InputError, match=r"--guard wide: its metrics \(points, listed\) give a document no number"):
        tasks.find_metrics(small_model)


def test_a_share_that_leaves_its_range_is_refused(tmp_path: Path, small_model: LoadedModel) -> None:
    task = made(tmp_path, "wide", metrics("points"), end="process_results: !function made.wide\n")
    tasks = Tasks(tuple(choose_documents([task], 5, 0)), 0, ("wide",))
    tasks.leaves[0].metric = "points"
    with pytest.raises(InputError, match=r"--guard wide: points of a document is 50\.0; expected 0 to 1"):
        tasks.scores(small_model, [0])


def test_the_choice_is_seeded_and_the_question_tells_the_half() -> None:
    first, again, other = (read_tasks(TASK, 20, seed) for seed in (0, 0, 1))
    assert len(first) == 20
    assert first.texts == again.texts != other.texts
    assert all(text.endswith("?") for text in first.texts)


def test_lm_eval_leaves_no_trace_in_the_process(capfd: pytest.CaptureFixture[str], small_world: Path) -> None:
    loaded = load_model("world:tiny")
    weights = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    padding = loaded.tokenizer.padding_side, loaded.tokenizer.pad_token

    def state() -> list[Any]:
        seeds = [random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()]
        levels = [logging.getLogger(name).level for name in ("lm_eval", "datasets", "transformers", "")]
        return [*seeds, levels, dict(os.environ), torch.get_num_threads(), torch.is_grad_enabled()]

    before = state()
    tasks = read_tasks(TASK, 20, 0)
    tasks.find_metrics(loaded)
    tasks.scores(loaded, range(20))
    assert state() == before
    assert capfd.readouterr().out == ""
    assert (loaded.tokenizer.padding_side, loaded.tokenizer.pad_token) == padding
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.model.state_dict().items())


def test_several_purposes_are_one_after_the_other(small_model: LoadedModel) -> None:
    right, wrong = (Kept(name, ["Question: Who?"] * 3, [(answer,)] * 3) for name, answer in (("a", "e"), ("b", "zzqx")))
    both = Together((wrong, right))
    assert len(both) == len(both.texts) == 6
    assert both.name == "b and a"
    alone = right.scores(small_model, range(3))
    assert both.scores(small_model, [5, 0, 3]).tolist() == [alone[2], 0, alone[0]]


#: Asked in a process of its own, without a network.
REFUSED = {
    "gsm8q": "--guard 'gsm8q': lm-eval knows no such task; nearest: gsm8k",
    "humaneval": "--guard humaneval: humaneval runs code of the model",
    "mmmu_val": "has pictures or sounds; expected texts alone",
    "gsm8k": "--guard gsm8k: cannot load the task: ",
    f"{TASK},,": "expected names of lm-eval tasks, with commas between them",
}
#: The folders of those: lm-eval lists all of its 14,000 files for half a minute before it looks at one.
FOLDERS = ("gsm8k", "humaneval", "mmmu")


@pytest.mark.slow
def test_tasks_that_cannot_be_used_are_refused_in_one_line(tmp_path: Path) -> None:
    for name in FOLDERS:
        shutil.copytree(Path(manager.__file__).parent / name, tmp_path / name)
    code = (
        "import sys\nfrom knowshift.audits.purposes.tasks import read_tasks\nfrom knowshift.errors import InputError\n"
        "from lm_eval.tasks import manager\nmanager.__file__ = sys.argv[1]\n"
        "for name in sys.argv[2:]:\n try: read_tasks(name, 10, 0)\n except InputError as error: print(error)"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "manager.py"), *REFUSED],
        capture_output=True,
        text=True,
        check=True,
        env=offline,
    )
    lines = said.stdout.splitlines()
    assert len(lines) == len(REFUSED)
    for line, words in zip(lines, REFUSED.values(), strict=True):
        assert words in line
    assert "Traceback" not in said.stderr
