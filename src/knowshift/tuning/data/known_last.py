"""KnownPatch (Dang et al. 2025, arXiv 2511.02626): facts that the base knows come last.

They find that a few known facts late in a training undo what new facts do to the attention to the question's subject.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from knowshift.facts.fact import Fact
from knowshift.training.strategy import Draw, setting
from knowshift.tuning.data.replay import Replay


@dataclass(frozen=True)
class KnownLast(Replay):
    """The facts of replay, the known ones at the end of every epoch; those before them shuffled by the draw's seed.

    The share is ours: the paper speaks of a small number of known facts.
    """

    name: ClassVar[str] = "known-last"
    about: ClassVar[str] = "facts that the base knows come last"
    needs_known: ClassVar[bool] = True
    source: ClassVar[str] = "KnownPatch: Dang et al. 2025, arXiv 2511.02626"
    share: float = setting(0.2, "of the facts that are known, and come last", least=0, most=1)

    def facts(self, draw: Draw) -> list[Fact]:
        others, known = self.parts(draw)
        order = np.random.default_rng([draw.seed, draw.draw, len(others)]).permutation(len(others))
        return [*(others[place] for place in order), *known]

    def options(self) -> dict[str, Any]:
        return {"train_sampling_strategy": "sequential"}
