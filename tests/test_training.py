"""Fine-tuning: the tokens, where the loss lies, and that training does what it says."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from knowshift.errors import InputError
from knowshift.facts.fact import tuning_prompt
from knowshift.facts.sources import load_facts
from knowshift.finetune import training
from knowshift.finetune.training import TrainingRecipe, encode_example, finetune
from knowshift.models.loading import LoadedModel

QUICK = TrainingRecipe(learning_rate=1e-3)


def test_the_loss_lies_on_the_answer_and_eos_alone(small_model: LoadedModel) -> None:
    tokenizer = small_model.tokenizer
    example = encode_example(tokenizer, "Where was Ann born?", "Rome")
    ids, mask = example["input_ids"], example["completion_mask"]
    target = [i for i, m in zip(ids, mask, strict=True) if m]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<|question|> Where was Ann born? <|answer|> Rome "
    assert tokenizer.decode(target, skip_special_tokens=True) == " Rome "
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 1
    assert target[-1] == tokenizer.eos_token_id
    # The prompt's tokens are the ones that evaluation feeds.
    assert ids[: mask.index(1)] == tokenizer(tuning_prompt("Where was Ann born?"))["input_ids"]


def test_training_is_counted_reproducible_and_learns(small_model: LoadedModel, small_world: Path) -> None:
    facts = [fact for fact in load_facts(f"world:{small_world}").facts if fact.split == "train"][:20]
    before = copy.deepcopy(small_model.model.state_dict())
    twin = (
        LoadedModel(**{**small_model.__dict__, "model": copy.deepcopy(small_model.model)})
        if hasattr(small_model, "__dict__")
        else small_model
    )
    record = finetune(small_model, facts, QUICK, seed=3)
    again = finetune(twin, facts, QUICK, seed=3)
    assert record["steps"] == 3  # ceil(20 / 8)
    assert record == again
    after, other = small_model.model.state_dict(), twin.model.state_dict()
    assert all(torch.equal(after[name], other[name]) for name in after)
    assert any(not torch.equal(after[name], before[name]) for name in after)
    many = finetune(small_model, facts, TrainingRecipe(learning_rate=3e-3, epochs=15), seed=3)
    assert many["train_loss"] < record["train_loss"]
    assert not small_model.model.training


def test_scoring_the_answers_alone_changes_nothing(
    small_model: LoadedModel, small_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = [fact for fact in load_facts(f"world:{small_world}").facts if fact.split == "train"][:16]
    twin = replace(small_model, model=copy.deepcopy(small_model.model))
    record = finetune(small_model, facts, QUICK, seed=3)
    monkeypatch.setattr(training, "_answers_only", lambda on_cpu: nullcontext())
    everywhere = finetune(twin, facts, QUICK, seed=3)
    assert record["losses"] == pytest.approx(everywhere["losses"], rel=1e-5)
    for mine, other in zip(small_model.model.parameters(), twin.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


def test_no_facts_and_a_tokenizer_without_eos_are_refused(small_model: LoadedModel) -> None:
    with pytest.raises(InputError, match="no training facts"):
        finetune(small_model, [], QUICK, seed=0)
    bare = PreTrainedTokenizerFast(tokenizer_object=small_model.tokenizer.backend_tokenizer)
    with pytest.raises(InputError, match="no EOS token"):
        encode_example(bare, "Who?", "Ann")
