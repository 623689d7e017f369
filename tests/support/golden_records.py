"""The measures of docs/measures.md once more, in plain formulas: a run folder's records, contrasts and intervals.

Nothing of knowshift is used. Only the stream of random numbers is the report's own, because an interval depends on
it: facts are halved and resampled by numpy's generator of seed 20250916, stratum by stratum, in ascending order.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from scipy import special, stats

SEED, REPLICATES = 20250916, 1000
DOMAINS = ("in_domain", "out_of_domain")
NAN = math.nan

Group = tuple[str, int, int]  # domain, test level, half
Weights = Mapping[Group, float]


class Model(NamedTuple):
    """A tuned model without its draw; restored where ``criterion`` is set. ``level`` -1 is the base model."""

    level: int
    size: int = 0
    rate: float = 0.0
    control: str = ""
    criterion: str = ""
    fraction: float = 0.0

    def put_back(self, criterion: str, fraction: float) -> Model:
        return self._replace(criterion=criterion, fraction=fraction)


BASE = {"zero_shot": Model(-1, 0), "few_shot": Model(-1, 1), "plain": Model(-1, 2)}
FILES = {"zero_shot": "answers", "few_shot": "answers_few_shot", "plain": "answers_plain"}


class Interval(NamedTuple):
    value: float = NAN
    low: float = NAN
    high: float = NAN
    p: float = NAN
    draws: int = 0
    error: float = NAN
    freedom: float = NAN
    behind: Behind | None = None

    def wider(self, factor: float) -> Interval:
        if math.isnan(self.error):
            return self
        wide = student(self.value, self.error * factor, self.freedom, self.draws)
        return wide._replace(behind=self.behind and self.behind.wider(factor))

    def negated(self) -> Interval:
        return self._replace(
            value=-self.value, low=-self.high, high=-self.low, behind=self.behind and self.behind.negated()
        )


class Behind(NamedTuple):
    """What stands behind an interval: parts of its variance, relations as clusters, pairs of answers."""

    facts: float
    one_draw: float  # variance of one draw of every stratum
    freedom: float
    clustered: Interval = Interval()
    clusters: Any = NAN
    correlation: float = NAN
    design_effect: float = NAN
    turned: tuple[Any, Any, Any] = (NAN, NAN, NAN)  # pairs, gained, lost

    def wider(self, factor: float) -> Behind:
        parts = {"facts": self.facts * factor**2, "one_draw": self.one_draw * factor**2}
        return self._replace(**parts, clustered=self.clustered.wider(factor))

    def negated(self) -> Behind:
        pairs, gained, lost = self.turned
        return self._replace(clustered=self.clustered.negated(), turned=(pairs, lost, gained))


def student(value: float, error: float, freedom: float, draws: int) -> Interval:
    if error == 0:
        return Interval(value, value, value, 1.0 if value == 0 else 0.0, draws, 0.0, freedom)
    reach = float(stats.t.ppf(0.975, freedom)) * error
    p = 2 * float(stats.t.sf(abs(value) / error, freedom))
    return Interval(value, value - reach, value + reach, p, draws, error, freedom)


def mean_of(values: Iterable[float]) -> float:
    held = list(values)
    return math.fsum(held) / len(held) if held else NAN


def variance_of(values: Sequence[float]) -> float:
    centre = mean_of(values)
    return math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1)


def mean_interval(values: Sequence[float]) -> Interval:
    """Student's interval of a mean; one value has none."""
    if len(values) < 2:
        return Interval(mean_of(values), draws=len(values))
    return student(mean_of(values), math.sqrt(variance_of(values) / len(values)), len(values) - 1, len(values))


def holm(p_values: Sequence[float]) -> list[float]:
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    found = [NAN] * len(p_values)
    for rank, (_, i) in enumerate(order):
        found[i] = min(1.0, max((len(order) - k) * order[k][0] for k in range(rank + 1)))
    return found


