"""The sort keys of a pair of weight sets under a criterion, from which :func:`.select.choose` selects."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knowshift.parameters.kernels import compiled as kernels
from knowshift.parameters.selection.criteria import NotFinite, keys, random_keys
from knowshift.parameters.selection.published import fapm_keys
from knowshift.parameters.selection.select import Cut
from knowshift.parameters.tensors import PIECE, Array, Runner, Stretch, WeightPair, stretches

#: Criteria whose order is the hash of a position, so that the weights need not be read.
_BY_HASH = ("random", "same-norm")


class PairKeys:
    """Sort keys of a pair's region. ``run`` is an open :func:`~knowshift.parameters.tensors.workers`.

    ``means`` (mean |p| of each tensor) are needed by ``fapm`` alone. ``progress`` is called with the weights done.
    """

    def __init__(
        self,
        pair: WeightPair,
        criterion: str,
        seed: int,
        run: Runner,
        piece: int = PIECE,
        *,
        means: Sequence[float] = (),
        progress: Callable[[int], None] = lambda weights: None,
    ) -> None:
        self.pair, self.criterion, self.seed = pair, criterion, seed
        self._run, self._piece, self._means, self._progress = run, piece, means, progress
        self._only: int | None = None

    def unchecked(self) -> PairKeys:
        """The same keys, of weights that are known to be finite."""
        keys = copy.copy(self)
        keys.pair = replace(self.pair, strict=False)
        return keys

    def alone(self, tensor: int) -> PairKeys:
        """The same keys, of one tensor of the region."""
        keys = PairKeys(
            self.pair, self.criterion, self.seed, self._run, self._piece, means=self._means, progress=self._progress
        )
        keys._only = tensor
        return keys

    def of(self, tensor: int, start: int, stop: int) -> NDArray[np.int32]:
        """Keys of one stretch: int32, shape (stop - start,)."""
        if self.criterion in _BY_HASH:
            return random_keys(self.seed, self.pair.names[tensor], start, stop)
        base, tuned = self.pair.read(tensor, start, stop)
        return self.given(tensor, start, base, tuned)

    def given(self, tensor: int, start: int, base: Array, tuned: Array) -> NDArray[np.int32]:
        """Keys of a stretch that has been read."""
        if self.criterion in _BY_HASH:
            return random_keys(self.seed, self.pair.names[tensor], start, start + len(tuned))
        if self.criterion == "breadcrumbs":
            return keys("absolute", base, tuned, self.pair.strict)
        if self.criterion == "fapm":
            return fapm_keys(base, tuned, self._means[tensor])
        return keys(self.criterion, base, tuned, self.pair.strict)

    def restore(self, tensor: int, start: int, base: Array, tuned: Array, cut: Cut, out: Array) -> int | None:
        """Write a stretch with the weights of a cut restored; how many, or None where keys must be computed first."""
        mean = self._means[tensor] if self._means else 0.0
        found = kernels.restore(self.criterion, base, tuned, mean, cut.within(tensor, start, len(out)), out)
        if found is None:
            return None
        restored, finite = found
        if self.pair.strict and not finite:
            raise NotFinite
        return restored

    @property
    def sizes(self) -> list[int]:
        """Weights of each tensor; 0 for those left out by :meth:`alone`."""
        sizes = self.pair.sizes
        return sizes if self._only is None else [n if i == self._only else 0 for i, n in enumerate(sizes)]

    def scan(
        self, function: Callable[[NDArray[np.int32]], Any], some: Sequence[Stretch] | None = None
    ) -> Iterator[tuple[Stretch, Any]]:
        """((tensor, start, stop), function(keys)) of every stretch, or of ``some``, in ranking order."""
        parts = list(stretches(self.sizes, self._piece)) if some is None else some
        for stretch, result in zip(parts, self._run(lambda *s: function(self.of(*s)), parts), strict=True):
            self._progress(stretch[2] - stretch[1])
            yield stretch, result
