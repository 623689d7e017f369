"""The page of an audit: one HTML file that opens anywhere, without network, its verdict first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from knowshift.audits.browser import packed
from knowshift.audits.evidence import Evidence
from knowshift.audits.moves import KNOWN, MOVE, SURE
from knowshift.audits.repair import Repair
from knowshift.audits.shares import Change
from knowshift.audits.told import shift_words
from knowshift.audits.verdict import CANNOT_TELL, FORM_LOST, GAINED, KNOWLEDGE_LOST, UNCHANGED, Verdict
from knowshift.facts.fact import LEVELS
from knowshift.facts.relations import RELATIONS
from knowshift.html.grid import DASH, Entry, Grid, number, texts
from knowshift.html.plotting import legend_above, panels, svg_text
from knowshift.html.rendering import render
from knowshift.html.style import BASE, CONTROL, RUN
from knowshift.html.table import is_missing
from knowshift.html.words import interval_words, percent, signed
from knowshift.parameters.change import WeightChange
from knowshift.statistics.holm import holm

#: The style of each verdict, a class of page.css.
STYLES = {
    KNOWLEDGE_LOST: "not",
    FORM_LOST: "part",
    GAINED: "shown",
    UNCHANGED: "shown",
    CANNOT_TELL: "undecided",
}
#: Facts that a table of the page shows at most.
ROWS = 50
#: What would help where no repair does (docs/results.md).
INSTEAD = "Tuning again at a third of the learning rate may do more than any repair."


def compose(
    evidence: Evidence,
    verdict: Verdict,
    repair: Repair | None,
    why_not: str,
    output: str | Path | None,
    change: WeightChange | None,
    about: Mapping[str, Any],
) -> str:
    """The whole page as text.

    Args:
        why_not: why nothing was repaired, where ``repair`` is None.
        output: the folder of the repaired model, or its name on the hub, where there is one.
        change: of the weights, where they can be compared.
        about: base, tuned, source, seed, budget and version.
    """
    return render(
        "knowshift.audits",
        "audit.html.jinja",
        about=about,
        verdict=verdict,
        style=STYLES[verdict.kind],
        drawing=levels_figure(evidence),
        counts=counts_grid(evidence),
        forms=forms_grid(evidence, verdict),
        levels=levels_grid(evidence),
        relations=relations_grid(evidence),
        repair_words=repair_words(repair, why_not),
        curve=curve_grid(repair),
        left_out=[] if repair is None else repair.left_out,
        weights=weights_words(change),
        shift=shift_words(evidence.shift),
        places=[] if change is None else places_grids(change),
        output=None if output is None else str(output),
        lost=facts_grid(evidence, "lost"),
        gained=facts_grid(evidence, "gained"),
        data=packed(evidence),
        known=KNOWN,
        move=100 * MOVE,
        sure=SURE,
    )


def levels_figure(evidence: Evidence) -> str:
    """SVG text: mean R of the facts of each level, asked again and tuned; levels are the first measurement's."""
    levels = [level for level in range(LEVELS) if (evidence.level == level).any()]
    found = evidence.by_level()
    with panels(6.4, 2.9) as (figure, (axes,)):
        again = [float(evidence.second.rate[evidence.level == level].mean()) for level in levels]
        tuned = [before + found[level][1].by_fact.value for level, before in zip(levels, again, strict=True)]
        errors = [found[level][1].by_fact for level in levels]
        spread = [0.0 if is_missing(one.low) else (one.high - one.low) / 2 for one in errors]
        axes.plot(levels, again, "s", color=BASE, label="base, asked again", markersize=7)
        axes.errorbar(levels, tuned, yerr=spread, fmt="o", color=RUN, capsize=3, label="tuned")
        for level, before, after in zip(levels, again, tuned, strict=True):
            axes.annotate("", (level, after), (level, before), arrowprops={"arrowstyle": "->", "color": CONTROL})
        axes.set_xticks(levels, [f"level {level}\n{int((evidence.level == level).sum()):,} facts" for level in levels])
        axes.set_ylim(-0.03, 1.03)
        axes.set_ylabel("mean R")
        legend_above(figure, axes)
        return svg_text(figure)


