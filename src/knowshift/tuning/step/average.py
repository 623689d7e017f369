"""Averages of the weights along a training, which are what it leaves: EMA, and BEMA, which corrects its lag.

Block and Zhang 2025, arXiv 2508.00180. Departure: they average every 400 steps of long trainings; here it is every
step, since a fine-tuning on facts has 30 to 240. Averages are held in float32 whatever the weights' dtype.
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
class Ema(Strategy):
    """The average a_t = (1 - b) a_(t-1) + b s_t of the weights s_t after step t, with b = (lag + t) ** -power."""

    name: ClassVar[str] = "ema"
    about: ClassVar[str] = "a moving average of the weights after each step is what is left"
    source: ClassVar[str] = "Block and Zhang 2025, arXiv 2508.00180"
    cost: ClassVar[str] = "a copy of the trained weights in float32"
    held: ClassVar[Held] = Held(float32=1.0)
    kind: ClassVar[Kind] = "step"
    lag: float = setting(10.0, "added to the number of the step in the average's weights", unit="steps", least=1)
    power: float = setting(0.5, "how fast the weight of a new step falls; 0: the last step alone", least=0)
    every: int = setting(1, "steps between two that are averaged; the last one is", unit="steps", least=1)

    def callbacks(self, training: Training) -> list[TrainerCallback]:
        return [_Average(training.trained, self)]

    def lagging(self, step: int) -> float:
        """The share of the whole change that is added to the average."""
        return 0.0


@dataclass(frozen=True)
class Bema(Ema):
    """The same average, and (lag + t) ** -bias of the whole change added: an average lags behind, this one less."""

    name: ClassVar[str] = "bema"
    about: ClassVar[str] = "a moving average of the weights, corrected for its lag, is what is left"
    source: ClassVar[str] = "Block and Zhang 2025, arXiv 2508.00180; as TRL's BEMACallback"
    cost: ClassVar[str] = "two copies of the trained weights in float32"
    held: ClassVar[Held] = Held(float32=2.0)
    bias: float = setting(0.2, "how fast the correction falls; 0: all of the change is added", least=0)

    def lagging(self, step: int) -> float:
        return float((self.lag + step) ** -self.bias)


class _Average(TrainerCallback):  # type: ignore[misc]
    """Averages the trained weights, and leaves the average in the model."""

    def __init__(self, model: Any, strategy: Ema) -> None:
        self._strategy = strategy
        self._trained: list[Tensor] = [one for one in model.parameters() if one.requires_grad]
        self._averages = [one.detach().float().clone() for one in self._trained]
        corrected = strategy.lagging(0) > 0
        self._starts = [one.clone() for one in self._averages] if corrected else self._averages
        self._last = 0

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step % self._strategy.every and state.global_step < state.max_steps:
            return
        self._last = state.global_step
        new = (self._strategy.lag + self._last) ** -self._strategy.power
        for average, weight in zip(self._averages, self._trained, strict=True):
            average.mul_(1 - new).add_(weight.float(), alpha=new)

    @torch.no_grad()
    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        lagging = self._strategy.lagging(self._last)
        for weight, average, start in zip(self._trained, self._averages, self._starts, strict=True):
            weight.copy_(average + lagging * (weight.float() - start) if lagging else average)
