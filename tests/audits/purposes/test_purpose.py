"""Some items of a purpose, and as many as there is time for."""

from __future__ import annotations

import types
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knowshift.audits.purposes import purpose as purposes
from knowshift.audits.purposes.kept import Kept
from knowshift.audits.purposes.purpose import ASKED, FEWEST, SHARE, Floats, Some, Together, in_time
from knowshift.models.loading import LoadedModel

#: Seconds for an item, on the clock of these tests.
EACH = 0.5


class Slow(Kept):
    """Items whose score is their number, each a while of work."""

    def scores(self, loaded: LoadedModel, which: Sequence[int]) -> Floats:
        CLOCK[0] += EACH * len(which)
        return np.array(which, dtype=float)


CLOCK = [0.0]


def slow(items: int) -> Slow:
    CLOCK[0] = 0.0
    return Slow("slow", [f"{i}?" for i in range(items)], [("a",)] * items, questions=[str(i) for i in range(items)])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(2, 500), st.floats(1, 3000))
def test_a_search_asks_as_many_items_as_it_has_time_for(
    small_model: LoadedModel, monkeypatch: pytest.MonkeyPatch, items: int, seconds: float
) -> None:
    monkeypatch.setattr(purposes, "time", types.SimpleNamespace(monotonic=lambda: CLOCK[0]))
    whole = slow(items)
    found = in_time(whole, small_model, 0, seconds)
    left = seconds - CLOCK[0]
    assert len(found) == items or len(found) >= min(items, FEWEST)
    if len(found) > FEWEST:
        assert ASKED * EACH * len(found) <= SHARE * left + 1e-6
    if len(found) < items:
        assert isinstance(found, Some)
        assert ASKED * EACH * (len(found) + 1) > SHARE * left
        assert found.texts == [whole.texts[i] for i in found.places]
        assert found.scores(small_model, [1, 0]).tolist() == [found.places[1], found.places[0]]
        assert (found.name, found.suffer, found.is_text) == (whole.name, whole.suffer, whole.is_text)
        CLOCK[0] = 0.0
        assert in_time(whole, small_model, 0, seconds) == found


def test_some_items_of_several_purposes_are_their_own(small_model: LoadedModel) -> None:
    both = Together((slow(5), slow(7)))
    assert Some(both, (1, 4, 5, 11)).scores(small_model, [3, 0, 2]).tolist() == [6.0, 1.0, 0.0]
