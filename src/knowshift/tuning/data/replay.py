"""Facts that the base knows among those of the training: replay, as against forgetting in continual learning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.training.strategy import KNOWN_LEVELS, Draw, Kind, Strategy, setting


@dataclass(frozen=True)
class Replay(Strategy):
    """A share of the facts are of levels 3 and 4 in turn, the others the first of plain fine-tuning; no fact twice.

    Half and half is what Rolnick et al. take; Pletenev et al. mix known and new facts.
    """

    name: ClassVar[str] = "replay"
    about: ClassVar[str] = "a share of the facts are ones that the base knows"
    needs_known: ClassVar[bool] = True
    source: ClassVar[str] = "Rolnick et al. 2019, arXiv 1811.11682; Pletenev et al. 2025, arXiv 2502.14502"
    kind: ClassVar[Kind] = "data"
    share: float = setting(0.5, "of the facts that are known", least=0, most=1)

    def facts(self, draw: Draw) -> list[Fact]:
        """Raises :class:`InputError` where there are fewer known facts."""
        others, known = self.parts(draw)
        return [*others, *known]

    def parts(self, draw: Draw) -> tuple[list[Fact], list[Fact]]:
        """The facts of plain fine-tuning that are left, and the known ones, each in training order."""
        asked = round(self.share * len(draw.members))
        others = draw.members[: len(draw.members) - asked]
        taken = {fact.id for fact in others}
        there = [fact for fact in replace(draw, levels=KNOWN_LEVELS).of(None, None) if fact.id not in taken]
        if asked > len(there):
            raise InputError(
                f"{self.name}: {asked} training facts of levels 3 and 4 asked beside the {len(others)} others, "
                f"{len(there)} available"
            )
        return others, there[:asked]
