"""How lines of figures look."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from knowshift.html.style import CONTROL, RUN, line_styles
from knowshift.parameters.methods import METHODS


@given(st.sets(st.sampled_from(METHODS)))
def test_every_criterion_has_a_line_of_its_own(criteria: set[str]) -> None:
    """Five colours were once all there were: a report of seven criteria failed, and a figure left the others out."""
    found = line_styles(iter(sorted(criteria)))
    assert set(found) == criteria
    assert len(set(found.values())) == len(criteria)
    assert found.get("relative", (RUN, "-")) == (RUN, "-")
    assert found.get("random", (CONTROL, "--")) == (CONTROL, "--")
    assert list(found)[:1] == (["relative"] if "relative" in criteria else list(found)[:1])
