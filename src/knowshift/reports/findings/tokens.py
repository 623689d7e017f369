"""Finding 3: KL to the base falls, then rises with data size, most for levels 0 and 1, and against accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from knowshift.reports.evidence.choices import Choice, chosen
from knowshift.reports.evidence.evidence import Evidence, TokenShifts
from knowshift.reports.evidence.scores import SEED, Contribution, Model, Scores
from knowshift.reports.findings.claims import BOTH, Claim, Finding, Reported, adjusted, mean_of, nats, plain
from knowshift.reports.findings.size import chosen_size, sizes_of
from knowshift.statistics.correlation import rank_correlation
from knowshift.statistics.estimates import MISSING, Estimate, percentile_interval
from knowshift.statistics.resampling import draw_weights

TOKEN_FINDING = Reported(
    3,
    "Token probabilities drift from the base model as data grows",
    "KL falls, then rises with data size, most for levels 0 and 1, and moves against accuracy.",
)
RISES = "KL rises from its lowest size to the largest"
SCOPE = "mean of training levels, level-4 test facts"

#: The smallest change of mean KL that counts, as a share of the run's mean KL; and the smallest correlation.
KL_SHARE = 0.05
CORRELATION = 0.1

#: Decimals in which means are ranked: equal ones, whose last digits differ from machine to machine, rank alike.
RANKED = 5

Models = Mapping[tuple[int, int], Model]


def token_finding(evidence: Evidence) -> Finding:
    """Follow KL over sizes, and set it against accuracy."""
    shifts, sizes, levels = evidence.token_shifts, evidence.sizes, evidence.levels
    if shifts is None or len(sizes) < 2:
        why = "Not measured: no scored token shifts." if shifts is None else "Not measured: one size."
        missing = Claim("kl_rises", RISES, "", "nats", MISSING, why, core=True)
        return Finding(*TOKEN_FINDING, missing.sentence, (missing,))
    scores, largest = shifts.scores, sizes[-1]
    grid = {key: model for key, model in evidence.main.items() if scores.draws(model)}
    by_cell = {key: scores.mean([model], scores.pooled(BOTH)).value for key, model in grid.items()}
    margin = KL_SHARE * mean_of(list(by_cell.values()))
    of_size = {size: {level: model for (level, its), model in grid.items() if its == size} for size in sizes}
    up = _lowest(evidence, scores, levels, sizes[:-1], of_size[largest])
    rise = up.estimate.negated()
    steps = ", ".join(f"{mean_of([v for (_, s), v in by_cell.items() if s == size]):.2f} at {size:,}" for size in sizes)
    main = Claim(
        "kl_rises",
        RISES,
        SCOPE,
        "nats",
        rise,
        f"Mean KL to the base over {shifts.facts:,} well-known facts: {steps} samples. From its lowest smaller size "
        f"({chosen_size(up)}) to {largest:,}: {nats(rise)}.",
        margin,
        core=True,
    )
    claims = [main]
    if len(sizes) > 2:
        down = _lowest(evidence, scores, levels, sizes[1:-1], of_size[sizes[0]])
        fall = down.estimate.negated()
        sentence = (
            f"From {sizes[0]:,} samples down to the lowest inner size ({chosen_size(down)}): a fall of {nats(fall)}."
        )
        claims.append(
            Claim(
                "kl_falls_first",
                "KL falls from the smallest size to an inner one",
                SCOPE,
                "nats",
                fall,
                sentence,
                margin,
                core=True,
            )
        )
    overall, within = against_accuracy(evidence, scores, grid)
    claims.append(
        Claim(
            "kl_against_accuracy",
            "KL moves against accuracy over training levels and sizes",
            f"{len(grid)} settings",
            "correlation",
            overall.negated(),
            f"Over the {len(grid)} settings the rank correlation of KL with accuracy is {plain(overall)}.",
            CORRELATION,
            core=True,
        )
    )
    if within.known:
        sentence = f"Over sizes within a training level, the mean rank correlation is {plain(within)}."
        what = "KL moves against accuracy over sizes, within a training level"
        claims.append(
            Claim(
                "kl_against_accuracy_within",
                what,
                "mean of training levels",
                "correlation",
                within.negated(),
                sentence,
                CORRELATION,
            )
        )
    claims.extend(_most_for_low_levels(scores, grid, levels, largest, margin))
    each = []
    for level in levels:
        choice = _lowest(evidence, scores, [level], sizes[:-1], of_size[largest])
        change = choice.estimate.negated()
        sentence = f"Level {level}: lowest at {chosen_size(choice)}; from there to {largest:,}: {nats(change)}."
        each.append(
            Claim(f"kl_rises_level_{level}", RISES, f"training level {level}", "nats", change, sentence, margin)
        )
    claims.extend(adjusted(each))
    controls = _rate_controls(evidence, scores, of_size[largest], margin)
    return Finding(*TOKEN_FINDING, main.sentence, tuple(claims), controls, notes=_notes(shifts))


def _lowest(
    evidence: Evidence, scores: Scores, levels: Sequence[int], sizes: Sequence[int], against: Mapping[int, Model]
) -> Choice:
    """The lowest KL of ``sizes`` minus that of the level's model in ``against``, chosen on other facts and draws."""
    kept = [level for level in levels if level in against]
    options = [
        {size: model for size, model in sizes_of(evidence, level, sizes).items() if scores.draws(model)}
        for level in kept
    ]
    return chosen(scores, options, [against[level] for level in kept], BOTH, highest=False, pooled=True)


