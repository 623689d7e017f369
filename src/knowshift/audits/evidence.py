"""What was measured of two models, fact by fact, and what follows: changes by form, relation and level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from knowshift.audits.moves import Moves, Rates
from knowshift.audits.plan import Screened
from knowshift.audits.shares import Change, Swapped, discordant
from knowshift.facts.fact import LEVELS, Fact

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: Sampled completions, beside the forms of greedy answers.
COMPLETIONS = "completions, sampled"


@dataclass(frozen=True)
class Answered:
    """Greedy answers of both models in one form, by fact; None for a model that has no such form."""

    form: str
    before: Sequence[str | None] | None
    after: Sequence[str | None] | None
    right_before: Bools | None
    right_after: Bools | None
    prompts: Sequence[str] | None = None  # what the tuned model was asked
    first_line: bool = False  # whether only the first line of an answer counts

    @property
    def both(self) -> tuple[Bools, Bools] | None:
        """Whether each fact is answered right, before and after; None where a model lacks the form."""
        if self.right_before is None or self.right_after is None:
            return None
        return self.right_before, self.right_after


@dataclass(frozen=True)
class Shifted:
    """How far the first token of the best known answers has moved (paper 4.1).

    Attributes:
        mean: KL(tuned || base) in nats; None where no fact has one.
        facts: how many have one.
        asked: what the tuned model reads: the base's completion prompt, or the user's own form.
        why: why nothing was compared, where that is so.
    """

    mean: float | None
    facts: int
    asked: str
    why: str = ""


@dataclass(frozen=True)
class Evidence:
    """Two measurements of the base, one of the tuned model, and their answers in each form.

    Attributes:
        level: the base's mastery level of each fact, by its first measurement.
        screened: the first look that has chosen the facts, where there was one.
        shift: of the first token; None of models on servers.
    """

    facts: Sequence[Fact]
    first: Rates
    second: Rates
    after: Rates
    level: NDArray[np.int64]
    forms: Sequence[Answered]
    screened: Screened | None = None
    shift: Shifted | None = None

    @cached_property
    def relations(self) -> list[str]:
        return [fact.relation for fact in self.facts]

    @cached_property
    def moves(self) -> Moves:
        """From the base's first measurement to the tuned model's."""
        return Moves.between(self.first, self.after)

    @cached_property
    def noise(self) -> Moves:
        """From the base's first measurement to its second: all of it is chance."""
        return Moves.between(self.first, self.second)

    @cached_property
    def known(self) -> Swapped:
        """The facts that the base knows."""
        return Swapped(self.first.known, self.second.known, self.relations)

    @cached_property
    def unknown(self) -> Swapped:
        """The facts that it does not know."""
        return Swapped(~self.first.known, ~self.second.known, self.relations)

    def _greedy(self) -> tuple[Bools, Bools]:
        """Whether each fact is answered right, before and after, in any of the forms that both models have."""
        before, after = np.zeros((2, len(self.facts)), dtype=bool)
        for right in self._paired.values():
            before |= right[0]
            after |= right[1]
        return before, after

    @property
    def _paired(self) -> dict[str, tuple[Bools, Bools]]:
        """The forms that both models have."""
        return {form.form: form.both for form in self.forms if form.both is not None}

    def in_any_form(self) -> tuple[Floats, Floats, Floats]:
        """Whether a fact is there in a form that both models have, 0 or 1: by the base's measurements, and after."""
        rates = (self.first, self.second, self.after)
        before, later = self._greedy()
        greedy = (before, before, later)
        first, second, after = (
            (rate.known | answered).astype(float) for rate, answered in zip(rates, greedy, strict=True)
        )
        return first, second, after

    @cached_property
    def knowledge(self) -> Change:
        """Of the known facts, the share that is there in any form: its change."""
        return self.known.change(*self.in_any_form())

    @cached_property
    def gained(self) -> Change:
        """Of the facts not known, the share that is there in any form: its change."""
        return self.unknown.change(*self.in_any_form())

    @cached_property
    def floor(self) -> Change:
        """:attr:`rate` with the base's own measurement as the later one: the noise floor."""
        return self.known.floor(self.first.rate, self.second.rate)

    @cached_property
    def rate(self) -> Change:
        """Mean R of the known facts: its change."""
        return self.known.change(self.first.rate, self.second.rate, self.after.rate)

    @cached_property
    def by_form(self) -> dict[str, Change]:
        """Of the known facts, the share answered right in each form that both models have, and R: their changes."""
        found = {COMPLETIONS: self.rate}
        for form, right in self._paired.items():
            before, after = (one.astype(float) for one in right)
            found[form] = self.known.change(before, before, after)
        return found

    @cached_property
    def mcnemar(self) -> dict[str, tuple[int, int, float]]:
        """Of all facts in each form: right before only, right after only, exact p."""
        return {form: discordant(*right) for form, right in self._paired.items()}

    def by_relation(self) -> dict[str, tuple[Change, Change]]:
        """(knowledge, R) of the known facts of each relation."""
        names = np.array(self.relations)
        return {name: self._part(names == name) for name in sorted(set(self.relations))}

    def by_level(self) -> dict[int, tuple[Change, Change]]:
        """(knowledge, R) of the facts of each level, 0 to 4, by the first measurement; compared with the second."""
        none = np.zeros(len(self.facts), dtype=bool)
        found = {}
        for level in range(LEVELS):
            of_level = Swapped(self.level == level, none, self.relations)
            found[level] = (of_level.change(*self.in_any_form()), of_level.change(*self._rates()))
        return found

    def _rates(self) -> tuple[Floats, Floats, Floats]:
        return self.first.rate, self.second.rate, self.after.rate

    def _part(self, mine: Bools) -> tuple[Change, Change]:
        part = Swapped(self.first.known & mine, self.second.known & mine, self.relations)
        return part.change(*self.in_any_form()), part.change(*self._rates())
