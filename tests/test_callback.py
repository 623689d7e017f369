"""The audit inside a training: what it logs through the Trainer, and that it stops one that forgets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

import knowshift
from knowshift.errors import InputError
from knowshift.facts.sources.load import load_facts
from knowshift.models.finding import model_folder

FACTS = 80


class Seen(TrainerCallback):  # type: ignore[misc]
    """What reports are given."""

    def __init__(self) -> None:
        self.logs: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
        self.logs.append((state.global_step, dict(logs)))

    def of(self, name: str) -> dict[int, float]:
        return {step: logs[name] for step, logs in self.logs if name in logs}


@pytest.fixture
def facts() -> list[Any]:
    """Facts that were read often, so that the shipped model knows most of them."""
    return [fact for fact in load_facts("world:tiny").facts if (fact.exposures or 0) > 60][:FACTS]


def trainer_of(folder: Path, rate: float, steps: int = 12) -> tuple[Any, Seen]:
    """As people write it, on other facts than are watched."""
    shipped = model_folder("world:tiny")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(shipped), AutoTokenizer.from_pretrained(shipped)
    asked = load_facts("world:tiny").facts[:96]
    examples = [{"prompt": f"<|question|> {f.question} <|answer|>", "completion": f" {f.answer}"} for f in asked]
    seen = Seen()
    trainer = SFTTrainer(
        model=model.float(),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(examples),
        callbacks=[seen],
        args=SFTConfig(
            output_dir=str(folder), learning_rate=rate, per_device_train_batch_size=8, max_steps=steps,
            report_to="none", save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True, logging_steps=100,
        ),
    )  # fmt: skip
    return trainer, seen


def test_knowledge_is_logged_every_few_steps(facts: list[Any], tmp_path: Path) -> None:
    trainer, seen = trainer_of(tmp_path, 1e-5)
    record = knowshift.mastery("world:tiny", facts, estimate="expected", texts=2, workers=1)
    trainer.add_callback(knowshift.AuditCallback(trainer, facts, mastery=record, every=4, count=40))
    trainer.train()
    known = seen.of("knowledge/known")
    assert list(known) == [0, 4, 8, 12]
    assert known[0] == 1
    assert known[12] > 0.9  # a gentle rate
    assert seen.of("knowledge/kl")[0] == pytest.approx(0, abs=1e-6)
    moved = list(seen.of("knowledge/weights").values())
    assert moved[0] == 0
    assert moved == sorted(moved)
    assert any(name.startswith("knowledge/level_") for _, logs in seen.logs for name in logs)
    assert trainer.model.training


def test_a_training_that_forgets_is_stopped(facts: list[Any], tmp_path: Path) -> None:
    trainer, seen = trainer_of(tmp_path, 5e-3)
    trainer.add_callback(knowshift.AuditCallback(trainer, facts, every=3, count=40, stop_above=10))
    trainer.train()
    assert trainer.state.global_step < 12
    assert min(seen.of("knowledge/known").values()) < 0.9
    kl = list(seen.of("knowledge/kl").values())
    assert kl[-1] > kl[0]


def test_what_cannot_be_watched_is_refused(facts: list[Any], tmp_path: Path) -> None:
    trainer, _ = trainer_of(tmp_path, 1e-5)
    for options, words in (
        ({"every": 0}, "every 0"),
        ({"count": 0}, "count 0"),
        ({"stop_above": 101}, "stop_above 101"),
    ):
        with pytest.raises(InputError, match=words):
            knowshift.AuditCallback(trainer, facts, **options)  # type: ignore[arg-type]
    unknown = [fact for fact in load_facts("world:tiny").facts if fact.exposures == 0][:10]
    trainer.add_callback(knowshift.AuditCallback(trainer, unknown, every=1))
    with pytest.raises(InputError, match="answers none of 10 facts"):
        trainer.train()
