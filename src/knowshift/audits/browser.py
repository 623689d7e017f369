"""All facts of an audit in its page: columns with one dictionary of texts, gzip in base64, read by facts.js."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import numpy as np

from knowshift.audits.evidence import Answered, Evidence
from knowshift.facts.relations import RELATIONS

#: Names of moves, in the order of their numbers; facts.js shows them.
MOVES = ("lost", "gained", "kept", "never")
#: Characters of an answer that are kept.
LONGEST = 200


def packed(evidence: Evidence) -> str:
    """The data of facts.js as text that can stand in a page: letters, digits, "+", "/" and "=" only."""
    names = sorted(set(evidence.relations))
    place = {name: i for i, name in enumerate(names)}
    texts: dict[str, int] = {}

    def kept(text: str | None) -> int:
        return -1 if text is None else texts.setdefault(text.strip()[:LONGEST], len(texts))

    moved = [MOVES.index(name) for name in evidence.moves.names()]
    data: dict[str, Any] = {
        "moves": MOVES,
        "relations": [f"{name} {RELATIONS[name].name}" if name in RELATIONS else name for name in names],
        "relation": [place[name] for name in evidence.relations],
        "question": [fact.question[: 2 * LONGEST] for fact in evidence.facts],
        "answer": [kept(fact.answer) for fact in evidence.facts],
        "move": moved,
        "before": _thousandths(evidence.first.rate),
        "after": _thousandths(evidence.after.rate),
        "forms": [_form(form, kept) for form in evidence.forms],
    }
    data["texts"] = list(texts)
    written = json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()
    return base64.b64encode(gzip.compress(written, compresslevel=9, mtime=0)).decode("ascii")


def _form(form: Answered, kept: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"name": form.form}
    for who, texts, right in (
        ("base", form.before, form.right_before),
        ("tuned", form.after, form.right_after),
    ):
        if texts is not None and right is not None:
            found[who] = [kept(text) for text in texts]
            found[f"{who}_right"] = "".join("1" if hit else "0" for hit in right)
    return found


def _thousandths(rates: Any) -> list[int]:
    found: list[int] = np.rint(1000 * np.clip(rates, 0.0, 1.0)).astype(int).tolist()
    return found
