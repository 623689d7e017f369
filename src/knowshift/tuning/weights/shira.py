"""Sparse high-rank adapters (SHiRA; Bhardwaj et al. 2024, arXiv 2406.13175) by PEFT, with random masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.known_facts import KnownFacts
from knowshift.system.patches import forget_shira_layers
from knowshift.training.strategy import Held, Strategy, setting
from knowshift.tuning.weights.lora import adapted, plain_linear_layers

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor
    from transformers import PreTrainedModel

    from knowshift.models.loading import LoadedModel


@dataclass(frozen=True)
class Shira(Strategy):
    """Of each matrix m x n, rank x (m + n) weights are trained: as many as LoRA of that rank has there.

    Which ones is drawn by seed, for each matrix anew: PEFT's own masks are alike in all matrices of one shape.
    PEFT's default rank is 32; here it is LoRA's, so that as many weights are trained.
    """

    name: ClassVar[str] = "shira"
    about: ClassVar[str] = "a few weights of each matrix, drawn by seed"
    source: ClassVar[str] = "Bhardwaj et al. 2024, arXiv 2406.13175; PEFT"
    cost: ClassVar[str] = "less memory: no moments of the weights, but a copy of all matrices in each step; more time"
    held: ClassVar[Held] = Held(there=-1.5)
    rate: ClassVar[float] = 10.0
    rank: int = setting(8, "rank of a LoRA that has as many trained weights", least=1)

    def config(self, model: PreTrainedModel, seed: int) -> PeftConfig:
        """PEFT's configuration.

        Raises:
            InputError: a matrix has fewer weights than are to be trained, or a layer is no Linear.
        """
        from peft import ShiraConfig

        layers = plain_linear_layers(model, self.name)
        for name, rows, columns in layers:
            if self.rank * (rows + columns) > rows * columns:
                raise InputError(
                    f"{self.name}: rank: {self.rank} trains {self.rank * (rows + columns):,} weights of {name}, which "
                    f"has {rows * columns:,}; expected at most {rows * columns // (rows + columns)}"
                )
        config = ShiraConfig(r=self.rank, target_modules=[name for name, *_ in layers], task_type="CAUSAL_LM")
        config.mask_fn = masks(seed)
        return config

    @contextmanager
    def trained(
        self, loaded: LoadedModel, members: Sequence[Fact], seed: int, known: KnownFacts | None
    ) -> Iterator[Any]:
        import torch

        check: Any = torch.sparse.check_sparse_tensor_invariants
        try:
            # That sparse tensors are not checked is said, since torch warns where it is not.
            with check(enable=False), adapted(loaded.model, self.config(loaded.model, seed), seed) as wrapped:
                yield wrapped
        finally:
            forget_shira_layers()


def masks(seed: int) -> Callable[..., Tensor]:
    """A mask function as PEFT calls it for one layer after the other: rank x (m + n) places of the weight [m, n]."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def mask(layer: Any, rank: int, **given: Any) -> Tensor:
        weight = layer.weight
        chosen = torch.randperm(weight.numel(), generator=generator)[: rank * sum(weight.shape)]
        flat = torch.zeros(weight.numel(), dtype=torch.bool)
        flat[chosen] = True
        return flat.view(weight.shape).to(weight.device)

    return mask
