"""Facts of few relations: how many kinds of questions a training set needs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.training.strategy import Draw, Kind, Strategy, setting
from knowshift.tuning.data.filling import filled

#: Beside the study's seed and the draw, that of the choice of relations.
_RELATIONS = 11


@dataclass(frozen=True)
class RelationMix(Strategy):
    """Facts of so many relations, drawn by seed; of every level each relation gives as many, up to one.

    Relations are drawn among those that have enough facts of every level; sets of one draw are nested as long as these
    are the same. With all relations the set is that of plain fine-tuning.
    """

    name: ClassVar[str] = "relation-mix"
    about: ClassVar[str] = "facts of a few relations, drawn by seed"
    source: ClassVar[str] = "ours"
    kind: ClassVar[Kind] = "data"
    count: int = setting(1, "relations that the facts are of", unit="relations", least=1)

    def facts(self, draw: Draw) -> list[Fact]:
        """Raises :class:`InputError` where fewer relations have enough facts."""
        chosen = self.relations(draw)
        return filled(draw, lambda fact: fact.relation in chosen, f"{self.name}, {self.count} relations")

    def relations(self, draw: Draw) -> set[str]:
        """The relations of a draw."""
        needed = {
            level: -(-count // self.count)
            for level, count in Counter(draw.known.levels[fact.id] for fact in draw.members).items()
        }
        there = Counter((draw.known.levels[fact.id], fact.relation) for fact in draw.known.of("train"))
        every = sorted({relation for _, relation in there})
        enough = [one for one in every if all(there[level, one] >= count for level, count in needed.items())]
        if self.count > len(enough):
            least = ", ".join(f"{count} of level {level}" for level, count in sorted(needed.items()))
            raise InputError(
                f"{self.name}: {self.count} relations asked that have training facts enough ({least}); "
                f"{len(enough)} of {len(every)} have"
            )
        order = np.random.default_rng([draw.seed, _RELATIONS, draw.draw]).permutation(len(enough))
        return {enough[place] for place in order[: self.count]}
