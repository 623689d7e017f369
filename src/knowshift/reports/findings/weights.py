"""Finding 4: few weights hold the relative change; putting them back helps, putting too many back collapses."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from knowshift.facts.fact import DOMAINS, LEVELS
from knowshift.html.words import DOMAIN_WORDS, exact_percent, percent
from knowshift.parameters.selection.select import fraction_name
from knowshift.reports.evidence.choices import Choice, chosen
from knowshift.reports.evidence.evidence import Evidence
from knowshift.reports.evidence.run_folder import Setting
from knowshift.reports.evidence.scores import Contribution, Model, Scores
from knowshift.reports.findings.claims import (
    BOTH,
    Claim,
    Finding,
    Reported,
    adjusted,
    brackets,
    caution,
    mean_of,
    more_or_less,
    points,
    three_ways,
)
from knowshift.reports.published import published_concentration
from knowshift.statistics.crossed import over_draws
from knowshift.statistics.estimates import MISSING, Estimate

WEIGHT_FINDING = Reported(
    4,
    "Putting the most changed weights back repairs the model",
    "The top 1% of weights hold about 71% of summed relative change, the top 20% about 92%. Restoring 20% helps every "
    "1,920-sample model (level 0: +9.85 points); at 60% accuracy collapses to about 1%.",
)
HELPS = "restoring the most changed weights beats the model as tuned"


def chosen_fraction(choice: Choice) -> str:
    """Which fraction was chosen how often: "20% in 14 of 20 choices"."""
    if choice.usual is None:
        return "none"
    return f"{exact_percent(choice.usual)} in {choice.chosen[choice.usual]} of {sum(choice.chosen.values())} choices"


@dataclass(frozen=True)
class Restored:
    """The restored models of the largest size they exist for, by training level."""

    evidence: Evidence
    size: int
    tuned: Mapping[int, Model]

    def options(self, criterion: str, level: int) -> dict[float, Model]:
        found = {f: self.tuned[level].restored(criterion, f) for f in self.evidence.fractions(criterion)}
        return {f: model for f, model in found.items() if self.evidence.substring.draws(model)}

    def helped(
        self, scores: Scores, levels: Sequence[int], domains: Sequence[int] = BOTH, criterion: str = "relative"
    ) -> Choice:
        """The best fraction, chosen on other facts and draws, minus the model as tuned."""
        options = [self.options(criterion, level) for level in levels]
        every = [(self.options(criterion, level), model) for level, model in self.tuned.items()]
        alike = every if len(levels) == 1 else []
        return chosen(scores, options, [self.tuned[level] for level in levels], domains, alike=alike)


def weight_finding(evidence: Evidence) -> Finding:
    """Restoration at an honestly chosen fraction and at the largest one; the controls beside both."""
    settings = {c.setting for c in evidence.answers.columns if c.setting and c.criterion == "relative"}
    places = {(s.level, s.size) for s in settings if not s.control and (s.level, s.size) in evidence.main}
    concentrated = concentration_claims(evidence)
    if not places:
        missing = Claim("restoring_helps", HELPS, "", "points", MISSING, "Not measured: nothing restored.", core=True)
        return Finding(*WEIGHT_FINDING, missing.sentence, (missing,), concentrated)
    size = max(s for _, s in places)
    restored = Restored(evidence, size, {lv: evidence.main[lv, s] for lv, s in sorted(places) if s == size})
    scores, levels = evidence.substring, list(restored.tuned)
    scope = f"mean of training levels, {size:,} samples, both domains"
    best = restored.helped(scores, levels)
    top = max(evidence.fractions("relative"))
    pairs = [(model, model.restored("relative", top)) for model in restored.tuned.values()]
    as_tuned, at_top = (scores.mean([p[i] for p in pairs], scores.over(BOTH)).value for i in (0, 1))
    fall = scores.difference(pairs, scores.over(BOTH))
    claims = [
        Claim(
            "restoring_helps",
            HELPS,
            scope,
            "points",
            sentence=(
                f"Restoring the most changed weights of the {size:,}-sample models, the fraction chosen on other facts "
                f"and draws ({chosen_fraction(best)}), gives {more_or_less(best.estimate.value)} than as tuned "
                f"{brackets(best.estimate)}."
            ),
            core=True,
            **three_ways(evidence, lambda s: restored.helped(s, levels).estimate),
        ),
        Claim(
            "restoring_too_many_collapses",
            f"restoring {exact_percent(top)} falls below the model as tuned",
            scope,
            "points",
            sentence=(
                f"With {exact_percent(top)} restored, accuracy goes from {percent(as_tuned)} to {percent(at_top)}: "
                f"{points(fall.negated())}."
            ),
            core=True,
            **three_ways(evidence, lambda s: s.difference(pairs, s.over(BOTH))),
        ),
    ]
    for d, domain in enumerate(DOMAINS):
        part = restored.helped(scores, levels, [d]).estimate
        sentence = f"{DOMAIN_WORDS[domain].capitalize()}, the chosen fraction minus as tuned: {points(part)}."
        where = f"mean of training levels, {size:,} samples, {DOMAIN_WORDS[domain]}"
        claims.append(Claim(f"restoring_helps_{domain}", HELPS, where, "points", part, sentence))
    each = []
    for level in levels:
        choice = restored.helped(scores, [level])
        sentence = f"Level {level}: {chosen_fraction(choice)}; minus as tuned: {points(choice.estimate)}."
        where = f"training level {level}, {size:,} samples, both domains"
        each.append(Claim(f"restoring_helps_level_{level}", HELPS, where, "points", choice.estimate, sentence))
    claims.extend(adjusted(each))
    controls = (*concentrated, *_random(restored, scope), *_smaller_rate(restored, scope))
    short = f"putting the most changed weights back gives {more_or_less(best.estimate.value)}"
    short += caution(best.estimate)
    return Finding(
        *WEIGHT_FINDING,
        claims[0].sentence,
        tuple(claims),
        (*controls, *_against_base(evidence, [collapsed for _, collapsed in pairs], top, scope)),
        short=short if best.estimate.known else "",
    )


def _random(restored: Restored, scope: str) -> list[Claim]:
    """Whether it matters which weights are restored."""
    scores, levels = restored.evidence.substring, list(restored.tuned)
    at_random = [restored.options("random", level) for level in levels]
    if not all(at_random):
        return []
    random = restored.helped(scores, levels, criterion="random")
    versus = chosen(scores, [restored.options("relative", level) for level in levels], at_random, BOTH).estimate
    return [
        Claim(
            "random_restoring_helps",
            "restoring weights drawn at random beats the model as tuned",
            scope,
            "points",
            random.estimate,
            f"Restoring weights drawn at random instead ({chosen_fraction(random)}): {points(random.estimate)}.",
        ),
        Claim(
            "relative_beats_random",
            "restoring the most changed weights beats restoring at random",
            scope,
            "points",
            versus,
            f"Most changed minus random, each at its own chosen fraction: {points(versus)}.",
        ),
    ]


def _smaller_rate(restored: Restored, scope: str) -> list[Claim]:
    """Whether tuning at a smaller learning rate does as well as restoring."""
    evidence, size = restored.evidence, restored.size
    slow = {lv: evidence.controlled[lv, size] for lv in restored.tuned if (lv, size) in evidence.controlled}
    if not slow:
        return []
    options = [restored.options("relative", level) for level in slow]
    ahead = chosen(evidence.substring, options, list(slow.values()), BOTH).estimate.negated()
    rate = next(iter(slow.values())).setting.learning_rate
    return [
        Claim(
            "smaller_rate_beats_restoring",
            "tuning at the smaller learning rate beats restoring",
            scope,
            "points",
            ahead,
            f"Tuned at learning rate {rate:.3g} with nothing restored, minus the best restored: {points(ahead)}.",
        )
    ]


def _against_base(evidence: Evidence, collapsed: list[Model], top: float, scope: str) -> list[Claim]:
    """Whether the collapse is a loss of the answer's form: beside the base model's own accuracy with this prompt."""
    column = evidence.base_column()
    if column is None:
        return []
    scores = evidence.substring
    weights, known = scores.over(BOTH), scores.over(BOTH, level=LEVELS - 1)
    share = weights / len(collapsed)
    units = [
        Contribution(index, ((scores.column(model, draw), share), (column, -share)))
        for index, model in enumerate(collapsed)
        for draw in scores.draws(model)
    ]
    above = scores.estimate(units)
    asked = [f"{percent(scores.value(column, known))} of those it knows best"]
    for prompt, words in (("few_shot", "after solved examples"), ("plain", "asked plainly")):
        other = evidence.base_column(prompt)
        if other is not None:
            asked.append(f"{percent(scores.value(other, known))} of them {words}")
    empty = float(evidence.answers.empty[:, column].mean())
    return [
        Claim(
            "collapse_stays_above_base",
            f"restored to {exact_percent(top)}, the models still beat the base model on this prompt",
            scope,
            "points",
            above,
            f"Before any tuning the base model answers {percent(scores.value(column, weights))} of the test facts "
            "with the "
            f"fine-tuning prompt ({', '.join(asked)}; {percent(empty)} of answers empty). With {exact_percent(top)} "
            "restored the "
            f"models minus the base: {points(above)}.",
        )
    ]


def _excess(held: Sequence[tuple[Setting, int, float]]) -> Estimate:
    """The mean over settings of the mean over draws, of (setting, draw, value).

    A draw of a training level is one unit at all its sizes, whose training sets are nested.
    """
    draws = Counter(setting for setting, _, _ in held)
    of_level = {level: len({d for s, d, _ in held if s.level == level}) for level in {s.level for s, _, _ in held}}
    units: dict[tuple[int, int], float] = defaultdict(float)
    for setting, draw, value in held:
        units[setting.level, draw] += value * of_level[setting.level] / draws[setting]
    # The mean over levels that is taken of them is made the mean over settings.
    share = len(of_level) / len(draws)
    return over_draws([level for level, _ in units], [share * value for value in units.values()])


def concentration_claims(evidence: Evidence) -> tuple[Claim, ...]:
    """Does the top of the weights hold more of the relative change than when sizes are paired at random?"""
    main = [change for change in evidence.changes if not change.cell.setting.control]
    claims = []
    for fraction in (0.01, 0.2):
        name = fraction_name(fraction)
        shares = [c.concentration.get("relative", {}).get(name) for c in main]
        chances = [c.null.get("relative", {}).get(name) for c in main]
        held = [
            (change.cell, float(share), float(chance))
            for change, share, chance in zip(main, shares, chances, strict=True)
            if share is not None and chance is not None
        ]
        if not held:
            continue
        above = _excess([(cell.setting, cell.draw, share - chance) for cell, share, chance in held])
        absolute = [float(v) for c in main if (v := c.concentration.get("absolute", {}).get(name)) is not None]
        paper = published_concentration(1920)[name]
        by_size = f"; by absolute change {percent(mean_of(absolute))}" if absolute else ""
        claims.append(
            Claim(
                f"concentration_{name}",
                "the relative change is more concentrated than its no-signal null",
                f"top {exact_percent(fraction)} of weights",
                "points",
                above,
                f"The top {exact_percent(fraction)} of weights hold {percent(mean_of([s for _, s, _ in held]))} of "
                f"summed relative change, in the no-signal null {percent(mean_of([n for _, _, n in held]))} "
                f"(LLaMA-3-8B: {percent(paper)}{by_size}): {points(above, 2)} against the null.",
            )
        )
    return tuple(claims)
