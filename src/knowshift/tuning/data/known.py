"""The facts that the base knows best: they teach the form of the answers, and nothing that the base does not know.

Facts that a model does not know make it answer from elsewhere than its memory (Gekhman et al. 2024, arXiv 2405.05904);
the paper's own models are best when they are tuned on facts of middle and high mastery (Figure 2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from knowshift.facts.fact import LEVELS, Fact
from knowshift.training.strategy import KNOWN_LEVELS, Draw, Kind, Strategy


@dataclass(frozen=True)
class Known(Strategy):
    """Facts of levels 3 and 4 in turn; where there are too few, those of level 2, then 1, then 0 after them.

    How many is what plain fine-tuning has, and which level that is does not matter. Within a level they are those of
    its own set of the same draw (:func:`.draws.draw_training_set`), so that sets are nested.
    """

    name: ClassVar[str] = "known"
    about: ClassVar[str] = "the facts that the base knows best"
    source: ClassVar[str] = "after the paper, 3.2, and Gekhman et al. 2024, arXiv 2405.05904"
    kind: ClassVar[Kind] = "data"

    def facts(self, draw: Draw) -> list[Fact]:
        """Raises :class:`InputError` where the record has fewer training facts."""
        size = len(draw.members) if draw.size is None else draw.size
        found: list[Fact] = []
        for levels in (KNOWN_LEVELS, *((level,) for level in reversed(range(LEVELS)) if level not in KNOWN_LEVELS)):
            if any(draw.known.of("train", level) for level in levels):
                found += replace(draw, levels=levels).of(None, None)
            if len(found) >= size:
                return found[:size]
        return replace(draw, levels=tuple(range(LEVELS))).of(None, size)  # refuses, in one line
