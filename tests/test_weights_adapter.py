"""A LoRA adapter folder as the tuned model: what peft merges is what is compared and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from knowshift.errors import InputError, KnowshiftWarning
from knowshift.weights.adapter import AdaptedTensors
from knowshift.weights.checkpoint import StoredTensors
from knowshift.weights.checkpoints import identity, restore_checkpoints
from knowshift.weights.loaded import as_tensor
from knowshift.weights.pair import open_pair
from weights_pairs import loaded, same_bits, tiny_llama


def save_adapter(folder: Path, model: PreTrainedModel, **options: Any) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """(base folder, adapter folder, peft's own merged weights)."""
    model.save_pretrained(folder / "base")
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn_like(parameter.float()) * 0.1)
    adapted.save_pretrained(folder / "adapter")
    again = AutoModelForCausalLM.from_pretrained(folder / "base", dtype="auto")
    merged = PeftModel.from_pretrained(again, folder / "adapter").merge_and_unload()
    return folder / "base", folder / "adapter", {n: p.detach() for n, p in merged.named_parameters()}


LLAMA = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]}


@pytest.mark.parametrize(
    "options",
    [
        LLAMA,
        {**LLAMA, "use_rslora": True},
        {**LLAMA, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {**LLAMA, "modules_to_save": ["lm_head"]},
        {**LLAMA, "target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=["plain", "rslora", "patterns", "saved modules", "embeddings"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reading_an_adapter_is_merging_it(options: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    base, adapter, merged = save_adapter(tmp_path, tiny_llama(dtype=dtype), **options)
    tensors = AdaptedTensors(adapter, StoredTensors(base))
    changed = 0
    # One bfloat16 step: peft also rounds the change itself where the adapter's own weights are bfloat16.
    close = {"rtol": 0.008, "atol": 1e-3} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    for name, expected in merged.items():
        read = as_tensor(tensors.read(name, 0, expected.numel())).reshape(expected.shape)
        assert read.dtype == expected.dtype
        torch.testing.assert_close(read, expected, **close)
        parts = [as_tensor(tensors.read(name, at, min(at + 77, read.numel()))) for at in range(0, read.numel(), 77)]
        assert same_bits(torch.cat(parts), read.reshape(-1))
        changed += name in tensors.touched
    assert changed >= 3


def test_conv1d_adapters_are_turned_round(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=90))
    options = {"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    base, adapter, merged = save_adapter(tmp_path, model, **options)
    tensors = AdaptedTensors(adapter, StoredTensors(base))
    name = "transformer.h.0.attn.c_attn.weight"
    read = as_tensor(tensors.read(name, 0, merged[name].numel())).reshape(merged[name].shape)
    torch.testing.assert_close(read, merged[name])


def test_a_restored_adapter_is_a_whole_checkpoint(tmp_path: Path) -> None:
    base, adapter, merged = save_adapter(tmp_path, tiny_llama(), **LLAMA, modules_to_save=["lm_head"])
    pair = open_pair(base, adapter)
    assert len(pair.places) == 14
    done = restore_checkpoints(base, adapter, tmp_path / "out", {"0": 0.0, "0.9": 0.9, "1": 1.0})
    nothing, most, everything = (loaded(done.output[name]) for name in ("0", "0.9", "1"))
    before = loaded(base)
    for name, expected in merged.items():
        torch.testing.assert_close(nothing[name], expected, rtol=1e-5, atol=1e-6)
        inside = ".layers." in name and expected.ndim == 2
        assert same_bits(everything[name], before[name] if inside else nothing[name])
        if inside:
            assert bool(((most[name] == before[name]) | (most[name] == nothing[name])).all())
    assert not (done.output["0"] / "adapter_config.json").exists()
    assert "adapter" in json.loads((done.output["0"] / "knowshift.json").read_text())["tuned"]


def test_an_adapter_made_for_another_model_is_said_to_be(tmp_path: Path) -> None:
    base, adapter, _ = save_adapter(tmp_path, tiny_llama(), **LLAMA)
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    (tmp_path / "other").mkdir()
    for told in ("owner/another", str(tmp_path / "other")):
        path.write_text(json.dumps({**config, "base_model_name_or_path": told}))
        with pytest.warns(KnowshiftWarning, match=f"made for '{told}'; it fits .*base in names and shapes"):
            open_pair(base, adapter)
    for told in (None, "", str(base), "owner/base"):  # the last as in a hub cache, whose folders carry the name
        path.write_text(json.dumps({**config, "base_model_name_or_path": told}))
        open_pair(base, adapter)
    made = identity(open_pair(base, adapter))["tuned"]
    assert made["made_for"] == "owner/base"
    assert made["files"]["adapter_model.safetensors"]["bytes"] == (adapter / "adapter_model.safetensors").stat().st_size


def test_what_is_not_plain_lora_is_refused(tmp_path: Path) -> None:
    base, adapter, _ = save_adapter(tmp_path, tiny_llama(), **LLAMA)
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    for change, message in (
        ({"peft_type": "LOHA"}, "adapter of type 'LOHA'"),
        ({"use_dora": True}, "use_dora is set"),
        ({"target_parameters": ["x"]}, "target_parameters is set"),
    ):
        path.write_text(json.dumps({**config, **change}))
        with pytest.raises(InputError, match=message):
            open_pair(base, adapter)
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="BASE must be a whole checkpoint"):
        open_pair(adapter, adapter)
    other = tmp_path / "other"
    tiny_llama(num_hidden_layers=1).save_pretrained(other)
    with pytest.raises(InputError, match=r"adapter for 'model.layers.1\..*', which the base .* does not have"):
        open_pair(other, adapter)
    tiny_llama(hidden_size=64).save_pretrained(other)
    with pytest.raises(InputError, match=r"has shape .*, the base"):
        open_pair(other, adapter)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match=r"pickled weights \(adapter_model.bin\) are refused"):
        open_pair(base, adapter)
