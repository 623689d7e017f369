"""Orthogonal subspace fine-tuning (Nayak et al. 2025, arXiv 2504.07097) by PEFT: large singular directions stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import TrainerCallback

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.known_facts import KnownFacts
from knowshift.training.strategy import Held, Strategy, Training, setting
from knowshift.tuning.weights.lora import adapted, plain_linear_layers

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor
    from transformers import PreTrainedModel

    from knowshift.models.loading import LoadedModel


@dataclass(frozen=True)
class Osf(Strategy):
    """The change of a matrix is orthogonal to its singular vectors of the largest singular values, on both sides.

    PEFT projects gradients. Adam divides each of them by its own size, so that the step leaves the subspace again;
    here the trained factors are projected after each step too, and orthogonality holds but for rounding. The share
    that stays is the same for every matrix, as in PEFT; the paper also gives layers shares of their own.
    """

    name: ClassVar[str] = "osf"
    about: ClassVar[str] = "changes orthogonal to the largest singular directions of each matrix"
    source: ClassVar[str] = "Nayak et al. 2025, arXiv 2504.07097; PEFT"
    cost: ClassVar[str] = "singular vectors of all matrices at the start, of which two copies are kept; more time"
    held: ClassVar[Held] = Held(there=3.3)
    rate: ClassVar[float] = 3.0
    kept: float = setting(0.5, "of the singular directions of each matrix that stays", least=0.01, most=0.99)

    def config(self, model: PreTrainedModel) -> PeftConfig:
        """PEFT's configuration.

        Raises:
            InputError: of some matrix none of the directions would stay, or a layer is no Linear.
        """
        from peft import OSFConfig

        layers = plain_linear_layers(model, self.name)
        for name, *sides in layers:
            if not int(min(sides) * self.kept):
                raise InputError(
                    f"{self.name}: kept: {self.kept:g} of the {min(sides)} directions of {name} is none; expected at "
                    f"least {1 / min(sides):.3g}"
                )
        targets = [name for name, *_ in layers]
        return OSFConfig(effective_rank=self.kept, target_modules=targets, task_type="CAUSAL_LM")

    @contextmanager
    def trained(
        self, loaded: LoadedModel, members: Sequence[Fact], seed: int, known: KnownFacts | None
    ) -> Iterator[Any]:
        with adapted(loaded.model, self.config(loaded.model), seed) as wrapped:
            yield wrapped

    def callbacks(self, training: Training) -> list[TrainerCallback]:
        return [_Projection(training.trained)]


class _Projection(TrainerCallback):  # type: ignore[misc]
    """Takes from the trained factors, after each step, what lies in the directions that stay."""

    def __init__(self, wrapped: Any) -> None:
        self._layers = [module for module in wrapped.modules() if hasattr(module, "osf_svd_params")]

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        for layer in self._layers:
            for name, factors in layer.osf_svd_params.items():
                left, right = factors["U_low"], factors["V_low"]  # [out, r] and [r, in]
                left.copy_(free(left, layer._osf_U_high, layer._osf_U_low_init, name))
                right.copy_(free(right.T, layer._osf_V_high, layer._osf_V_low_init, name, transposed=True).T)


def free(factor: Tensor, stay: Any, other: Any, name: str, transposed: bool = False) -> Tensor:
    """``factor`` [side, r] without its part in the singular vectors that stay.

    PEFT keeps those vectors (``stay[name]``) where they and the others (``other[name]``) do not span all of the side;
    else the others alone, onto which it is projected then. ``transposed``: both are stored [r, side].
    """
    kept = name in stay
    basis: Tensor = stay[name] if kept else other[name]
    basis = (basis.T if transposed else basis).to(factor.dtype)
    inside = basis @ (basis.T @ factor)
    return factor - inside if kept else inside
