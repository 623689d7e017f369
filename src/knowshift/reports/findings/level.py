"""Finding 2: at the largest size the mastery level of the training facts decides much; level 0 is worst."""

from __future__ import annotations

from knowshift.facts.fact import DOMAINS
from knowshift.html.words import DOMAIN_WORDS, listed, percent
from knowshift.reports.evidence.choices import against_levels, spread
from knowshift.reports.evidence.evidence import Evidence
from knowshift.reports.findings.claims import BOTH, Claim, Finding, Reported, from_highest, points, three_ways
from knowshift.statistics.estimates import MISSING

LEVEL_FINDING = Reported(
    2,
    "Which facts the model is tuned on matters",
    "At 1,920 samples LLaMA-3-8B has 12.06 points between level-0 and level-2 data; level 2 gives the best balance.",
)
MATTERS = "the best training level beats the worst"


def level_finding(evidence: Evidence) -> Finding:
    """Compare training levels at the largest size."""
    scores = evidence.substring
    largest = max(evidence.sizes, default=0)
    options = {level: evidence.main[level, largest] for level in evidence.levels if (level, largest) in evidence.main}
    if len(options) < 2:
        missing = Claim("level_matters", MATTERS, "", "points", MISSING, "Not measured: one training level.", core=True)
        return Finding(*LEVEL_FINDING, missing.sentence, (missing,))
    choice, worst = spread(scores, options, BOTH)
    means = {level: scores.mean([model], scores.over(BOTH)).value for level, model in options.items()}
    order = listed([f"level {level} {percent(means[level])}" for level in from_highest(means)])
    scope = f"{largest:,} samples, both domains"
    main = Claim(
        "level_matters",
        MATTERS,
        scope,
        "points",
        sentence=(
            f"With {largest:,} samples: {order}. Best minus worst, both chosen on other facts and draws: "
            f"{points(choice.estimate)}."
        ),
        core=True,
        **three_ways(evidence, lambda s: spread(s, options, BOTH)[0].estimate),
    )
    claims = [main]
    if 0 in options:
        others = {level: model for level, model in options.items() if level != 0}
        lowest = against_levels(scores, others, options[0], BOTH, highest=False).estimate
        sentence = (
            f"The lowest of the other levels minus level 0: {points(lowest)}; level 0 was the worst in "
            f"{worst.get(0.0, 0)} of {sum(worst.values())} choices."
        )
        claims.append(
            Claim(
                "level_0_worst",
                "every other training level beats level 0",
                scope,
                "points",
                sentence=sentence,
                core=True,
                **three_ways(evidence, lambda s: against_levels(s, others, options[0], BOTH, highest=False).estimate),
            )
        )
    if 2 in options:
        rest = {level: model for level, model in options.items() if level != 2}
        best_other = against_levels(scores, rest, options[2], BOTH, highest=True)
        ahead = best_other.estimate.negated()
        usual = "" if best_other.usual is None else f" (most often level {best_other.usual:.0f})"
        sentence = f"Level 2 minus the best other level{usual}: {points(ahead)}."
        claims.append(Claim("level_2_best", "level 2 beats the best of the others", scope, "points", ahead, sentence))
    for d, domain in enumerate(DOMAINS):
        part = spread(scores, options, [d])[0].estimate
        sentence = f"{DOMAIN_WORDS[domain].capitalize()}, best minus worst training level: {points(part)}."
        where = f"{largest:,} samples, {DOMAIN_WORDS[domain]}"
        claims.append(Claim(f"level_matters_{domain}", MATTERS, where, "points", part, sentence))
    return Finding(*LEVEL_FINDING, main.sentence, tuple(claims), _rate_control(evidence, largest))


def _rate_control(evidence: Evidence, largest: int) -> tuple[Claim, ...]:
    slow = {level: model for (level, size), model in evidence.controlled.items() if size == largest}
    if len(slow) < 2:
        return ()
    gap = spread(evidence.substring, slow, BOTH)[0].estimate
    rate = next(iter(slow.values())).setting.learning_rate
    return (
        Claim(
            "level_matters_at_smaller_rate",
            "the best training level beats the worst at the smaller learning rate too",
            f"{largest:,} samples, both domains",
            "points",
            gap,
            f"At the smaller learning rate, {rate:.3g}, best minus worst training level: {points(gap)}.",
        ),
    )
