"""Honest choices: a size, level or fraction is chosen on other facts and draws than those that measure it.

Shape suffixes: K candidates, D training draws, H halves of the facts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


#: Standard deviation of an honest choice over its standard error when all candidates are equal: folds choose for one
#: another, so a candidate that is high by chance in one fold counts in the other. The largest ratios in simulations of
#: 2 to 7 candidates, 1 to 5 draws and any share of noise common to draws. Tested.
ONE_CHOICE, TWO_CHOICES, BEST_AND_WORST = 1.09, 1.17, 1.31


#: Decimals to which candidates are compared: what differs by less is rounding.
EQUAL = 9


def choose_elsewhere(scores_KDH: Floats, highest: bool = True) -> Integers:
    """The candidate chosen for each (draw, half) from *other* draws and the *other* half of the facts, shape (D, H).

    ``scores_KDH``: candidates (fractions, sizes) x training draws x halves of the facts. Choosing and measuring on the
    same facts rewards luck; here neither the facts nor the draws that measure a choice took part in it. With one
    draw only the facts are kept apart. Ties take the first candidate; an empty half takes the other's choice.
    """
    _, draws, halves = scores_KDH.shape
    assert halves == 2, "facts are split in two halves"
    chosen = np.zeros((draws, halves), dtype=np.int64)
    signed = scores_KDH if highest else -scores_KDH
    for draw in range(draws):
        others = [d for d in range(draws) if d != draw] or [draw]
        for half in range(halves):
            means_K = signed[:, others, 1 - half].mean(axis=1)
            if np.isnan(means_K).any():
                means_K = signed[:, others, half].mean(axis=1)
            # Equal candidates whose last digits differ, by the order of adding, are equal.
            means_K = np.round(means_K, EQUAL)
            chosen[draw, half] = 0 if np.isnan(means_K).all() else int(np.nanargmax(means_K))
    return chosen
