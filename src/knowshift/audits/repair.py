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

from knowshift.audits.candidates import Candidate, left_out, rank, sweeps_for
from knowshift.audits.evidence import Answered, Evidence
from knowshift.audits.purposes.purpose import Described, Floats, Purpose
from knowshift.audits.shares import mean_change
from knowshift.evaluation import answered
from knowshift.models.loading import LoadedModel
from knowshift.parameters.regions import Scope
from knowshift.parameters.restore import RestorationSweep
from knowshift.parameters.tensors import TensorReader
from knowshift.statistics.estimates import Estimate, from_error

#: What the interval of the loss on the purpose must exclude, in units of the purpose's ``suffer``.
EXCLUDED = 2.5
#: Facts, and items of the purpose, of a half below which nothing is chosen.
FEWEST = 10


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
        curve: candidates, the simplest first, with their scores on the first half; the tuned model is the first, as
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
    """One search for a repair; ``untuned``: the base's own scores of the purpose's items."""

    def __init__(
        self,
        evidence: Evidence,
        purpose: Purpose | None,
        seed: int,
        tell: Callable[[int, int], None] = lambda done, total: None,
        *,
        untuned: Floats | None = None,
    ) -> None:
        self.purpose, self.seed, self._tell = purpose, seed, tell
        self._evidence, self._untuned = evidence, untuned
        known = np.flatnonzero(evidence.first.known | evidence.second.known)
        of_facts = _places([evidence.facts[i].question for i in known.tolist()], seed)
        of_items = _places(purpose.texts if purpose else [], seed)
        cut = _cut(of_facts, of_items)
        self._facts = known[of_facts < cut], known[of_facts >= cut]
        self._items = np.flatnonzero(of_items < cut), np.flatnonzero(of_items >= cut)
        count = len(purpose) if purpose else 0
        self._forms = telling_forms(evidence.forms)
        self._as_tuned: Floats | None = None  # the tuned model's scores of all items, once they are known
        self._zero, self._gain = np.zeros(count), 1.0  # of a text, what the base has, and what tuning has gained on it

    def run(
        self,
        tuned: LoadedModel,
        base: TensorReader,
        *,
        stored: TensorReader | None = None,
        ends: float | None = None,
    ) -> Repair:
        """Sweep and choose; the model's weights are as they were when it ends.

        Args:
            base: the weights before the tuning.
            stored: those of ``tuned``, where they lie on disk under its names: no copy of them is then made.
            ends: the time of :func:`time.monotonic` at which the sweeps stop.
        """
        began = time.monotonic()
        served = self._serves(tuned)
        for_items = time.monotonic() - began
        curve: list[tuple[Candidate | None, Scores]] = [(None, self.score_tuned(0, tuned))]
        enough = all(len(half) >= FEWEST for half in (*self._facts, *self._items))
        hopeless = not enough or served is None or served.low <= 0  # none can be chosen
        # A candidate is asked half of the items that were asked just now, and all of the facts.
        each = time.monotonic() - began - for_items / 2
        chosen = sweeps_for(math.inf if ends is None else (ends - time.monotonic()) / each, coarse=hopeless)
        total = sum(len(fractions) for _, fractions, _ in chosen)
        for criterion, fractions, region in chosen:
            if ends is not None and time.monotonic() > ends:
                break  # a sweep reads all weights before its first step
            sweep = RestorationSweep(tuned.model, base, criterion, Scope(region), self.seed, tuned=stored)
            with closing(_swept(sweep, fractions)) as steps:
                for fraction in steps:
                    if ends is not None and time.monotonic() > ends:
                        break
                    curve.append((Candidate(criterion, fraction, region), self.score(0, tuned)))
                    self._tell(len(curve) - 1, total)
        described = None if self.purpose is None else Described.of(self.purpose)
        curve.sort(key=lambda one: -1 if one[0] is None else rank(one[0]))
        tried = [candidate for candidate, _ in curve if candidate is not None]
        found = Repair(curve, described, served, left_out=left_out(tried, coarse=hopeless))
        if self.purpose is None or hopeless:
            return found
        return replace(found, chosen=choose(curve, self.purpose.suffer))

    def confirm(self, repair: Repair, before: Scores, repaired: LoadedModel) -> Repair:
        """The same with what the chosen repair does, as it was written, on the half that the choice did not see.

        ``before`` is the tuned model's own (:meth:`score_tuned`) there.
        """
        assert repair.purpose is not None
        after = self.score(1, repaired)
        gain, kept = after.minus(before), after.kept_minus(before)
        suffer = repair.purpose.suffer
        sure = gain.low > 0 and kept.value >= -suffer and kept.low >= -EXCLUDED * suffer
        return replace(repair, held_out=(before, after, gain), confirmed=bool(sure))

    def _serves(self, tuned: LoadedModel) -> Estimate | None:
        """How much better than the base the tuned model does what it was tuned for."""
        if self.purpose is None or self._untuned is None:
            return None
        self._as_tuned = self.purpose.scores(tuned, range(len(self.purpose)))
        gained = self._as_tuned - self._untuned
        if self.purpose.is_text:
            self._zero, self._gain = self._untuned, max(float(gained.mean()), 1e-9)
        return _paired([gained])

    def score(self, half: int, loaded: LoadedModel) -> Scores:
        """Of a model as it stands, on one half."""
        items = self._items[half]
        if self.purpose is None or not len(items):
            return Scores(self._known(half, loaded), np.empty(0))
        return Scores(self._known(half, loaded), self._share(self.purpose.scores(loaded, items.tolist()), items))

    def score_tuned(self, half: int, tuned: LoadedModel) -> Scores:
        """The same of the tuned model, whose items are scored already where they have been asked."""
        if self._as_tuned is None:
            return self.score(half, tuned)
        items = self._items[half]
        return Scores(self._known(half, tuned), self._share(self._as_tuned[items], items))

    def _known(self, half: int, loaded: LoadedModel) -> Floats:
        """Which facts are answered in some form."""
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
        return known.astype(float)

    def _share(self, scores: Floats, items: NDArray[np.int64]) -> Floats:
        """Right answers; of a text the share of what tuning has gained: 0 as the base, 1 as tuned on the mean."""
        shares: Floats = (scores - self._zero[items]) / self._gain
        return shares


def _places(questions: Sequence[str], seed: int) -> Floats:
    """Of each question a number from 0 to 1, by its hash: one that is a fact and an item too has one place."""
    told = [hashlib.sha256(f"{seed} {text.casefold().strip()}".encode()).digest() for text in questions]
    return np.array([int.from_bytes(digest[:8], "big") / 2**64 for digest in told])


def _cut(of_facts: Floats, of_items: Floats) -> float:
    """Where both are cut in halves: in the middle of those that are fewer, since a half of few may be too few."""
    fewer = of_facts if len(of_facts) <= len(of_items) or not len(of_items) else of_items
    return float(np.median(fewer)) if len(fewer) else 0.5


def _swept(sweep: RestorationSweep, fractions: Sequence[float]) -> Generator[float]:
    """Yield each fraction while the model stands restored to it; afterwards it is as tuned."""
    try:
        for fraction, _ in sweep.run(fractions):
            yield fraction
    finally:
        sweep.undo()


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
