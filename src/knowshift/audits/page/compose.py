"""The page of an audit: one HTML file that opens anywhere, without network, its verdict first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knowshift.audits.browser import fact_list
from knowshift.audits.evidence import Evidence
from knowshift.audits.moves import KNOWN, MOVE, SURE
from knowshift.audits.page.figures import levels_figure, repair_figure
from knowshift.audits.page.grids import (
    counts_grid,
    curve_grid,
    facts_grid,
    forms_grid,
    levels_grid,
    places_grids,
    relations_grid,
)
from knowshift.audits.page.words import repair_words, weights_words
from knowshift.audits.repair import Repair
from knowshift.audits.told import shift_words
from knowshift.audits.verdict import CANNOT_TELL, FORM_LOST, GAINED, KNOWLEDGE_LOST, UNCHANGED, Verdict
from knowshift.html.facts import packed
from knowshift.html.rendering import render
from knowshift.parameters.change import WeightChange

#: The style of each verdict, a class of page.css.
STYLES = {
    KNOWLEDGE_LOST: "not",
    FORM_LOST: "part",
    GAINED: "shown",
    UNCHANGED: "shown",
    CANNOT_TELL: "undecided",
}


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
        repairs=repair_figure(repair),
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
        data=packed(fact_list(evidence)),
        known=KNOWN,
        move=100 * MOVE,
        sure=SURE,
    )
