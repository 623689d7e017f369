"""All facts of an audit, for the list in its page."""

from __future__ import annotations

from typing import Any

import numpy as np

from knowshift.audits.evidence import Answered, Evidence
from knowshift.facts.relations import RELATIONS
from knowshift.html import facts as html
from knowshift.html.facts import MOVES, AnswerRow, Column, FactList


def fact_list(evidence: Evidence) -> FactList:
    """Relation, move, R before and after; both models' answers in each form."""
    names = sorted(set(evidence.relations))
    place = {name: i for i, name in enumerate(names)}
    return FactList(
        question=[fact.question for fact in evidence.facts],
        answer=[fact.answer for fact in evidence.facts],
        columns=[
            Column(
                "relation",
                "relation",
                [place[name] for name in evidence.relations],
                [f"{name} {RELATIONS[name].name}" if name in RELATIONS else name for name in names],
                width=10,
            ),
            Column(
                "move",
                "move",
                [MOVES.index(name) for name in evidence.moves.names()],
                MOVES,
                width=4,
                narrow=3.4,
                by=("after", "before"),
            ),
            Column("before", "before", _thousandths(evidence.first.rate), digits=3, width=4, narrow=2.6),
            Column("after", "after", _thousandths(evidence.after.rate), digits=3, width=4, narrow=2.6),
        ],
        filters=("move", "relation"),
        heads=("form", "base", "tuned"),
        rows=[_row(form) for form in evidence.forms],
        said="{answer}. R {before} before, {after} after: {move}.",
        sort="move",
    )


def _row(form: Answered) -> AnswerRow:
    pairs = ((form.right_before, form.before), (form.right_after, form.after))
    return AnswerRow(
        form.form,
        [None if right is None or texts is None else html.Answered(right.tolist(), texts) for right, texts in pairs],
    )


def _thousandths(rates: Any) -> list[int]:
    found: list[int] = np.rint(1000 * np.clip(rates, 0.0, 1.0)).astype(int).tolist()
    return found
