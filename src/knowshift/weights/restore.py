"""Restoring a loaded model to a growing series of fractions, in place.

    before = copy_of(model)                                 # the base's weights: a dict of tensors, kept on the CPU
    ...fine-tune model...
    sweep = RestorationSweep(model, before, criterion="relative", region="layers", seed=0)
    for fraction, count in sweep.run([0.01, 0.03, 0.05, 0.1, 0.2, 0.4, 0.6]):
        ...evaluate model...                                # ``count`` weights stand at their base values
    sweep.undo()                                            # the tuned values again, bit for bit

    measure_change(before, model, FRACTIONS, seed)          # knowshift.weights.change: the same region's tables

All fractions are selected before the first step, in the same passes; each step writes only the weights that are new
to it. ``base`` is a mapping of tensors (names as ``model.named_parameters()``), another loaded model, or a reader of
a checkpoint on disk (:class:`knowshift.weights.pair.StoredTensors`), which streams past the model. The model may be
on any device; scores are computed where it is. Leaving the loop early is fine: ``undo`` takes back what was done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from knowshift.errors import InputError, nearest
from knowshift.weights.criteria import CRITERIA, keys, needs_weights, random_keys, score_of
from knowshift.weights.layout import in_region
from knowshift.weights.selection import NOTHING, Cut, Scan, choose, exact_count
from knowshift.weights.tensors import (
    PIECE,
    LoadedTensors,
    TensorReader,
    WeightPair,
    parameters_of,
    stretches,
    workers,
)

#: The paper's fractions.
FRACTIONS = (0.01, 0.03, 0.05, 0.1, 0.2, 0.4, 0.6)


def key_scan(
    pair: WeightPair, criterion: str, seed: int, run: Callable[..., Iterator[Any]], piece: int = PIECE
) -> Scan:
    """A scan of a pair's keys under a criterion, on an open :func:`~knowshift.weights.tensors.workers`."""

    def scan(function: Callable[[int, int, Tensor], Any]) -> Iterator[Any]:
        def one(tensor: int, start: int, stop: int) -> Any:
            return function(tensor, start, piece_keys(pair, criterion, seed, tensor, start, stop))

        return run(one, stretches(pair.sizes, piece))

    return scan


def piece_keys(pair: WeightPair, criterion: str, seed: int, tensor: int, start: int, stop: int) -> Tensor:
    """Keys of one piece: int32, shape (stop - start,)."""
    if needs_weights(criterion):
        return keys(criterion, *pair.read(tensor, start, stop))
    return random_keys(seed, pair.names[tensor], start, stop, pair.device)


class RestorationSweep:
    """A loaded model on its way back to its base; see the module.

    ``tuned`` is the model's own state before the sweep: by default a copy of the region is taken (the region's size
    in memory once more); a reader of the tuned checkpoint on disk makes that unnecessary.

    Raises :class:`InputError` when a tensor is missing in the base, a shape differs, or a fraction is no fraction.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        base: Mapping[str, Tensor] | torch.nn.Module | TensorReader,
        criterion: str = "relative",
        region: str = "layers",
        seed: int = 0,
        *,
        layers: tuple[int, int] | None = None,
        tuned: TensorReader | None = None,
        threads: int | None = None,
        piece: int = PIECE,
    ) -> None:
        if criterion not in CRITERIA:
            raise InputError(f"criterion {criterion!r} is not known{nearest(criterion, CRITERIA)}")
        self.criterion, self.region, self.seed = criterion, region, seed
        self._threads, self._piece = threads, piece
        self._model = parameters_of(model)
        names = [place.name for place in model_region(model, region, layers)]
        reader = as_reader(base)
        check_shapes(reader, {name: tuple(self._model[name].shape) for name in names})
        for name in names:
            if not self._model[name].is_contiguous():
                raise InputError(f"tensor {name!r}: the loaded model holds it in strides that cannot be written flat")
        kept = tuned or LoadedTensors({name: self._model[name].clone() for name in names})
        self._pair = WeightPair(reader, kept, names, device=self._model[names[0]].device)
        self._done = NOTHING
        self.eligible = sum(self._pair.sizes)
        self.thresholds: dict[float, float | None] = {}

    def run(self, fractions: Sequence[float] = FRACTIONS) -> Iterator[tuple[float, int]]:
        """Yield (fraction, weights restored) after each step; ``fractions`` must ascend.

        A second ``run`` starts again from the tuned model.
        """
        ordered = list(fractions)
        if ordered != sorted(ordered):
            raise InputError(f"fractions {ordered}: expected in ascending order, since each step only adds")
        counts = [exact_count(fraction, self.eligible) for fraction in ordered]
        self.undo()
        with workers(self._threads) as run:
            cuts = choose(key_scan(self._pair, self.criterion, self.seed, run, self._piece), counts)
        self.thresholds = {
            fraction: score_of(self.criterion, cut.key) if cut.count else None
            for fraction, cut in zip(ordered, cuts, strict=True)
        }
        for fraction, cut in zip(ordered, cuts, strict=True):
            if cut.count > self._done.count:
                self._step(self._done, cut)
                self._done = cut
            yield fraction, cut.count

    def undo(self) -> None:
        """Put every restored weight back to its tuned value, bit for bit."""
        if self._done.count:
            for tensor, start, stop in stretches(self._pair.sizes, self._piece):
                name = self._pair.names[tensor]
                self._model[name].view(-1)[start:stop].copy_(self._pair.tuned.read(name, start, stop))
            self._done = NOTHING

    @torch.no_grad()
    def _step(self, before: Cut, after: Cut) -> None:
        with workers(self._threads) as run:
            for _ in run(partial(self._write, before, after), stretches(self._pair.sizes, self._piece)):
                pass

    @torch.no_grad()
    def _write(self, before: Cut, after: Cut, tensor: int, start: int, stop: int) -> None:
        name = self._pair.names[tensor]
        values = piece_keys(self._pair, self.criterion, self.seed, tensor, start, stop)
        new = after.mask(tensor, start, values) & ~before.mask(tensor, start, values)
        where = torch.nonzero(new).reshape(-1)
        base = self._pair.base.read(name, start, stop).to(where.device)
        flat = self._model[name].view(-1)[start:stop]
        flat[where] = base[where].to(flat.dtype)


def model_region(model: torch.nn.Module, region: str, layers: tuple[int, int] | None = None) -> list[Any]:
    """The places of a loaded model's region; its architecture is its configuration's ``model_type``."""
    shapes = {name: tuple(tensor.shape) for name, tensor in parameters_of(model).items()}
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    return in_region(shapes, model_type, region, layers)


def as_reader(tensors: Mapping[str, Tensor] | torch.nn.Module | TensorReader) -> TensorReader:
    """A reader of whatever holds tensors."""
    if isinstance(tensors, torch.nn.Module):
        return LoadedTensors(parameters_of(tensors))
    return LoadedTensors(tensors) if isinstance(tensors, Mapping) else tensors


def check_shapes(base: TensorReader, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise :class:`InputError` naming the first tensor that the base lacks or holds in another shape."""
    for name, shape in wanted.items():
        if name not in base.shapes:
            raise InputError(f"tensor {name!r}: missing in the base{nearest(name, list(base.shapes)[:8])}")
        if tuple(base.shapes[name]) != shape:
            raise InputError(f"tensor {name!r}: shape {base.shapes[name]} in the base, {shape} in the tuned model")
