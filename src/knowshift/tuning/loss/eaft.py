"""Entropy-adaptive fine-tuning (Diao et al. 2026, arXiv 2601.02151): tokens at which the model is sure count less.

Where the model is sure of another token, the loss would change much that it knows; where it is unsure, it may learn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from knowshift.training.strategy import Kind, Scored, Strategy, setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Eaft(Strategy):
    """-sg(h ** power) log s(y), h the entropy over the ``top`` likeliest tokens as a share of the largest, ln(top)."""

    name: ClassVar[str] = "eaft"
    about: ClassVar[str] = "each token's loss times the entropy there: sure tokens count less"
    source: ClassVar[str] = "Diao et al. 2026, arXiv 2601.02151"
    kind: ClassVar[Kind] = "loss"
    top: int = setting(20, "likeliest tokens that the entropy is taken over", least=2)
    power: float = setting(1.0, "of the entropy in the weight; 0: plain fine-tuning", least=0)

    def losses(self, scored: Scored) -> Tensor:
        """Loss of each scored token [N], in nats."""
        from torch.nn.functional import cross_entropy

        weight = entropy_share(scored.logits.detach(), self.top) ** self.power
        return weight * cross_entropy(scored.logits, scored.targets, reduction="none")


def entropy_share(logits: Tensor, top: int) -> Tensor:
    """Entropy of softmax over the ``top`` largest logits by ln(top), [N] from [N, V]: 0, one token, to 1, all equal."""
    kept = logits.topk(min(top, logits.shape[-1]), dim=-1).values.log_softmax(-1)
    entropy = -(kept.exp() * kept).sum(-1)
    return (entropy / math.log(kept.shape[-1])).clamp(0, 1)  # rounding may leave the interval