def crossed(
    values: Sequence[float],
    strata: Sequence[Sequence[int]],
    covariance: Any,
    noise: tuple[float, int] | None,
    freedom_of_facts: float,
) -> Interval:
    """The sum of means with the covariance of units over facts, known with so many degrees of freedom."""
    share = {i: 1 / len(inside) for inside in strata for i in inside}
    facts_alone = math.fsum(share[i] * share[j] * covariance[i, j] for i in share for j in share)
    facts, draws, below = 0.0, 0.0, 0.0
    for s, mine in enumerate(strata):
        for t, theirs in enumerate(strata):
            pairs = [(i, j) for i in mine for j in theirs if s != t or i != j or len(mine) == 1]
            facts += mean_of(covariance[i, j] for i, j in pairs)
        if len(mine) > 1:
            own = noise or (variance_of([values[i] for i in mine]), len(mine) - 1)
            draws += own[0] / len(mine)
            below += (own[0] / len(mine)) ** 2 / own[1]
    variance = max(max(facts, 0.0) + draws, facts_alone)
    value = math.fsum(mean_of(values[i] for i in inside) for inside in strata)
    fewest = min(map(len, strata))
    rest = variance - max(facts, 0.0)
    parts = Behind(max(facts, 0.0), rest * fewest, rest**2 / below if below else 1e6)
    if fewest == 1 and variance < 1e-18:
        return Interval(value, draws=1)
    if fewest == 1:
        parts = Behind(variance, NAN, NAN)
    below += (variance - draws) ** 2 / freedom_of_facts
    found = student(value, math.sqrt(variance), min(variance**2 / below, 1e6) if below else 1e6, fewest)
    return found._replace(behind=parts)


#: Terms of one training draw: model, its draw, weights of groups.
Unit = tuple[int, list[tuple[Model, int, Weights]]]


