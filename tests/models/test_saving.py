"""A tuned checkpoint says about itself what the model it was made from says; only the weights and the dtype differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

from knowshift.models.loading import LoadedModel, load_model
from knowshift.models.saving import save_model
from knowshift.training.sft import TrainingRecipe, finetune
from tiny_models import FAMILIES, byte_tokenizer, people_s_files, some_facts, tiny_checkpoint

PROMPT = torch.tensor([[1, 30, 40, 50]])


def trained(folder: Path, dtype: str = "float32", **recipe: Any) -> LoadedModel:
    loaded = load_model(str(folder), dtype=dtype)
    finetune(loaded, some_facts(4), TrainingRecipe(learning_rate=1e-3, batch_size=2, **recipe), seed=0)
    return loaded


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def told(loaded: LoadedModel) -> dict[str, Any]:
    """All that a loaded model says about itself, except its dtype and where it lies."""
    config = {
        key: value for key, value in loaded.model.config.to_dict().items() if key not in ("dtype", "_name_or_path")
    }
    tokenizer = loaded.tokenizer
    return {
        "config": config,
        "generation": loaded.model.generation_config.to_dict(),
        "vocabulary": tokenizer.get_vocab(),
        "backend": tokenizer.backend_tokenizer.to_str(),
        "special": tokenizer.special_tokens_map,
        "pad": tokenizer.pad_token_id,
        "padding": (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length),
        "chat": tokenizer.chat_template,
        "stop": loaded.stop_ids(),
    }


def logits(loaded: LoadedModel) -> Tensor:
    with torch.no_grad():
        return loaded.model(PROMPT).logits


@pytest.mark.parametrize("pad", [None, "<pad>", "</s>"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:.*pad token equals", "ignore:.*model has no embedding for")
def test_only_weights_and_dtype_differ(family: str, pad: str | None, tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", family, pad=pad, dtype="bfloat16")
    left = people_s_files(base)
    before = load_model(str(base))
    loaded = trained(base)
    (tmp_path / "tuned").mkdir()
    save_model(loaded, tmp_path / "tuned")

    source, made = files(base), files(tmp_path / "tuned")
    assert set(made) == set(source) - left
    changed = {name for name in made if made[name] != source[name]}
    assert changed == {"model.safetensors", "config.json"}
    config = {**json.loads(source["config.json"]), "dtype": "float32"}
    assert json.loads(made["config.json"]) == config

    again = load_model(str(tmp_path / "tuned"), dtype="auto")
    assert again.dtype == "float32"
    assert told(again) == told(loaded) == told(before)
    weights, saved = loaded.model.state_dict(), again.model.state_dict()
    assert set(weights) == set(saved)
    assert all(torch.equal(weights[name], saved[name]) for name in weights)
    assert not torch.equal(logits(again), logits(before))


@pytest.mark.parametrize(
    "recipe", [{"bfloat16": True}, {"shared_prefix": True}, {"gradient_checkpointing": True}, {"schedule": "constant"}]
)
def test_in_memory_a_tuned_model_is_what_its_checkpoint_is(recipe: dict[str, Any], tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", pad=None)
    before = load_model(str(base))
    loaded = trained(base, **recipe)
    (tmp_path / "tuned").mkdir()
    save_model(loaded, tmp_path / "tuned")
    again = load_model(str(tmp_path / "tuned"))
    assert told(loaded) == told(again) == told(before)
    assert loaded.model.config.dtype == again.model.config.dtype
    assert torch.equal(logits(loaded), logits(again))  # under autocast the first would be rounded to bfloat16
    for one, other in zip(loaded.model.modules(), again.model.modules(), strict=True):
        assert vars(one).keys() - vars(other).keys() <= {"gradient_checkpointing", "_gradient_checkpointing_func"}
        assert not one.training
        assert not one._forward_hooks
        assert not getattr(one, "gradient_checkpointing", False)
    assert loaded.model.model.layers[0].self_attn.config is loaded.model.config


def test_a_tuned_model_can_be_tuned_and_saved_again(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base")
    people_s_files(base)
    for source, target in (("base", "one"), ("one", "two")):
        (tmp_path / target).mkdir()
        save_model(trained(tmp_path / source), tmp_path / target)
        (tmp_path / target / "knowshift.json").write_text("{}")
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert one.keys() == two.keys()
    assert {name for name in one if one[name] != two[name]} == {"model.safetensors"}


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_name_of_the_dtype_and_the_text_of_the_config_stay(key: str, tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", dtype="bfloat16")
    config = {**json.loads((base / "config.json").read_text()), "my_note": "naïve dtype", "rate": 1e-05}
    config.pop("dtype")
    text = json.dumps(
        {**config, key: "bfloat16", "vision_config": {key: "torch.float16"}}, indent=4, ensure_ascii=False
    )
    (base / "config.json").write_text(text, encoding="utf-8")
    for dtype in ("float32", "bfloat16"):
        (tmp_path / dtype).mkdir()
        save_model(load_model(str(base), dtype=dtype), tmp_path / dtype)
        expected = text.replace('"bfloat16"', f'"{dtype}"').replace('"torch.float16"', f'"{dtype}"')
        assert (tmp_path / dtype / "config.json").read_text(encoding="utf-8") == expected
        assert load_model(str(tmp_path / dtype), dtype="auto").dtype == dtype


def test_a_generation_config_that_transformers_would_not_save_is_kept(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base")
    (base / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6, "eos_token_id": [3, 2]}')
    (tmp_path / "tuned").mkdir()
    save_model(trained(base), tmp_path / "tuned")
    name = "generation_config.json"
    assert (tmp_path / "tuned" / name).read_bytes() == (base / name).read_bytes()
    (base / name).unlink()
    (tmp_path / "again").mkdir()
    save_model(trained(base), tmp_path / "again")
    assert not (tmp_path / "again" / name).exists()
    assert load_model(str(tmp_path / "again")).stop_ids() == load_model(str(base)).stop_ids() == [2, 3]


@pytest.mark.filterwarnings("ignore:.*model has no embedding for")
def test_the_text_part_of_a_composite_model_is_loaded_as_it_was(tmp_path: Path) -> None:
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 260, "head_dim": 16}
    more = {"num_key_value_heads": 1, "intermediate_size": 48, "layer_types": ["full_attention"] * 2, "eos_token_id": 3}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
    torch.manual_seed(0)
    whole = Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config={**text, **more}, vision_config=vision))
    whole.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    loaded = load_model(str(tmp_path / "base"))
    assert loaded.model.config.model_type != whole.config.model_type
    (tmp_path / "tuned").mkdir()
    save_model(loaded, tmp_path / "tuned")
    again = load_model(str(tmp_path / "tuned"))
    assert told(again) == told(loaded)
    assert torch.equal(logits(again), logits(loaded))