def _rate_controls(evidence: Evidence, scores: Scores, fast: Mapping[int, Model], margin: float) -> tuple[Claim, ...]:
    """Whether the data or the step size moves KL: the largest size again at a smaller learning rate."""
    largest = evidence.sizes[-1]
    slow = {
        level: model
        for (level, size), model in evidence.controlled.items()
        if size == largest and level in fast and scores.draws(model)
    }
    if not slow:
        return ()
    levels = list(slow)
    fall = scores.difference([(fast[level], slow[level]) for level in levels], scores.pooled(BOTH))
    rise = _lowest(evidence, scores, levels, evidence.sizes[:-1], slow).estimate.negated()
    low, high = (models[levels[0]].setting.learning_rate for models in (slow, fast))
    return (
        Claim(
            "smaller_rate_lowers_kl",
            "KL at the largest size is lower at a smaller learning rate",
            SCOPE,
            "nats",
            fall,
            f"The same {largest:,} samples at learning rate {low:.3g} instead of {high:.3g}: a fall of {nats(fall)}.",
            margin,
        ),
        Claim(
            "kl_rises_at_smaller_rate",
            "KL still rises where the largest size is tuned at the smaller rate",
            SCOPE,
            "nats",
            rise,
            f"From the lowest smaller size to the largest at that smaller learning rate: {nats(rise)}.",
            margin,
        ),
    )


def _most_for_low_levels(
    scores: Scores, grid: Models, levels: Sequence[int], largest: int, margin: float
) -> list[Claim]:
    low = [level for level in levels if level < 2 and (level, largest) in grid]
    high = [level for level in levels if level >= 2 and (level, largest) in grid]
    if not low or not high:
        return []
    units = [
        Contribution(level, ((scores.column(grid[level, largest], draw), scores.pooled(BOTH) * share),))
        for group, share in ((low, 1 / len(low)), (high, -1 / len(high)))
        for level in group
        for draw in scores.draws(grid[level, largest])
    ]
    gap = scores.estimate(units)
    sentence = f"With {largest:,} samples, KL after levels 0 and 1 minus KL after levels 2 to 4: {nats(gap)}."
    what, scope = "KL at the largest size is higher for levels 0 and 1", "levels 0 and 1 minus levels 2 to 4"
    return [Claim("kl_most_for_low_levels", what, scope, "nats", gap, sentence, margin)]


def against_accuracy(evidence: Evidence, kl: Scores, grid: Models) -> tuple[Estimate, Estimate]:
    """Rank correlation of KL with accuracy over settings, and its mean within training levels; bootstrap intervals.

    Draws are resampled once for both measures. Facts are resampled separately for each: KL has level-4 facts only.
    """
    accuracy = evidence.substring
    draws = {key: sorted({*kl.draws(model)} & {*accuracy.draws(model)}) for key, model in grid.items()}
    kept = [key for key in grid if draws[key]]
    if len(kept) < 3:
        return MISSING, MISSING
    measures = []
    for scores, weights in ((kl, kl.pooled(BOTH)), (accuracy, accuracy.over(BOTH))):
        observed, replicated = [], []
        for key in kept:
            columns = [scores.column(grid[key], draw) for draw in draws[key]]
            observed.append(mean_of([scores.value(column, weights) for column in columns]))
            values = np.stack([scores.resampled[column] @ weights for column in columns], axis=1)
            drawn = draw_weights([0] * len(columns), scores.replicates, SEED + 1 + key[0])
            replicated.append((values * drawn).mean(axis=1))
        measures.append((np.round(observed, RANKED), np.round(np.stack(replicated, axis=1), RANKED)))
    (kl_values, kl_replicates), (accuracies, accuracy_replicates) = measures
    fewest = min(len(draws[key]) for key in kept)
    overall = percentile_interval(
        float(rank_correlation(kl_values, accuracies)), rank_correlation(kl_replicates, accuracy_replicates), fewest
    )
    level_of = np.asarray([level for level, _ in kept])
    groups = [g for level in np.unique(level_of) if len(g := np.flatnonzero(level_of == level)) > 2]
    if not groups:
        return overall, MISSING
    value = float(np.mean([rank_correlation(kl_values[g], accuracies[g]) for g in groups]))
    replicates = np.mean([rank_correlation(kl_replicates[:, g], accuracy_replicates[:, g]) for g in groups], axis=0)
    return overall, percentile_interval(value, replicates, fewest)


def _notes(shifts: TokenShifts) -> tuple[str, ...]:
    counts = [sum(reasons.values()) for reasons in shifts.unscored]
    if not counts or max(counts) == 0:
        return ()
    reasons = sorted({reason for found in shifts.unscored for reason in found})
    most = max(counts)
    return (f"Up to {most:,} facts of a model could not be scored and are left out everywhere ({'; '.join(reasons)}).",)
