"""The findings once more: contrasts of docs/measures.md with their honest choices, in plain formulas.

Numbers that are ranked are rounded, so that equal ones are equal whatever their last digits. What the claims say is
written down in ``golden_texts``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from golden_records import (
    BASE,
    DOMAINS,
    NAN,
    REPLICATES,
    SEED,
    Behind,
    Interval,
    Model,
    Records,
    Scored,
    Unit,
    holm,
    mean_of,
    scaled,
    student,
    variance_of,
)

Options = Mapping[float, Model]


class Claim(NamedTuple):
    finding: int
    role: str
    unit: str
    margin: float
    estimate: Interval
    word: Interval | None = None
    relation: Interval | None = None
    p_holm: float = NAN

    @property
    def verdict(self) -> str:
        low, high = self.estimate.low, self.estimate.high
        if low > 0 and (math.isnan(self.p_holm) or self.p_holm <= 0.05):
            return "shown"
        return "not shown" if high < self.margin else "undecided"


# -- choices --------------------------------------------------------------------------------------------------------


def choose(scored: Scored, options: Options, draws: Sequence[int], sign: int, pooled: bool = False) -> dict[Any, float]:
    """For each draw and half the candidate that is best (``sign`` 1) on the other draws and the other half."""
    weigh = scored.pooled if pooled else scored.over
    chosen = {}
    for draw in draws:
        for half in (0, 1):
            others = [d for d in draws if d != draw] or [draw]
            scores = {
                name: round(sign * mean_of(scored.value(model, d, weigh(half=1 - half)) for d in others), 9)
                for name, model in options.items()
            }
            chosen[draw, half] = max(scores, key=scores.__getitem__)
    return chosen


def choice_units(
    scored: Scored,
    pairs: Sequence[tuple[Options, Options]],
    domains: Sequence[str],
    sign: int = 1,
    pooled: bool = False,
) -> tuple[list[Unit], float]:
    """The chosen minus the chosen of the references, and how much wider the interval has to be."""
    weigh = scored.pooled if pooled else scored.over
    kept = [(a, b, scored.shared(*a.values(), *b.values())) for a, b in pairs if a and b]
    kept = [item for item in kept if item[2]]
    units, factor = [], 1.0
    for stratum, (options, references, draws) in enumerate(kept):
        best, against = (choose(scored, its, draws, sign, pooled) for its in (options, references))
        disagreeing = [len(set(chosen.values())) > 1 for chosen in (best, against)]
        factor = max(factor, (1.0, 1.09, 1.17)[sum(disagreeing)])
        for draw in draws:
            terms = []
            for half in (0, 1):
                weights = scaled(weigh(domains, half=half), 1 / 2 / len(kept))
                terms.append((options[best[draw, half]], draw, weights))
                terms.append((references[against[draw, half]], draw, scaled(weights, -1)))
            units.append((stratum, terms))
    return units, factor


def chosen(
    scored: Scored,
    pairs: Sequence[tuple[Options, Options]],
    domains: Sequence[str] = DOMAINS,
    sign: int = 1,
    pooled: bool = False,
    alike: Sequence[tuple[Options, Options]] = (),
) -> Interval:
    units, factor = choice_units(scored, pairs, domains, sign, pooled)
    peers = [choice_units(scored, [pair], domains, sign, pooled)[0] for pair in alike]
    return scored.interval(units, scored.noise([p for p in peers if len(p) > 1])).wider(factor)


def noise_between(scored: Scored, models: Sequence[Model], domains: Sequence[str]) -> tuple[float, int] | None:
    """Twice the noise of one level's draw: the draws of two levels are independent."""
    one = scored.noise([scored.units([(model, None)], scored.over(domains)) for model in models])
    return (2 * one[0], one[1]) if one else None


def spread(scored: Scored, options: Mapping[int, Model], domains: Sequence[str] = DOMAINS) -> Interval:
    """Best minus worst level, both chosen elsewhere."""
    draws = scored.shared(*options.values())
    best, worst = (choose(scored, {float(k): m for k, m in options.items()}, draws, sign) for sign in (1, -1))
    units: list[Unit] = []
    for draw in draws:
        terms = []
        for half in (0, 1):
            for picked, sign in ((best, 1), (worst, -1)):
                weights = scaled(scored.over(domains, half=half), sign / 2)
                terms.append((options[int(picked[draw, half])], draw, weights))
        units.append((0, terms))
    found = scored.interval(units, noise_between(scored, list(options.values()), domains))
    agree = len(set(best.values())) == len(set(worst.values())) == 1
    return found if agree else found.wider(1.31)


