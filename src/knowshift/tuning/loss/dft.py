"""Dynamic fine-tuning (Wu et al. 2025, arXiv 2508.05629): the loss of each token weighted by its own probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from knowshift.training.strategy import Kind, Scored, Strategy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Dft(Strategy):
    """-sg(s(y)) log s(y), sg without gradient."""

    name: ClassVar[str] = "dft"
    about: ClassVar[str] = "each token's loss times its probability: unlikely tokens count less"
    source: ClassVar[str] = "Wu et al. 2025, arXiv 2508.05629"
    kind: ClassVar[Kind] = "loss"

    def losses(self, scored: Scored) -> Tensor:
        """Loss of each scored token [N], in nats."""
        from torch.nn.functional import cross_entropy

        loss = cross_entropy(scored.logits, scored.targets, reduction="none")
        return loss.neg().exp().detach() * loss
