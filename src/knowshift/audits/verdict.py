"""The verdict: knowledge lost, form lost, gained, unchanged, or cannot tell; in words with numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from knowshift.audits.evidence import COMPLETIONS, Evidence
from knowshift.audits.moves import KNOWN
from knowshift.audits.shares import Change
from knowshift.html.words import interval_words, listed, signed
from knowshift.statistics.holm import holm

#: The five verdicts, as scripts read them.
KNOWLEDGE_LOST, FORM_LOST, GAINED, UNCHANGED, CANNOT_TELL = (
    "knowledge-lost",
    "form-lost",
    "gained",
    "unchanged",
    "cannot-tell",
)
#: What they are called.
TITLES = {
    KNOWLEDGE_LOST: "Knowledge was lost",
    FORM_LOST: "A form was lost, not the knowledge",
    GAINED: "Knowledge was gained",
    UNCHANGED: "Nothing changed that these facts can show",
    CANNOT_TELL: "These facts cannot tell",
}
#: Holm-adjusted p below which a change is not put down to chance.
ALPHA = 0.05
#: The smallest change worth the name, and the loss that must be excluded for "unchanged": fractions of 1.
MARGIN, EXCLUDED = 0.01, 0.05
#: Known facts below which nothing is said of how many more would tell.
FEW = 10


@dataclass(frozen=True)
class Verdict:
    """What an audit comes to.

    Attributes:
        kind: one of the five.
        sentences: what was found, in words with numbers.
        points: change of the share of known facts that are there in any form, in points, and its 95% interval.
        excluded: the loss of points that the interval excludes, where ``unchanged``.
        adjusted: Holm-adjusted p of each change that was tested, by its name.
        facts_needed: facts that would exclude a loss of :data:`EXCLUDED`, at the spread seen, where ``cannot-tell``.
    """

    kind: str
    sentences: tuple[str, ...]
    points: float | None
    interval: tuple[float, float] | None
    excluded: float | None
    adjusted: Mapping[str, float]
    facts_needed: int | None

    @property
    def title(self) -> str:
        return TITLES[self.kind]

    def told(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "verdict": self.kind,
            "points": self.points,
            "interval": None if self.interval is None else list(self.interval),
            "excluded": self.excluded,
            "facts_needed": self.facts_needed,
            "adjusted_p": dict(self.adjusted),
        }


def reach_verdict(evidence: Evidence) -> Verdict:
    """The verdict on what was measured.

    Tested together, with Holm's adjustment: the share of known facts there in any form; mean R, and the share answered
    right in each form, of the known facts; the share of the other facts that are there in any form.
    """
    tested = {"knowledge": evidence.knowledge, **evidence.by_form, "not known before": evidence.gained}
    names = list(tested)
    p_values = [tested[name].by_fact.p if tested[name].by_fact.known else math.nan for name in names]
    adjusted = dict(zip(names, holm(p_values), strict=True))

    def moved(name: str, way: int) -> bool:
        change = tested[name].by_fact
        return change.known and adjusted[name] < ALPHA and way * change.value >= MARGIN

    lost_forms = [name for name in evidence.by_form if moved(name, -1)]
    won = [name for name in ("not known before", *evidence.by_form) if moved(name, 1)]
    knowledge = evidence.knowledge.by_fact
    excluded = _excluded(evidence)
    needed = None
    if moved("knowledge", -1):
        kind = KNOWLEDGE_LOST
    elif lost_forms and -knowledge.low <= EXCLUDED:
        kind = FORM_LOST
    elif "not known before" in won and not lost_forms and excluded <= EXCLUDED:
        kind = GAINED
    elif lost_forms:
        kind = CANNOT_TELL
    elif not math.isnan(excluded) and excluded <= EXCLUDED:
        kind = UNCHANGED
    else:
        kind = CANNOT_TELL
    if kind == CANNOT_TELL:
        needed = _needed(evidence)
    has_interval = knowledge.known and not math.isnan(knowledge.low)
    return Verdict(
        kind,
        tuple(_sentences(kind, evidence, lost_forms, won, excluded, needed, adjusted["knowledge"])),
        100 * knowledge.value if knowledge.known else None,
        (100 * knowledge.low, 100 * knowledge.high) if has_interval else None,
        100 * max(excluded, 0.0) if kind == UNCHANGED else None,
        {name: p for name, p in adjusted.items() if not math.isnan(p)},
        needed,
    )


def _excluded(evidence: Evidence) -> float:
    """The largest loss, of knowledge or of R, that is not excluded; NaN where there is no interval."""
    return max(-evidence.knowledge.by_fact.low, -evidence.rate.by_fact.low)


def _needed(evidence: Evidence) -> int | None:
    """Facts of the same kind that would bring the interval within :data:`EXCLUDED`; None where nothing says."""
    if evidence.knowledge.facts < FEW:
        return None
    widest = max((c.by_fact.error for c in (evidence.knowledge, evidence.rate) if c.by_fact.known), default=math.nan)
    if math.isnan(widest):
        return None
    return math.ceil(len(evidence.facts) * max(1.0, (2 * widest / EXCLUDED) ** 2) * 1.1)


def _sentences(
    kind: str,
    evidence: Evidence,
    lost_forms: list[str],
    won: list[str],
    excluded: float,
    needed: int | None,
    adjusted: float,
) -> list[str]:
    counts, noise = evidence.moves.counts(), evidence.noise.counts()
    asked, known = len(evidence.facts), counts["kept"] + counts["lost"]
    chosen = ""
    if evidence.screened is not None:
        likely, looked = evidence.screened.among(evidence.facts), evidence.screened.looked_at
        chosen = f", {likely:,} of them likely known by a first look at {looked:,},"
    start = f"Of {asked:,} facts{chosen} the base knows {known:,} (R of {KNOWN} or more)"
    if evidence.knowledge.by_fact.known:
        found = [f"{start}. The share of them that is there in any form of asking: {_change(evidence.knowledge)}."]
    else:
        found = [f"{start}: none whose change could be told."]
    lost = listed([_named(name, evidence.by_form[name]) for name in lost_forms])
    if kind == FORM_LOST:
        found.append(f"They are lost in one form of asking, and there in another: {lost}.")
    elif kind == KNOWLEDGE_LOST and lost_forms:
        found.append(f"By form of asking: {lost}.")
    elif kind == UNCHANGED:
        found.append(f"A loss of more than {100 * max(excluded, 0):.1f} points is excluded (95%).")
    elif kind == CANNOT_TELL and lost_forms:
        found.append(f"Lost in some form of asking: {lost}; whether it is there in another cannot be told.")
    elif kind == CANNOT_TELL and needed is not None:
        seen = f"A loss of {100 * EXCLUDED:.0f} points is neither seen nor excluded"
        if evidence.knowledge.by_fact.high < 0:
            seen = f"A loss is likely, and not sure, since much was tested at once (Holm-adjusted p = {adjusted:.2f})"
        found.append(f"{seen}; about {needed:,} facts of this kind would tell.")
    if "not known before" in won:
        found.append(f"The share there of the facts that it did not know: {_change(evidence.gained)}.")
    if better := [_named(name, evidence.by_form[name]) for name in won if name in evidence.by_form]:
        found.append(f"Known facts are answered better in: {listed(better)}.")
    found.append(
        f"Fact by fact: {counts['lost']:,} lost and {counts['gained']:,} gained for sure; by chance alone, the base "
        f"against itself, {noise['lost']:,} and {noise['gained']:,}."
    )
    rate = evidence.rate.by_fact
    if rate.known:
        found.append(
            f"{COMPLETIONS[0].upper()}{COMPLETIONS[1:]}: mean R of the known facts {signed(rate.value)} points "
            f"[{interval_words(rate)}]; the base asked again: {signed(evidence.floor.by_fact.value)}."
        )
    return found


def _named(form: str, change: Change) -> str:
    """As "question (-3.2 points)"."""
    return f"{form} ({signed(change.by_fact.value)} points)"


def _change(change: Change) -> str:
    """ "-3.2 points [-4.1 to -2.3]"."""
    estimate = change.by_fact
    return f"{signed(estimate.value)} points [{interval_words(estimate)}]"
