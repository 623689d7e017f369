"""MoFO (Chen et al. 2024, arXiv 2407.20999): of each tensor, a step moves only the weights of largest momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import TrainerCallback

from knowshift.training.strategy import Held, Kind, Strategy, Training, setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Mofo(Strategy):
    """Adam, whose step is applied to the share of each tensor whose first moment is largest (their Algorithm 1)."""

    name: ClassVar[str] = "mofo"
    about: ClassVar[str] = "each step moves only the weights of largest momentum"
    source: ClassVar[str] = "Chen et al. 2024, arXiv 2407.20999"
    cost: ClassVar[str] = "a copy of the weights, and a selection in each tensor at each step"
    held: ClassVar[Held] = Held(there=1.0)
    kind: ClassVar[Kind] = "step"
    share: float = setting(0.15, "of each tensor that a step moves", least=0, most=1)

    def callbacks(self, training: Training) -> list[TrainerCallback]:
        return [_Filter(self.share)]


class _Filter(TrainerCallback):  # type: ignore[misc]
    """Takes back the optimiser's step where the first moment is not among the largest."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._before: list[tuple[Tensor, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **given: Any) -> None:
        moved = [one for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
        self._before = [(one, one.detach().clone()) for one in moved]

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **given: Any) -> None:
        moments = getattr(optimizer, "optimizer", optimizer).state
        for parameter, before in self._before:
            chosen = largest(moments[parameter]["exp_avg"], self._share)
            parameter.copy_(torch.where(chosen, parameter, before))
        self._before = []


def largest(moment: Tensor, share: float) -> Tensor:
    """Which weights of a tensor have the largest |moment|: floor(share * weights) of them; in ties, those first."""
    flat = moment.abs().flatten()
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.argsort(descending=True, stable=True)[: int(share * flat.numel())]] = True
    return chosen.view_as(moment)
