"""An audit with tasks of lm-eval as what the tuning was for."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

import knowshift
from knowshift.audits import candidates
from knowshift.audits.purposes.tasks import read_tasks
from knowshift.cli import app
from knowshift.errors import InputError
from knowshift.evaluation import plain_question
from knowshift.models.loading import load_model
from knowshift.models.saving import save_model

pytestmark = pytest.mark.slow

TASK = "knowshift_world_tiny"
#: Documents that the model is tuned on and guarded by.
LIMIT = 300


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model tuned on the documents of the task, at a rate that costs it other facts."""
    loaded = load_model("world:tiny")
    documents = [document for leaf in read_tasks(TASK, LIMIT, 0).leaves for document in leaf.documents]
    prompts = [plain_question(one["question"]) for one in documents]
    examples = loaded.encoder.examples(prompts, [f" {one['answer']}" for one in documents])
    optimiser = torch.optim.AdamW(loaded.model.parameters(), lr=7e-4, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        for batch in torch.randperm(len(examples), generator=generator).split(10):
            rows = [torch.tensor(examples[i][0]) for i in batch.tolist()]
            ids = pad_sequence(rows, batch_first=True)
            labels = pad_sequence(rows, batch_first=True, padding_value=-100)
            for row, i in enumerate(batch.tolist()):
                labels[row, : examples[i][1]] = -100
            mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            loaded.model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
    folder = tmp_path_factory.mktemp("models") / "tuned"
    folder.mkdir()
    save_model(loaded, folder)
    return folder


@pytest.fixture(scope="module")
def options() -> Any:
    """Two candidates instead of all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "SWEEPS", (("interpolate", (0.5,), "layers"),))
        yield {"limit": 300, "guard": TASK, "guard_limit": LIMIT, "budget": None, "workers": 1}


def test_a_command_repairs_what_tasks_guard(
    tuned: Path, options: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """From the command to a repaired checkpoint, which holds the task's answers; nothing else is on standard output."""
    folder = tmp_path / "audit"
    command = ["audit", "world:tiny", str(tuned), "--facts", "world:tiny", "--output-dir", str(folder), "--json"]
    command += ["--guard", TASK, "--guard-limit", str(LIMIT), "--limit", "300", "--budget", "none", "--workers", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["knowshift", *command])
        with pytest.raises(SystemExit) as ended:
            app.main()
    out, said = capfd.readouterr()
    assert not ended.value.code
    told = json.loads(out)
    assert told["chosen"] == "interpolate 0.5 (layers)"
    assert told["held_out"]["interval"][0] > 0
    assert f"{TASK} (substring_hit)" in said
    page = (folder / "audit.html").read_text()
    assert f"{TASK} (substring_hit)" in page
    assert f"{TASK} (substring_hit)" in (folder / "repaired" / "README.md").read_text()

    tasks = read_tasks(TASK, LIMIT, 0)
    tasks.find_metrics(load_model("world:tiny"))
    before, after = (tasks.scores(load_model(str(one)), range(LIMIT)).mean() for one in (tuned, folder / "repaired"))
    assert after > before - 0.02

    # The same folder goes on with a table beside the tasks: their items are counted together.
    table = tmp_path / "keep.csv"
    with table.open("w", newline="") as file:
        rows = [[document["question"], document["answer"]] for document in tasks.leaves[0].documents[:40]]
        csv.writer(file).writerows([["question", "answer"], *rows])
    found = knowshift.audit("world:tiny", tuned, "world:tiny", output_dir=folder, keep=table, **options)
    assert found.repair is not None
    assert found.repair.purpose is not None
    assert found.repair.purpose.items == LIMIT + 40
    assert found.repair.purpose.name == f"keep.csv and {TASK} (substring_hit)"


def test_tasks_that_the_tuned_model_does_not_do_better_repair_nothing(
    options: dict[str, Any], small_world: Path, tmp_path: Path
) -> None:
    given = {**options, "limit": 40, "guard_limit": 40, "output_dir": tmp_path / "audit"}
    found = knowshift.audit("world:tiny", "world:tiny", "world:tiny", **given)
    assert found.output is None
    assert f"does not do {TASK} (substring_hit) surely better" in found.page.read_text()


def test_bad_tasks_are_refused_before_anything_runs(tmp_path: Path) -> None:
    text = tmp_path / "keep.txt"
    text.write_text("Ann was born in Rome. " * 200)

    def refused(words: str, **more: Any) -> None:
        given = {"output_dir": tmp_path / "audit", "budget": None, "guard": TASK, **more}
        with pytest.raises(InputError, match=words):
            knowshift.audit("world:tiny", "world:tiny", "world:tiny", **given)
        assert not (tmp_path / "audit").exists()

    refused(r"keep\.txt: a text, and --guard", keep=text)
    refused(r"guard_limit 0: expected a whole number, 1", guard_limit=0)
    refused(r"--guard '': expected names of lm-eval tasks", guard="")
    refused(r"EntityQuestions: facts 'world:tiny'; expected entity-questions:PATH", guard="knowshift_entity_questions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "lm_eval.tasks", None)  # as where it is not installed
        refused(r"lm-eval is not installed .*; pip install 'knowshift\[lm-eval\]'")
