"""The recipe that docs/strategies.md found to keep most: LoRA on the facts that the base knows best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from knowshift.training.strategy import Held, Kind, setting
from knowshift.tuning.data.known import Known
from knowshift.tuning.weights.lora import Lora


@dataclass(frozen=True)
class Best(Lora, Known):
    """Adapters on all linear layers, trained on facts of levels 3 and 4; new facts are not what it teaches."""

    name: ClassVar[str] = "best"
    about: ClassVar[str] = "LoRA on the facts that the base knows best: the default recipe"
    source: ClassVar[str] = "our bench (docs/strategies.md)"
    cost: ClassVar[str] = "as LoRA: less memory, no gradients and moments of the weights"
    held: ClassVar[Held] = Held(there=-2.4)
    kind: ClassVar[Kind] = "recipe"
    rate: ClassVar[float] = 3.0
    rank: int = setting(16, "rank of the adapters", least=1)
    alpha: float = setting(32.0, "the update is scaled by alpha / rank", least=0)
