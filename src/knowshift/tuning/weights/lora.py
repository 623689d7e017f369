"""Low-rank adapters by PEFT, merged into the model's own weights when the training ends.

LoRA: Hu et al. 2022, arXiv 2106.09685. rsLoRA: Kalajdzievski 2023, arXiv 2312.03732. DoRA: Liu et al. 2024,
arXiv 2402.09353. On MLPs alone: of PEFT's own benchmark, the LoRA with the smallest rise of another text's loss.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from knowshift.errors import InputError, border
from knowshift.facts.fact import Fact
from knowshift.known_facts import KnownFacts
from knowshift.parameters.loaded import model_region
from knowshift.parameters.regions import Scope
from knowshift.training.strategy import Held, Strategy, setting

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from knowshift.models.loading import LoadedModel


@dataclass(frozen=True)
class Lora(Strategy):
    """Adapters on all linear layers of the transformer: W + alpha / rank * B A, with B = 0 at the start."""

    name: ClassVar[str] = "lora"
    about: ClassVar[str] = "low-rank adapters on all linear layers, merged after training"
    source: ClassVar[str] = "Hu et al. 2022, arXiv 2106.09685; PEFT"
    cost: ClassVar[str] = "less memory: no gradients and moments of the weights"
    held: ClassVar[Held] = Held(there=-2.7)
    rate: ClassVar[float] = 10.0
    rank: int = setting(8, "rank of the adapters", least=1)
    alpha: float = setting(16.0, "the update is scaled by alpha / rank", least=0)

    def targets(self, model: PreTrainedModel) -> str | list[str]:
        """The layers that get adapters, as PEFT takes them."""
        return "all-linear"

    def config(self, targets: str | list[str] = "all-linear") -> PeftConfig:
        """PEFT's configuration."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=targets,
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
            **self.more(),
        )

    def more(self) -> dict[str, Any]:
        """Fields of PEFT's configuration that are otherwise."""
        return {}

    @contextmanager
    def trained(
        self, loaded: LoadedModel, members: Sequence[Fact], seed: int, known: KnownFacts | None
    ) -> Iterator[Any]:
        with adapted(loaded.model, self.config(self.targets(loaded.model)), seed) as wrapped:
            yield wrapped

    def wrapped(self, model: PreTrainedModel, seed: int) -> Any:
        return with_adapters(model, self.config(self.targets(model)), seed)


@dataclass(frozen=True)
class LoraMlp(Lora):
    """LoRA on the matrices of the MLPs."""

    name: ClassVar[str] = "lora-mlp"
    about: ClassVar[str] = "LoRA on the MLPs alone"
    source: ClassVar[str] = "Hu et al. 2022, arXiv 2106.09685; PEFT, whose benchmark has it"
    held: ClassVar[Held] = Held(there=-2.9)

    def targets(self, model: PreTrainedModel) -> str | list[str]:
        inside = {place.name.removesuffix(".weight") for place in model_region(model, Scope("mlp"))}
        return [name for name in linear_layers(model) if name in inside]


@dataclass(frozen=True)
class RsLora(Lora):
    """LoRA scaled by alpha / sqrt(rank), so that larger ranks learn as fast."""

    name: ClassVar[str] = "rslora"
    about: ClassVar[str] = "LoRA scaled by alpha / sqrt(rank)"
    source: ClassVar[str] = "Kalajdzievski 2023, arXiv 2312.03732; PEFT"
    alpha: float = setting(16.0, "the update is scaled by alpha / sqrt(rank)", least=0)

    def more(self) -> dict[str, Any]:
        return {"use_rslora": True}


@dataclass(frozen=True)
class Dora(Lora):
    """LoRA of the direction of each weight column, with its length trained beside."""

    name: ClassVar[str] = "dora"
    about: ClassVar[str] = "LoRA of directions, lengths trained beside"
    source: ClassVar[str] = "Liu et al. 2024, arXiv 2402.09353; PEFT"
    cost: ClassVar[str] = "less memory, but more than LoRA; more time, since each step takes the norms of all weights"
    held: ClassVar[Held] = Held(there=-1.3)

    def more(self) -> dict[str, Any]:
        return {"use_dora": True}


def linear_layers(model: PreTrainedModel) -> list[str]:
    """The names of a model's linear layers, the output head left out: what PEFT calls "all-linear"."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head
    ]


def plain_linear_layers(model: PreTrainedModel, strategy: str) -> list[tuple[str, int, int]]:
    """Name, rows and columns of a model's linear layers, for adapters that PEFT has for ``torch.nn.Linear`` alone.

    Raises:
        InputError: a layer of another kind, such as GPT-2's Conv1D; ``strategy`` names what refuses it.
    """
    import torch

    found = []
    for name in linear_layers(model):
        layer = model.get_submodule(name)
        if not isinstance(layer, torch.nn.Linear):
            raise InputError(
                f"{strategy}: {name} is a {type(layer).__name__}; expected a model of which every layer is a Linear, "
                "or another strategy, such as lora"
            )
        found.append((name, *layer.weight.shape))
    return found


def with_adapters(model: PreTrainedModel, config: PeftConfig, seed: int) -> Any:
    """PEFT's model around ``model``, which has new adapters in it, of which alone gradients are taken.

    Raises:
        InputError: a model in which PEFT finds no layers to adapt.
    """
    import torch
    from peft import get_peft_model

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)  # the adapters' random half is made here
        warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT asks transformers by a name that it renames
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            kind = str(getattr(config.peft_type, "value", config.peft_type))
            raise InputError(f"{kind}: no layers of this model can be adapted ({error})") from None


@contextmanager
def adapted(
    model: PreTrainedModel, config: PeftConfig, seed: int, finish: Callable[[Any], None] = lambda wrapped: None
) -> Iterator[Any]:
    """``model`` with adapters on it, of which alone gradients are taken.

    After the block, ``finish`` may change the adapters; they are merged into the weights of ``model``, which has its
    own modules again. Where block or ``finish`` end in an error they are not merged, and the weights are as before.

    Raises:
        InputError: as :func:`with_adapters`.
    """
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    wrapped = with_adapters(model, config, seed)
    merged = False
    try:
        yield wrapped
        finish(wrapped)
        merged = True
    finally:
        with border("the adapters cannot be merged"):
            wrapped.merge_and_unload() if merged else wrapped.unload()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])