@dataclass
class Scored:
    """One measure of every model on every fact: contrasts and their intervals."""

    facts: list[dict[str, Any]]  # domain, level, relation
    values: dict[tuple[Model, int], list[float]]
    by_relation: bool = False
    clustered: bool = False

    def __post_init__(self) -> None:
        self.groups: dict[Group, list[int]] = {}
        rng = np.random.default_rng(SEED)
        for domain in DOMAINS:
            for level in range(5):
                inside = [i for i, f in enumerate(self.facts) if (f["domain"], f["level"]) == (domain, level)]
                for place, i in enumerate(rng.permutation(inside).tolist() if inside else []):
                    self.groups.setdefault((domain, level, place % 2), []).append(i)
        for members in self.groups.values():
            members.sort()
        self.draws: dict[Model, list[int]] = {}
        for model, draw in sorted(self.values):
            self.draws.setdefault(model, []).append(draw)
        self._resampled: dict[tuple[Model, int, Group], Any] = {}
        self._resample()

    def _resample(self) -> None:
        """How often each of 1,000 replicates holds each fact: n - 1 of n, weighted n / (n - 1)."""
        rng = np.random.default_rng(SEED)
        self.weights = np.ones((REPLICATES, len(self.facts)))
        units: list[list[list[int]]] = [[[i] for i in self.groups[g]] for g in sorted(self.groups)]
        if self.by_relation:
            units = []
            for domain in DOMAINS:
                its = [(f["relation"], i) for i, f in enumerate(self.facts) if f["domain"] == domain]
                names = sorted({relation for relation, _ in its})
                units.append([[i for relation, i in its if relation == name] for name in names])
        self.varied: set[int] = set()
        for of_stratum in units:
            count = len(of_stratum)
            if count > 1:
                drawn = rng.multinomial(count - 1, [1 / count] * count, size=REPLICATES)
                for column, members in enumerate(of_stratum):
                    for i in members:
                        self.weights[:, i] = drawn[:, column] * count / (count - 1)
                        self.varied.add(i)

    # -- weights ----------------------------------------------------------------------------------------------------

    def over(
        self, domains: Sequence[str] = DOMAINS, level: int | None = None, half: int | None = None
    ) -> dict[Group, float]:
        """Weights of the plain mean over domains of the plain mean over test levels of the mean over facts."""
        here = {g: len(m) for g, m in self.groups.items() if g[0] in domains}
        here = {g: n for g, n in here.items() if level in (None, g[1]) and half in (None, g[2])}
        filled = {domain: {g[1] for g in here if g[0] == domain} for domain in {g[0] for g in here}}
        facts = {(d, lv): sum(n for g, n in here.items() if g[:2] == (d, lv)) for d, lv, _ in here}
        return {g: n / facts[g[:2]] / len(filled[g[0]]) / len(filled) for g, n in here.items()}

    def pooled(self, domains: Sequence[str] = DOMAINS, half: int | None = None) -> dict[Group, float]:
        """Weights of the plain mean over facts."""
        here = {g: len(m) for g, m in self.groups.items() if g[0] in domains and half in (None, g[2])}
        return {g: n / sum(here.values()) for g, n in here.items()}

    # -- contrasts --------------------------------------------------------------------------------------------------

    def value(self, model: Model, draw: int, weights: Weights) -> float:
        x = self.values[model, draw]
        return math.fsum(w * mean_of(x[i] for i in self.groups[g]) for g, w in weights.items()) if weights else NAN

    def replicate(self, model: Model, draw: int, weights: Weights) -> Any:
        total = np.zeros(REPLICATES)
        for group, weight in weights.items():
            if (model, draw, group) not in self._resampled:
                members = self.groups[group]
                x = np.asarray([self.values[model, draw][i] for i in members])
                moved = self.weights[:, members] @ (x - x.mean()) / len(members)
                self._resampled[model, draw, group] = x.mean() + moved
            total += weight * self._resampled[model, draw, group]
        return total

    def unit_value(self, unit: Unit) -> float:
        return math.fsum(self.value(model, draw, weights) for model, draw, weights in unit[1])

    def noise(self, contrasts: Sequence[Sequence[Unit]]) -> tuple[float, int] | None:
        """Variance of a draw's value pooled over contrasts of one stratum each, and its degrees of freedom."""
        held = [[self.unit_value(u) for u in units] for units in contrasts if units]
        freedom = sum(len(v) - 1 for v in held)
        squares = math.fsum(variance_of(v) * (len(v) - 1) for v in held if len(v) > 1)
        return (squares / freedom, freedom) if freedom else None

    def interval(self, units: Sequence[Unit], noise: tuple[float, int] | None = None) -> Interval:
        """Sum over strata of the mean over draws: facts and draws as docs/measures.md adds them up."""
        if not units or any(math.isnan(self.unit_value(u)) for u in units):
            return Interval()
        strata: dict[int, list[int]] = defaultdict(list)
        for place, (stratum, _) in enumerate(units):
            strata[stratum].append(place)
        values = [self.unit_value(u) for u in units]
        value = math.fsum(mean_of(values[i] for i in inside) for inside in strata.values())
        fewest = min(map(len, strata.values()))
        used = {g for _, terms in units for _, _, weights in terms for g, w in weights.items() if w}
        pairs = _pairs_of(units, self) if self.clustered else (NAN, NAN, NAN)
        missing = Interval(value, draws=fewest, behind=Behind(NAN, NAN, NAN, turned=pairs))
        if not any(i in self.varied for g in used for i in self.groups[g]):
            return missing
        replicates = np.stack([sum(self.replicate(m, d, w) for m, d, w in terms) for _, terms in units])
        if fewest == 1 and float(np.ptp(replicates, axis=1).max()) < 1e-6:
            return missing
        covariance = np.atleast_2d(np.cov(replicates, ddof=1))
        found = crossed(values, list(strata.values()), covariance, noise, math.inf)
        return self._with_clusters(found, units, values, list(strata.values()), noise) if self.clustered else found

    def _with_clusters(
        self,
        found: Interval,
        units: Sequence[Unit],
        values: Sequence[float],
        strata: Sequence[Sequence[int]],
        noise: tuple[float, int] | None,
    ) -> Interval:
        """CR2 by its definition (Bell and McCaffrey 2002): matrices over facts, groups as dummies."""
        share = {i: 1 / len(inside) for inside in strata for i in inside}
        weight: dict[Group, float] = defaultdict(float)
        for u, (_, terms) in enumerate(units):
            for _, _, weights in terms:
                for g, w in weights.items():
                    weight[g] += share[u] * max(w, 0.0)
        groups = [g for g, w in weight.items() if w > 0]
        rows = [(g, i) for g in groups for i in self.groups[g]]
        dummies = np.asarray([[float(g == other) for other in groups] for g, _ in rows])
        left = np.eye(len(rows)) - dummies @ np.linalg.inv(dummies.T @ dummies) @ dummies.T
        names = [self.facts[i]["relation"] for _, i in rows]
        ones = dummies @ np.linalg.inv(dummies.T @ dummies) @ np.ones(len(groups))
        weighted = dummies @ np.linalg.inv(dummies.T @ dummies) @ np.asarray([weight[g] for g in groups])
        effects = np.zeros((len(units), len(rows)))
        own = np.zeros(len(rows))
        for u, (_, terms) in enumerate(units):
            for model, draw, weights in terms:
                x = np.asarray([weights.get(g, 0.0) * self.values[model, draw][i] for g, i in rows])
                effects[u] += x
                own += share[u] * x / np.asarray([weight[g] for g, _ in rows])
        scores, reach = [], []
        for name in sorted(set(names)):
            inside = [k for k, other in enumerate(names) if other == name]
            roots, vectors = np.linalg.eigh(left[np.ix_(inside, inside)])
            adjusted = vectors @ np.diag([r**-0.5 if r > 1e-9 else 0.0 for r in roots]) @ vectors.T
            scores.append(ones[inside] @ adjusted @ (left @ effects.T)[inside])
            reach.append(left[:, inside] @ adjusted @ weighted[inside])
        gram = np.asarray([[float(p @ q) for q in reach] for p in reach])
        pairs = _pairs_of(units, self)
        if float((gram**2).sum()) < 1e-30:
            return found._replace(behind=found.behind and found.behind._replace(turned=pairs))
        freedom = float(np.trace(gram)) ** 2 / float((gram**2).sum())
        table = np.asarray(scores)
        clustered = crossed(values, strata, table.T @ table, noise, freedom)
        alone = math.fsum(
            weight[g] ** 2 * variance_of(its) / len(its)
            for g in groups
            if len(its := [own[k] for k, (other, _) in enumerate(rows) if other == g]) > 1
        )
        together = math.fsum(math.fsum(share[u] * row[u] for u in share) ** 2 for row in table)
        by_name = [[float(x) for x, other in zip(left @ own, names, strict=True) if other == n] for n in set(names)]
        assert found.behind is not None
        behind = found.behind._replace(
            clustered=clustered,
            clusters=len(by_name),
            correlation=_intraclass(by_name),
            design_effect=together / alone if alone > 1e-30 else NAN,
            turned=pairs,
        )
        return found._replace(behind=behind)

    def shared(self, *models: Model | None) -> list[int]:
        """The draws that all have."""
        held = [set(self.draws.get(model, ())) for model in models if model]
        return sorted(set.intersection(*held))

    def units(self, pairs: Sequence[tuple[Model, Model | None]], weights: Weights) -> list[Unit]:
        """First minus second for each pair and shared draw, over the number of pairs that have any."""
        kept = [(a, b, self.shared(a, b)) for a, b in pairs if self.shared(a, b)]
        shared = scaled(weights, 1 / max(1, len(kept)))
        return [
            (s, [(a, d, shared), *([(b, d, scaled(shared, -1))] if b else [])])
            for s, (a, b, draws) in enumerate(kept)
            for d in draws
        ]

    def difference(
        self,
        pairs: Sequence[tuple[Model, Model | None]],
        weights: Weights,
        alike: Sequence[tuple[Model, Model | None]] = (),
    ) -> Interval:
        """Mean over pairs of first minus second (or of first alone); draws' noise pooled over ``alike``."""
        if not weights:
            return Interval()
        peers = [self.units([pair], weights) for pair in alike]
        return self.interval(self.units(pairs, weights), self.noise([u for u in peers if len(u) > 1]))


