"""Pairs of answers against statsmodels' McNemar and against the audit's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar

from knowshift.audits.shares import discordant
from knowshift.statistics.discordant import Turned, turned


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_pairs_are_mcnemars_table(pairs: list[tuple[bool, bool]]) -> None:
    first, second = (np.asarray(its) for its in zip(*pairs, strict=True))
    found = turned(first, second)
    assert found == Turned(
        *(sum(pair == kind for pair in pairs) for kind in ((True, False), (False, True), (True, True), (False, False)))
    )
    assert found.pairs == len(pairs)
    assert found.negated() == turned(second, first)
    assert (found.gained - found.lost) / found.pairs == pytest.approx(first.mean() - second.mean())
    assert found + found == turned(np.tile(first, 2), np.tile(second, 2))
    theirs = mcnemar([[found.right, found.gained], [found.lost, found.wrong]], exact=True)
    assert theirs.statistic == min(found.gained, found.lost)
    lost, gained, p = discordant(second, first)
    assert (lost, gained) == (found.lost, found.gained)
    assert p == pytest.approx(min(1.0, theirs.pvalue))
