"""Putting part of the change back, after plain fine-tuning: the paper's restoration, its controls, published ways.

What each criterion does is said in :mod:`knowshift.parameters.selection`; fractions are those of ``knowshift restore``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from knowshift.training.strategy import Kind, Strategy, setting

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from knowshift.training.strategy import Weights


@dataclass(frozen=True)
class Restored(Strategy):
    """The most changed weights, relative to their size, return to their pre-trained values (paper 4.3)."""

    name: ClassVar[str] = "restore"
    about: ClassVar[str] = "the most changed weights return to the base's"
    source: ClassVar[str] = "the paper, 4.3"
    cost: ClassVar[str] = "none in training; a pass over the weights after it"
    kind: ClassVar[Kind] = "after"
    criterion: ClassVar[str] = "relative"
    fraction: float = setting(0.2, "of the weights of the transformer's layers", least=0, most=1)

    def after(self, base: Weights, model: PreTrainedModel, seed: int) -> None:
        from knowshift.parameters.restore import RestorationSweep

        for _ in RestorationSweep(model, base, criterion=self.criterion, seed=seed).run([self.fraction]):
            pass


@dataclass(frozen=True)
class Random(Restored):
    """Weights drawn at random return: the control of the paper's choice."""

    name: ClassVar[str] = "restore-random"
    about: ClassVar[str] = "weights drawn at random return to the base's"
    source: ClassVar[str] = "our control"
    criterion: ClassVar[str] = "random"
