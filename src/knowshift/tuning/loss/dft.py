"""Dynamic fine-tuning (Wu et al. 2025, arXiv 2508.05629): the loss of each token weighted by its own probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from knowshift.training.strategy import Kind, Strategy


@dataclass(frozen=True)
class Dft(Strategy):
    """-sg(s(y)) log s(y), sg without gradient, by TRL's own loss."""

    name: ClassVar[str] = "dft"
    about: ClassVar[str] = "each token's loss times its probability: unlikely tokens count less"
    source: ClassVar[str] = "Wu et al. 2025, arXiv 2508.05629; TRL's loss_type dft"
    kind: ClassVar[Kind] = "loss"

    def options(self) -> dict[str, Any]:
        return {"loss_type": "dft"}
