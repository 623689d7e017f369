"""Contrasts between tuned models, each with its interval: what tables and findings are made of.

A contrast adds up, for every training draw, accuracies (or mean KL) of models on groups of facts. Groups are domain x
test level x half: the facts of each test level are split in two seeded halves, so that a choice (of a size, of a
fraction) can be made on one half and measured on the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from knowshift.reports.evidence.run_folder import DOMAINS, LEVELS, Column, Setting
from knowshift.statistics.accuracy import levels_with_facts
from knowshift.statistics.choices import BEST_AND_WORST, ONE_CHOICE, TWO_CHOICES, choose_elsewhere
from knowshift.statistics.crossed import DrawNoise, crossed_interval, pooled_noise
from knowshift.statistics.estimates import MISSING, Estimate, Floats, widened, without_interval
from knowshift.statistics.resampling import Integers, group_means, replicated_means, resampling_weights

HALVES = 2
GROUPS = len(DOMAINS) * LEVELS * HALVES
REPLICATES = 1000
SEED = 20250916


@dataclass(frozen=True, slots=True)
class Model:
    """A tuned model without its draw; with a criterion and a fraction, that model restored."""

    setting: Setting
    criterion: str = ""
    fraction: float = 0.0

    def restored(self, criterion: str, fraction: float) -> Model:
        return replace(self, criterion=criterion, fraction=fraction)


@dataclass(frozen=True, slots=True)
class Unit:
    """What one training draw contributes: weighted columns, each with weights over groups; a draw of ``stratum``."""

    stratum: int
    terms: tuple[tuple[int, Floats], ...]


@dataclass(frozen=True)
class Choice:
    """An honest choice: the contrast it was made for, and how often each candidate was chosen over folds."""

    estimate: Estimate
    chosen: Mapping[float, int]

    @property
    def usual(self) -> float | None:
        """The candidate chosen most often; the first of equals."""
        return max(self.chosen, key=lambda c: (self.chosen[c], -c)) if self.chosen else None


def halve(domain: Integers, level: Integers, seed: int = SEED) -> Integers:
    """Each fact's half, 0 or 1, at random within domain and level; the halves differ by at most one fact."""
    rng = np.random.default_rng(seed)
    half = np.zeros(len(domain), dtype=np.int64)
    for stratum in np.unique(domain * LEVELS + level):
        facts = np.flatnonzero(domain * LEVELS + level == stratum)
        half[rng.permutation(facts)] = np.arange(len(facts)) % HALVES
    return half


