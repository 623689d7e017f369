"""Facts of all mastery levels in turn: the paper's "SFT mixed" (Table 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from knowshift.facts.fact import Fact
from knowshift.training.strategy import Draw, Kind, Strategy


@dataclass(frozen=True)
class Mixed(Strategy):
    """As many facts, of all levels in turn."""

    name: ClassVar[str] = "mixed"
    about: ClassVar[str] = "facts of all mastery levels in turn"
    source: ClassVar[str] = "the paper, Table 7"
    kind: ClassVar[Kind] = "data"

    def facts(self, draw: Draw) -> list[Fact]:
        return draw.of(None, len(draw.members))
