"""Findings 1 and 2, on accuracy: more data hurts after a point; the level of the training data matters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from knowshift.report.claims import (
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
from knowshift.report.layout import DOMAIN_WORDS, listed, percent
from knowshift.report.run_folder import DOMAINS
from knowshift.report.scores import Choice, Model, Scores
from knowshift.study.statistics import MISSING

BOTH = (0, 1)
ALL_LEVELS = "mean of training levels"


def by_size(evidence: Evidence, level: int, sizes: Sequence[int]) -> dict[float, Model]:
    """The main grid's models of one training level, by size, where they are finished."""
    return {float(s): evidence.main[level, s] for s in sizes if (level, s) in evidence.main}


def chosen_words(choice: Choice, unit: str = "samples") -> str:
    """Which candidate was chosen how often: "240 samples in 40 of 50 choices"."""
    total = sum(choice.chosen.values())
    if choice.usual is None:
        return "none"
    name = f"{choice.usual:,.0f} {unit}" if unit == "samples" else f"{100 * choice.usual:g}%"
    return f"{name} in {choice.chosen[choice.usual]} of {total} choices"


def sizes_finding(evidence: Evidence) -> Finding:
    """Finding 1: accuracy peaks at an inner size and is lower at the largest."""
    sizes, levels, scores = evidence.sizes, evidence.levels, evidence.substring
    largest = sizes[-1] if sizes else 0
    claims: list[Claim] = []
    controls: list[Claim] = []

    def best_smaller(scores: Scores, levels: Sequence[int], domains: Sequence[int]) -> Choice:
        complete = [level for level in levels if (level, largest) in evidence.main]
        options: list[Mapping[float, Model]] = [by_size(evidence, level, sizes[:-1]) for level in complete]
        return scores.chosen(options, [evidence.main[level, largest] for level in complete], domains)

    def rise(scores: Scores) -> Choice:
        complete = [level for level in levels if (level, sizes[0]) in evidence.main]
        options: list[Mapping[float, Model]] = [by_size(evidence, level, sizes[1:-1]) for level in complete]
        return scores.chosen(options, [evidence.main[level, sizes[0]] for level in complete], BOTH)

    pooled = best_smaller(scores, levels, BOTH)
    at_largest = scores.mean(
        [evidence.main[lv, largest] for lv in levels if (lv, largest) in evidence.main], _both(scores)
    )
    main = Claim(
        "more_data_hurts",
        "the best smaller size beats the largest",
        f"{ALL_LEVELS}, both domains",
        "points",
        sentence=(
            f"Tuned on {largest:,} samples the models answer {percent(at_largest.value)} of the test facts; on the best "
            f"smaller size, chosen on other facts and draws ({chosen_words(pooled)}), "
            f"{more_or_less(pooled.estimate.value)} {interval_in_brackets(pooled.estimate)}."
            if pooled.estimate.known
            else "Not measured: no training level has both the largest and a smaller size finished."
        ),
        core=True,
        **three_ways(evidence, lambda s: best_smaller(s, levels, BOTH).estimate),
    )
    claims.append(main)
    if len(sizes) > 2:
        up = rise(scores)
        claims.append(
            Claim(
                "rises_first",
                "an inner size beats the smallest",
                f"{ALL_LEVELS}, both domains",
                "points",
                sentence=(
                    f"From {sizes[0]:,} samples to the best inner size ({chosen_words(up)}) accuracy changes by "
                    f"{points(up.estimate)}."
                ),
                core=True,
                **three_ways(evidence, lambda s: rise(s).estimate),
            )
        )
    for d, domain in enumerate(DOMAINS):
        choice = best_smaller(scores, levels, [d])
        claims.append(
            Claim(
                f"more_data_hurts_{domain}",
                "the best smaller size beats the largest",
                f"{ALL_LEVELS}, {DOMAIN_WORDS[domain]}",
                "points",
                choice.estimate,
                f"{DOMAIN_WORDS[domain].capitalize()}, the best smaller size is {points(choice.estimate)} from the largest.",
            )
        )
    each = []
    for level in levels:
        choice = best_smaller(scores, [level], BOTH)
        each.append(
            Claim(
                f"more_data_hurts_level_{level}",
                "the best smaller size beats the largest",
                f"training level {level}, both domains",
                "points",
                choice.estimate,
                f"Level {level}: best smaller size {chosen_words(choice)}; against {largest:,} samples {points(choice.estimate)}.",
            )
        )
    claims.extend(adjusted(each))
    controls.extend(_rate_controls(evidence, best_smaller, largest))
    return Finding(
        1,
        "More fine-tuning data helps up to a point, then hurts",
        "LLaMA-3-8B is best near 240 samples; on level-0 data 1,920 samples are 8.86 points below 240.",
        main.sentence,
        tuple(claims),
        tuple(controls),
    )


def _both(scores: Scores):  # type: ignore[no-untyped-def]
    return scores.over(BOTH)


