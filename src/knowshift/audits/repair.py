"""Repair: which part of a fine-tuning to undo, chosen on one half of what is asked and confirmed on the other.

Candidates are swept in memory, simplest first. Each is scored on the first half: the share of the facts that the base
knows which are answered greedily in some form, and how well the model still does what its tuning was for; both count
the same. The simplest candidate that is not surely worse than the best is chosen, written, and measured as it is
written, beside the tuned model, on the other half. It is a repair only if its gain there is surely above 0 and the
purpose has surely not suffered. Without a purpose that the tuned model surely serves better than the base, nothing is
chosen.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knowshift.audits.evidence import Answered, Evidence
from knowshift.audits.purposes.purpose import Described, Floats, Purpose
from knowshift.audits.shares import mean_change
from knowshift.evaluation import answered
from knowshift.models.loading import LoadedModel
from knowshift.parameters.regions import Scope
from knowshift.parameters.restore import RestorationSweep
from knowshift.parameters.tensors import TensorReader
from knowshift.statistics.estimates import Estimate, from_error

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
#: What is tried first where there is no time for all, by criterion, fraction and region: a coarse curve, a random
#: restoration and one of the paper's criterion. All else follows in the order of :data:`SWEEPS`.
FIRST = (
    *(("interpolate", fraction, "layers") for fraction in (0.5, 0.3, 0.7)),
    ("random", 0.4, "layers"),
    ("relative", 0.2, "layers"),
    ("interpolate", 0.2, "layers"),
)
#: What the interval of the loss on the purpose must exclude, in units of the purpose's ``suffer``.
EXCLUDED = 2.5
#: Facts, and items of the purpose, of a half below which nothing is chosen.
FEWEST = 10


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
        return _paired([a - b for a, b in ((self.known, other.known), (self.kept, other.kept)) if len(a)])

    def kept_minus(self, other: Scores) -> Estimate:
        """The same of what is kept alone."""
        return _paired([self.kept - other.kept])


def _paired(parts: Sequence[Floats]) -> Estimate:
    """The mean of the means of paired differences."""
    value = float(np.mean([part.mean() for part in parts]))
    error = float(np.sqrt(sum(_variance(part) for part in parts)) / len(parts))
    return from_error(value, error, max(min(len(part) for part in parts) - 1.0, 1.0), 1)


def _variance(part: Floats) -> float:
    """Of a mean of paired differences [items], at least two."""
    return mean_change(2 * part, np.full(len(part), 2.0), [""] * len(part)).by_fact.error ** 2


@dataclass(frozen=True)
class Repair:
    """What the search came to.

    Attributes:
        curve: candidates in the order tried, with their scores on the first half; the tuned model is the first, as
            None.
        served: how much better the tuned model serves the purpose than the base: shares of right answers, or nats a
            token of a text; None without a purpose.
        chosen: the candidate that was measured on the other half; None where none was better, or too little is asked.
        held_out: tuned and repaired on the other half, with the difference; None without a choice.
        confirmed: whether the gain is sure, and the purpose surely kept.
    """

    curve: list[tuple[Candidate | None, Scores]]
    purpose: Described | None
    served: Estimate | None = None
    chosen: Candidate | None = None
    held_out: tuple[Scores, Scores, Estimate] | None = None
    confirmed: bool = False
    left_out: list[str] = field(default_factory=list)

    @property
    def is_served(self) -> bool:
        """Whether the tuned model surely serves the purpose better than the base."""
        return self.served is not None and self.served.low > 0

    def record(self) -> dict[str, Any]:
        """As JSON, of which :func:`repair_of` makes the same again."""
        record: dict[str, Any] = _plain(asdict(self))
        return record


def repair_of(record: Mapping[str, Any]) -> Repair:
    """A repair from its record."""

    def scores(told: Mapping[str, Any]) -> Scores:
        return Scores(np.array(told["known"], dtype=float), np.array(told["kept"], dtype=float))

    def candidate(told: Mapping[str, Any] | None) -> Candidate | None:
        return None if told is None else Candidate(**told)

    purpose, served, held_out = record["purpose"], record["served"], record["held_out"]
    return Repair(
        [(candidate(one), scores(other)) for one, other in record["curve"]],
        None if purpose is None else Described(**purpose),
        None if served is None else Estimate(**served),
        candidate(record["chosen"]),
        None if held_out is None else (scores(held_out[0]), scores(held_out[1]), Estimate(**held_out[2])),
        record["confirmed"],
        list(record["left_out"]),
    )


def _plain(value: Any) -> Any:
    """Arrays as lists, in whatever holds them."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