def _pairs_of(units: Sequence[Unit], scored: Scored) -> tuple[Any, Any, Any]:
    """Pairs of answers, those right for what is added alone, those right for what is subtracted alone."""
    table: list[tuple[float, float]] = []
    for _, terms in units:
        more, less = ([t for t in terms if sign * sum(t[2].values()) > 0] for sign in (1, -1))
        if len(more) != len(less):
            return NAN, NAN, NAN
        for (a, draw, weights), (b, other, _) in zip(more, less, strict=True):
            for g in weights:
                table += [(scored.values[a, draw][i], scored.values[b, other][i]) for i in scored.groups[g]]
    return len(table), table.count((1.0, 0.0)), table.count((0.0, 1.0))


def _intraclass(values: Sequence[Sequence[float]]) -> float:
    """The analysis-of-variance estimate of the intra-class correlation."""
    count = sum(map(len, values))
    if len(values) < 2 or count == len(values):
        return NAN
    centre = mean_of(x for its in values for x in its)
    between = math.fsum(len(its) * (mean_of(its) - centre) ** 2 for its in values) / (len(values) - 1)
    within = math.fsum((x - mean_of(its)) ** 2 for its in values for x in its) / (count - len(values))
    size = (count - sum(len(its) ** 2 for its in values) / count) / (len(values) - 1)
    scale = between + (size - 1) * within
    return (between - within) / scale if scale > 1e-30 else NAN