def _rate_controls(evidence: Evidence, best_smaller, largest: int) -> list[Claim]:  # type: ignore[no-untyped-def]
    scores = evidence.substring
    levels = [lv for lv in evidence.levels if (lv, largest) in evidence.controlled and (lv, largest) in evidence.main]
    if not levels:
        return []
    slow = [evidence.controlled[lv, largest] for lv in levels]
    fast = [evidence.main[lv, largest] for lv in levels]
    gain = scores.difference(list(zip(slow, fast, strict=True)), scores.over(BOTH))
    drop = best_smaller(scores, levels, BOTH).estimate
    rate = slow[0].setting.learning_rate / fast[0].setting.learning_rate if fast[0].setting.learning_rate else math.nan
    share = ""
    if drop.known and drop.low > 0:
        share = f", {100 * gain.value / drop.value:.0f}% of what the best smaller size gains"
    left = scores.chosen([by_size(evidence, lv, evidence.sizes[:-1]) for lv in levels], slow, BOTH).estimate
    return [
        Claim(
            "smaller_rate_helps",
            "a smaller learning rate beats the grid's at the largest size",
            f"{ALL_LEVELS}, both domains",
            "points",
            gain,
            f"The same {largest:,} samples at {rate:.2g} of the learning rate: {points(gain)}{share}.",
        ),
        Claim(
            "hurts_at_smaller_rate",
            "the best smaller size still beats the largest tuned at the smaller rate",
            f"{ALL_LEVELS}, both domains",
            "points",
            left,
            f"Against the largest size at the smaller learning rate, the best smaller size has {points(left)}.",
        ),
    ]


def levels_finding(evidence: Evidence) -> Finding:
    """Finding 2: at the largest size the mastery level of the training data decides much; level 0 is worst."""
    scores, sizes = evidence.substring, evidence.sizes
    largest = sizes[-1] if sizes else 0
    options = {level: evidence.main[level, largest] for level in evidence.levels if (level, largest) in evidence.main}
    choice, worst = scores.spread(options, BOTH)
    means = {level: scores.mean([model], scores.over(BOTH)).value for level, model in options.items()}
    ranked = sorted(means, key=lambda level: (-means[level], level))
    order = listed([f"level {level} {percent(means[level])}" for level in ranked])
    folds = sum(worst.values())
    claims = [
        Claim(
            "level_matters",
            "the best training level beats the worst",
            f"{largest:,} samples, both domains",
            "points",
            sentence=(
                f"With {largest:,} samples: {order}. Best minus worst level, both chosen on other facts and draws: "
                f"{points(choice.estimate)}."
            ),
            core=True,
            **three_ways(evidence, lambda s: s.spread(options, BOTH)[0].estimate),
        )
    ]
    if 0 in options and len(options) > 1:
        others: dict[float, Model] = {float(lv): model for lv, model in options.items() if lv != 0}

        def next_worst(scores: Scores) -> Choice:
            return scores.chosen([others], [options[0]], BOTH, highest=False)

        lowest = next_worst(scores)
        claims.append(
            Claim(
                "level_0_worst",
                "every other training level beats level 0",
                f"{largest:,} samples, both domains",
                "points",
                sentence=(
                    f"The lowest of the other levels is {points(lowest.estimate)} from level 0, which was the worst in "
                    f"{worst.get(0.0, 0)} of {folds} choices."
                ),
                core=True,
                **three_ways(evidence, lambda s: next_worst(s).estimate),
            )
        )
    if 2 in options and len(options) > 1:
        rest: dict[float, Model] = {float(lv): model for lv, model in options.items() if lv != 2}
        best_other = scores.chosen([rest], [options[2]], BOTH)
        ahead = negated(best_other.estimate)
        claims.append(
            Claim(
                "level_2_best",
                "level 2 beats the best of the other levels",
                f"{largest:,} samples, both domains",
                "points",
                ahead,
                f"Level 2 is {points(ahead)} from the best other level ({_usual_level(best_other)}).",
            )
        )
    for d, domain in enumerate(DOMAINS):
        part, _ = scores.spread(options, [d])
        claims.append(
            Claim(
                f"level_matters_{domain}",
                "the best training level beats the worst",
                f"{largest:,} samples, {DOMAIN_WORDS[domain]}",
                "points",
                part.estimate,
                f"{DOMAIN_WORDS[domain].capitalize()}, best minus worst training level: {points(part.estimate)}.",
            )
        )
    slow = {level: model for (level, size), model in evidence.controlled.items() if size == largest}
    controls = []
    if len(slow) > 1:
        gap = scores.spread(slow, BOTH)[0].estimate
        controls.append(
            Claim(
                "level_matters_at_smaller_rate",
                "the best training level beats the worst at the smaller learning rate too",
                f"{largest:,} samples, both domains",
                "points",
                gap,
                f"At the smaller learning rate, best minus worst training level: {points(gap)}.",
            )
        )
    return Finding(
        2,
        "Which facts the model is tuned on matters",
        "At 1,920 samples, LLaMA-3-8B has 12.06 points between level-0 and level-2 data; level 2 gives the best balance.",
        claims[0].sentence if choice.estimate is not MISSING else "Not measured: fewer than two training levels.",
        tuple(claims),
        tuple(controls),
    )


def _usual_level(choice: Choice) -> str:
    return "none" if choice.usual is None else f"most often level {choice.usual:.0f}"