class Search:
    """One search for a repair of ``tuned``, whose weights are as they were when it ends.

    ``untuned``: the base's own scores of the purpose's items.
    """

    def __init__(
        self,
        tuned: LoadedModel,
        base: TensorReader,
        evidence: Evidence,
        purpose: Purpose | None,
        seed: int,
        tell: Callable[[int, int], None] = lambda done, total: None,
        *,
        untuned: Floats | None = None,
    ) -> None:
        self.tuned, self.base, self.purpose, self.seed, self._tell = tuned, base, purpose, seed, tell
        self._evidence = evidence
        known = np.flatnonzero(evidence.first.known | evidence.second.known)
        self._facts = self._halves(known, [evidence.facts[i].question for i in known.tolist()])
        count = len(purpose) if purpose else 0
        self._forms = telling_forms(evidence.forms)
        self._items = self._halves(np.arange(count), purpose.texts if purpose else [])
        self.served: Estimate | None = None
        self._untuned, self._gain = np.zeros(count), 1.0
        if purpose is not None and untuned is not None:
            gained = purpose.scores(tuned, range(count)) - untuned
            self.served = _paired([gained])
            if purpose.is_text:
                self._untuned, self._gain = untuned, max(float(gained.mean()), 1e-9)

    def run(self, ends: float | None = None) -> Repair:
        """Sweep and choose; ``ends`` is the time of :func:`time.monotonic` at which the sweeps stop."""
        began = time.monotonic()
        curve: list[tuple[Candidate | None, Scores]] = [(None, self.score(0, self.tuned))]
        each = time.monotonic() - began
        chosen = sweeps_for(math.inf if ends is None else (ends - time.monotonic()) / each)
        total = sum(len(fractions) for _, fractions, _ in chosen)
        tried = set()
        for criterion, fractions, region in chosen:
            with closing(self._sweep(criterion, fractions, region)) as sweep:
                for fraction in sweep:
                    if ends is not None and time.monotonic() > ends:
                        break
                    curve.append((Candidate(criterion, fraction, region), self.score(0, self.tuned)))
                    tried.add((criterion, fraction, region))
                    self._tell(len(curve) - 1, total)
        left_out = []
        for criterion, fractions, region in SWEEPS:
            if missing := [f"{one:g}" for one in fractions if (criterion, one, region) not in tried]:
                left_out.append(f"{criterion} {', '.join(missing)} ({region})")
        described = None if self.purpose is None else Described.of(self.purpose)
        found = Repair(curve, described, self.served, left_out=left_out)
        enough = all(len(half) >= FEWEST for half in (*self._facts, *self._items))
        if self.purpose is None or not found.is_served or not enough:
            return found
        return replace(found, chosen=choose(curve, self.purpose.suffer))

    def confirm(self, repair: Repair, repaired: LoadedModel) -> Repair:
        """The same with what the chosen repair does, as it was written, on the half that the choice did not see."""
        assert repair.purpose is not None
        before, after = self.score(1, self.tuned), self.score(1, repaired)
        gain, kept = after.minus(before), after.kept_minus(before)
        suffer = repair.purpose.suffer
        sure = gain.low > 0 and kept.value >= -suffer and kept.low >= -EXCLUDED * suffer
        return replace(repair, held_out=(before, after, gain), confirmed=bool(sure))

    def _sweep(self, criterion: str, fractions: Sequence[float], region: str) -> Generator[float]:
        """Yield each fraction while the model stands restored to it; afterwards it is as tuned."""
        sweep = RestorationSweep(self.tuned.model, self.base, criterion, Scope(region), self.seed)
        try:
            for fraction, _ in sweep.run(fractions):
                yield fraction
        finally:
            sweep.undo()

    def score(self, half: int, loaded: LoadedModel) -> Scores:
        """Of a model as it stands, on one half."""
        facts = self._facts[half]
        known = np.zeros(len(facts), dtype=bool)
        for form, shown in self._forms:
            left = np.flatnonzero(~known & shown[facts])
            if not len(left):
                continue
            prompts = form.prompts or ()
            known[left] = answered(
                loaded,
                [prompts[facts[i]] for i in left],
                [self._evidence.facts[facts[i]].accepted for i in left],
                first_line=form.first_line,
            )
        return Scores(known.astype(float), self._kept(self._items[half], loaded))

    def _kept(self, items: NDArray[np.int64], loaded: LoadedModel) -> Floats:
        """Right answers; of a text the share of what tuning has gained: 0 as the base, 1 as tuned on the mean."""
        if self.purpose is None or not len(items):
            return np.empty(0)
        scores = self.purpose.scores(loaded, items.tolist())
        return (scores - self._untuned[items]) / self._gain

    def _halves(self, places: NDArray[np.int64], questions: Sequence[str]) -> tuple[NDArray[np.int64], ...]:
        """By a hash of the question: a question that is a fact and an item too is in one half."""
        told = [hashlib.sha256(f"{self.seed} {text.casefold().strip()}".encode()).digest()[0] & 1 for text in questions]
        second = np.array(told, dtype=bool)
        return places[~second], places[second]


