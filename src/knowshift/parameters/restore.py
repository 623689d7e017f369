"""Restoring a loaded model to a growing series of fractions, in place::

    before = copy_of(model)                                 # the base's weights: a dict of tensors, kept on the CPU
    ...fine-tune model...
    sweep = RestorationSweep(model, before, criterion="relative", seed=0)
    for fraction, count in sweep.run([0.01, 0.03, 0.05, 0.1, 0.2, 0.4, 0.6]):
        ...evaluate model...                                # ``count`` weights stand at their base values
    sweep.undo()                                            # the tuned values again, bit for bit

    measure_change(before, model, FRACTIONS, seed)          # knowshift.parameters.change: the same region's tables

All fractions are selected before the first step, in the same passes; each step changes only weights that are new to
it. ``criterion`` is any of :data:`knowshift.parameters.methods.METHODS`. ``base`` is a mapping of tensors (names as
``model.named_parameters()``), another loaded model, or a reader of a checkpoint on disk (:class:`.StoredTensors`),
which is read stretch by stretch. The model may be on any device: scores are computed on the CPU, and stretches are
copied to its device. Of a model that is divided among processes, each of them selects over the whole tensors, which
both sides then are readers of, and writes its slices. The loop may be left early: ``undo`` reverts the steps that were
done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from knowshift.errors import InputError
from knowshift.parameters.files.pair import check_shapes, refuse_not_finite
from knowshift.parameters.loaded import (
    LoadedTensors,
    as_array,
    as_reader,
    as_tensor,
    check_dtype,
    model_region,
    model_type_of,
    parameters_of,
    shapes_of,
)
from knowshift.parameters.methods import RestorationPlan, check_unread, plan_restoration
from knowshift.parameters.regions import PAPER_SCOPE, Scope, depth
from knowshift.parameters.selection.criteria import NotFinite
from knowshift.parameters.selection.select import FRACTIONS
from knowshift.parameters.slices import slices_of
from knowshift.parameters.tensors import PIECE, Array, TensorReader, WeightPair, stretches, workers


class RestorationSweep:
    """Restores a loaded model to growing fractions; see the module.

    ``tuned`` is the model's own state before the sweep: by default a copy of the region is taken (the region's size in
    memory once more); a reader of the tuned checkpoint on disk makes that unnecessary. After ``run`` has begun,
    ``thresholds`` holds the score of the last weight restored for each fraction (None where there is none).

    Raises :class:`InputError` when a tensor is missing in the base, a shape differs, a weight is not finite (unless
    the scope allows it), a criterion or region is not known, or a fraction is no fraction.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        base: Mapping[str, torch.Tensor] | torch.nn.Module | TensorReader,
        criterion: str = "relative",
        scope: Scope = PAPER_SCOPE,
        seed: int = 0,
        *,
        tuned: TensorReader | None = None,
        threads: int | None = None,
        piece: int = PIECE,
    ) -> None:
        self.criterion, self.seed = criterion, seed
        self._threads, self._piece = threads, piece
        self._model = parameters_of(model)
        self._places = model_region(model, scope)
        self._slices = slices_of(model) or {}
        whole = shapes_of(model)
        self._depth = depth(whole, model_type_of(model))
        names = [place.name for place in self._places]
        shapes = {name: whole[name] for name in names}
        reader = as_reader(base)
        check_shapes(reader.shapes, shapes)
        if tuned is not None:
            check_shapes(tuned.shapes, shapes, "the tuned reader", "the model")
        assert tuned is not None or not self._slices, "what a divided model was before is read from its files"
        for name in names:
            check_dtype(name, self._model[name])
            if not self._model[name].is_contiguous():
                raise InputError(f"tensor {name!r}: the loaded model holds it in strides that cannot be written flat")
        kept = tuned or LoadedTensors({name: self._model[name].to("cpu", copy=True) for name in names})
        self._pair = WeightPair(reader, kept, names, strict=not scope.allow_nonfinite)
        self._changed = False
        self._exact: set[int] = set()  # tensors that the model holds in the dtype that sort keys were made from
        self.eligible = sum(self._pair.sizes)
        self.thresholds: dict[float, float | None] = {}

    def run(self, fractions: Sequence[float] = FRACTIONS) -> Iterator[tuple[float, int]]:
        """Yield (fraction, weights restored) after each step; ``fractions`` must ascend.

        A second ``run`` starts again from the tuned model.
        """
        ordered = list(fractions)
        if ordered != sorted(ordered):
            raise InputError(f"fractions {ordered}: expected in ascending order, since each step only adds")
        self.undo()
        try:
            with workers(self._threads) as run:
                plan = plan_restoration(
                    self._pair,
                    self._places,
                    self._depth,
                    self.criterion,
                    ordered,
                    self.seed,
                    run,
                    piece=self._piece,
                )
                check_unread(plan, run, self._piece)
                plan = plan.unchecked()
        except NotFinite:
            refuse_not_finite(self._pair, "the base", "the model")
        self.thresholds = dict(zip(ordered, plan.thresholds, strict=True))
        for step, fraction in enumerate(ordered):
            yield fraction, self._step(plan, step)

    def undo(self) -> None:
        """Put every changed weight back to its tuned value, bit for bit."""
        if self._changed:
            for tensor, start, stop in stretches(self._pair.sizes, self._piece):
                name = self._pair.names[tensor]
                if name not in self._slices or self._slices[name].touches(start, stop):
                    self._put(name, start, stop, self._pair.tuned.read(name, start, stop))
            self._changed = False

    def _put(self, name: str, start: int, stop: int, values: Array) -> None:
        """Write a stretch of a whole tensor into the model, or what of it the model holds."""
        held = self._model[name]
        if name in self._slices:
            self._slices[name].put(held, start, stop, as_tensor(values))
        else:
            held.view(-1)[start:stop].copy_(as_tensor(values))

    def _step(self, plan: RestorationPlan, step: int) -> int:
        """Apply one fraction over the one before it; how many weights stand restored."""
        self._changed = True
        whole = max(self._pair.sizes) if plan.whole else self._piece
        with workers(self._threads) as run:
            counts = run(
                lambda tensor, start, stop: self._write(plan, step, tensor, start, stop),
                stretches(self._pair.sizes, whole),
            )
            edited = sum(counts)
        known = plan.counts[step]
        return edited if known is None else known

    @torch.no_grad()
    def _write(self, plan: RestorationPlan, step: int, tensor: int, start: int, stop: int) -> int:
        name = self._pair.names[tensor]
        if not plan.cuts or name in self._slices:
            own = self._slices.get(name)
            if plan.counts[step] is not None and own is not None and not own.touches(start, stop):
                return 0  # the plan tells how many are restored
            values, counts = plan.edit(tensor, start, stop, only=step)
            self._put(name, start, stop, values[0])
            return counts[0]
        held = self._model[name].view(-1)[start:stop]
        in_reach = _is_in_reach(held)
        out = as_array(held) if in_reach else np.empty(stop - start, as_array(held[:0]).dtype)
        base = self._pair.base.read(name, start, stop)
        if step and in_reach and tensor in self._exact:
            # What is not restored yet has its tuned value, so its sort key follows from the model itself. A
            # restored weight has its base value whether it is selected again or not.
            return plan.put_back(step, tensor, start, base, out, out)
        # At first written without being read: a weight file that is mapped in would be paged in twice.
        tuned = self._pair.tuned.read(name, start, stop)
        if tuned.dtype == out.dtype:
            self._exact.add(tensor)
        restored = plan.put_back(step, tensor, start, base, tuned, out)
        if not in_reach:
            held.copy_(as_tensor(out))
        return restored


def _is_in_reach(tensor: torch.Tensor) -> bool:
    """Whether the CPU can write to it; else whole stretches are copied to its device."""
    return tensor.device.type == "cpu"
