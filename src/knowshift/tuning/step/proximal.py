"""The change of the weights shrinks after each step: by a share of it, or by a constant.

L2-SP (Li et al. 2018, arXiv 1802.01483) adds weight / 2 * |s - p|^2 to the loss, p the base's weights. Departure:
decoupled from Adam, as weight decay is in AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), since Adam divides a
gradient of the penalty by the size of the others. The share is that at the schedule's peak, so that it means the same
at every learning rate; it is L2-SP's weight times the peak rate. The constant is the proximal step of their L1-SP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import TrainerCallback

from knowshift.training.strategy import Held, Kind, Strategy, Training, setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Proximal(Strategy):
    """s <- p + sign(d) max(|d| - threshold * rate, 0) with d = (s - p)(1 - share * rate / peak rate), after a step."""

    name: ClassVar[str] = "proximal"
    about: ClassVar[str] = "after each step the change of every weight shrinks"
    source: ClassVar[str] = "L2-SP, L1-SP: Li et al. 2018, arXiv 1802.01483; decoupled as in arXiv 1711.05101"
    cost: ClassVar[str] = "a copy of the trained weights"
    held: ClassVar[Held] = Held(there=1.0)
    kind: ClassVar[Kind] = "step"
    share: float = setting(0.01, "of the change that a step at the peak learning rate takes back", least=0, most=1)
    threshold: float = setting(0.0, "what a step takes off the size of every change", unit="learning rates", least=0)

    def callbacks(self, training: Training) -> list[TrainerCallback]:
        return [_Shrink(training.trained, self)]


class _Shrink(TrainerCallback):  # type: ignore[misc]
    def __init__(self, model: Any, strategy: Proximal) -> None:
        self._strategy = strategy
        self._trained: list[Tensor] = [one for one in model.parameters() if one.requires_grad]
        self._base = [one.detach().clone() for one in self._trained]

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **given: Any) -> None:
        rate = optimizer.param_groups[0]["lr"]
        share, less = self._strategy.share * rate / args.learning_rate, self._strategy.threshold * rate
        for weight, base in zip(self._trained, self._base, strict=True):
            shrink(weight, base, share, less)


def shrink(weight: Tensor, base: Tensor, share: float, less: float) -> None:
    """Move a tensor towards the base in place: by a share of the change, then by ``less``, not beyond the base."""
    weight.lerp_(base, share)
    if less:
        change = weight - base
        weight.copy_(base + change.sign() * (change.abs() - less).clamp(min=0))
