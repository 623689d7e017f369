"""Facts kept, lost, gained and never known: each tuned model's answers beside the base's own, fact by fact."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from knowshift.facts.fact import DOMAINS, LEVELS
from knowshift.html.table import Row, Table
from knowshift.reports.evidence.answers import BASE_PROMPTS
from knowshift.reports.evidence.evidence import Evidence
from knowshift.reports.evidence.run_folder import Setting
from knowshift.reports.tables.answers import EXPOSURE_BINS
from knowshift.reports.tables.settings import SETTING_COLUMNS, setting_values

Bools = NDArray[np.bool_]


def before(evidence: Evidence) -> str | None:
    """The form of asking in which the base answers most test facts right; None where it was not asked at all.

    What the base knows has to be asked in a form that it answers: in the fine-tuning prompt it answers next to nothing,
    so against that nothing could be lost. Of equals the plain question goes first, then solved examples.
    """
    right = {
        prompt: int(evidence.answers.substring[:, column].sum())
        for prompt in reversed(BASE_PROMPTS)
        if (column := evidence.base_column(prompt)) is not None
    }
    return max(right, key=right.__getitem__, default=None)


def exposures_of(evidence: Evidence) -> list[int | None]:
    """How often the corpus states each test fact; None where that is not known."""
    table = evidence.mastery
    known = dict(zip(table["fact"].to_pylist(), table["exposures"].to_pylist(), strict=True))
    return [known.get(fact) for fact in evidence.answers.facts]


def exposure_bins(exposures: list[int | None]) -> list[int]:
    """The place of each fact in :data:`EXPOSURE_BINS`; -1 where its exposures are not known."""
    return [
        next(
            (i for i, (_, first, last) in enumerate(EXPOSURE_BINS) if times is not None and first <= times <= last), -1
        )
        for times in exposures
    ]


def moves(evidence: Evidence) -> Table:
    """Facts kept, lost, gained and never known by every setting's models, mean over draws.

    ``before`` is right or wrong in the form of :func:`before`, after is right or wrong as tuned, both by substring;
    kept is right in both, lost before alone, gained after alone, never in neither. A group without facts has no row.
    """
    prompt = before(evidence)
    rows: list[Row] = []
    if prompt is not None:
        column = evidence.base_column(prompt)
        known: Bools = evidence.answers.substring[:, column]
        groups = list(_groups(evidence))
        for setting, columns in _tuned(evidence).items():
            after: Bools = evidence.answers.substring[:, columns]
            for by, group, domain, inside in groups:
                its, later = known[inside, None], after[inside]
                counts = (its & later, its & ~later, ~its & later, ~its & ~later)
                means = [float(flags.sum()) / len(columns) for flags in counts]
                facts = int(inside.sum())
                rows.append((*setting_values(setting), prompt, by, group, domain, len(columns), facts, *means))
    columns_after = ("before", "by", "group", "domain", "draws", "facts", "kept", "lost", "gained", "never")
    return Table("moves", (*SETTING_COLUMNS, *columns_after), tuple(rows))


def _tuned(evidence: Evidence) -> dict[Setting, list[int]]:
    """The columns of every setting's models as they were tuned, in the order of the answers."""
    found: dict[Setting, list[int]] = {}
    for index, column in enumerate(evidence.answers.columns):
        if column.setting and not column.criterion:
            found.setdefault(column.setting, []).append(index)
    return found


def _groups(evidence: Evidence) -> Iterator[tuple[str, str, str, Bools]]:
    """What facts are grouped by, the group's name, the domain, and which facts are in it."""
    answers = evidence.answers
    relations = np.asarray(answers.relation, dtype=object)
    bins = np.asarray(exposure_bins(exposures_of(evidence)))
    groups: list[tuple[str, str, Bools]] = [("all", "all", np.ones(len(answers.facts), dtype=bool))]
    groups += [("test_level", str(level), answers.level == level) for level in range(LEVELS)]
    groups += [("relation", name, relations == name) for name in sorted(set(answers.relation))]
    groups += [("exposures", name, bins == place) for place, (name, _, _) in enumerate(EXPOSURE_BINS)]
    for by, name, inside in groups:
        for number, domain in enumerate(DOMAINS):
            here: Bools = inside & (answers.domain == number)
            if here.any():
                yield by, name, domain, here