def against_levels(scored: Scored, others: Mapping[int, Model], reference: Model, sign: int) -> Interval:
    units, factor = choice_units(scored, [({float(k): m for k, m in others.items()}, {0.0: reference})], DOMAINS, sign)
    noise = noise_between(scored, [*others.values(), reference], DOMAINS)
    return scored.interval(units, noise).wider(factor)


# -- the four findings ----------------------------------------------------------------------------------------------


def findings(records: Records) -> dict[str, Claim]:
    return {**_sizes(records), **_levels(records), **_tokens(records), **_weights(records)}


def _three(records: Records, contrast: Callable[[Scored], Interval]) -> tuple[Interval, Interval, Interval]:
    return contrast(records.substring), contrast(records.word), contrast(records.relations)


def _adjusted(claims: dict[str, Claim]) -> dict[str, Claim]:
    p_values = holm([claim.estimate.p for claim in claims.values()])
    return {name: claim._replace(p_holm=p) for (name, claim), p in zip(claims.items(), p_values, strict=True)}


def _sizes(records: Records) -> dict[str, Claim]:
    grid, slow = records.grid, records.slow
    levels, sizes = sorted({lv for lv, _ in grid}), sorted({s for _, s in grid})

    def pairs(its: Sequence[int], among: Sequence[int], against: int) -> list[tuple[Options, Options]]:
        return [
            ({float(s): grid[lv, s] for s in among if (lv, s) in grid}, {0.0: grid[lv, against]})
            for lv in its
            if (lv, against) in grid
        ]

    smaller, largest, inner = sizes[:-1], sizes[-1], sizes[1:-1]
    every = pairs(levels, smaller, largest)
    found = {
        "more_data_hurts": Claim(1, "core", "points", 0.01, *_three(records, lambda s: chosen(s, every))),
    }
    if inner:
        up = pairs(levels, inner, sizes[0])
        found["rises_first"] = Claim(1, "core", "points", 0.01, *_three(records, lambda s: chosen(s, up)))
    for domain in DOMAINS:
        part = chosen(records.substring, every, [domain])
        found[f"more_data_hurts_{domain}"] = Claim(1, "detail", "points", 0.01, part)
    each = {}
    for level in levels:
        one = chosen(records.substring, pairs([level], smaller, largest), alike=every)
        each[f"more_data_hurts_level_{level}"] = Claim(1, "detail", "points", 0.01, one)
    found |= _adjusted(each)
    both = [lv for lv in levels if (lv, largest) in slow and (lv, largest) in grid]
    gain = records.substring.difference(
        [(slow[lv, largest], grid[lv, largest]) for lv in both], records.substring.over()
    )
    left = [(pairs([lv], smaller, largest)[0][0], {0.0: slow[lv, largest]}) for lv in both]
    found["smaller_rate_helps"] = Claim(1, "control", "points", 0.01, gain)
    found["hurts_at_smaller_rate"] = Claim(1, "control", "points", 0.01, chosen(records.substring, left))
    return found


def _levels(records: Records) -> dict[str, Claim]:
    largest = max(size for _, size in records.grid)
    options = {lv: model for (lv, size), model in sorted(records.grid.items()) if size == largest}
    found = {
        "level_matters": Claim(2, "core", "points", 0.01, *_three(records, lambda s: spread(s, options))),
    }
    rest = {lv: model for lv, model in options.items() if lv != 0}
    lowest = _three(records, lambda s: against_levels(s, rest, options[0], -1))
    found["level_0_worst"] = Claim(2, "core", "points", 0.01, *lowest)
    if 2 in options:
        others = {lv: model for lv, model in options.items() if lv != 2}
        ahead = against_levels(records.substring, others, options[2], 1).negated()
        found["level_2_best"] = Claim(2, "detail", "points", 0.01, ahead)
    for domain in DOMAINS:
        part = spread(records.substring, options, [domain])
        found[f"level_matters_{domain}"] = Claim(2, "detail", "points", 0.01, part)
    slow = {lv: model for (lv, size), model in sorted(records.slow.items()) if size == largest}
    gap = spread(records.substring, slow)
    found["level_matters_at_smaller_rate"] = Claim(2, "control", "points", 0.01, gap)
    return found


