"""Findings 3 and 4: token probabilities drift with data size; few weights hold the change, and putting them back helps."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from knowshift.report.accuracy_findings import ALL_LEVELS, BOTH, by_size, chosen_words
from knowshift.report.claims import (
    POINT,
    Claim,
    Finding,
    adjusted,
    interval_in_brackets,
    more_or_less,
    negated,
    points,
    three_ways,
)
from knowshift.report.evidence import Evidence
from knowshift.report.layout import fraction_name, interval_words, percent, signed
from knowshift.report.published import published_concentration
from knowshift.report.run_folder import DOMAINS
from knowshift.report.scores import REPLICATES, SEED, Choice, Model, Scores, Unit
from knowshift.study.statistics import (
    MISSING,
    Estimate,
    crossed_interval,
    draw_weights,
    percentile_interval,
    rank_correlation,
)

#: A change of mean KL below this share of the run's mean KL would not be worth the name; nor a smaller correlation.
KL_SHARE = 0.05
CORRELATION = 0.1


def tokens_finding(evidence: Evidence) -> Finding:
    """Finding 3: KL to the base falls, then rises with size, most for levels 0 and 1, and against accuracy."""
    title = "Token probabilities drift from the base model as data grows"
    paper = "KL falls, then rises with data size, most for levels 0 and 1, and moves against accuracy."
    shifts = evidence.token_shifts
    sizes, levels = evidence.sizes, evidence.levels
    if shifts is None or len(sizes) < 2:
        nothing = Claim(
            "kl_rises",
            "KL rises from its lowest to the largest size",
            ALL_LEVELS,
            "nats",
            MISSING,
            "Not measured.",
            core=True,
        )
        return Finding(3, title, paper, "Not measured: this run has no scored token shifts.", (nothing,))
    scores = shifts.scores
    largest = sizes[-1]
    grid = {key: model for key, model in evidence.main.items() if scores.draws(model)}
    by_cell = {key: scores.mean([model], scores.pooled(BOTH)).value for key, model in grid.items()}
    margin = KL_SHARE * float(np.mean(list(by_cell.values()))) if by_cell else math.nan

    def rise(levels: list[int]) -> Choice:
        complete = [lv for lv in levels if (lv, largest) in grid]
        options: list[Mapping[float, Model]] = [by_size(evidence, lv, sizes[:-1]) for lv in complete]
        return scores.chosen(options, [grid[lv, largest] for lv in complete], BOTH, highest=False, pooled=True)

    up = rise(levels)
    ups = negated(up.estimate)
    curve = ", ".join(f"{_mean([by_cell[lv, s] for lv in levels if (lv, s) in by_cell]):.2f} at {s:,}" for s in sizes)
    claims = [
        Claim(
            "kl_rises",
            "KL rises from its lowest size to the largest",
            f"{ALL_LEVELS}, level-4 test facts",
            "nats",
            ups,
            f"Mean KL to the base over {shifts.facts:,} well-known facts, in nats: {curve}. From its lowest smaller size "
            f"({chosen_words(up)}) to {largest:,} it changes by {_nats(ups)}.",
            margin,
            core=True,
        )
    ]
    if len(sizes) > 2:
        complete = [lv for lv in levels if (lv, sizes[0]) in grid]
        down = scores.chosen(
            [by_size(evidence, lv, sizes[1:-1]) for lv in complete],
            [grid[lv, sizes[0]] for lv in complete],
            BOTH,
            highest=False,
            pooled=True,
        )
        fall = negated(down.estimate)
        claims.append(
            Claim(
                "kl_falls_first",
                "KL falls from the smallest size to an inner one",
                f"{ALL_LEVELS}, level-4 test facts",
                "nats",
                fall,
                f"From {sizes[0]:,} samples to the lowest inner size ({chosen_words(down)}) KL falls by {_nats(fall)}.",
                margin,
                core=True,
            )
        )
    overall, within = _against_accuracy(evidence, scores, grid)
    claims.append(
        Claim(
            "kl_against_accuracy",
            "KL moves against accuracy over training levels and sizes",
            f"{len(grid)} settings",
            "correlation",
            negated(overall),
            f"Over the {len(grid)} settings the rank correlation of KL with accuracy is {_plain(overall)}.",
            CORRELATION,
            core=True,
        )
    )
    if within.known:
        claims.append(
            Claim(
                "kl_against_accuracy_within",
                "KL moves against accuracy over sizes, within a training level",
                ALL_LEVELS,
                "correlation",
                negated(within),
                f"Within a training level, over sizes, the mean rank correlation is {_plain(within)}.",
                CORRELATION,
            )
        )
    low, high = (
        [lv for lv in levels if lv < 2 and (lv, largest) in grid],
        [lv for lv in levels if lv >= 2 and (lv, largest) in grid],
    )
    if low and high:
        units = [
            Unit(lv, ((scores.column(grid[lv, largest], draw), scores.pooled(BOTH) * share),))
            for group, share in ((low, 1 / len(low)), (high, -1 / len(high)))
            for lv in group
            for draw in scores.draws(grid[lv, largest])
        ]
        gap = scores.estimate(units)
        claims.append(
            Claim(
                "kl_most_for_low_levels",
                "KL at the largest size is higher for levels 0 and 1",
                "levels 0 and 1 minus levels 2 to 4",
                "nats",
                gap,
                f"With {largest:,} samples, KL after levels 0 and 1 minus after levels 2 to 4: {_nats(gap)}.",
                margin,
            )
        )
    each = []
    for lv in levels:
        choice = rise([lv])
        change = negated(choice.estimate)
        each.append(
            Claim(
                f"kl_rises_level_{lv}",
                "KL rises from its lowest size to the largest",
                f"training level {lv}",
                "nats",
                change,
                f"Level {lv}: lowest at {chosen_words(choice)}; to {largest:,} it changes by {_nats(change)}.",
                margin,
            )
        )
    claims.extend(adjusted(each))
    return Finding(3, title, paper, claims[0].sentence, tuple(claims))


def _against_accuracy(
    evidence: Evidence, kl: Scores, grid: Mapping[tuple[int, int], Model]
) -> tuple[Estimate, Estimate]:
    """Rank correlation of KL with accuracy over settings, and its mean within training levels; bootstrap intervals.

    Draws are resampled once for both measures. Facts are resampled separately for each: KL has level-4 facts only.
    """
    accuracy = evidence.substring
    kept = {k: m for k, m in grid.items() if set(kl.draws(m)) & set(accuracy.draws(m))}
    if len(kept) < 3:
        return MISSING, MISSING
    both = []
    fewest = min(len(set(kl.draws(m)) & set(accuracy.draws(m))) for m in kept.values())
    for scores, weights in ((kl, kl.pooled(BOTH)), (accuracy, accuracy.over(BOTH))):
        observed, replicated = [], []
        for (level, _), model in kept.items():
            draws = sorted(set(kl.draws(model)) & set(accuracy.draws(model)))
            columns = [scores.column(model, draw) for draw in draws]
            observed.append(np.mean([scores.value(c, weights) for c in columns]))
            values = np.stack([scores.resampled[c] @ weights for c in columns], axis=1)
            drawn = draw_weights([0] * len(draws), REPLICATES, SEED + 1 + level)
            replicated.append((values * drawn).mean(axis=1))
        both.append((np.asarray(observed), np.stack(replicated, axis=1)))
    (kl_values, kl_replicates), (accuracies, accuracy_replicates) = both
    overall = percentile_interval(
        float(rank_correlation(kl_values, accuracies)), rank_correlation(kl_replicates, accuracy_replicates), fewest
    )
    levels = np.asarray([level for level, _ in kept])
    groups = [np.flatnonzero(levels == lv) for lv in np.unique(levels)]
    groups = [g for g in groups if len(g) > 2]
    if not groups:
        return overall, MISSING
    value = float(np.mean([rank_correlation(kl_values[g], accuracies[g]) for g in groups]))
    replicates = np.mean([rank_correlation(kl_replicates[:, g], accuracy_replicates[:, g]) for g in groups], axis=0)
    return overall, percentile_interval(value, replicates, fewest)


def weights_finding(evidence: Evidence) -> Finding:
    """Finding 4: few weights hold the relative change; restoring them helps, restoring too many collapses."""
    title = "Putting the most changed weights back repairs the model"
    paper = (
        "The top 1% of weights hold about 71% of summed relative change, the top 20% about 92%. Restoring 20% helps every "
        "1,920-sample model (level 0: +9.85 points); at 60% accuracy collapses to about 1%."
    )
    scores = evidence.substring
    restored = {
        (s.level, s.size)
        for s in {c.setting for c in evidence.answers.columns if c.setting and c.criterion == "relative"}
        if not s.control
    }
    sizes = sorted({size for _, size in restored})
    concentration = _concentration_claims(evidence)
    if not sizes:
        nothing = Claim(
            "restoring_helps",
            "restoring the most changed weights helps",
            ALL_LEVELS,
            "points",
            MISSING,
            "Not measured.",
            core=True,
        )
        return Finding(
            4, title, paper, "Not measured: this run has no restored model.", (nothing,), tuple(concentration)
        )
    size = sizes[-1]
    levels = [lv for lv in evidence.levels if (lv, size) in restored and (lv, size) in evidence.main]
    models = {lv: evidence.main[lv, size] for lv in levels}

    def options(criterion: str, level: int) -> dict[float, Model]:
        found = {f: models[level].restored(criterion, f) for f in evidence.fractions(criterion)}
        return {f: model for f, model in found.items() if scores.draws(model)}

    def helped(scores: Scores, levels: list[int], domains: tuple[int, ...], criterion: str = "relative") -> Choice:
        return scores.chosen([options(criterion, lv) for lv in levels], [models[lv] for lv in levels], domains)

    best = helped(scores, levels, BOTH)
    top = max(evidence.fractions("relative"))
    pairs = [(models[lv], models[lv].restored("relative", top)) for lv in levels]

    def collapse(scores: Scores) -> Estimate:
        return scores.difference(pairs, scores.over(BOTH))

    as_tuned = scores.mean(list(models.values()), scores.over(BOTH)).value
    at_top = scores.mean([m for _, m in pairs], scores.over(BOTH)).value
    claims = [
        Claim(
            "restoring_helps",
            "restoring the most changed weights beats the model as tuned",
            f"{ALL_LEVELS}, {size:,} samples, both domains",
            "points",
            sentence=(
                f"Restoring the most changed weights of the {size:,}-sample models, the fraction chosen on other facts and "
                f"draws ({chosen_words(best, 'fraction')}), gives {more_or_less(best.estimate.value)} than as tuned "
                f"{interval_in_brackets(best.estimate)}."
            ),
            core=True,
            **three_ways(evidence, lambda s: helped(s, levels, BOTH).estimate),
        ),
        Claim(
            "restoring_too_many_collapses",
            f"restoring {100 * top:g}% falls below the model as tuned",
            f"{ALL_LEVELS}, {size:,} samples, both domains",
            "points",
            sentence=f"With {100 * top:g}% restored accuracy goes from {percent(as_tuned)} to {percent(at_top)}.",
            core=True,
            **three_ways(evidence, collapse),
        ),
    ]
    for d, domain in enumerate(DOMAINS):
        part = helped(scores, levels, (d,)).estimate
        words = {"in_domain": "In-domain", "out_of_domain": "Out-of-domain"}[domain]
        claims.append(
            Claim(
                f"restoring_helps_{domain}",
                "restoring the most changed weights beats the model as tuned",
                f"{ALL_LEVELS}, {size:,} samples, {words.lower()}",
                "points",
                part,
                f"{words}, the chosen fraction changes accuracy by {points(part)}.",
            )
        )
    each = []
    for lv in levels:
        choice = helped(scores, [lv], BOTH)
        each.append(
            Claim(
                f"restoring_helps_level_{lv}",
                "restoring the most changed weights beats the model as tuned",
                f"training level {lv}, {size:,} samples, both domains",
                "points",
                choice.estimate,
                f"Level {lv}: {chosen_words(choice, 'fraction')}; {points(choice.estimate)}.",
            )
        )
    claims.extend(adjusted(each))
    controls = list(concentration)
    drawn_random = [options("random", lv) for lv in levels]
    if all(drawn_random):
        random = helped(scores, levels, BOTH, "random")
        against: list[Mapping[float, Model]] = list(drawn_random)
        versus = scores.chosen([options("relative", lv) for lv in levels], against, BOTH)
        controls += [
            Claim(
                "random_restoring_helps",
                "restoring weights drawn at random beats the model as tuned",
                f"{ALL_LEVELS}, {size:,} samples, both domains",
                "points",
                random.estimate,
                f"Restoring as many weights drawn at random ({chosen_words(random, 'fraction')}): {points(random.estimate)}.",
            ),
            Claim(
                "relative_beats_random",
                "restoring the most changed weights beats restoring at random",
                f"{ALL_LEVELS}, {size:,} samples, both domains",
                "points",
                versus.estimate,
                f"Most changed minus random, each at its own chosen fraction: {points(versus.estimate)}.",
            ),
        ]
    slow = {lv: evidence.controlled[lv, size] for lv in levels if (lv, size) in evidence.controlled}
    if slow:
        margin = negated(scores.chosen([options("relative", lv) for lv in slow], list(slow.values()), BOTH).estimate)
        controls.append(
            Claim(
                "smaller_rate_beats_restoring",
                "tuning at the smaller learning rate beats restoring",
                f"{ALL_LEVELS}, {size:,} samples, both domains",
                "points",
                margin,
                f"The smaller learning rate, nothing restored, minus the best restored: {points(margin)}.",
            )
        )
    controls += _base_claims(evidence, [m for _, m in pairs], top)
    return Finding(4, title, paper, claims[0].sentence, tuple(claims), tuple(controls))


def _base_claims(evidence: Evidence, collapsed: list[Model], top: float) -> list[Claim]:
    """Is the collapse the loss of the answer's form? Beside the base model's own accuracy with this prompt."""
    column = evidence.base_column()
    if column is None:
        return []
    scores = evidence.substring
    weights = scores.over(BOTH)
    units = [
        Unit(index, ((scores.column(model, draw), weights / len(collapsed)), (column, -weights / len(collapsed))))
        for index, model in enumerate(collapsed)
        for draw in scores.draws(model)
    ]
    above = scores.estimate(units)
    few = evidence.base_column(few_shot=True)
    known = scores.over(BOTH, level=4)
    shown = f", {percent(scores.value(few, known))} after solved examples" if few is not None else ""
    empty = float(evidence.answers.empty[:, column].mean())
    return [
        Claim(
            "collapse_stays_above_base",
            f"restored to {100 * top:g}%, the models still beat the base model on this prompt",
            f"{ALL_LEVELS}, both domains",
            "points",
            above,
            f"Before any tuning the base model answers {percent(scores.value(column, weights))} with the fine-tuning prompt "
            f"({percent(scores.value(column, known))} of the facts it knows best{shown}; {percent(empty)} of answers empty); "
            f"with {100 * top:g}% restored the models are {points(above)} from it.",
        )
    ]


def _concentration_claims(evidence: Evidence) -> list[Claim]:
    """Does the top of the weights hold more of the relative change than when sizes are paired at random?"""
    claims = []
    main = [c for c in evidence.changes if not c.cell.setting.control]
    for fraction in (0.01, 0.2):
        name = fraction_name(fraction)
        held: list[tuple[int, float, float]] = []
        settings = sorted({c.cell.setting for c in main})
        for change in main:
            share = change.concentration.get("relative", {}).get(name)
            chance = change.null.get("relative", {}).get(name)
            if share is not None and chance is not None:
                held.append((settings.index(change.cell.setting), float(share), float(chance)))
        if not held:
            continue
        present = len({stratum for stratum, _, _ in held})
        values = np.asarray([(share - chance) / present for _, share, chance in held])
        estimate = crossed_interval(values, np.zeros((2, len(held))), [stratum for stratum, _, _ in held])
        paper = published_concentration(1920).get(name)
        beside = f"; LLaMA-3-8B {percent(paper)}" if paper is not None else ""
        absolute = [v for c in main if (v := c.concentration.get("absolute", {}).get(name)) is not None]
        plain = f"; by absolute change {percent(_mean([float(v) for v in absolute]))}" if absolute else ""
        claims.append(
            Claim(
                f"concentration_{name}",
                "the relative change is more concentrated than its no-signal null",
                f"top {100 * fraction:g}% of weights",
                "points",
                estimate,
                f"The top {100 * fraction:g}% of weights hold {percent(_mean([s for _, s, _ in held]))} of summed relative "
                f"change, its no-signal null {percent(_mean([n for _, _, n in held]))}{beside}{plain}: "
                f"{points(estimate)} above the null.",
                POINT,
            )
        )
    return claims


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _nats(estimate: Estimate) -> str:
    if not estimate.known:
        return "an unknown amount"
    return f"{signed(estimate.value, 1, 2)} nats (95% interval {interval_words(estimate, 1, 2)})"


def _plain(estimate: Estimate) -> str:
    if not estimate.known:
        return "not measured"
    return f"{signed(estimate.value, 1, 2)} (95% interval {interval_words(estimate, 1, 2)})"
