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

from knowshift.probing.certainty import PROMPT_PRIOR, level_probabilities
from knowshift.probing.stopping import Asked

Floats = NDArray[np.float64]

#: Texts of each prompt: what ``full`` makes, and the most that ``sequential`` makes.
TEXTS = {"full": 2, "sequential": 10}
#: Texts of each prompt after which ``sequential`` looks.
LOOKS = (2, 4, 7)
#: Draws that one text is taken to be worth at most, however little its values vary: what few texts have not met is
#: not known to be absent.
WORTH = 20.0


@dataclass(frozen=True)
class Expected:
    """What the texts of one fact say; each list has one entry a prompt."""

    sums: list[float]  # of the values of its texts
    squares: list[float]  # of their squares
    texts: list[int]

    @classmethod
    def of(cls, value: Floats) -> Expected:
        """From values [prompts, texts], NaN for texts that were not made."""
        made = np.isfinite(value)
        known = np.where(made, value, 0.0)
        return cls(known.sum(axis=1).tolist(), (known**2).sum(axis=1).tolist(), made.sum(axis=1).tolist())

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

    @property
    def worth(self) -> float:
        """Draws that one text is worth: those of a draw's variance, R (1 - R), that make up the variance of a text."""
        means = np.divide(self.sums, self.texts)
        spread = self._spread
        of_draws = float(np.clip(means * (1 - means) + spread / np.asarray(self.texts), 0.0, 0.25).sum())
        if of_draws <= 0:
            return WORTH
        return float(np.clip(of_draws / max(float(spread.sum()), 1e-300), 0.1, WORTH))

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
    texts: int,
    error: float | None,
    draws_per_prompt: int,
    begun: Callable[[int], None],
) -> tuple[list[Expected], int]:
    """What the texts of every fact say, and the token positions computed.

    Args:
        texts: of each prompt, at most.
        error: a fact gets no more texts once its level stands with probability 1 - ``error``; None makes all.
    """
    session = open_session(asked.prompts, asked.accepted, asked.streams)
    open_facts = set(range(len(asked.facts)))
    done = 0
    for look in [*(look for look in LOOKS if error is not None and look < texts), texts]:
        numbers = [np.empty(0, dtype=np.int64)] * len(asked.prompts)
        for fact in open_facts:
            where = asked.facts[fact]
            numbers[where] = [np.arange(done, look)] * (where.stop - where.start)
        session.draw(numbers, begun)
        done = look
        if error is None or done == texts:
            break
        value = session.value
        open_facts = {
            fact for fact in open_facts if Expected.of(value[asked.facts[fact]]).certainty(draws_per_prompt) < 1 - error
        }
        if not open_facts:
            break
    value = session.value
    return [Expected.of(value[where]) for where in asked.facts], session.positions