def visible(error: float, freedom: float) -> float:
    """The effect that is seen four times of five, by halving what is too large or too small."""
    if math.isnan(error) or math.isnan(freedom):
        return NAN
    critical = float(special.stdtrit(freedom, 0.975))
    low, high = 0.0, 1e4
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if special.nctdtr(freedom, middle, critical) > 0.2 else (low, middle)
    return error * low


def needed(found: Interval, effect: float) -> float | str:
    """The fewest draws that would see an effect: counted upwards."""
    parts = found.behind
    if parts is None or math.isnan(parts.one_draw):
        return NAN

    def seen(draws: int) -> bool:
        own = parts.one_draw / draws
        variance = parts.facts + own
        below = own**2 / (parts.freedom * (draws - 1) / (found.draws - 1))
        return visible(math.sqrt(variance), min(variance**2 / below, 1e6) if below else 1e6) <= effect

    return float(next(d for d in range(2, 10_001) if seen(d))) if seen(10_000) else "inf"


def scaled(weights: Weights, factor: float) -> dict[Group, float]:
    return {group: factor * weight for group, weight in weights.items()}


@dataclass
class Records:
    """A run folder as it lies on disk."""

    run: Path

    def __post_init__(self) -> None:
        manifest = json.loads((self.run / "manifest.json").read_text())
        self.rate: float = manifest["config"]["training"]["learning_rate"]
        self.cells: dict[str, list[tuple[dict[str, Any], Path]]] = defaultdict(list)
        for cell in manifest["cells"]:
            self.cells[cell["kind"]].append((cell["key"], self.run / "cells" / cell["kind"] / cell["digest"]))
        parts = sorted(self.cells["mastery"], key=lambda cell: cell[0]["part"])
        self.mastery = [row for _, cell in parts for row in rows_of(cell / "mastery.parquet")]
        self._read_answers()
        self._read_shifts()
        self.changes = {(model_of(k), k["draw"]): _json(f / "change.json") for k, f in self.cells["weight_change"]}
        self.trained = {(model_of(k), k["draw"]): _json(f / "record.json") for k, f in self.cells["tuned"]}
        self.put_back = {(model_of(k), k["draw"]): _json(f / "restored.json") for k, f in self.cells["restoration"]}

    def restored_apart(self, kind: str) -> Iterable[tuple[Model, int, str, dict[str, Any], list[dict[str, Any]]]]:
        """Model, draw, what was restored, what the cell says about it, and the graded answers with a level."""
        for key, folder in self.cells[kind]:
            for file in folder.glob("answers-*.parquet"):
                rows = [r for r in rows_of(file) if r["substring_hit"] is not None and r["level"] is not None]
                name = file.stem.removeprefix("answers-")
                yield model_of(key), key["draw"], name, _json(folder / "restored.json"), rows

    def _read_answers(self) -> None:
        files: dict[tuple[Model, int], Path] = {}
        for _, folder in self.cells["base"]:
            files |= {(BASE[prompt], 0): folder / f"{FILES[prompt]}.parquet" for prompt in BASE}
        files |= {(model_of(k), k["draw"]): folder / "answers.parquet" for k, folder in self.cells["evaluation"]}
        for key, folder in self.cells["restoration"]:
            for file in folder.glob("answers-*.parquet"):
                criterion, fraction = file.stem.removeprefix("answers-").rsplit("-", 1)
                files[model_of(key).put_back(criterion, float(fraction)), key["draw"]] = file
        tables = {name: {row["fact"]: row for row in rows_of(file)} for name, file in files.items()}
        first = tables[BASE["zero_shot"], 0]
        graded = [f for f in first if all(t[f]["substring_hit"] is not None for t in tables.values())]
        kept = [f for f in graded if first[f]["level"] is not None]
        facts = [first[f] for f in kept]

        def column(of: str) -> dict[tuple[Model, int], list[float]]:
            return {name: [float(rows[f][of]) for f in kept] for name, rows in tables.items()}

        self.substring = Scored(facts, column("substring_hit"), clustered=True)
        self.word = Scored(facts, column("word_hit"))
        self.relations = Scored(facts, column("substring_hit"), by_relation=True)
        self.empty = {name: [not rows[f]["text"].strip() for f in kept] for name, rows in tables.items()}

    def _read_shifts(self) -> None:
        self.shifts = {
            (model_of(k), k["draw"]): rows_of(f / "token_shift.parquet") for k, f in self.cells["token_shift"]
        }
        first = next(iter(self.shifts.values()))
        tables = {name: {row["fact"]: row["kl"] for row in rows} for name, rows in self.shifts.items()}
        kept = [row for row in first if all(table[row["fact"]] is not None for table in tables.values())]
        facts = [{**row, "level": 4} for row in kept]
        self.kl = Scored(facts, {name: [table[row["fact"]] for row in kept] for name, table in tables.items()})

    @property
    def tuned(self) -> list[Model]:
        """Every tuned model of grid and control, unrestored; the grid first."""
        return sorted((m for m in self.substring.draws if m.level >= 0 and not m.criterion), key=lambda m: (m[3], m))

    @property
    def grid(self) -> dict[tuple[int, int], Model]:
        return {(m.level, m.size): m for m in self.tuned if not m.control and m.rate == self.rate}

    @property
    def slow(self) -> dict[tuple[int, int], Model]:
        return {(m.level, m.size): m for m in self.tuned if m.control}

    @property
    def restored(self) -> list[Model]:
        return sorted(m for m in self.substring.draws if m.criterion)

    def fractions(self, criterion: str) -> list[float]:
        return sorted({m.fraction for m in self.restored if m.criterion == criterion})


def model_of(key: Mapping[str, Any]) -> Model:
    return Model(key["level"], key["size"], key["learning_rate"], key["control"] or "")


def rows_of(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return rows


def _json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found
