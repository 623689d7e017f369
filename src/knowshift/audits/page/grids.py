"""Tables of the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from knowshift.audits.evidence import Evidence
from knowshift.audits.repair import Repair
from knowshift.audits.shares import Change
from knowshift.audits.verdict import Verdict
from knowshift.facts.relations import RELATIONS
from knowshift.html.grid import DASH, Entry, Grid, number, texts
from knowshift.html.words import p_value, percent, signed
from knowshift.parameters.change import WeightChange
from knowshift.statistics.holm import holm

#: Facts that a table of the page shows at most.
ROWS = 50


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
                DASH if name not in verdict.adjusted else Entry(p_value(verdict.adjusted[name])),
                DASH if p is None else Entry(f"{before:,} / {after:,}", f"p {p_value(p)}"),
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
            DASH if np.isnan(p) else Entry(p_value(p)),
            _points(rate),
        ]
        for (name, (knowledge, rate)), p in zip(found.items(), adjusted, strict=True)
    ]
    head = ["relation", "known facts", "there in any form: change", "p (Holm)", "R: change"]
    return Grid("Known facts by relation", head, rows)


def places_grids(change: WeightChange) -> list[Grid]:
    """The share of the most changed fifth in each layer and each kind of module, beside the null's and chance."""
    return [
        Grid(
            f"The most changed fifth of the weights, by {what}",
            [what, "share of the most changed", "null", "share of all weights"],
            [
                [Entry(name), Entry(percent(share)), Entry(percent(null[name])), Entry(percent(chance[name]))]
                for name, share in found.items()
                if name in chance
            ],
        )
        for what, found, null, chance in (
            ("layer", change.layers, change.null_layers, change.layer_weights),
            ("module", change.modules, change.null_modules, change.module_weights),
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
