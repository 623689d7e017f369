"""Regions and names, on the real parameter names of tiny models of every architecture that is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from knowshift.errors import InputError
from knowshift.parameters.files.checkpoint import StoredTensors
from knowshift.parameters.regions import ARCHITECTURES, Scope, depth, in_region, place

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 90,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OWN: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 90},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8},
    "qwen3": {"head_dim": 8},
    "mixtral": {"num_local_experts": 3},
    "qwen2_moe": {
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
    },
    "qwen3_moe": {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8},
    "olmoe": {"num_experts": 3, "num_experts_per_tok": 2},
}


def tiny(model_type: str) -> PreTrainedModel:
    options = OWN[model_type] if model_type == "gpt2" else {**SMALL, **OWN.get(model_type, {})}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options))


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_every_tensor_of_every_architecture_is_placed(model_type: str, tmp_path: Any) -> None:
    model = tiny(model_type)
    model.save_pretrained(tmp_path)
    stored = StoredTensors(tmp_path)
    assert stored.model_type == model_type
    for shapes in (stored.shapes, {name: tuple(p.shape) for name, p in model.named_parameters()}):
        places = [place(name, shape, model_type) for name, shape in shapes.items()]
        assert {where.layer for where in places} == {None, 0, 1}
        assert not [where for where in places if where.kind == "other"]
        region = in_region(shapes, model_type)
        assert [where.name for where in region] == sorted(where.name for where in region)
        inside = {name for name, shape in shapes.items() if len(shape) > 1 and "embed" not in name}
        inside -= {"lm_head.weight", "transformer.wte.weight", "transformer.wpe.weight", "wte.weight", "wpe.weight"}
        assert {where.name for where in region} == inside
        attention = in_region(shapes, model_type, Scope("attention"))
        mlp = in_region(shapes, model_type, Scope("mlp"))
        assert {w.name for w in attention} | {w.name for w in mlp} == inside
        assert not {w.name for w in attention} & {w.name for w in mlp}
        if model_type != "olmo":  # whose norms have no weights
            assert all("norm" in w.name or "ln_" in w.name for w in in_region(shapes, model_type, Scope("norms")))
        assert in_region(shapes, model_type, Scope("embeddings"))
        assert {w.layer for w in in_region(shapes, model_type, scope=Scope(layers=(1, 1)))} == {1}
        assert len(in_region(shapes, model_type, Scope("all"))) == len(shapes)


def test_a_llama_has_the_papers_seven_modules() -> None:
    model = tiny("llama")
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert {w.module for w in in_region(shapes, "llama")} == {"q", "k", "v", "o", "gate", "up", "down"}
    assert len(in_region(shapes, "llama")) == 14


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_what_ties_head_and_embeddings_by_default_is_known(model_type: str) -> None:
    assert AutoConfig.for_model(model_type).tie_word_embeddings == ARCHITECTURES[model_type].tied


def test_depth_counts_the_layers_of_the_whole_model() -> None:
    for model_type in ("llama", "gpt2", "mixtral", "gpt_neox"):  # three experts in each of two layers, once
        assert depth({name: tuple(p.shape) for name, p in tiny(model_type).named_parameters()}, model_type) == 2
    assert depth({"a.0.weight": (4, 4)}, "t5") == 0


def test_an_unknown_architecture_gets_all_and_no_guess() -> None:
    shapes = {"encoder.block.0.layer.0.SelfAttention.q.weight": (4, 4)}
    assert len(in_region(shapes, "t5", Scope("all"))) == 1
    with pytest.raises(InputError, match="'t5' has no known layout, so only the region 'all'"):
        in_region(shapes, "t5")
    with pytest.raises(InputError, match="no known layout"):
        in_region(shapes, "t5", Scope("all", layers=(0, 0)))


def test_wrong_regions_and_layers_are_named() -> None:
    shapes = {name: tuple(p.shape) for name, p in tiny("llama").named_parameters()}
    with pytest.raises(InputError, match="'layer' is not known; nearest: 'layers'"):
        in_region(shapes, "llama", Scope("layer"))
    for wrong in ((0, 2), (1, 0), (-1, 0)):
        with pytest.raises(InputError, match="the model has layers 0-1"):
            in_region(shapes, "llama", scope=Scope(layers=wrong))
    with pytest.raises(InputError, match="holds no weight"):
        in_region({"model.layers.0.mlp.up_proj.weight": (0, 4)}, "llama", Scope("mlp"))
    with pytest.raises(InputError, match="holds no weight"):
        in_region(shapes, "llama", Scope("embeddings", layers=(0, 1)))
