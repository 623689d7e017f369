"""Low-rank adapters for a training, merged into the model's own weights when it ends (Hu et al. 2022; PEFT)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from knowshift.errors import InputError, border

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Lora:
    """Adapters on all linear layers of the transformer: W + alpha / rank * B A, with B = 0 at the start."""

    rank: int = 8
    alpha: float = 16.0


@contextmanager
def adapted(model: PreTrainedModel, lora: Lora | None, seed: int) -> Iterator[Any]:
    """The model to train: ``model`` itself, or with adapters on it, of which alone gradients are taken.

    After the block, adapters are merged into the weights of ``model``, which has its own modules again. Where the
    block ends in an error they are not merged, and the weights are as before.

    Raises:
        InputError: a model in which PEFT finds no linear layers to adapt.
    """
    if lora is None:
        yield model
        return
    import torch
    from peft import LoraConfig, get_peft_model

    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the adapters' random half is made here
        try:
            wrapped = get_peft_model(model, config)
        except ValueError as error:
            raise InputError(f"LoRA: no layers of this model can be adapted ({error})") from None
    merged = False
    try:
        yield wrapped
        merged = True
    finally:
        with border("LoRA: the adapters cannot be merged"):
            wrapped.merge_and_unload() if merged else wrapped.unload()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])
