"""The recipes that docs/strategies.md found to keep most of what the base knows: LoRA, at a rate of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from knowshift.training.strategy import Held, Kind, setting
from knowshift.tuning.data.known import Known
from knowshift.tuning.weights.lora import Lora


@dataclass(frozen=True)
class Best(Lora):
    """LoRA on all linear layers, at a rate of its own: on our bench three to nine times plain fine-tuning's best."""

    name: ClassVar[str] = "best"
    about: ClassVar[str] = "the default recipe: LoRA on all linear layers, at a rate that keeps knowledge"
    source: ClassVar[str] = "our bench (docs/strategies.md)"
    kind: ClassVar[Kind] = "recipe"
    rate: ClassVar[float] = 3.0


@dataclass(frozen=True)
class LoraKnown(Lora, Known):
    """The same on facts that the base knows, of a larger rank: nothing but the form of the answers is taught."""

    name: ClassVar[str] = "lora-known"
    about: ClassVar[str] = "LoRA on the facts that the base knows best"
    source: ClassVar[str] = "our bench (docs/strategies.md)"
    held: ClassVar[Held] = Held(there=-2.4)
    kind: ClassVar[Kind] = "recipe"
    rate: ClassVar[float] = 3.0
    rank: int = setting(16, "rank of the adapters", least=1)
    alpha: float = setting(32.0, "the update is scaled by alpha / rank", least=0)
