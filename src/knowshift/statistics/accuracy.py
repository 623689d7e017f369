"""Accuracy of a domain: the plain mean over test levels (paper 3). One definition for answers, tables and claims."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def levels_with_facts(facts: ArrayLike) -> NDArray[np.int64]:
    """The test levels that an accuracy is the mean of: those with graded facts. A level without is missing, not 0.

    Args:
        facts: graded facts of each test level.
    """
    found: NDArray[np.int64] = np.flatnonzero(np.asarray(facts) > 0)
    return found


def domain_accuracy(hits: Sequence[int] | NDArray[np.int64], facts: Sequence[int] | NDArray[np.int64]) -> float | None:
    """The plain mean of hits / facts over the test levels with facts, in 0..1; None where no level has any.

    Accuracies are compared only between models asked the same facts, since a mean over fewer levels is another
    measure: so a table shows the facts of each level beside it.

    Args:
        hits: of each test level.
        facts: graded facts of each test level.
    """
    present = levels_with_facts(facts)
    if not len(present):
        return None
    return float((np.asarray(hits)[present] / np.asarray(facts)[present]).mean())
