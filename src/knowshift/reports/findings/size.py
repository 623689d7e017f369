"""Finding 1: accuracy peaks at an inner number of training samples and is lower at the largest."""

from __future__ import annotations

from collections.abc import Sequence

from knowshift.facts.fact import DOMAINS
from knowshift.html.words import DOMAIN_WORDS, percent
from knowshift.reports.evidence.choices import Choice, chosen
from knowshift.reports.evidence.evidence import Evidence
from knowshift.reports.evidence.scores import Model, Scores
from knowshift.reports.findings.claims import (
    BOTH,
    Claim,
    Finding,
    Reported,
    adjusted,
    brackets,
    caution,
    more_or_less,
    points,
    three_ways,
)
from knowshift.statistics.estimates import MISSING

SIZE_FINDING = Reported(
    1,
    "More fine-tuning data helps up to a point, then hurts",
    "LLaMA-3-8B is best near 240 samples; on level-0 data, 1,920 samples are 8.86 points below 240.",
)
HURTS = "the best smaller size beats the largest"
SCOPE = "mean of training levels, both domains"


def chosen_size(choice: Choice) -> str:
    """Which size was chosen how often: "240 samples in 40 of 50 choices"."""
    if choice.usual is None:
        return "none"
    return f"{choice.usual:,.0f} samples in {choice.chosen[choice.usual]} of {sum(choice.chosen.values())} choices"


def sizes_of(evidence: Evidence, level: int, sizes: Sequence[int]) -> dict[float, Model]:
    """The main grid's finished models of one training level, by size."""
    return {float(size): evidence.main[level, size] for size in sizes if (level, size) in evidence.main}


def best_inner(
    evidence: Evidence,
    scores: Scores,
    levels: Sequence[int],
    sizes: Sequence[int],
    against: int,
    domains: Sequence[int] = BOTH,
) -> Choice:
    """The best of ``sizes`` minus the size ``against``, chosen for each training level on other facts and draws."""
    every = [
        (sizes_of(evidence, level, sizes), evidence.main[level, against])
        for level in evidence.levels
        if (level, against) in evidence.main
    ]
    asked = [pair for pair in every if pair[1].setting.level in levels]
    alike = every if len(asked) == 1 else []
    return chosen(scores, [o for o, _ in asked], [r for _, r in asked], domains, alike=alike)


def size_finding(evidence: Evidence) -> Finding:
    """Compare the largest size with the best smaller one, and the smallest with the best inner one."""
    sizes, levels, scores = evidence.sizes, evidence.levels, evidence.substring
    if len(sizes) < 2:
        missing = Claim("more_data_hurts", HURTS, SCOPE, "points", MISSING, "Not measured: one size.", core=True)
        return Finding(*SIZE_FINDING, missing.sentence, (missing,))
    largest, smaller, inner = sizes[-1], sizes[:-1], sizes[1:-1]
    best = best_inner(evidence, scores, levels, smaller, largest)
    at_largest = scores.mean([evidence.main[k] for k in evidence.main if k[1] == largest], scores.over(BOTH)).value
    main = Claim(
        "more_data_hurts",
        HURTS,
        SCOPE,
        "points",
        sentence=(
            f"Tuned on {largest:,} samples the models answer {percent(at_largest)} of the test facts; on the best "
            "smaller "
            f"size, chosen on other facts and draws ({chosen_size(best)}), {more_or_less(best.estimate.value)} "
            f"{brackets(best.estimate)}."
        ),
        core=True,
        **three_ways(evidence, lambda s: best_inner(evidence, s, levels, smaller, largest).estimate),
    )
    claims = [main]
    if inner:
        up = best_inner(evidence, scores, levels, inner, sizes[0])
        claims.append(
            Claim(
                "rises_first",
                "an inner size beats the smallest",
                SCOPE,
                "points",
                sentence=f"The best inner size ({chosen_size(up)}) minus {sizes[0]:,} samples: {points(up.estimate)}.",
                core=True,
                **three_ways(evidence, lambda s: best_inner(evidence, s, levels, inner, sizes[0]).estimate),
            )
        )
    for d, domain in enumerate(DOMAINS):
        part = best_inner(evidence, scores, levels, smaller, largest, [d]).estimate
        where = DOMAIN_WORDS[domain]
        sentence = f"{where.capitalize()}, the best smaller size minus the largest: {points(part)}."
        scope = f"mean of training levels, {where}"
        claims.append(Claim(f"more_data_hurts_{domain}", HURTS, scope, "points", part, sentence))
    each = []
    for level in levels:
        choice = best_inner(evidence, scores, [level], smaller, largest)
        sentence = f"Level {level}: {chosen_size(choice)}; minus {largest:,} samples: {points(choice.estimate)}."
        scope = f"training level {level}, both domains"
        each.append(Claim(f"more_data_hurts_level_{level}", HURTS, scope, "points", choice.estimate, sentence))
    claims.extend(adjusted(each))
    less = more_or_less(-best.estimate.value)
    short = (
        f"Tuned on {largest:,} facts, the models answer {percent(at_largest)} of the test, {less} than on the best "
        f"smaller set{caution(best.estimate)}"
    )
    controls = _rate_controls(evidence, best)
    return Finding(*SIZE_FINDING, main.sentence, tuple(claims), controls, short=short if best.estimate.known else "")


def _rate_controls(evidence: Evidence, best: Choice) -> tuple[Claim, ...]:
    """Whether the data or the step size lowers accuracy: the largest size again at a smaller learning rate."""
    scores, largest = evidence.substring, evidence.sizes[-1]
    levels = [lv for lv in evidence.levels if (lv, largest) in evidence.controlled and (lv, largest) in evidence.main]
    if not levels:
        return ()
    slow = [evidence.controlled[lv, largest] for lv in levels]
    fast = [evidence.main[lv, largest] for lv in levels]
    gain = scores.difference(list(zip(slow, fast, strict=True)), scores.over(BOTH))
    left = chosen(scores, [sizes_of(evidence, lv, evidence.sizes[:-1]) for lv in levels], slow, BOTH).estimate
    share = ""
    if best.estimate.known and best.estimate.low > 0:
        share = f", {100 * gain.value / best.estimate.value:.0f}% of what the best smaller size gains"
    rates = f"{slow[0].setting.learning_rate:.3g} instead of {fast[0].setting.learning_rate:.3g}"
    return (
        Claim(
            "smaller_rate_helps",
            "a smaller learning rate beats the grid's at the largest size",
            SCOPE,
            "points",
            gain,
            f"The same {largest:,} samples at learning rate {rates}: {points(gain)}{share}.",
        ),
        Claim(
            "hurts_at_smaller_rate",
            "the best smaller size still beats the largest tuned at the smaller rate",
            SCOPE,
            "points",
            left,
            f"The best smaller size minus the largest at that smaller learning rate: {points(left)}.",
        ),
    )
