"""Contrasts between tuned models, each with its interval: what tables and findings are made of.

A contrast adds up, for every training draw, accuracies (or mean KL) of models on groups of facts. Groups are domain x
test level x half: the facts of each test level are split in two seeded halves, so that a choice (of a size, of a
fraction; :mod:`knowshift.reports.evidence.choices`) can be made on one half and measured on the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from knowshift.facts.fact import DOMAINS, LEVELS
from knowshift.reports.evidence.answers import Column
from knowshift.reports.evidence.run_folder import Setting
from knowshift.statistics.accuracy import levels_with_facts
from knowshift.statistics.clusters import (
    ClusterScores,
    cluster_freedom,
    cluster_scores,
    facts_variance,
    intraclass_correlation,
)
from knowshift.statistics.crossed import DrawNoise, crossed_interval, interval_of_covariance, pooled_noise
from knowshift.statistics.discordant import Turned, turned
from knowshift.statistics.estimates import MISSING, Clustered, Estimate, Floats, without_interval
from knowshift.statistics.resampling import Integers, group_means, resampled_means

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
class Contribution:
    """What one training draw contributes: weighted columns, each with weights over groups; a draw of ``stratum``."""

    stratum: int
    terms: tuple[tuple[int, Floats], ...]


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
    relation: Integers | None = None  # a relation per fact: with them, estimates are clustered and count pairs
    replicates: int = REPLICATES
    seed: int = SEED
    means: Floats = field(init=False)  # C x G
    resampled: NDArray[np.float32] = field(init=False)  # C x B x G
    varying: NDArray[np.bool_] = field(init=False)  # G: groups whose facts could be resampled: more than one (relation)
    counts: Integers = field(init=False)  # facts in each group
    group: Integers = field(init=False)  # of each fact
    by_column: NDArray[np.generic] = field(init=False)  # C x F: the values
    clusters: ClusterScores | None = field(init=False)
    lookup: dict[Column, int] = field(init=False)
    drawn: dict[Model, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        half = halve(self.domain, self.level, self.seed)
        self.group = (self.domain * LEVELS + self.level) * HALVES + half
        self.counts = np.bincount(self.group, minlength=GROUPS).astype(np.int64)
        self.means = np.nan_to_num(group_means(self.values, self.group, GROUPS))
        resampled, self.varying = resampled_means(
            self.values, self.group, GROUPS, self.replicates, self.seed, self.cluster, self.domain
        )
        self.resampled = np.nan_to_num(resampled)
        self.by_column = np.ascontiguousarray(self.values.T)
        relation = self.relation
        self.clusters = None if relation is None else cluster_scores(self.values, self.group, GROUPS, relation)
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
        """The settings evaluated as tuned, in order; those with restored answers alone are left out."""
        found = {c.setting for c in self.columns if c.setting and c.setting.control == control}
        return sorted(setting for setting in found if self.draws(Model(setting)))

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
        self,
        units: Sequence[Contribution],
        alike: Sequence[Sequence[Contribution]] = (),
        noise: DrawNoise | None = None,
    ) -> Estimate:
        """The interval of a contrast: the sum over strata of the mean over draws.

        ``alike`` are the same contrast elsewhere (at every training level), whose draws are taken to be as noisy;
        or ``noise`` says how noisy a draw is.
        """
        if not units:
            return MISSING
        values = self.values_of(units)
        replicates = np.zeros((self.replicates, len(units)))
        for u, unit in enumerate(units):
            for column, weights in unit.terms:
                replicates[:, u] += self.resampled[column] @ weights
        if alike:
            noise = pooled_noise([self.values_of(peer) for peer in alike if len(peer) > 1])
        found = crossed_interval(values, replicates, [unit.stratum for unit in units], noise)
        if self.relation is not None and found.known:
            found = replace(found, turned=self._turned(units))
        used = np.logical_or.reduce([weights != 0 for unit in units for _, weights in unit.terms])
        if not (used & self.varying).any():
            # One fact (or one relation) in every group: its part of the noise is not known, whatever the draws say.
            return replace(without_interval(found.value, found.draws), turned=found.turned)
        if self.relation is None or math.isnan(found.low):
            return found
        return replace(found, clustered=self._clustered(units, values, noise))

    def _clustered(self, units: Sequence[Contribution], values: Floats, noise: DrawNoise | None) -> Clustered | None:
        """The same contrast for other relations; None where no group has two of them.

        The facts' part of the variance is that of CR2; correlation and design effect are of what a fact adds itself:
        the mean over draws of first minus second, less the mean of its group.
        """
        assert self.clusters is not None
        assert self.relation is not None
        strata = [unit.stratum for unit in units]
        share = {stratum: 1 / strata.count(stratum) for stratum in strata}
        added_G = np.zeros(GROUPS)  # what a group's mean weighs in the contrast
        weights_CG: dict[int, Floats] = {}
        scores_UR = np.zeros((len(units), self.clusters.counts_RG.shape[0]))
        for u, unit in enumerate(units):
            for column, weights in unit.terms:
                scores_UR[u] += self.clusters.scores_CRG[column] @ weights
                added_G += share[unit.stratum] * np.maximum(weights, 0.0)
                weights_CG[column] = weights_CG.get(column, 0.0) + share[unit.stratum] * weights
        freedom = cluster_freedom(self.clusters.counts_RG, added_G)
        if math.isnan(freedom):
            return None
        each_F = np.zeros(len(self.group))
        for column, weights in weights_CG.items():
            scale = np.divide(weights, added_G, out=np.zeros(GROUPS), where=added_G > 0)
            each_F += (scale[self.group]) * self.by_column[column]
        asked = (added_G > 0)[self.group]
        group, relation = self.group[asked], self.relation[asked]
        own = each_F[asked]
        alone = facts_variance(own, group, added_G)
        own = own - (np.bincount(group, own, GROUPS) / np.maximum(self.counts, 1))[group]
        together = float(((np.asarray([share[s] for s in strata]) @ scores_UR) ** 2).sum())
        return Clustered(
            interval_of_covariance(values, scores_UR @ scores_UR.T, strata, noise, freedom),
            clusters=len(np.unique(relation)),
            correlation=intraclass_correlation(own, relation),
            design_effect=together / alone if alone > 0 else math.nan,
        )

    def _turned(self, units: Sequence[Contribution]) -> Turned | None:
        """Pairs of right and wrong answers, over draws; None where the contrast is not one of pairs."""
        found = Turned(0, 0, 0, 0)
        for unit in units:
            first, second = (
                [(column, weights) for column, weights in unit.terms if (sign * weights).max() > 0] for sign in (1, -1)
            )
            if self.values.dtype != np.bool_ or len(first) != len(second):
                return None
            for (one, weights), (other, against) in zip(first, second, strict=True):
                if not np.array_equal(weights, -against):
                    return None
                asked = (weights != 0)[self.group]
                found += turned(self.by_column[one][asked], self.by_column[other][asked])
        return found

    def values_of(self, units: Sequence[Contribution]) -> Floats:
        """What each training draw contributes."""
        return np.asarray([sum(self.value(column, weights) for column, weights in unit.terms) for unit in units])

    def mean(self, models: Sequence[Model], weights: Floats, alike: Sequence[Model] = ()) -> Estimate:
        """Mean accuracy over models and draws; each model is a stratum of draws of its own."""
        return self.difference([(model, None) for model in models], weights, [(model, None) for model in alike])

    def difference(
        self,
        pairs: Sequence[tuple[Model, Model | None]],
        weights: Floats,
        alike: Sequence[tuple[Model, Model | None]] = (),
    ) -> Estimate:
        """Mean over pairs of (first minus second), paired by fact and training draw; pairs without draws are left out.

        A single pair may name those ``alike``, itself among them, to pool the noise of their draws.
        """
        units = self.differences(pairs, weights)
        return self.estimate(units, [self.differences([pair], weights) for pair in alike])

    def differences(self, pairs: Sequence[tuple[Model, Model | None]], weights: Floats) -> list[Contribution]:
        """What each draw contributes to :meth:`difference`."""
        kept = [(a, b, self.shared([a] if b is None else [a, b])) for a, b in pairs]
        kept = [item for item in kept if item[2]]
        units = []
        for stratum, (a, b, draws) in enumerate(kept):
            for draw in draws:
                terms = [(self.column(a, draw), weights / len(kept))]
                if b is not None:
                    terms.append((self.column(b, draw), -weights / len(kept)))
                units.append(Contribution(stratum, tuple(terms)))
        return units

    def shared(self, models: Sequence[Model]) -> tuple[int, ...]:
        """The training draws that all these models were evaluated for."""
        return tuple(sorted(set.intersection(*(set(self.draws(model)) for model in models))))
