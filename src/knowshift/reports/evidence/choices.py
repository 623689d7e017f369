"""Honest choices among tuned models: the best is chosen on other facts and draws than those that measure it.

How a choice is made, and how much wider its interval has to be, is defined in :mod:`knowshift.statistics.choices`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from knowshift.facts.fact import DOMAINS
from knowshift.reports.evidence.scores import HALVES, Contribution, Model, Scores
from knowshift.statistics.choices import BEST_AND_WORST, ONE_CHOICE, TWO_CHOICES, choose_elsewhere
from knowshift.statistics.crossed import DrawNoise, pooled_noise
from knowshift.statistics.estimates import Estimate, Floats, widened
from knowshift.statistics.resampling import Integers


@dataclass(frozen=True)
class Choice:
    """An honest choice: the contrast it was made for, and how often each candidate was chosen over folds."""

    estimate: Estimate
    chosen: Mapping[float, int]

    @property
    def usual(self) -> float | None:
        """The candidate chosen most often; the first of equals."""
        return max(self.chosen, key=lambda c: (self.chosen[c], -c)) if self.chosen else None


def chosen(
    scores: Scores,
    candidates: Sequence[Mapping[float, Model]],
    references: Sequence[Model | Mapping[float, Model]],
    domains: Sequence[int],
    highest: bool = True,
    pooled: bool = False,
    alike: Sequence[tuple[Mapping[float, Model], Model]] = (),
) -> Choice:
    """Mean over pairs of (the best candidate minus the reference), the best chosen on other facts and draws.

    One pair of ``candidates`` (by size or fraction) and reference for each training level. A reference that is
    itself a mapping is chosen in the same way. ``domains`` are those measured; the choice uses both. ``alike``
    as in :meth:`Scores.difference`.
    """
    units, counts, factor = _choices(scores, candidates, references, domains, highest, pooled)
    peers = [_choices(scores, [c], [r], domains, highest, pooled)[0] for c, r in alike]
    return Choice(widened(scores.estimate(units, peers), factor), counts)


def _choices(
    scores: Scores,
    candidates: Sequence[Mapping[float, Model]],
    references: Sequence[Model | Mapping[float, Model]],
    domains: Sequence[int],
    highest: bool,
    pooled: bool,
) -> tuple[list[Contribution], dict[float, int], float]:
    """The units of a choice, how often each candidate was chosen, and how much wider its interval has to be."""
    weigh = scores.pooled if pooled else scores.over
    kept: list[tuple[Mapping[float, Model], Mapping[float, Model], tuple[int, ...]]] = []
    for options, reference in zip(candidates, references, strict=True):
        other = reference if isinstance(reference, Mapping) else {0.0: reference}
        draws = scores.shared([*options.values(), *other.values()]) if options and other else ()
        if draws:
            kept.append((options, other, draws))
    measured = [weigh(domains, half=half) for half in range(HALVES)]
    halves = [half for half in range(HALVES) if not np.isnan(measured[half]).any()]
    units: list[Contribution] = []
    counts: dict[float, int] = {}
    factor = 1.0
    for stratum, (options, other, draws) in enumerate(kept if halves else []):
        best = _choose(scores, options, draws, highest, pooled)
        against = _choose(scores, other, draws, highest, pooled)
        disagreeing = sum(bool(np.ptp(choice)) for choice in (best, against))
        factor = max(factor, (1.0, ONE_CHOICE, TWO_CHOICES)[disagreeing])
        for row, draw in enumerate(draws):
            terms: list[tuple[int, Floats]] = []
            for half in halves:
                weights = measured[half] / len(kept) / len(halves)
                name = list(options)[best[row, half]]
                counts[name] = counts.get(name, 0) + 1
                terms.append((scores.column(options[name], draw), weights))
                terms.append((scores.column(other[list(other)[against[row, half]]], draw), -weights))
            units.append(Contribution(stratum, tuple(terms)))
    return units, dict(sorted(counts.items())), factor


def spread(scores: Scores, options: Mapping[int, Model], domains: Sequence[int]) -> tuple[Choice, Mapping[float, int]]:
    """Best minus worst training level, both chosen on other facts and draws; with how often each was worst.

    With no true difference the expected value is 0: a choice by chance gains nothing.
    """
    draws = scores.shared(list(options.values())) if len(options) > 1 else ()
    named: dict[float, Model] = {float(name): model for name, model in options.items()}
    halves = [half for half in range(HALVES) if not np.isnan(scores.over(domains, half=half)).any()]
    units: list[Contribution] = []
    best_counts: dict[float, int] = {}
    worst_counts: dict[float, int] = {}
    if draws:
        best = _choose(scores, named, draws, True)
        worst = _choose(scores, named, draws, False)
        for row, draw in enumerate(draws):
            terms = []
            for half in halves:
                weights = scores.over(domains, half=half) / len(halves)
                for choice, sign, counts in ((best, 1, best_counts), (worst, -1, worst_counts)):
                    name = list(named)[choice[row, half]]
                    counts[name] = counts.get(name, 0) + 1
                    terms.append((scores.column(named[name], draw), sign * weights))
            units.append(Contribution(0, tuple(terms)))
    noise = _noise_between(scores, list(options.values()), domains)
    estimate = scores.estimate(units, noise=noise)
    if len(best_counts) > 1 or len(worst_counts) > 1:
        estimate = widened(estimate, BEST_AND_WORST)
    return Choice(estimate, dict(sorted(best_counts.items()))), dict(sorted(worst_counts.items()))


def against_levels(
    scores: Scores, others: Mapping[int, Model], reference: Model, domains: Sequence[int], highest: bool
) -> Choice:
    """The best (or worst) of other training levels, chosen on other facts and draws, minus one level."""
    named: dict[float, Model] = {float(name): model for name, model in others.items()}
    units, counts, factor = _choices(scores, [named], [reference], domains, highest, False)
    noise = _noise_between(scores, [*others.values(), reference], domains)
    return Choice(widened(scores.estimate(units, noise=noise), factor), counts)


def _noise_between(scores: Scores, models: Sequence[Model], domains: Sequence[int]) -> DrawNoise | None:
    """The noise of a draw's difference between two training levels: twice one's, as their draws are independent."""
    weights = scores.over(domains)
    one = pooled_noise([scores.values_of(scores.differences([(m, None)], weights)) for m in models if scores.draws(m)])
    return DrawNoise(2 * one.variance, one.freedom) if one else None


def _choose(
    scores: Scores, options: Mapping[float, Model], draws: Sequence[int], highest: bool, pooled: bool = False
) -> Integers:
    everywhere = range(len(DOMAINS))
    weigh = scores.pooled if pooled else scores.over
    weights = [weigh(everywhere, half=half) for half in range(HALVES)]
    values = np.asarray(
        [[[scores.value(scores.column(m, d), w) for w in weights] for d in draws] for m in options.values()]
    )
    return choose_elsewhere(values, highest)