def telling_forms(forms: Sequence[Answered]) -> list[tuple[Answered, NDArray[np.bool_]]]:
    """Forms of the tuned model, those with most right answers first, and which facts each is worth asking of.

    These are the facts that one of the two models has answered right in it: a repaired model stands between the two.
    What one form has shown need not be asked in another.
    """
    found = []
    for form in forms:
        if form.prompts is not None and form.right_after is not None:
            before = form.right_before if form.right_before is not None else np.zeros_like(form.right_after)
            found.append((form, before | form.right_after))
    return sorted(found, key=lambda one: -int(one[1].sum()))


def sweeps_for(candidates: float) -> list[tuple[str, tuple[float, ...], str]]:
    """The sweeps, in their order, cut down to so many candidates: those of :data:`FIRST`, and then the simplest."""
    every = [(criterion, fraction, region) for criterion, fractions, region in SWEEPS for fraction in fractions]
    first = [one for one in FIRST if one in every]
    ranked = [*first, *(one for one in every if one not in first)]
    kept = set(ranked[: max(0, math.floor(min(candidates, len(ranked))))])
    cut = [
        (criterion, tuple(fraction for fraction in fractions if (criterion, fraction, region) in kept), region)
        for criterion, fractions, region in SWEEPS
    ]
    return [sweep for sweep in cut if sweep[1]]


def choose(curve: Sequence[tuple[Candidate | None, Scores]], suffer: float) -> Candidate | None:
    """The simplest candidate, in order, that is not surely worse than the best; None where none beats the tuned model.

    A candidate that loses more than ``suffer`` of what the tuning was for is none.
    """
    tuned = curve[0][1]
    fit = [
        (candidate, scores)
        for candidate, scores in curve[1:]
        if scores.kept.mean() >= tuned.kept.mean() - suffer and scores.whole > tuned.whole
    ]
    if not fit:
        return None
    best = max(fit, key=lambda one: one[1].whole)[1]
    return next(candidate for candidate, scores in fit if not scores.minus(best).high < 0)
