"""Tiny real checkpoint pairs for the tests of ``knowshift.parameters``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel


def tiny_llama(seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> LlamaForCausalLM:
    """A random Llama of two layers and hidden size 32."""
    torch.manual_seed(seed)
    settings = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 90,
        "tie_word_embeddings": False,
        **options,
    }
    return LlamaForCausalLM(LlamaConfig(**settings)).to(dtype)


@torch.no_grad()
def move(model: PreTrainedModel, seed: int = 1, size: float = 1e-2, share: float = 0.6) -> None:
    """Change a share of every parameter's weights: what a fine-tuning leaves."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        change = torch.randn(parameter.shape, generator=generator) * size
        kept = torch.rand(parameter.shape, generator=generator) < share
        parameter.add_((change * kept).to(parameter.dtype))


def save_pair(
    folder: Path, model: PreTrainedModel | None = None, shard: str = "50GB", **options: Any
) -> tuple[Path, Path]:
    """Save a model and its moved self: (base folder, tuned folder)."""
    model = model or tiny_llama(**options)
    model.save_pretrained(folder / "base")
    move(model)
    model.save_pretrained(folder / "tuned", max_shard_size=shard)
    return folder / "base", folder / "tuned"


def loaded(folder: Path) -> dict[str, Tensor]:
    """A checkpoint's weights as transformers loads them, dtype as stored."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def relative_by_definition(p: float, s: float) -> float:
    """|s - p| / |p| of one pair in single steps of float32, with what the criterion promises at its edges."""
    p32, s32 = np.float32(p), np.float32(s)
    if p32 == s32 or (np.isnan(p32) and np.isnan(s32)):
        return 0.0
    if p32 == 0 or not (np.isfinite(p32) and np.isfinite(s32)):
        return math.inf
    with np.errstate(all="ignore"):
        change = min(np.abs(s32 - p32), np.finfo(np.float32).max)
        return float(min(change / np.abs(p32), np.finfo(np.float32).max))


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal bit for bit: NaN equals itself, and 0.0 is not -0.0."""
    return one.dtype == other.dtype and torch.equal(
        one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    )
