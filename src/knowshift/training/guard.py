"""A training that went wrong ends in an error: values that are not finite, a change that Adam cannot have made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, TrainerCallback, TrainerState

from knowshift.errors import InputError

#: Adam's decay rates, as the Trainer sets them.
BETAS = (0.9, 0.999)
#: The largest step of Adam in learning rates, for any gradients: 7.27 (see :class:`TrainingGuard`).
LARGEST_STEP = (1 - BETAS[0]) / math.sqrt((1 - BETAS[1]) * (1 - BETAS[0] ** 2 / BETAS[1]))
#: For moments that are themselves rounded to bfloat16 (8 bits): each of ten remembered steps off by 2**-8.
_ROUNDED_MOMENTS = 1.1
#: The stored weight is a neighbour of the exact one no farther than the old weight is: rounding doubles a step at most.
_ROUNDED_WEIGHT = 2.0
#: Relative error of a weight in one step of float32 arithmetic that decays it.
_ARITHMETIC = 2.0**-21
#: Weights of each tensor whose change is checked.
SAMPLED = 65_536


class TrainingGuard(TrainerCallback):  # type: ignore[misc]
    """Watches one training with Adam. Logging must happen at every step, and show losses that are not finite.

    **Not finite.** The first loss or gradient norm that is NaN or infinite ends the training; at its end every weight
    is checked. A norm that overflows would go unseen otherwise: clipping by it makes every gradient 0.

    **Change.** Adam moves a weight by lr * m / (sqrt(v) + eps) with m = (1 - b1) sum b1^i g_i and v = (1 - b2) sum
    b2^i g_i^2 over the gradients g_i of i steps ago, both corrected for their start at 0. By Cauchy and Schwarz
    |m| <= (1 - b1) / sqrt(1 - b2) * sqrt(sum (b1^2 / b2)^i) * sqrt(v), and the corrections only lower the ratio, so one
    step is at most :data:`LARGEST_STEP` = 7.27 learning rates, for any gradients. (Kingma and Ba 2015, section 2.1,
    give (1 - b1) / sqrt(1 - b2) = 3.16: the case of one gradient after many zeros. Gradients that grow by b2 / b1 at
    every step come to 7.27.) Decoupled weight decay w (Loshchilov and Hutter 2019) adds lr * w * |weight|. With S the
    sum of the learning rates used and R = 2 * 1.1 * 7.27 * S for rounding, no weight p is farther from its start than
    R + 2 S w (|p| + R), as long as lr * w <= 1. Training moves most weights by a small part of that.

    The change is checked in a sample of :data:`SAMPLED` weights of every tensor, kept from before the training: a
    dtype or an optimiser that fails does so all over a tensor, and a copy of all weights would double the memory.

    Of weights that are divided among processes, each process checks its own.

    Raises:
        InputError: here, a weight that is not finite before training; from a callback or :meth:`check`, the above.
    """

    def __init__(self, model: PreTrainedModel, name: str, *, weight_decay: float) -> None:
        self._model, self._name, self._decay = model, name, weight_decay
        self._rates = 0.0
        self._steps = 0
        if bad := self._not_finite():
            raise InputError(f"{name}: weights of {bad!r} are not finite before training; the checkpoint is damaged")
        self._before = {tensor: sample(parameter).clone() for tensor, parameter in self._trained()}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **more: Any) -> None:
        """Called by the Trainer after every step, with its loss, gradient norm and learning rate."""
        if logs is not None and "loss" in logs:  # else the summary at the end
            self.look(state, logs)

    def look(self, state: TrainerState, logs: Mapping[str, float]) -> None:
        """After a step, whose number ``state`` has: ``loss``, ``grad_norm`` and ``learning_rate`` of it."""
        for key, what in (("loss", "the loss"), ("grad_norm", "the norm of the gradients")):
            if not math.isfinite(logs.get(key, 0.0)):
                raise self._error(f"step {state.global_step} of {state.max_steps}: {what} is {logs[key]}")
        self._steps += 1
        self._rates += logs["learning_rate"]

    def check(self) -> None:
        """Raise :class:`InputError` where the trained weights are not finite, or changed more than Adam can."""
        after = f"after {self._steps} steps"
        if bad := self._not_finite():
            raise self._error(f"{after}: weights of {bad!r} are not finite")
        reach = _ROUNDED_WEIGHT * _ROUNDED_MOMENTS * LARGEST_STEP * self._rates
        shrinking = self._decay and _ROUNDED_WEIGHT * self._rates * self._decay + self._steps * _ARITHMETIC
        for tensor, parameter in self._trained():
            before = self._before[tensor].double()
            change = (sample(parameter).double() - before).abs()
            allowed = reach + shrinking * (before.abs() + reach)
            worst = int((change - allowed).argmax())
            if change[worst] > allowed[worst]:
                raise self._error(
                    f"{after}: a weight of {tensor!r} changed by {float(change[worst]):.3g}, where learning rates "
                    f"that sum to {self._rates:.3g} can change it by {float(allowed[worst]):.3g}"
                )

    def _error(self, found: str) -> InputError:
        return InputError(
            f"{self._name}: training failed: {found}; nothing is kept. Try a lower learning rate, or dtype float32"
        )

    def _trained(self) -> Iterator[tuple[str, Tensor]]:
        for tensor, parameter in self._model.named_parameters():
            held = parameter.detach()
            if isinstance(held, DTensor):
                held = held.to_local()
            if parameter.requires_grad and held.is_floating_point() and held.numel():
                yield tensor, held

    def _not_finite(self) -> str | None:
        """The first tensor with a NaN or an infinity. aminmax gives NaN if any weight is NaN: no copy is made."""
        for tensor, parameter in self._trained():
            if not torch.stack(torch.aminmax(parameter)).isfinite().all():
                return tensor
        return None


def sample(parameter: Tensor) -> Tensor:
    """At most :data:`SAMPLED` weights of a tensor, evenly spaced by an odd number, so that all columns occur."""
    stride = math.ceil(parameter.numel() / SAMPLED) | 1
    return parameter.flatten()[::stride]
