"""Which facts really moved: kept, lost, gained or never known, from the posteriors of both models' R.

Few texts tell R with an error, and facts that looked known once look less known when they are asked again, whatever was
done to the model. So a fact counts as moved only where both posteriors leave little doubt, and the same rule applied to
two measurements of the base alone (other random numbers) says how many such moves are chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from knowshift.probing.certainty import PROMPT_PRIOR
from knowshift.probing.expected import Expected

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: R from which a model counts as knowing a fact: where the study's level 2 begins (paper 2.3).
KNOWN = 0.25
#: The least fall or rise of R that is a move.
MOVE = 0.1
#: The probability that a fact moved from which it counts as moved.
SURE = 0.95
#: Points at which one of two posteriors is looked at: the middles of as many equal parts.
POINTS = 128


@dataclass(frozen=True)
class Rates:
    """How well one model knows each of F facts, in one measurement; arrays [F].

    Attributes:
        rate: R.
        hits, misses: draws that say as much as the texts did (:meth:`.Expected.as_draws`), no whole numbers.
    """

    rate: Floats
    hits: Floats
    misses: Floats

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]]) -> Rates:
        """From rows of a mastery record by expected hits."""
        found = [Expected(row["prompt_hits"], row["prompt_squares"], row["prompt_draws"]).as_draws() for row in rows]
        hits = np.array([sum(hits) for hits, _ in found])
        draws = np.array([sum(draws) for _, draws in found])
        return cls(np.array([row["rate"] for row in rows], dtype=float), hits, draws - hits)

    @property
    def known(self) -> Bools:
        return self.rate >= KNOWN

    def _crossed(self, later: Rates) -> Bools:
        """Whether each fact is known here and not later, and fell for sure."""
        found = self.known & ~later.known
        at = np.flatnonzero(found)
        found[at] = self._of(at).probability_of_fall(later._of(at)) >= SURE
        return found

    def _of(self, facts: NDArray[np.int64]) -> Rates:
        return Rates(self.rate[facts], self.hits[facts], self.misses[facts])

    def _beta(self) -> tuple[Floats, Floats]:
        return self.hits + PROMPT_PRIOR, self.misses + PROMPT_PRIOR

    def probability_of_fall(self, later: Rates, by: float = MOVE) -> Floats:
        """P(R - R of ``later`` > ``by``) for each fact, each R from its own posterior, a Beta distribution."""
        middles = (np.arange(POINTS) + 0.5) / POINTS
        hit, miss = self._beta()
        mine: Any = special.betaincinv(hit[:, None], miss[:, None], middles[None, :])
        hit, miss = later._beta()
        below: Any = special.betainc(hit[:, None], miss[:, None], np.clip(mine - by, 0.0, 1.0))
        return np.asarray(np.where(mine > by, below, 0.0).mean(axis=1))


@dataclass(frozen=True)
class Moves:
    """What became of each of F facts; of ``kept``, ``lost``, ``gained`` and ``never`` one is True for each."""

    kept: Bools
    lost: Bools
    gained: Bools
    never: Bools

    @classmethod
    def between(cls, before: Rates, after: Rates) -> Moves:
        """Lost: known before, not after, and a fall by :data:`MOVE` as good as sure. Gained: the same way up."""
        lost = before._crossed(after)
        gained = after._crossed(before)
        return cls(before.known & ~lost, lost, gained, ~before.known & ~gained)

    def counts(self) -> dict[str, int]:
        return {name: int(getattr(self, name).sum()) for name in ("kept", "lost", "gained", "never")}

    def names(self) -> list[str]:
        """Of each fact."""
        found = np.select([self.kept, self.lost, self.gained], ["kept", "lost", "gained"], "never")
        return [str(name) for name in found]
