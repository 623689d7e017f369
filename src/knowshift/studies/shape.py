"""The sizes of a model that decide what it costs, from its configuration alone."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from knowshift.errors import border

#: Families whose feed-forward layers are two matrices; all others are taken to have three (gate, up, down).
_TWO_MATRICES = ("bloom", "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "phi", "starcoder2")


@dataclass(frozen=True)
class Shape:
    """Sizes of a dense transformer. Norms and biases, below a thousandth of the weights, are left out."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    gated: bool  # three matrices in a feed-forward layer, else two
    tied: bool  # the output head is the embedding

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape | None:
        """The shape that a config.json says; None where it does not say it, or where a layer has experts."""
        said = config.get("text_config", config)
        if not isinstance(said, dict) or any("expert" in key for key in said):
            return None

        def size(*names: str) -> int | None:
            found = [said[name] for name in names if type(said.get(name)) is int and said[name] > 0]
            return found[0] if found else None

        layers, hidden = size("num_hidden_layers", "n_layer"), size("hidden_size", "n_embd")
        heads, vocabulary = size("num_attention_heads", "n_head"), size("vocab_size")
        if layers is None or hidden is None or heads is None or vocabulary is None:
            return None
        return cls(
            layers,
            hidden,
            size("intermediate_size", "n_inner", "ffn_dim") or 4 * hidden,
            heads,
            size("num_key_value_heads") or heads,
            size("head_dim") or hidden // heads,
            vocabulary,
            gated=said.get("model_type") not in _TWO_MATRICES,
            tied=bool(said.get("tie_word_embeddings", said.get("model_type") in ("gemma3_text", "gpt2"))),
        )

    @property
    def layer_weights(self) -> int:
        """Weights of the matrices of all layers: the region that a study restores by default."""
        attention = self.hidden * self.head_width * 2 * (self.heads + self.key_value_heads)
        return self.layers * (attention + (3 if self.gated else 2) * self.hidden * self.feed_forward)

    @property
    def weights(self) -> int:
        """Weights of all matrices."""
        return self.layer_weights + (1 if self.tied else 2) * self.vocabulary * self.hidden

    def flops(self, context: int) -> int:
        """Operations of a forward pass for one token that has ``context`` tokens before it, its logits included."""
        attention = 2 * self.layers * self.heads * self.head_width * context
        return 2 * (self.layer_weights + self.vocabulary * self.hidden + attention)


@dataclass(frozen=True)
class KnownModel:
    """A model of a preset, as its publisher describes it."""

    config: Mapping[str, Any]  # of its config.json, what decides its shape
    gated: bool  # the hub gives it to those alone who have accepted its licence

    @property
    def shape(self) -> Shape:
        shape = Shape.of(self.config)
        assert shape is not None
        return shape


@cache
def known_models() -> Mapping[str, KnownModel]:
    """The models of the presets on the hub, by hub id."""
    file = importlib.resources.files("knowshift.studies") / "presets" / "models.json"
    with border(f"{file}: cannot be read"):
        told = json.loads(file.read_text(encoding="utf-8"))
    return {name: KnownModel(entry["config"], entry["gated"]) for name, entry in told.items()}
