"""The distance to the base model's next-token distribution, added to the loss.

As in the penalty of Stiennon et al. 2020 (arXiv 2009.01325, 2) and of "RL's Razor" (Shenfeld et al. 2025,
arXiv 2509.04259), whose measure of forgetting it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from knowshift.training.strategy import Kind, Scored, Strategy, setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Kl(Strategy):
    """-log s(y) + weight * KL(s || p) at each scored token; s the model in training, p the base model.

    With ``top`` tokens, both are renormalised over the largest logits of s, as in the paper's measure (4.1).
    """

    name: ClassVar[str] = "kl"
    about: ClassVar[str] = "KL to the base model's next-token distribution added to the loss"
    source: ClassVar[str] = "Stiennon et al. 2020, arXiv 2009.01325; Shenfeld et al. 2025, arXiv 2509.04259"
    cost: ClassVar[str] = "a forward pass of the base model at each step; its weights in memory"
    kind: ClassVar[Kind] = "loss"
    needs_base: ClassVar[bool] = True
    weight: float = setting(0.1, "of the KL in the loss", unit="nats / nats", least=0)
    top: int = setting(0, "largest logits that it is taken over; 0: all (the paper's measure takes 10)", least=0)

    def losses(self, scored: Scored) -> Tensor:
        """Loss of each scored token [N], in nats."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(scored.logits, scored.targets, reduction="none") + self.weight * kl(
            scored.logits, scored.base(), self.top
        )


@dataclass(frozen=True)
class KlTen(Kl):
    """KL over the ten tokens that the model in training ranks first: the loss keeps what the paper's 4.1 measures."""

    name: ClassVar[str] = "kl-ten"
    about: ClassVar[str] = "KL to the base model over the ten largest logits added to the loss"
    source: ClassVar[str] = "our loss, by the measure of the paper, 4.1"
    top: int = setting(10, "largest logits that it is taken over; 0: all", least=0)


def kl(logits: Tensor, base: Tensor, top: int = 0) -> Tensor:
    """KL(softmax(logits) || softmax(base)) in nats, [N], from logits [N, V]; over the ``top`` largest of ``logits``."""
    if top:
        logits, best = logits.topk(min(top, logits.shape[-1]), dim=-1)
        base = base.gather(-1, best)
    here, there = logits.log_softmax(-1), base.log_softmax(-1)
    return (here.exp() * (here - there)).sum(-1)
