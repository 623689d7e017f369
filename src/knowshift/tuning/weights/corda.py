"""CorDA (Yang et al. 2024, arXiv 2406.05223) in its knowledge-preserving mode, by PEFT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from knowshift.errors import InputError, border
from knowshift.facts.fact import Fact, completion_prompts
from knowshift.known_facts import KnownFacts
from knowshift.training.strategy import KNOWN_LEVELS, Held, setting
from knowshift.tuning.weights.intact import intact
from knowshift.tuning.weights.lora import Lora, adapted, linear_layers

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from knowshift.models.loading import LoadedModel

#: What PEFT leaves on the layers that it looked at.
_LEFT = ("corda_method", "rank", "sample_count", "covariance_matrix", "eigens")


@dataclass(frozen=True)
class Corda(Lora):
    """LoRA that begins at the directions which texts of known facts use least.

    With C = X X^T of a layer's inputs X on such texts, W C = U S V^T; the adapter begins as the part of W that belongs
    to the ``rank`` smallest singular values, and the rest of W stays. The texts are training facts of levels 3 and 4
    in completion form, a completion prompt and the answer, each fact once, prompts in turn. The paper has 256 texts of
    2,048 tokens and rank 128; its scale alpha / rank is 1, as here.
    """

    name: ClassVar[str] = "corda"
    about: ClassVar[str] = "LoRA in the directions that known facts use least"
    needs_known: ClassVar[bool] = True
    source: ClassVar[str] = "Yang et al. 2024, arXiv 2406.05223; PEFT"
    cost: ClassVar[str] = "a pass over known facts and singular values of all matrices at the start; a copy of them"
    held: ClassVar[Held] = Held(there=-0.8, on_cpu=1.0)  # while it begins; then as LoRA
    alpha: float = setting(8.0, "the update is scaled by alpha / rank", least=0)
    texts: int = setting(256, "known facts whose texts are looked at; all where there are fewer", least=1)

    def kept(self, known: KnownFacts | None, seed: int) -> list[Fact]:
        """The facts whose texts are looked at.

        Raises:
            InputError: the mastery record has none, or there is no record.
        """
        pool = [] if known is None else [fact for level in KNOWN_LEVELS for fact in known.of("train", level)]
        if not pool:
            raise InputError(
                f"{self.name}: the mastery record has no training facts of levels 3 and 4, which are to be kept; "
                "expected some, or another strategy"
            )
        order = np.random.default_rng([seed, 10]).permutation(len(pool))
        return [pool[i] for i in order[: self.texts]]

    def more(self) -> dict[str, Any]:
        from peft.tuners.lora.config import CordaConfig

        return {"init_lora_weights": "corda", "corda_config": CordaConfig(corda_method="kpm")}

    def targets(self, model: PreTrainedModel) -> list[str]:
        return linear_layers(model)

    @contextmanager
    def trained(
        self, loaded: LoadedModel, members: Sequence[Fact], seed: int, known: KnownFacts | None
    ) -> Iterator[Any]:
        model = loaded.model
        targets = self.targets(model)
        for name in targets:
            side = min(model.get_submodule(name).weight.shape)
            if self.rank > side:
                raise InputError(f"{self.name}: rank: expected at most {side}, as {name} has, found {self.rank}")
        config = self.config(targets)
        with (
            # The adapter's beginning is taken out of the weights: unloading it does not put that back.
            intact([model.get_submodule(name).weight for name in targets]),
            calibrated(loaded, config, texts_of(self.kept(known, seed))),
            adapted(model, config, seed) as wrapped,
        ):
            yield wrapped


def texts_of(known: Sequence[Fact]) -> list[str]:
    """A completion of each fact: one of its completion prompts, in turn, and the answer."""
    prompts = [completion_prompts(fact) for fact in known]
    return [f"{own[i % len(own)]} {fact.answer}" for i, (fact, own) in enumerate(zip(known, prompts, strict=True))]


@contextmanager
def calibrated(loaded: LoadedModel, config: PeftConfig, texts: Sequence[str]) -> Iterator[None]:
    """Within the block, the layers that ``config`` targets have what PEFT begins their adapters with.

    Raises:
        InputError: a text does not fit into the model's context, or its activations are not finite.
    """
    import torch
    from peft.tuners.lora.corda import preprocess_corda

    ids = loaded.encoder.prompts(texts)

    def run() -> None:
        for one in ids:  # PEFT takes the inputs of one text at a time
            loaded.model(input_ids=torch.tensor([one], device=loaded.model.device), use_cache=False)

    hooks = {module: set(module._forward_hooks) for module in loaded.model.modules()}
    try:
        with border(f"CorDA cannot look at {loaded.name}"):
            preprocess_corda(loaded.model, config, run_model=run)
        yield
    finally:
        for module, before in hooks.items():  # an interrupt leaves PEFT's
            for key in set(module._forward_hooks) - before:
                del module._forward_hooks[key]
            for name in _LEFT:
                vars(module).pop(name, None)
