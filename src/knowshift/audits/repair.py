"""Repair: which part of a fine-tuning to undo, chosen on one half of what is asked and confirmed on the other.

Candidates are swept in memory, simplest first. Each is scored on the first half: the share of the facts that the base
knows which are there in any form, and how well the model still does what its tuning was for; both count the same. The
simplest candidate that is not surely worse than the best is chosen, and measured beside the tuned model on the other
half. It is a repair only if its gain there is surely above 0 and the purpose has not suffered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from knowshift.audits.evidence import Evidence
from knowshift.audits.purpose import Purpose
from knowshift.facts.grading import Grader
from knowshift.models.loading import LoadedModel
from knowshift.models.sampling.session import greedy
from knowshift.parameters.regions import Scope
from knowshift.parameters.restore import RestorationSweep
from knowshift.parameters.tensors import TensorReader
from knowshift.statistics.estimates import Estimate, from_error

Floats = NDArray[np.float64]

#: Criteria with their fractions, simplest first, each for a region; controls (random, least) are candidates too.
SWEEPS: tuple[tuple[str, tuple[float, ...], str], ...] = (
    ("interpolate", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), "layers"),
    ("interpolate", (0.3, 0.5, 0.7), "mlp"),
    ("interpolate", (0.3, 0.5, 0.7), "attention"),
    ("lines", (0.25, 0.5, 0.75), "layers"),
    ("random", (0.1, 0.2, 0.4, 0.6), "layers"),
    ("relative", (0.05, 0.1, 0.2, 0.4), "layers"),
    ("least", (0.2, 0.4, 0.6), "layers"),
    ("fapm", (0.2, 0.4), "layers"),
    ("dg-hard", (1.0,), "layers"),
)
#: How much worse a repair may do what the tuning was for: a fraction of 1.
SUFFER = 0.02
#: Tokens of an answer at most.
ANSWER = 16


@dataclass(frozen=True)
class Candidate:
    """One way to undo a part of the tuning."""

    criterion: str
    fraction: float
    region: str

    @property
    def name(self) -> str:
        return f"{self.criterion} {self.fraction:g} ({self.region})"


@dataclass(frozen=True)
class Scores:
    """Of a model on some facts and items: what is known, 0 or 1, and what is kept, 0 to 1."""

    known: Floats
    kept: Floats

    @property
    def whole(self) -> float:
        """The mean of both means; of what there is where one is empty."""
        return float(np.mean([part.mean() for part in (self.known, self.kept) if len(part)]))

    def minus(self, other: Scores) -> Estimate:
        """The paired difference of :attr:`whole`, with its interval over facts and items."""
        parts = [a - b for a, b in ((self.known, other.known), (self.kept, other.kept)) if len(a)]
        value = float(np.mean([part.mean() for part in parts]))
        error = float(np.sqrt(sum(_variance(part) for part in parts)) / len(parts))
        return from_error(value, error, min(len(part) for part in parts) - 1.0, 1)


def _variance(part: Floats) -> float:
    """Of a mean of paired differences, as of matched proportions (Agresti and Min 2005)."""
    n = len(part)
    return float((n / max(n - 1, 1) * ((part - part.mean()) ** 2).sum() + 1) / (n + 2) ** 2)


@dataclass(frozen=True)
class Repair:
    """What the search came to.

    Attributes:
        curve: candidates in the order tried, with their scores on the first half; the tuned model is the first, as
            None.
        chosen: the candidate that was measured on the other half; None where none was better.
        held_out: tuned and repaired on the other half, with the difference; None without a choice.
        confirmed: whether the gain is sure, and the purpose kept.
    """

    curve: list[tuple[Candidate | None, Scores]]
    purpose: Purpose | None
    chosen: Candidate | None = None
    held_out: tuple[Scores, Scores, Estimate] | None = None
    confirmed: bool = False
    left_out: list[str] = field(default_factory=list)


class Search:
    """One search for a repair of ``tuned``, whose weights are as they were when it ends."""

    def __init__(
        self,
        tuned: LoadedModel,
        base: TensorReader,
        evidence: Evidence,
        purpose: Purpose | None,
        seed: int,
        tell: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.tuned, self.base, self.purpose, self.seed, self._tell = tuned, base, purpose, seed, tell
        self._evidence = evidence
        known = np.flatnonzero(evidence.first.known | evidence.second.known)
        rng = np.random.default_rng([seed, 23])
        self._facts = _halves(known, rng)
        self._items = _halves(np.arange(len(purpose) if purpose else 0), rng)

    def run(self, ends: float | None = None) -> Repair:
        """Sweep, choose, confirm; ``ends`` is the time of :func:`time.monotonic` at which the sweeps stop."""
        curve: list[tuple[Candidate | None, Scores]] = [(None, self._score(0))]
        total = sum(len(fractions) for _, fractions, _ in SWEEPS)
        left_out = []
        for criterion, fractions, region in SWEEPS:
            if ends is not None and time.monotonic() > ends:
                left_out.append(f"{criterion} ({region})")
                continue
            for fraction in self._sweep(criterion, fractions, region):
                curve.append((Candidate(criterion, fraction, region), self._score(0)))
                self._tell(len(curve) - 1, total)
        if self.purpose is None or not len(self._facts[0]) or not len(self._facts[1]):
            return Repair(curve, self.purpose, left_out=left_out)
        chosen = choose(curve)
        if chosen is None:
            return Repair(curve, self.purpose, left_out=left_out)
        before = self._score(1)
        after = before
        for _ in self._sweep(chosen.criterion, (chosen.fraction,), chosen.region):
            after = self._score(1)
        gain = after.minus(before)
        kept = float(after.kept.mean() - before.kept.mean())
        confirmed = gain.low > 0 and kept >= -SUFFER
        return Repair(curve, self.purpose, chosen, (before, after, gain), confirmed, left_out)

    def _sweep(self, criterion: str, fractions: Sequence[float], region: str) -> Iterator[float]:
        """Yield each fraction while the model stands restored to it; afterwards it is as tuned."""
        sweep = RestorationSweep(self.tuned.model, self.base, criterion, Scope(region), self.seed)
        try:
            for fraction, _ in sweep.run(fractions):
                yield fraction
        finally:
            sweep.undo()

    def _score(self, half: int) -> Scores:
        """Of the model as it stands, on one half."""
        facts = self._facts[half]
        known = np.zeros(len(facts), dtype=bool)
        for form in self._evidence.forms:
            if form.prompts is None or not len(facts):
                continue
            left = np.flatnonzero(~known)  # what one form has shown need not be asked in another
            if not len(left):
                break
            texts = greedy(self.tuned, [form.prompts[facts[i]] for i in left], max_new_tokens=ANSWER)
            for i, text in zip(left, texts, strict=True):
                shown = text.lstrip().split("\n")[0] if form.first_line else text
                known[i] = Grader.of(self._evidence.facts[facts[i]]).substring(shown)
        kept = np.empty(0) if self.purpose is None else self.purpose.scores(self.tuned, self._items[half].tolist())
        return Scores(known.astype(float), kept)


def choose(curve: Sequence[tuple[Candidate | None, Scores]]) -> Candidate | None:
    """The simplest candidate, in order, that is not surely worse than the best; None where none beats the tuned model.

    A candidate that does worse by :data:`SUFFER` or more what the tuning was for is none.
    """
    tuned = curve[0][1]
    fit = [
        (candidate, scores)
        for candidate, scores in curve[1:]
        if scores.kept.mean() >= tuned.kept.mean() - SUFFER and scores.whole > tuned.whole
    ]
    if not fit:
        return None
    best = max(fit, key=lambda one: one[1].whole)[1]
    return next(candidate for candidate, scores in fit if scores.minus(best).high >= 0)


def _halves(places: NDArray[np.int64], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    order = rng.permutation(places)
    return np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