def _tokens(records: Records) -> dict[str, Claim]:
    kl, grid = records.kl, records.grid
    levels, sizes = sorted({lv for lv, _ in grid}), sorted({s for _, s in grid})
    margin = 0.05 * mean_of(mean_of(kl.value(m, d, kl.pooled()) for d in kl.draws[m]) for m in grid.values())

    def lowest(its: Sequence[int], among: Sequence[int], against: int) -> Interval:
        pairs: list[tuple[Options, Options]] = [
            ({s: grid[lv, s] for s in among}, {0.0: grid[lv, against]}) for lv in its
        ]
        return chosen(kl, pairs, sign=-1, pooled=True).negated()

    found = {"kl_rises": Claim(3, "core", "nats", margin, lowest(levels, sizes[:-1], sizes[-1]))}
    if len(sizes) > 2:
        found["kl_falls_first"] = Claim(3, "core", "nats", margin, lowest(levels, sizes[1:-1], sizes[0]))
    overall, within = _correlations(records)
    found["kl_against_accuracy"] = Claim(3, "core", "correlation", 0.1, overall.negated())
    if not math.isnan(within.value):
        found["kl_against_accuracy_within"] = Claim(3, "detail", "correlation", 0.1, within.negated())
    low, high = ([lv for lv in levels if (lv < 2) is below] for below in (True, False))
    units: list[Unit] = []
    for its, sign in ((low, 1), (high, -1)):
        for lv in its:
            model, weights = grid[lv, sizes[-1]], scaled(kl.pooled(), sign / len(its))
            units += [(lv, [(model, draw, weights)]) for draw in kl.draws[model]]
    found["kl_most_for_low_levels"] = Claim(3, "detail", "nats", margin, kl.interval(units))
    each = {lv: Claim(3, "detail", "nats", margin, lowest([lv], sizes[:-1], sizes[-1])) for lv in levels}
    found |= _adjusted({f"kl_rises_level_{lv}": claim for lv, claim in each.items()})
    slow = {lv: model for (lv, size), model in sorted(records.slow.items()) if size == sizes[-1]}
    fall = kl.difference([(grid[lv, sizes[-1]], model) for lv, model in slow.items()], kl.pooled())
    still = [({s: grid[lv, s] for s in sizes[:-1]}, {0.0: model}) for lv, model in slow.items()]
    found["smaller_rate_lowers_kl"] = Claim(3, "control", "nats", margin, fall)
    rise = chosen(kl, still, sign=-1, pooled=True).negated()
    found["kl_rises_at_smaller_rate"] = Claim(3, "control", "nats", margin, rise)
    return found


def _correlations(records: Records) -> tuple[Interval, Interval]:
    """Spearman's correlation of KL with accuracy over settings, and its mean within levels; percentiles.

    Draws are resampled for both measures alike, n - 1 of n from seed 20250917 + level; facts for each by themselves.
    """
    values: list[list[float]] = []
    replicates = []
    keys = list(records.grid)
    draws = [records.substring.shared(model) for model in records.grid.values()]
    for scored, weights in ((records.kl, records.kl.pooled()), (records.substring, records.substring.over())):
        values.append([])
        columns = []
        for (level, _), its, model in zip(keys, draws, records.grid.values(), strict=True):
            values[-1].append(mean_of(scored.value(model, draw, weights) for draw in its))
            each = [scored.replicate(model, draw, weights) for draw in its]
            count = len(its)
            rng = np.random.default_rng(SEED + 1 + level)
            held = np.ones((REPLICATES, 1))
            if count > 1:
                held = rng.multinomial(count - 1, [1 / count] * count, size=REPLICATES) * count / (count - 1)
            columns.append(sum(held[:, k] * x for k, x in enumerate(each)) / count)
        replicates.append(np.stack(columns, axis=1))
    fewest = min(map(len, draws))

    def interval(groups: Sequence[Sequence[int]]) -> Interval:
        def mean(x: Any, y: Any) -> float:
            return mean_of(float(stats.spearmanr(x[list(g)], y[list(g)]).statistic) for g in groups)

        value = mean(np.asarray(values[0]), np.asarray(values[1]))
        its = [mean(x.round(9), y.round(9)) for x, y in zip(*replicates, strict=True)]
        its = [value for value in its if not math.isnan(value)]  # of accuracies that are all equal there is none
        low, high = np.quantile(its, [0.025, 0.975])
        beyond = min(sum(x <= 0 for x in its), sum(x >= 0 for x in its))
        return Interval(value, float(low), float(high), min(1.0, 2 * (beyond + 1) / (len(its) + 1)), fewest)

    by_level = [[i for i, (lv, _) in enumerate(keys) if lv == level] for level in sorted({lv for lv, _ in keys})]
    long = [group for group in by_level if len(group) > 2]
    return interval([range(len(keys))]), interval(long) if long else Interval()


