"""Fine-tuning: the tokens, where the loss lies, and that training does what it says."""

from __future__ import annotations

import copy
import types
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from trl import SFTTrainer

from knowshift.errors import InputError
from knowshift.facts.fact import tuning_prompt
from knowshift.facts.sources.load import load_facts
from knowshift.models.loading import LoadedModel, load_model
from knowshift.training import sft
from knowshift.training.one_row import IGNORED, OneRow, check_same_loss, shared_tokens
from knowshift.training.sft import TrainingRecipe, encode_examples, finetune
from knowshift.training.strategy import Strategy
from knowshift.tuning.loss.dft import Dft
from tiny_models import some_facts, tiny_checkpoint

QUICK = TrainingRecipe(learning_rate=1e-3)


def test_the_loss_lies_on_the_answer_and_eos_alone(small_model: LoadedModel) -> None:
    tokenizer = small_model.tokenizer
    [example] = encode_examples(small_model, ["Where was Ann born?"], ["Rome"])
    ids, labels = example["input_ids"], example["labels"]
    target = [label for label in labels if label != IGNORED]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<|question|> Where was Ann born? <|answer|> Rome "
    assert tokenizer.decode(target, skip_special_tokens=True) == " Rome "
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 1
    assert target[-1] == tokenizer.eos_token_id
    assert labels == [IGNORED] * (len(ids) - len(target)) + ids[-len(target) :]
    # The prompt's tokens are the ones that evaluation feeds.
    assert ids[: labels.count(IGNORED)] == tokenizer(tuning_prompt("Where was Ann born?"))["input_ids"]


def test_training_is_counted_reproducible_and_learns(small_model: LoadedModel, small_world: Path) -> None:
    facts = [fact for fact in load_facts(f"world:{small_world}").facts if fact.split == "train"][:20]
    before = copy.deepcopy(small_model.model.state_dict())
    twin = replace(small_model, model=copy.deepcopy(small_model.model))
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


