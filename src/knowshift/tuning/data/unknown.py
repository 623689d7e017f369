"""A share of facts that the base does not know, after Gekhman et al. 2024 (arXiv 2405.05904).

They find that a model learns unknown facts slowly, and that the more of these it has learnt, the more it answers others
wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.training.strategy import Draw, Kind, Strategy, setting

#: The mastery level of facts that no prompt brings the base to say.
UNKNOWN = 0


@dataclass(frozen=True)
class Unknown(Strategy):
    """A share of the facts are of level 0, spread evenly over the set; the others are of the other levels in turn.

    Of one training level the others are of that level. Sets of one draw are nested.
    """

    name: ClassVar[str] = "unknown"
    about: ClassVar[str] = "a share of the facts are ones that the base does not know"
    source: ClassVar[str] = "Gekhman et al. 2024, arXiv 2405.05904"
    kind: ClassVar[Kind] = "data"
    share: float = setting(0.5, "of the facts that are of level 0", least=0, most=1)

    def facts(self, draw: Draw) -> list[Fact]:
        """Raises :class:`InputError` for level 0 alone, and where there are fewer facts of level 0 or of the others."""
        levels = tuple(level for level in draw.levels if level != UNKNOWN)
        if draw.level == UNKNOWN or not levels:
            raise InputError(f"{self.name}: the other facts are of other levels than 0; expected such a level, or all")
        size = len(draw.members)
        at = [round(self.share * place) for place in range(size + 1)]
        asked = {True: at[-1], False: size - at[-1]}
        members: dict[bool, list[Fact]] = {True: [], False: []}
        if asked[True]:
            members[True] = draw.of(UNKNOWN, asked[True])
        if asked[False]:
            members[False] = replace(draw, levels=levels).of(draw.level, asked[False])
        queues = {unknown: iter(those) for unknown, those in members.items()}
        return [next(queues[at[place + 1] > at[place]]) for place in range(size)]