def _weights(records: Records) -> dict[str, Claim]:
    scored, grid = records.substring, records.grid
    size = max(m.size for m in records.restored if m.criterion == "relative")
    levels = sorted({m.level for m in records.restored if m.criterion == "relative" and m.size == size})

    def options(criterion: str, level: int) -> Options:
        found = {f: grid[level, size].put_back(criterion, f) for f in records.fractions(criterion)}
        return {f: model for f, model in found.items() if model in scored.draws}

    def helped(its: Sequence[int], criterion: str = "relative") -> list[tuple[Options, Options]]:
        return [(options(criterion, lv), {0.0: grid[lv, size]}) for lv in its]

    top = max(records.fractions("relative"))
    fall: list[tuple[Model, Model | None]] = [
        (grid[lv, size], grid[lv, size].put_back("relative", top)) for lv in levels
    ]
    best = _three(records, lambda s: chosen(s, helped(levels)))
    collapse = _three(records, lambda s: s.difference(fall, s.over()))
    found = {
        "restoring_helps": Claim(4, "core", "points", 0.01, *best),
        "restoring_too_many_collapses": Claim(4, "core", "points", 0.01, *collapse),
    }
    for domain in DOMAINS:
        part = chosen(scored, helped(levels), [domain])
        found[f"restoring_helps_{domain}"] = Claim(4, "detail", "points", 0.01, part)
    each = {lv: chosen(scored, helped([lv]), alike=helped(levels)) for lv in levels}
    found |= _adjusted({f"restoring_helps_level_{lv}": Claim(4, "detail", "points", 0.01, e) for lv, e in each.items()})
    controls = {f"concentration_{name}": _above_null(records, name) for name in ("0.01", "0.2")}
    controls["random_restoring_helps"] = chosen(scored, helped(levels, "random"))
    controls["relative_beats_random"] = chosen(
        scored, [(options("relative", lv), options("random", lv)) for lv in levels]
    )
    slow = {lv: records.slow[lv, size] for lv in levels if (lv, size) in records.slow}
    controls["smaller_rate_beats_restoring"] = chosen(
        scored, [(options("relative", lv), {0.0: model}) for lv, model in slow.items()]
    ).negated()
    weights = scaled(scored.over(), 1 / len(levels))
    units: list[Unit] = [
        (lv, [(model, draw, weights), (BASE["zero_shot"], 0, scaled(weights, -1))])
        for lv in levels
        for model in [grid[lv, size].put_back("relative", top)]
        for draw in scored.draws[model]
    ]
    controls["collapse_stays_above_base"] = scored.interval(units)
    return found | {name: Claim(4, "control", "points", 0.01, e) for name, e in controls.items() if e.draws}


def _above_null(records: Records, name: str) -> Interval:
    """Mean over settings of the mean over draws; the variance of a level's draws alone, each at all its sizes."""
    above: dict[Model, dict[int, float]] = {}
    for (model, draw), record in sorted(records.changes.items()):
        share, chance = (record[where]["relative"].get(name) for where in ("concentration", "null"))
        if not model.control and share is not None and chance is not None:
            above.setdefault(model, {})[draw] = share - chance
    if not above:
        return Interval()
    levels = {model.level for model in above}
    of_level = {k: sorted({d for model, its in above.items() if model.level == k for d in its}) for k in levels}
    value, fewest = mean_of(mean_of(its.values()) for its in above.values()), min(map(len, of_level.values()))
    if fewest == 1:
        return Interval(value, draws=1)
    parts = []
    for level, draws in of_level.items():
        mine = [its for model, its in above.items() if model.level == level]
        # Of the sum over settings of their means over draws, times the number of draws: what each draw adds.
        adds = [len(draws) * math.fsum(its.get(d, 0.0) / len(its) for its in mine) for d in draws]
        parts.append((variance_of(adds) / len(draws) / len(above) ** 2, len(draws) - 1))
    variance, below = math.fsum(part for part, _ in parts), math.fsum(part**2 / free for part, free in parts)
    freedom = variance**2 / below if below else 1e6
    found = student(value, math.sqrt(variance), freedom, fewest)
    return found._replace(behind=Behind(0.0, variance * fewest, freedom))
