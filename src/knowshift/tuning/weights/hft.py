"""Half fine-tuning (Hui et al. 2024, arXiv 2404.18466): half of each kind of each layer's parameters stays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from knowshift.parameters.regions import Place
from knowshift.tuning.weights.part import Part, module_of, places_in_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Hft(Part):
    """Their category-level choice, of one round: which half stays is drawn once, by the training's seed."""

    name: ClassVar[str] = "hft"
    about: ClassVar[str] = "half of the attention matrices, MLP matrices and norms of each layer stays, drawn by seed"
    source: ClassVar[str] = "Hui et al. 2024, arXiv 2404.18466"
    cost: ClassVar[str] = "no gradients and moments of the half that stays; a copy of the other on the CPU"

    def staying(self, model: PreTrainedModel, seed: int) -> Collection[str]:
        return half(places_in_layers(model), seed)


def half(places: Iterable[Place], seed: int) -> set[str]:
    """Names of the parameters in ``places`` that stay: of each layer and kind, half of the modules, drawn by ``seed``.

    Of three matrices of an MLP two stay in half of the layers, which are drawn too, and one in the others; so for any
    odd number. A bias stays with its weight. Embeddings, head and final norm, which are in no layer, are trained.
    """
    modules: dict[str, dict[int, dict[str, list[str]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    kinds: dict[str, str] = {}
    inside = [place for place in places if place.layer is not None]
    for place in inside:
        if place.kind != "biases":
            kinds[module_of(place)] = place.kind
    for place in inside:
        module = module_of(place)
        assert place.layer is not None
        modules[kinds.get(module, place.kind)][place.layer][module].append(place.name)
    staying: set[str] = set()
    rng = np.random.default_rng([seed, 9])
    for _, layers in sorted(modules.items()):
        numbers = sorted(layers)
        more = {numbers[i] for i in rng.permutation(len(numbers))[: len(numbers) // 2]}  # where an odd one stays too
        for number in numbers:
            names = sorted(layers[number])
            count = len(names) // 2 + (len(names) % 2 if number in more else 0)
            for i in rng.permutation(len(names))[:count]:
                staying.update(layers[number][names[i]])
    return staying
