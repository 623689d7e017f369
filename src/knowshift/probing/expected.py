"""Expected hits: R, its variance and the probability of each level from few texts a prompt (docs/mastery.md).

The counterpart of :mod:`.stopping` for ``--estimate expected``: which texts to make, and what their values say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from knowshift.models.sampling.cache import Ints
from knowshift.probing.certainty import PROMPT_PRIOR, level_probabilities
from knowshift.probing.stopping import Asked

Floats = NDArray[np.float64]

#: Texts of each prompt at least: the fewest that tell a variance.
FEWEST = 2
#: Texts of each prompt at most, where their number is not given.
MOST = 10
#: Texts of each prompt after which ``sequential`` looks.
LOOKS = (2, 4, 7)
#: What the prompts of a fact promise on the mean (:meth:`.ExpectedSession.read`) if its texts are to stay whole. On a
#: real model (SmolLM2-135M, 160 facts, 2026-11-26) most facts of levels 1 to 4 promise as much, and few of level 0.
PROMISING = 3e-4
#: The share of texts that go on beyond their first token where nothing has come of them, if the prompts promise less.
SHARE = 0.5
#: Texts of a prompt for each unit of the standard deviation of one text (``full``). The sum of all facts' variances is
#: smallest for its cost if texts are as this deviation (Neyman, "On the two different aspects of the representative
#: method", 1934); with this factor it is meant to be no larger than that of counted hits on a real
#: model (docs/mastery.md).
ALLOTTED = 18.0
#: Draws that one text is taken to be worth at most, however little its values vary: what few texts have not met is
#: not known to be absent.
WORTH = 20.0


@dataclass(frozen=True)
class Expected:
    """What the texts of one fact say; each list has one entry a prompt."""

    sums: list[float]  # of the values of its texts
    squares: list[float]  # of their squares
    texts: list[int]
    drawn: bool = False  # whether hits beyond direct ones are draws (of a server): what no text met is unknown

    @classmethod
    def of(cls, value: Floats, drawn: bool = False) -> Expected:
        """From values [prompts, texts], NaN for texts that were not made."""
        made = np.isfinite(value)
        known = np.where(made, value, 0.0)
        return cls(known.sum(axis=1).tolist(), (known**2).sum(axis=1).tolist(), made.sum(axis=1).tolist(), drawn)

    @property
    def rate(self) -> float:
        """R, the mean over prompts of the mean value of their texts; unbiased, and so sometimes a little above 1."""
        return float(np.mean(np.divide(self.sums, self.texts)))

    @property
    def variance(self) -> float:
        """Of :attr:`rate` for these prompts, from the spread of each prompt's texts; unbiased."""
        return float((self._spread / np.asarray(self.texts)).sum() / len(self.texts) ** 2)

    @property
    def _spread(self) -> Floats:
        """The variance of one text of each prompt."""
        sums, squares, texts = (np.asarray(one, dtype=float) for one in (self.sums, self.squares, self.texts))
        result: Floats = np.maximum(squares - sums**2 / texts, 0.0) / (texts - 1)
        return result

    def deviation_of_others(self) -> Floats:
        """For each prompt the standard deviation of one text, as told by others: those of even number by the odd ones.

        So the number of texts that follows from it does not depend on a prompt's own, and R stays unbiased. Without
        others it is not known, and taken to be large.
        """
        spread, even = self._spread, np.arange(len(self.texts)) % 2 == 0
        result: Floats = np.sqrt(
            np.where(even, spread[~even].mean() if len(spread) > 1 else np.inf, spread[even].mean())
        )
        return result

    @property
    def worth(self) -> float:
        """Draws that one text is worth: those of a draw's variance, R (1 - R), that make up the variance of a text.

        Where hits are drawn, what so many texts may have missed by chance adds to both: the variance of a draw at the
        mean rate of a prior like that of levels. A text without any hit is then worth one draw.
        """
        means = np.divide(self.sums, self.texts)
        spread = self._spread
        of_draws = float(np.clip(means * (1 - means) + spread / np.asarray(self.texts), 0.0, 0.25).sum())
        of_texts = float(spread.sum())
        if self.drawn:
            unseen = len(self.texts) * PROMPT_PRIOR / (2 * PROMPT_PRIOR + sum(self.texts))
            of_draws, of_texts = of_draws + unseen, of_texts + unseen
        if of_draws <= 0:
            return WORTH
        return float(np.clip(of_draws / max(of_texts, 1e-300), 0.1, WORTH))

    def level_probabilities(self, draws_per_prompt: int) -> Floats:
        """Of a run with so many draws of each prompt: float64 [5].

        As of counts (:func:`.certainty.level_probabilities`), with each text as so many draws as it is worth.
        """
        return level_probabilities(*self.as_draws(), draws_per_prompt)

    def certainty(self, draws_per_prompt: int) -> float:
        """The probability that more texts would leave the level, the one that a full run has most probably, as it is.

        That of R lying where this level is the likeliest, by a Beta distribution of what the texts are worth in draws.
        A full run's own chance of another level does not count: no number of texts makes it smaller.
        """
        hits, draws = (float(np.sum(one)) for one in self.as_draws())
        level = int(self.level_probabilities(draws_per_prompt).argmax())
        # A run of N draws has no hit with a probability of one half at R = 1 - 0.5 ** (1 / N).
        edges = [0.0, 1 - 0.5 ** (1 / (draws_per_prompt * len(self.texts))), 0.25, 0.5, 0.75, 1.0]
        of_rate = stats.beta(PROMPT_PRIOR + hits, PROMPT_PRIOR + draws - hits)
        return float(of_rate.cdf(edges[level + 1]) - of_rate.cdf(edges[level]))

    def as_draws(self) -> tuple[list[float], list[float]]:
        """Hits and draws of each prompt that say as much: no whole numbers, the hits at most the draws."""
        worth = self.worth
        draws = [worth * texts for texts in self.texts]
        return [min(max(worth * total, 0.0), most) for total, most in zip(self.sums, draws, strict=True)], draws