def counts_grid(evidence: Evidence) -> Grid:
    """Kept, lost, gained, never; beside chance."""
    counts, noise = evidence.moves.counts(), evidence.noise.counts()
    names = ("kept", "lost", "gained", "never")
    rows = [
        [Entry("base, then tuned"), *texts(f"{counts[name]:,}" for name in names)],
        [Entry("base, then base again: chance alone"), *texts(f"{noise[name]:,}" for name in names)],
    ]
    return Grid("Facts that were surely kept, lost, gained", ["", "kept", "lost", "gained", "never known"], rows)


def forms_grid(evidence: Evidence, verdict: Verdict) -> Grid:
    """Of the known facts: the change in each form, and in any."""
    rows = []
    named = {"in any form": ("knowledge", evidence.knowledge)}
    named |= {name: (name, change) for name, change in evidence.by_form.items()}
    for shown, (name, change) in named.items():
        before, after, p = evidence.mcnemar.get(name, (None, None, None))
        rows.append(
            [
                Entry(shown),
                _points(change),
                DASH if name not in verdict.adjusted else Entry(_p(verdict.adjusted[name])),
                DASH if p is None else Entry(f"{before:,} / {after:,}", f"p {_p(p)}"),
            ]
        )
    return Grid(
        "Known facts by form of asking: change in points with its 95% interval, and exact McNemar tests over all facts",
        ["form", "change", "p (Holm)", "all facts: right only before / after"],
        rows,
    )


def levels_grid(evidence: Evidence) -> Grid:
    """By the base's level."""
    rows = [
        [Entry(str(level)), Entry(f"{int((evidence.level == level).sum()):,}"), _points(knowledge), _points(rate)]
        for level, (knowledge, rate) in evidence.by_level().items()
        if (evidence.level == level).any()
    ]
    head = ["level", "facts", "there in any form: change", "R: change"]
    return Grid(
        "By how well the base knew them (levels of its first measurement, compared with its second)", head, rows
    )


def relations_grid(evidence: Evidence) -> Grid:
    """By relation, Holm-adjusted over relations."""
    found = {name: changes for name, changes in evidence.by_relation().items() if changes[0].by_fact.known}
    adjusted = holm([knowledge.by_fact.p for knowledge, _ in found.values()])
    rows = [
        [
            Entry(name, RELATIONS[name].name if name in RELATIONS else ""),
            Entry(f"{knowledge.facts:g}"),
            _points(knowledge),
            DASH if np.isnan(p) else Entry(_p(p)),
            _points(rate),
        ]
        for (name, (knowledge, rate)), p in zip(found.items(), adjusted, strict=True)
    ]
    head = ["relation", "known facts", "there in any form: change", "p (Holm)", "R: change"]
    return Grid("Known facts by relation", head, rows)


def repair_words(repair: Repair | None, why_not: str = "") -> str:
    """What became of the repair, in words."""
    if repair is None:
        return f"Not repaired: {why_not}."
    if repair.purpose is None:
        return (
            "Nothing was repaired: what the tuning was for was not given (--keep, --guard), and undoing all of it "
            "would bring back all that the base knew. The table shows what each part would."
        )
    if not repair.is_served:
        return (
            f"Nothing was repaired: the tuned model does not do {repair.purpose.name} surely better than the base, so "
            "it does not show what the tuning was for. Give the form that the model was tuned in (--prompt-format), or "
            "more of it."
        )
    if repair.chosen is None or repair.held_out is None:
        return (
            "Keep the tuned model: no way to undo a part of the tuning does better on both counts, or too few known "
            f"facts or items of {repair.purpose.name} were there to confirm it. {INSTEAD}"
        )
    before, after, gain = repair.held_out
    words = (
        f"{repair.chosen.name}: on facts and items that the choice did not see, {percent(before.known.mean())} of the "
        f"known facts are answered as tuned and {percent(after.known.mean())} repaired, {percent(before.kept.mean())} "
        f"and {percent(after.kept.mean())} of {repair.purpose.name}; the mean of both {signed(gain.value)} points "
        f"[{interval_words(gain)}]."
    )
    if repair.confirmed:
        return f"Repaired by {words}"
    return f"Keep the tuned model: the repair that was chosen is not confirmed. {words[0].upper()}{words[1:]} {INSTEAD}"


