"""Full fine-tuning of a part of the weights, while the others keep their pre-trained values bit for bit.

Frozen layers: Lee, Tang and Lin 2019, arXiv 1911.03090. Frozen MLPs are a control for where facts are kept (Geva et
al. 2021, arXiv 2012.14913; Meng et al. 2022, arXiv 2202.05262).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.known_facts import KnownFacts
from knowshift.parameters.loaded import model_region
from knowshift.parameters.regions import PAPER_SCOPE, Place, Scope
from knowshift.training.strategy import Held, Strategy, setting
from knowshift.tuning.weights.intact import intact

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from knowshift.models.loading import LoadedModel


@dataclass(frozen=True)
class Part(Strategy):
    """Full fine-tuning of the weights that :meth:`staying` does not name."""

    cost: ClassVar[str] = "no gradients and moments of the weights that stay; a copy of the others on the CPU"
    held: ClassVar[Held] = Held(there=-1.5, on_cpu=0.5)  # where half of the weights stay

    @abstractmethod
    def staying(self, model: PreTrainedModel, seed: int) -> Collection[str]:
        """Names of the parameters that stay.

        Raises:
            InputError: an architecture whose layout is not known.
        """

    @contextmanager
    def trained(
        self, loaded: LoadedModel, members: Sequence[Fact], seed: int, known: KnownFacts | None
    ) -> Iterator[Any]:
        with without(loaded.model, self.staying(loaded.model, seed)):
            yield loaded.model


@dataclass(frozen=True)
class FrozenMlps(Part):
    """The matrices of all MLPs, and their biases, stay; attention, norms, embeddings and head are trained."""

    name: ClassVar[str] = "frozen-mlps"
    about: ClassVar[str] = "the weights of all MLPs stay"
    source: ClassVar[str] = "our control, after Geva et al. 2021, arXiv 2012.14913"
    held: ClassVar[Held] = Held(there=-2.0, on_cpu=0.3)  # two thirds stay

    def staying(self, model: PreTrainedModel, seed: int) -> Collection[str]:
        inside = {module_of(place) for place in model_region(model, Scope("mlp"))}
        return {place.name for place in places_in_layers(model) if module_of(place) in inside}


@dataclass(frozen=True)
class FrozenLayers(Part):
    """floor(share x layers) whole layers stay, from below or from above; embeddings and head are trained."""

    name: ClassVar[str] = "frozen-layers"
    about: ClassVar[str] = "the lower, or the upper, layers stay"
    source: ClassVar[str] = "Lee, Tang and Lin 2019, arXiv 1911.03090"
    share: float = setting(0.5, "of the layers that stays", least=0, most=1)
    upper: bool = setting(False, "the upper layers stay rather than the lower")

    def staying(self, model: PreTrainedModel, seed: int) -> Collection[str]:
        places = places_in_layers(model)
        depth = 1 + max(place.layer or 0 for place in places)
        stay = int(self.share * depth)
        if not stay:
            raise InputError(
                f"{self.name}: share: {self.share:g} of {depth} layers is no whole layer; "
                f"expected at least {1 / depth:.3g}"
            )
        layers = range(depth - stay, depth) if self.upper else range(stay)
        return {place.name for place in places if place.layer in layers}


def places_in_layers(model: PreTrainedModel) -> list[Place]:
    """The places of all parameters inside a model's layers: matrices, norms and biases, sorted by name.

    Raises:
        InputError: an architecture whose layout is not known.
    """
    model_region(model, PAPER_SCOPE)  # refuses an unknown architecture, which the region "all" takes as it is
    return [place for place in model_region(model, Scope("all")) if place.layer is not None]


def module_of(place: Place) -> str:
    """The module that a weight or bias is of."""
    return place.name.removesuffix(".weight").removesuffix(".bias")


@contextmanager
def without(model: PreTrainedModel, staying: Collection[str]) -> Iterator[None]:
    """Within the block the parameters of these names have no gradients; after an error in it, all are as before."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for name, parameter in model.named_parameters():
            if name in staying:
                parameter.requires_grad_(False)
        with intact([parameter for parameter in model.parameters() if parameter.requires_grad]):
            yield
    finally:
        for parameter, had in before.items():
            parameter.requires_grad_(had)
