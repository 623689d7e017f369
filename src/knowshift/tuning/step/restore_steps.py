"""The paper's restoration (4.3) during the training: every so many steps, the most changed weights return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import TrainerCallback

from knowshift.parameters.loaded import copy_of
from knowshift.parameters.restore import RestorationSweep
from knowshift.training.strategy import Held, Kind, Strategy, Training, setting


@dataclass(frozen=True)
class RestoreSteps(Strategy):
    """Every n steps, the weights that changed most relative to their size return to the base's; moments stay."""

    name: ClassVar[str] = "restore-steps"
    about: ClassVar[str] = "every n steps the most changed weights return to the base's"
    source: ClassVar[str] = "ours, by the restoration of the paper, 4.3"
    cost: ClassVar[str] = "a copy of the weights, a second one while some return, and a pass over them each time"
    held: ClassVar[Held] = Held(on_cpu=1.3)
    kind: ClassVar[Kind] = "step"
    every: int = setting(10, "steps after which weights return", unit="steps", least=1)
    fraction: float = setting(0.2, "of the weights of the transformer's layers", least=0, most=1)

    def callbacks(self, training: Training) -> list[TrainerCallback]:
        return [_Restore(training, self)]


class _Restore(TrainerCallback):  # type: ignore[misc]
    def __init__(self, training: Training, strategy: RestoreSteps) -> None:
        self._strategy, self._model, self._seed = strategy, training.loaded.model, training.seed
        self._base = copy_of(self._model)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step % self._strategy.every == 0:
            for _ in RestorationSweep(self._model, self._base, seed=self._seed).run([self._strategy.fraction]):
                pass
