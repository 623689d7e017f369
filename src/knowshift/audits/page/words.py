"""What the page and the command say of a repair and of the weights."""

from __future__ import annotations

from knowshift.audits.repair import Repair
from knowshift.html.words import interval_words, percent, signed
from knowshift.parameters.change import WeightChange

#: What would help where no repair does (docs/results.md).
INSTEAD = "Tuning again at a third of the learning rate may do more than any repair."


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
