"""Anchored supervised fine-tuning (Zhu et al. 2025, arXiv 2509.23753): DFT's weighting and a KL from the base model.

DFT alone drifts from the base where its data are knowledge rather than reasoning, which the KL prevents (their 5.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from knowshift.training.strategy import Kind, Scored, Strategy, setting
from knowshift.tuning.loss.kl import kl

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Asft(Strategy):
    """-sg(s(y)) log s(y) + weight * KL(p || s) at each scored token (their equation 6); p the base model."""

    name: ClassVar[str] = "asft"
    about: ClassVar[str] = "DFT's loss, and the KL from the base model's next-token distribution"
    source: ClassVar[str] = "Zhu et al. 2025, arXiv 2509.23753"
    cost: ClassVar[str] = "a forward pass of the base model at each step; its weights in memory"
    kind: ClassVar[Kind] = "loss"
    needs_base: ClassVar[bool] = True
    weight: float = setting(0.05, "of the KL in the loss", unit="nats / nats", least=0)

    def losses(self, scored: Scored) -> Tensor:
        """Loss of each scored token [N], in nats."""
        from torch.nn.functional import cross_entropy

        loss = cross_entropy(scored.logits, scored.targets, reduction="none")
        return loss.neg().exp().detach() * loss + self.weight * kl(scored.base(), scored.logits)
