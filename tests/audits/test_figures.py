"""Figures of the page: what they show, and when there is none."""

from __future__ import annotations

import numpy as np
import pytest

from knowshift.audits.candidates import CRITERIA, SWEEPS, Candidate
from knowshift.audits.page.figures import DRAWN, repair_figure
from knowshift.audits.repair import Repair, Scores

TUNED = Scores(np.array([1.0, 0.0]), np.array([1.0, 1.0]))


def tried(*, kept: bool = True, chosen: Candidate | None = None) -> Repair:
    """The first fraction of every sweep."""
    scores = Scores(np.array([1.0, 1.0]), np.array([1.0, 0.0]) if kept else np.empty(0))
    first = Scores(TUNED.known, TUNED.kept if kept else np.empty(0))
    others = [(Candidate(criterion, fractions[0], region), scores) for criterion, fractions, region in SWEEPS]
    return Repair([(None, first), *others], None, chosen=chosen)


def test_every_criterion_is_drawn_and_named() -> None:
    assert set(DRAWN) == {criterion for criterion, _ in CRITERIA}
    drawn = repair_figure(tried())
    assert all(f">{name}</text>" in drawn for name, *_ in DRAWN.values())


@pytest.mark.parametrize("kept", [True, False])
def test_what_the_tuning_was_for_has_a_panel_where_it_is_known(kept: bool) -> None:
    drawn = repair_figure(tried(kept=kept))
    assert drawn.startswith("<svg")
    assert ("what the tuning was for" in drawn) is kept


@pytest.mark.parametrize(("region", "rings"), [("layers", 2), ("mlp", 1)])
def test_the_chosen_one_is_ringed(region: str, rings: int) -> None:
    """In both panels; in the trade alone where not all layers were undone."""
    chosen = Candidate("interpolate", 0.1, region)
    lines = [repair_figure(tried(chosen=one)).count("<use ") for one in (None, chosen)]
    assert lines[1] - lines[0] == rings


def test_nothing_tried_or_nothing_known_draws_nothing() -> None:
    assert repair_figure(None) == ""
    assert repair_figure(Repair([(None, TUNED)], None)) == ""
    unknown = Scores(np.empty(0), TUNED.kept)
    assert repair_figure(Repair([(None, unknown), (Candidate("random", 0.1, "layers"), unknown)], None)) == ""
