"""Training sets that differ from plain fine-tuning's in one characteristic of their facts, and not in their levels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.training.strategy import Draw


def filled(draw: Draw, keep: Callable[[Fact], bool], told: str) -> list[Fact]:
    """As many facts of each level as plain fine-tuning has, the levels in the same order; of those that ``keep`` keeps.

    Each level gives the kept facts of its own set of the same draw in their order
    (:func:`~knowshift.training.draws.draw_training_set`): relations take turns, sets of one draw are nested, and where
    all facts are kept the set is that of plain fine-tuning.

    Args:
        told: what is kept, for the error: "of 2 relations".

    Raises:
        InputError: a level has fewer kept facts than plain fine-tuning has of it.
    """
    levels = [draw.known.levels[fact.id] for fact in draw.members]
    queues = {}
    for level, count in sorted(Counter(levels).items()):
        kept = [fact for fact in draw.of(level, None) if keep(fact)]
        if count > len(kept):
            raise InputError(f"{told}: {count} training facts of level {level} asked, {len(kept)} available")
        queues[level] = iter(kept)
    return [next(queues[level]) for level in levels]
