"""Tensors of which a process holds a slice: which part of the whole tensor it is, and how the whole one is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from knowshift.parameters.tensors import number_of

if TYPE_CHECKING:
    import torch

#: The attribute of a model by which its slices are found.
_KEPT = "knowshift_slices"


@dataclass(frozen=True)
class Slice:
    """Rows (``dim`` 0) or columns (``dim`` 1, of a matrix) ``start:stop`` of a tensor of this shape."""

    shape: tuple[int, ...]  # of the whole tensor
    dim: int
    start: int
    stop: int

    @property
    def own_shape(self) -> tuple[int, ...]:
        """Shape of the slice."""
        shape = list(self.shape)
        shape[self.dim] = self.stop - self.start
        return tuple(shape)

    def touches(self, start: int, stop: int) -> bool:
        """Whether weights ``start:stop`` of the flattened whole tensor may be in the slice."""
        if self.dim:
            return True
        row = number_of(self.shape[1:])
        return start < self.stop * row and stop > self.start * row

    def put(self, held: torch.Tensor, start: int, stop: int, values: torch.Tensor) -> None:
        """Write what of the whole tensor's weights ``start:stop`` is in the slice ``held``; flat ``values`` of all."""
        row = number_of(self.shape[1:])
        if self.dim == 0:
            first, last = max(start, self.start * row), min(stop, self.stop * row)
            if first < last:
                own = held.view(-1)[first - self.start * row : last - self.start * row]
                own.copy_(values[first - start : last - start])
            return
        for top, bottom, left, right in _rectangles(start, stop, row):
            first, last = max(left, self.start), min(right, self.stop)
            if first < last:
                begin = top * row + left - start
                block = values[begin : begin + (bottom - top) * (right - left)].view(bottom - top, right - left)
                held[top:bottom, first - self.start : last - self.start].copy_(block[:, first - left : last - left])


def _rectangles(start: int, stop: int, row: int) -> Iterator[tuple[int, int, int, int]]:
    """A stretch of a matrix as (top, bottom, left, right): the rest of a row, whole rows, the beginning of one."""
    while start < stop:
        top, left = divmod(start, row)
        if left or stop - start < row:
            bottom, right = top + 1, min(row, left + stop - start)
        else:
            bottom, right = top + (stop - start) // row, row
        yield top, bottom, left, right
        start = (bottom - 1) * row + right


def keep_slices(model: torch.nn.Module, slices: Mapping[str, Slice]) -> None:
    """Say of a model that these of its parameters are slices; all others are whole."""
    setattr(model, _KEPT, dict(slices))


def slices_of(model: torch.nn.Module) -> Mapping[str, Slice] | None:
    """The parameters that are slices, by name; None of a model that is not divided."""
    found: Mapping[str, Slice] | None = getattr(model, _KEPT, None)
    return found


def even_slice(shape: Sequence[int], dim: int, number: int, parts: int) -> Slice:
    """The ``number``-th of so many equal slices; ``parts`` divides the extent."""
    width = shape[dim] // parts
    return Slice(tuple(shape), dim, number * width, (number + 1) * width)
