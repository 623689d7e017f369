"""A few raw answers before and after restoring, drawn so that gains and losses show in proportion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from knowshift.facts.fact import DOMAINS
from knowshift.facts.relations import RELATIONS
from knowshift.reports.evidence.evidence import Evidence
from knowshift.reports.evidence.scores import SEED, Model


@dataclass(frozen=True, slots=True)
class Sample:
    """One question and what each model answered, with its substring grade."""

    question: str
    gold: str
    about: str
    answers: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class Samples:
    """Answers of one model as tuned and at ``fractions`` restored; ``gained`` and ``lost`` count all its test facts."""

    model: Model
    draw: int
    fractions: tuple[float, ...]
    rows: tuple[Sample, ...]
    gained: int
    lost: int
    kept: int


def draw_samples(evidence: Evidence, fraction: float, count: int = 10) -> Samples | None:
    """Answers of a middle training level at the largest restored size: as tuned, at ``fraction``, at the largest one.

    Facts are drawn at random among those whose grade changed between the first two, so gains and losses keep their
    proportion.
    """
    scores = evidence.substring
    candidates = sorted(
        (c for c in evidence.answers.columns if c.setting and c.criterion == "relative" and not c.setting.control),
        key=lambda c: (-c.setting.size, abs(c.setting.level - 2), c.draw),  # type: ignore[union-attr]
    )
    if not candidates:
        return None
    first = candidates[0]
    assert first.setting is not None
    model = Model(first.setting)
    fractions = tuple(dict.fromkeys((fraction, max(evidence.fractions("relative")))))
    models = (model, *(model.restored("relative", f) for f in fractions))
    if any(first.draw not in scores.draws(m) for m in models):
        return None
    columns = [scores.column(m, first.draw) for m in models]
    hits = evidence.answers.substring[:, columns]
    before, after = hits[:, 0], hits[:, 1]
    changed = np.flatnonzero(before != after)
    rng = np.random.default_rng(SEED)
    picked = np.sort(rng.choice(changed, size=min(count, len(changed)), replace=False)) if len(changed) else changed
    names = [evidence.answers.facts[i] for i in picked]
    records = [evidence.answers.rows(column, names) for column in columns]
    rows = []
    for i, name in zip(picked, names, strict=True):
        relation = RELATIONS.get(evidence.answers.relation[i])
        about = [
            relation.name if relation else evidence.answers.relation[i],
            DOMAINS[evidence.answers.domain[i]].replace("_", "-"),
            f"test level {evidence.answers.level[i]}",
        ]
        answers = tuple((record[name]["text"], bool(hits[i, k])) for k, record in enumerate(records))
        asked = records[0][name]
        rows.append(Sample(asked["question"], asked["answer"], ", ".join(about), answers))
    return Samples(
        model,
        first.draw,
        fractions,
        tuple(rows),
        int((~before & after).sum()),
        int((before & ~after).sum()),
        int((before == after).sum()),
    )
