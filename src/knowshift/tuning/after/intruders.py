"""LoRA whose intruder dimensions are reduced before it is merged (Shuttleworth et al. 2024, arXiv 2410.21228)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from knowshift.errors import border
from knowshift.facts.fact import Fact
from knowshift.known_facts import KnownFacts
from knowshift.training.strategy import Kind, setting
from knowshift.tuning.weights.lora import Lora, adapted, plain_linear_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from knowshift.models.loading import LoadedModel


@dataclass(frozen=True)
class Intruders(Lora):
    """Singular directions of the tuned matrix that are like none of the base's count less; by PEFT, with its defaults.

    Of the ``top`` largest singular values of W + BA, those whose left vector has a cosine below ``similarity`` with
    every left vector of W are multiplied by ``factor``.
    """

    name: ClassVar[str] = "intruders"
    about: ClassVar[str] = "LoRA; singular directions that are new in a matrix are scaled down before merging"
    source: ClassVar[str] = "Shuttleworth et al. 2024, arXiv 2410.21228; PEFT"
    cost: ClassVar[str] = "as LoRA; singular values of all matrices, three times, at the end"
    kind: ClassVar[Kind] = "after"
    top: int = setting(10, "singular directions that are looked at", least=1)
    similarity: float = setting(0.5, "largest |cosine| of a new direction with the base's", least=0, most=1)
    factor: float = setting(0.75, "of a new direction's singular value that stays", least=0, most=1)

    def targets(self, model: PreTrainedModel) -> list[str]:
        # PEFT computes the reduced adapter of a matrix in the orientation of a linear layer.
        return [name for name, *_ in plain_linear_layers(model, self.name)]

    @contextmanager
    def trained(
        self, loaded: LoadedModel, members: Sequence[Fact], seed: int, known: KnownFacts | None
    ) -> Iterator[Any]:
        with adapted(loaded.model, self.config(self.targets(loaded.model)), seed, self.reduce) as wrapped:
            yield wrapped

    def reduce(self, wrapped: Any) -> None:
        """Give a PEFT model, of one LoRA adapter, the reduced adapter in its place."""
        import torch
        from peft.tuners.lora.intruders import reduce_intruder_dimension

        with (
            border("intruder dimensions cannot be reduced"),
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),  # the new adapter is drawn at random before it is set
        ):
            reduce_intruder_dimension(
                wrapped,
                top_k=self.top,
                threshold_epsilon=self.similarity,
                mitigation_lambda=self.factor,
                logging_sink=None,
            )