@dataclass
class Scores:
    """One measure of every model on every fact, with bootstrap replicates of every group mean."""

    values: NDArray[np.generic]  # F x C
    domain: Integers
    level: Integers
    columns: Sequence[Column]
    cluster: Integers | None = None  # a relation per fact: resample relations instead of facts
    replicates: int = REPLICATES
    seed: int = SEED
    means: Floats = field(init=False)  # C x G
    resampled: NDArray[np.float32] = field(init=False)  # C x B x G
    varying: NDArray[np.bool_] = field(init=False)  # G: groups whose facts could be resampled: more than one (relation)
    counts: Integers = field(init=False)  # facts in each group
    lookup: dict[Column, int] = field(init=False)
    drawn: dict[Model, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        half = halve(self.domain, self.level, self.seed)
        group = (self.domain * LEVELS + self.level) * HALVES + half
        weights = resampling_weights(group, self.replicates, self.seed, self.cluster, self.domain)
        self.counts = np.bincount(group, minlength=GROUPS).astype(np.int64)
        self.varying = np.zeros(GROUPS, dtype=bool)
        self.varying[group[(weights != 1).any(axis=0)]] = True
        self.means = np.nan_to_num(group_means(self.values, group, GROUPS))
        resampled = np.nan_to_num(replicated_means(self.values, group, GROUPS, weights))
        self.resampled = np.ascontiguousarray(resampled.transpose(1, 0, 2))
        self.lookup = {column: index for index, column in enumerate(self.columns)}
        self.drawn = {}
        for column in sorted((c for c in self.columns if c.setting), key=lambda c: c.draw):
            assert column.setting is not None
            model = Model(column.setting, column.criterion, column.fraction)
            self.drawn[model] = (*self.drawn.get(model, ()), column.draw)

    # -- which models there are -----------------------------------------------------------------------------------

    def draws(self, model: Model) -> tuple[int, ...]:
        """The training draws this model was evaluated for."""
        return self.drawn.get(model, ())

    def settings(self, control: str = "") -> list[Setting]:
        """The settings evaluated, in order."""
        return sorted({c.setting for c in self.columns if c.setting and c.setting.control == control})

    def column(self, model: Model, draw: int) -> int:
        return self.lookup[Column(model.setting, draw, model.criterion, model.fraction)]

    # -- weights over groups --------------------------------------------------------------------------------------

    def over(self, domains: Sequence[int], level: int | None = None, half: int | None = None) -> Floats:
        """Weights whose sum with group means is the plain mean over domains of the mean over test levels.

        A level without facts takes no part (:mod:`knowshift.statistics.accuracy`). Without any, the weights are NaN.
        """
        out = np.zeros(GROUPS)
        shape = out.reshape(len(DOMAINS), LEVELS, HALVES)
        counts = self.counts.reshape(shape.shape).astype(np.float64)
        halves = list(range(HALVES)) if half is None else [half]
        levels = list(range(LEVELS)) if level is None else [level]
        filled = [d for d in domains if counts[d][np.ix_(levels, halves)].sum() > 0]
        for d in filled:
            present = [levels[i] for i in levels_with_facts(counts[d][np.ix_(levels, halves)].sum(axis=1))]
            for lv in present:
                share = counts[d, lv, halves] / counts[d, lv, halves].sum()
                shape[d, lv, halves] = share / len(present) / len(filled)
        return out if filled else np.full(GROUPS, np.nan)

    def pooled(self, domains: Sequence[int], half: int | None = None) -> Floats:
        """Weights that make the plain mean over all facts of the domains (the paper's mean KL)."""
        out = np.zeros(GROUPS)
        shape = out.reshape(len(DOMAINS), LEVELS, HALVES)
        counts = self.counts.reshape(shape.shape)
        halves = list(range(HALVES)) if half is None else [half]
        picked = np.ix_(list(domains), range(LEVELS), halves)
        total = counts[picked].sum()
        if total == 0:
            return np.full(GROUPS, np.nan)
        shape[picked] = counts[picked] / total
        return out

    # -- contrasts ------------------------------------------------------------------------------------------------

    def value(self, column: int, weights: Floats) -> float:
        """One model's mean under the weights."""
        return float(self.means[column] @ weights)

    def estimate(
        self, units: Sequence[Unit], alike: Sequence[Sequence[Unit]] = (), noise: DrawNoise | None = None
    ) -> Estimate:
        """The interval of a contrast: the sum over strata of the mean over draws.

        ``alike`` are the same contrast elsewhere (at every training level), whose draws are taken to be as noisy;
        or ``noise`` says how noisy a draw is.
        """
        if not units:
            return MISSING
        values = self._values(units)
        replicates = np.zeros((self.replicates, len(units)))
        for u, unit in enumerate(units):
            for column, weights in unit.terms:
                replicates[:, u] += self.resampled[column] @ weights
        if alike:
            noise = pooled_noise([self._values(peer) for peer in alike if len(peer) > 1])
        found = crossed_interval(values, replicates, [unit.stratum for unit in units], noise)
        used = np.logical_or.reduce([weights != 0 for unit in units for _, weights in unit.terms])
        if (used & self.varying).any():
            return found
        # One fact (or one relation) in every group: its part of the noise is not known, whatever the draws say.
        return without_interval(found.value, found.draws)

    def _values(self, units: Sequence[Unit]) -> Floats:
        return np.asarray([sum(self.value(column, weights) for column, weights in unit.terms) for unit in units])

    def _noise_between(self, models: Sequence[Model], domains: Sequence[int]) -> DrawNoise | None:
        """The noise of a draw's difference between two training levels: twice one's, as their draws are independent."""
        weights = self.over(domains)
        one = pooled_noise([self._values(self._differences([(m, None)], weights)) for m in models if self.draws(m)])
        return DrawNoise(2 * one.variance, one.freedom) if one else None

    def mean(self, models: Sequence[Model], weights: Floats, alike: Sequence[Model] = ()) -> Estimate:
        """Mean accuracy over models and draws; each model is a stratum of draws of its own."""
        return self.difference([(model, None) for model in models], weights, [(model, None) for model in alike])

    def difference(
        self,
        pairs: Sequence[tuple[Model, Model | None]],
        weights: Floats,
        alike: Sequence[tuple[Model, Model | None]] = (),
    ) -> Estimate:
        """Mean over pairs of (first minus second), paired by fact and training draw; pairs without draws drop out.

        A single pair may name those ``alike``, itself among them, to pool the noise of their draws.
        """
        units = self._differences(pairs, weights)
        return self.estimate(units, [self._differences([pair], weights) for pair in alike])

    def _differences(self, pairs: Sequence[tuple[Model, Model | None]], weights: Floats) -> list[Unit]:
        kept = [(a, b, self._shared([a] if b is None else [a, b])) for a, b in pairs]
        kept = [item for item in kept if item[2]]
        units = []
        for stratum, (a, b, draws) in enumerate(kept):
            for draw in draws:
                terms = [(self.column(a, draw), weights / len(kept))]
                if b is not None:
                    terms.append((self.column(b, draw), -weights / len(kept)))
                units.append(Unit(stratum, tuple(terms)))
        return units

    def chosen(
        self,
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
        as in :meth:`difference`.
        """
        units, counts, factor = self._choices(candidates, references, domains, highest, pooled)
        peers = [self._choices([c], [r], domains, highest, pooled)[0] for c, r in alike]
        return Choice(widened(self.estimate(units, peers), factor), counts)

    def _choices(
        self,
        candidates: Sequence[Mapping[float, Model]],
        references: Sequence[Model | Mapping[float, Model]],
        domains: Sequence[int],
        highest: bool,
        pooled: bool,
    ) -> tuple[list[Unit], dict[float, int], float]:
        """The units of a choice, how often each candidate was chosen, and how much wider its interval has to be."""
        weigh = self.pooled if pooled else self.over
        kept: list[tuple[Mapping[float, Model], Mapping[float, Model], tuple[int, ...]]] = []
        for options, reference in zip(candidates, references, strict=True):
            other = reference if isinstance(reference, Mapping) else {0.0: reference}
            draws = self._shared([*options.values(), *other.values()]) if options and other else ()
            if draws:
                kept.append((options, other, draws))
        measured = [weigh(domains, half=half) for half in range(HALVES)]
        halves = [half for half in range(HALVES) if not np.isnan(measured[half]).any()]
        units: list[Unit] = []
        counts: dict[float, int] = {}
        factor = 1.0
        for stratum, (options, other, draws) in enumerate(kept if halves else []):
            best = self._choose(options, draws, highest, pooled)
            against = self._choose(other, draws, highest, pooled)
            disagreeing = sum(bool(np.ptp(choice)) for choice in (best, against))
            factor = max(factor, (1.0, ONE_CHOICE, TWO_CHOICES)[disagreeing])
            for row, draw in enumerate(draws):
                terms: list[tuple[int, Floats]] = []
                for half in halves:
                    weights = measured[half] / len(kept) / len(halves)
                    name = list(options)[best[row, half]]
                    counts[name] = counts.get(name, 0) + 1
                    terms.append((self.column(options[name], draw), weights))
                    terms.append((self.column(other[list(other)[against[row, half]]], draw), -weights))
                units.append(Unit(stratum, tuple(terms)))
        return units, dict(sorted(counts.items())), factor

    def spread(self, options: Mapping[int, Model], domains: Sequence[int]) -> tuple[Choice, Mapping[float, int]]:
        """Best minus worst training level, both chosen on other facts and draws; with how often each was worst.

        With no true difference the expected value is 0: picking by luck does not count.
        """
        draws = self._shared(list(options.values())) if len(options) > 1 else ()
        named: dict[float, Model] = {float(name): model for name, model in options.items()}
        halves = [half for half in range(HALVES) if not np.isnan(self.over(domains, half=half)).any()]
        units: list[Unit] = []
        best_counts: dict[float, int] = {}
        worst_counts: dict[float, int] = {}
        if draws:
            best = self._choose(named, draws, True)
            worst = self._choose(named, draws, False)
            for row, draw in enumerate(draws):
                terms = []
                for half in halves:
                    weights = self.over(domains, half=half) / len(halves)
                    for choice, sign, counts in ((best, 1, best_counts), (worst, -1, worst_counts)):
                        name = list(named)[choice[row, half]]
                        counts[name] = counts.get(name, 0) + 1
                        terms.append((self.column(named[name], draw), sign * weights))
                units.append(Unit(0, tuple(terms)))
        noise = self._noise_between(list(options.values()), domains)
        estimate = self.estimate(units, noise=noise)
        if len(best_counts) > 1 or len(worst_counts) > 1:
            estimate = widened(estimate, BEST_AND_WORST)
        return Choice(estimate, dict(sorted(best_counts.items()))), dict(sorted(worst_counts.items()))

    def against_levels(
        self, others: Mapping[int, Model], reference: Model, domains: Sequence[int], highest: bool
    ) -> Choice:
        """The best (or worst) of other training levels, chosen on other facts and draws, minus one level."""
        named: dict[float, Model] = {float(name): model for name, model in others.items()}
        units, counts, factor = self._choices([named], [reference], domains, highest, False)
        noise = self._noise_between([*others.values(), reference], domains)
        return Choice(widened(self.estimate(units, noise=noise), factor), counts)

    def _shared(self, models: Sequence[Model]) -> tuple[int, ...]:
        return tuple(sorted(set.intersection(*(set(self.draws(model)) for model in models))))

    def _choose(
        self, options: Mapping[float, Model], draws: Sequence[int], highest: bool, pooled: bool = False
    ) -> Integers:
        everywhere = range(len(DOMAINS))
        weigh = self.pooled if pooled else self.over
        weights = [weigh(everywhere, half=half) for half in range(HALVES)]
        scores = np.asarray(
            [[[self.value(self.column(m, d), w) for w in weights] for d in draws] for m in options.values()]
        )
        return choose_elsewhere(scores, highest)