@pytest.mark.parametrize(
    ("kind", "more", "shared_prefix"),
    [
        ("LlamaConfig", {}, False),
        ("LlamaConfig", {}, True),
        ("GPT2Config", {}, False),
        (
            "MixtralConfig",
            {"intermediate_size": 48, "num_key_value_heads": 1, "num_local_experts": 4, "router_aux_loss_coef": 1.0},
            False,
        ),
    ],
)
def test_the_loss_on_a_cpu_is_that_of_trl(
    kind: str, more: dict[str, Any], shared_prefix: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a mixture of experts with its router's loss."""
    one, other = (load_model(str(tiny_checkpoint(tmp_path / "model", kind, **more))) for _ in range(2))
    before = copy.deepcopy(one.model.state_dict())
    recipe = replace(QUICK, shared_prefix=shared_prefix)
    record = finetune(one, some_facts(20), recipe, seed=3)
    monkeypatch.setattr(sft._Trainer, "_loss", SFTTrainer.compute_loss)
    theirs = finetune(other, some_facts(20), recipe, seed=3)
    assert record["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
    assert _closely(one, other, before) < 0.02


def test_dft_has_the_loss_of_trl(small_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class ByTrl(Strategy):
        def options(self) -> dict[str, Any]:
            return {"loss_type": "dft"}

    twin = replace(small_model, model=copy.deepcopy(small_model.model))
    plain = replace(small_model, model=copy.deepcopy(small_model.model))
    by_option = replace(small_model, model=copy.deepcopy(small_model.model))
    record = finetune(small_model, some_facts(20), QUICK, seed=3, strategy=Dft())
    asked = finetune(by_option, some_facts(20), QUICK, seed=3, strategy=ByTrl())
    usual = finetune(plain, some_facts(20), QUICK, seed=3)
    monkeypatch.setattr(sft._Trainer, "_loss", SFTTrainer.compute_loss)
    theirs = finetune(twin, some_facts(20), QUICK, seed=3, strategy=ByTrl())
    assert record["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
    assert asked["losses"] == theirs["losses"]
    assert record["losses"] != pytest.approx(usual["losses"], rel=0.1)


@pytest.mark.parametrize("strategy", [Strategy, Dft])
def test_a_batch_without_a_loss_changes_nothing(small_model: LoadedModel, strategy: type[Strategy]) -> None:
    class LastOne(strategy):  # type: ignore[valid-type, misc]
        def examples(self, *given: Any) -> Any:
            examples = super().examples(*given)
            for example in examples[:-1]:
                example["labels"] = [IGNORED] * len(example["labels"])
            return examples

    losses = finetune(small_model, some_facts(8), replace(QUICK, batch_size=2), seed=0, strategy=LastOne())["losses"]
    assert sorted(losses)[:3] == [0, 0, 0]
    assert sorted(losses)[3] > 0


def test_a_model_that_gives_all_logits_has_the_same_loss(
    small_model: LoadedModel, small_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some architectures do not know which are asked for."""
    facts = [fact for fact in load_facts(f"world:{small_world}").facts if fact.split == "train"][:10]
    twin = replace(small_model, model=copy.deepcopy(small_model.model))
    record = finetune(small_model, facts, QUICK, seed=3)
    forward = twin.model.forward

    def all_of_them(*given: Any, logits_to_keep: Any = 0, **more: Any) -> Any:
        return forward(*given, **more)

    monkeypatch.setattr(twin.model, "forward", all_of_them)
    assert finetune(twin, facts, QUICK, seed=3)["losses"] == pytest.approx(record["losses"], rel=1e-5)


def test_no_facts_are_refused(small_model: LoadedModel) -> None:
    with pytest.raises(InputError, match="no training facts"):
        finetune(small_model, [], QUICK, seed=0)


def _closely(one: LoadedModel, other: LoadedModel, before: dict[str, torch.Tensor]) -> float:
    """The largest difference of two tuned models, as a share of the largest change of a weight."""
    pairs = zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True)
    apart = [(float((a - b).abs().max()), float((a - before[name]).abs().max())) for (name, a), b in pairs]
    return max(a for a, _ in apart) / max(change for _, change in apart)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_batch_as_one_row_trains_the_same(small_model: LoadedModel, small_world: Path, attention: str) -> None:
    facts = [fact for fact in load_facts(f"world:{small_world}").facts if fact.split == "train"][:20]
    before = copy.deepcopy(small_model.model.state_dict())
    small_model.model.set_attn_implementation(attention)
    twin = replace(small_model, model=copy.deepcopy(small_model.model))
    apart = finetune(small_model, facts, QUICK, seed=3)
    together = finetune(twin, facts, replace(QUICK, shared_prefix=True), seed=3)
    assert together["train_loss"] == pytest.approx(apart["train_loss"], rel=1e-4)
    assert _closely(small_model, twin, before) < 0.02  # Adam's first steps divide small gradients by themselves


def _row(ids: list[int], silent: int) -> dict[str, list[int]]:
    return {"input_ids": ids, "labels": [IGNORED] * silent + ids[silent:]}


@pytest.mark.parametrize(
    ("kind", "more", "refused"),
    [
        ("MistralConfig", {"intermediate_size": 64, "num_key_value_heads": 1}, None),
        ("GPT2Config", {"n_positions": 256}, None),
        ("BloomConfig", {}, "BloomConfig|bloom"),  # positions come from the mask
        ("MambaConfig", {"state_size": 4}, "mamba"),  # a state runs through the row
        ("Lfm2Config", {"intermediate_size": 64, "num_key_value_heads": 1, "layer_types": ["conv"] * 2}, "lfm2"),
    ],
)
def test_a_model_that_would_mix_the_examples_is_refused(
    small_model: LoadedModel, kind: str, more: dict[str, Any], refused: str | None
) -> None:
    common = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_size": 32, "num_hidden_layers": 2}
    size = len(small_model.tokenizer)
    config = getattr(transformers, kind)(**common, num_attention_heads=2, vocab_size=size, **more)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8 if weight.dim() > 1 else 1)  # so that what a token sees matters
    rows = [_row([1, 5, 9, 7, 8], 3), _row([1, 5, 6, 4, 2, 11], 4), _row([1, 5, 3, 8, 9, 2], 4)]
    with nullcontext() if refused is None else pytest.raises(InputError, match=rf"(?i)shared_prefix.*{refused}"):
        check_same_loss(model, rows, OneRow("sdpa", torch.float32))


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-6), (torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_losses_may_differ_by_rounding_alone(dtype: torch.dtype, most: float) -> None:
    """A model whose loss of the whole row is off by a little less, and by a little more, than the share allowed."""

    class Model(torch.nn.Module):
        device = torch.device("cpu")
        config = types.SimpleNamespace(model_type="toy")

        def __init__(self, off: float) -> None:
            super().__init__()
            self.off, self.dtype = off, dtype

        def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None, **more: Any) -> Any:
            return types.SimpleNamespace(loss=7.5 * (1.0 if position_ids is None else 1 + self.off))

    rows = [_row([1, 5, 9, 7, 8], 3), _row([1, 5, 6, 4, 2, 11], 4)]
    for sign in (-1, 1):
        check_same_loss(Model(sign * most * 0.99), rows, OneRow("sdpa", dtype))
        with pytest.raises(InputError, match=r"training\.shared_prefix: model type 'toy' does not keep"):
            check_same_loss(Model(sign * most * 1.01), rows, OneRow("sdpa", dtype))


def test_attention_that_takes_no_mask_is_refused() -> None:
    with pytest.raises(InputError, match=r"training\.shared_prefix.*flash_attention_2"):
        OneRow("flash_attention_2", torch.float32)


def test_one_row_holds_every_example_once(small_model: LoadedModel) -> None:
    rows = [_row([5, 6, 7, 8, 9], 3), _row([5, 6, 7, 4], 2), _row([5, 6, 1, 8, 9, 2], 4)]
    batch = OneRow("sdpa", torch.float32)(rows)
    assert shared_tokens(rows) == 1  # the second scores its third token, so its second must stand alone
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 6, 7, 4, 6, 1, 8, 9, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 1, 2, 3, 1, 2, 3, 4, 5]]
    sees = batch["attention_mask"][0, 0]
    assert sees[7].nonzero().flatten().tolist() == [0, 5, 6, 7]
