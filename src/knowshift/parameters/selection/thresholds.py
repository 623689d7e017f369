"""The interface of a selection: sort keys read by stretch, and thresholds among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from knowshift.parameters.tensors import Stretch

#: Keys near thresholds that may be kept from a pass, to save further passes (4 bytes each).
KEPT = 1 << 24


class Keys(Protocol):
    """The int32 sort keys of a region: by stretch, and as a scan of many in ranking order."""

    @property
    def sizes(self) -> Sequence[int]:
        """Weights of each tensor; 0 for one that is left out."""

    def of(self, tensor: int, start: int, stop: int) -> NDArray[np.int32]:
        """Keys of one stretch: shape (stop - start,)."""

    def scan(
        self, function: Callable[[NDArray[np.int32]], Any], some: Sequence[Stretch] | None = None
    ) -> Iterator[tuple[Stretch, Any]]:
        """((tensor, start, stop), function(keys)) of every stretch, or of ``some``, in order, computed in parallel."""


@dataclass(frozen=True)
class Threshold:
    """The last key that a count selects: how many of the weights with that key are taken, of how many there are.

    ``equals()`` gives ((tensor, start, stop), how many equals lie there) in ranking order.
    """

    key: int
    taken: int
    there: int
    equals: Callable[[], Iterable[tuple[Stretch, int]]]


class Kept:
    """A few values of each stretch, in one block of memory; ``whole`` is False once they have not fitted.

    Small arrays that stay between large temporary ones would fragment the heap.
    """

    def __init__(self, capacity: int) -> None:
        self.whole = True
        self._block = np.empty(capacity, np.int32)  # takes memory only as it is filled
        self._stretches: list[Stretch] = []
        self._ends = [0]

    def add(self, stretch: Stretch, values: NDArray[np.int32]) -> None:
        """Keep one stretch's values: int32."""
        end = self._ends[-1] + len(values)
        self.whole = self.whole and end <= len(self._block)
        if self.whole:
            self._block[self._ends[-1] : end] = values
            self._stretches.append(stretch)
            self._ends.append(end)

    @property
    def values(self) -> NDArray[np.int32]:
        """All that was kept, in order."""
        return self._block[: self._ends[-1]]

    def equals(self, value: int) -> Iterator[tuple[Stretch, int]]:
        """How many times a value was kept in each stretch, where it was."""
        numbers = np.searchsorted(self._ends, np.flatnonzero(self.values == value), side="right") - 1
        for number, count in zip(*np.unique(numbers, return_counts=True), strict=True):
            yield self._stretches[number], int(count)