def weights_words(change: WeightChange | None) -> str:
    """Where the weights moved, in a sentence."""
    if change is None:
        return "The weights of the two models cannot be compared."
    if not change.changed:
        return "No weight of the layers changed."
    words = f"{percent(change.changed_share)} of the {change.eligible:,} weights of the layers changed."
    top, null = change.concentration["relative"].get("0.01"), change.null["relative"].get("0.01")
    if top is None or null is None:
        return words
    return (
        f"{words} The most changed 1% hold {percent(top)} of the summed relative change; changes without any pattern "
        f"would put {percent(null)} there."
    )


def places_grids(change: WeightChange) -> list[Grid]:
    """The share of the most changed fifth in each layer and each kind of module, beside chance."""
    return [
        Grid(
            f"The most changed fifth of the weights, by {what}",
            [what, "share of the most changed", "share of all weights"],
            [
                [Entry(name), Entry(percent(share)), Entry(percent(chance[name]))]
                for name, share in found.items()
                if name in chance
            ],
        )
        for what, found, chance in (
            ("layer", change.layers, change.layer_weights),
            ("module", change.modules, change.module_weights),
        )
    ]


def curve_grid(repair: Repair | None) -> Grid:
    """What every candidate does, on the half that chooses."""
    rows = []
    for candidate, scores in [] if repair is None else repair.curve:
        rows.append(
            [
                Entry("as tuned" if candidate is None else candidate.name),
                Entry(percent(scores.known.mean())) if len(scores.known) else DASH,
                Entry(percent(scores.kept.mean())) if len(scores.kept) else DASH,
            ]
        )
    head = ["undone (share put back, region)", "known facts there", "what the tuning was for"]
    return Grid("Repairs tried, on the half that chooses; random and least changed weights are controls", head, rows)


def facts_grid(evidence: Evidence, which: str) -> Grid:
    """Facts that moved, the largest moves first, with both models' answers in each form."""
    chosen = np.flatnonzero(getattr(evidence.moves, which))
    size = np.abs(evidence.after.rate - evidence.first.rate)
    order = chosen[np.argsort(-size[chosen], kind="stable")][:ROWS]
    forms = evidence.forms
    rows = []
    for i in order:
        fact = evidence.facts[i]
        entry = [
            Entry(fact.question[:400], fact.answer[:200], "words"),
            Entry(fact.relation),
            Entry(f"{evidence.first.rate[i]:.2f}"),
            Entry(f"{evidence.after.rate[i]:.2f}"),
        ]
        for form in forms:
            entry.append(_answer(form.before, form.right_before, i))
            entry.append(_answer(form.after, form.right_after, i))
        rows.append(entry)
    of = f"the first {ROWS:,} of {len(chosen):,}" if len(chosen) > ROWS else f"{len(chosen):,}"
    head = ["question (answer)", "relation", "R before", "R after"]
    head += [f"{form.form}, {who}" for form in forms for who in ("base", "tuned")]
    return Grid(f"Facts {which}: {of}", head, rows, style="answers")


def _answer(texts_of: Sequence[str | None] | None, right: Any, i: int) -> Entry:
    if texts_of is None or texts_of[i] is None:
        return DASH
    return Entry(str(texts_of[i]).strip()[:120] or "(nothing)", style=f"answer {'hit' if right[i] else 'miss'}")


def _points(change: Change) -> Entry:
    estimate = change.by_fact
    return number(estimate.value, signed, estimate.low, estimate.high)


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"