def draw_expected(
    open_session: Callable[[Sequence[str], Sequence[Sequence[str]], Sequence[str]], Any],
    asked: Asked,
    rule: Rule,
    begun: Callable[[int], None],
    *,
    drawn: bool = False,
) -> tuple[list[Expected], int]:
    """What the texts of every fact say, and the token positions computed; ``drawn``: see :class:`Expected`."""
    session = open_session(asked.prompts, asked.accepted, asked.streams)
    promise = session.read()
    share = np.ones(len(promise))
    for where in asked.facts:
        share[where] = 1.0 if promise[where].mean() >= PROMISING else SHARE
    made = np.zeros(len(asked.prompts), dtype=np.int64)
    while True:
        found = [Expected.of(session.value[where], drawn) for where in asked.facts]
        wanted = made.copy()
        for where, its in zip(asked.facts, found, strict=True):
            wanted[where] = rule.texts(its)
        if (wanted <= made).all():
            return found, session.positions
        numbers = [np.arange(some, all_) for some, all_ in zip(made, wanted, strict=True)]
        again = bool(made.any())
        # More texts are of facts whose texts differ, where a weight grown large would do harm.
        session.draw(numbers, None if again else share, (lambda count: None) if again else begun)
        made = np.maximum(made, wanted)


@dataclass(frozen=True)
class Rule:
    """How many texts each prompt of a fact gets, by what those made so far say.

    Attributes:
        most: texts of a prompt.
        fixed: whether every prompt gets as many.
        error: a fact gets no more texts once its level stands with probability 1 - ``error``; None: as many as the
            spread of the texts asks for.
        draws_per_prompt: of the full run whose level is told.
    """

    most: int
    fixed: bool
    error: float | None
    draws_per_prompt: int

    @property
    def told(self) -> int | str:
        """What records say of it."""
        return self.most if self.fixed or self.error is not None else "by spread"

    @property
    def rounds(self) -> bool:
        """Whether there may be more than one round."""
        return not self.fixed or self.error is not None

    def texts(self, found: Expected) -> Ints:
        """Texts of each prompt, those made included."""
        made = np.asarray(found.texts)
        if not made.any():
            return np.full(len(made), min(FEWEST, self.most) if self.rounds else self.most)
        if self.error is not None:
            if found.certainty(self.draws_per_prompt) >= 1 - self.error:
                return made
            return np.full(len(made), min(next((look for look in LOOKS if look > made[0]), self.most), self.most))
        if self.fixed or made.max() > FEWEST:
            return made
        return np.clip(np.ceil(ALLOTTED * found.deviation_of_others()), FEWEST, self.most).astype(np.int64)
