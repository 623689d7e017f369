"""Where a tensor sits in a transformer: layer, module, kind; and which tensors make up a region.

The names are those of the checkpoint on disk, or those of a loaded model where transformers fuses weights in memory
(the experts of a mixture). The layout of an architecture that is not in :data:`ARCHITECTURES` is never guessed: only
the region ``all`` is available for it.

The region ``layers`` is the paper's (section 4.2): every weight matrix inside the transformer layers; norms, biases,
embeddings and the output head stay out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from knowshift.errors import InputError, nearest

REGIONS = ("layers", "attention", "mlp", "embeddings", "norms", "all")

_LLAMA = {
    "q": r"self_attn\.q_proj",
    "k": r"self_attn\.k_proj",
    "v": r"self_attn\.v_proj",
    "o": r"self_attn\.o_proj",
    "gate": r"mlp\.gate_proj",
    "up": r"mlp\.up_proj",
    "down": r"mlp\.down_proj",
}
# Experts: one matrix each on disk; one fused tensor of shape (experts, out, in) in a loaded model.
_EXPERTS = {
    **{name: pattern for name, pattern in _LLAMA.items() if name in "qkvo"},
    "gate": r"mlp\.(?:experts\.\d+\.|shared_experts?\.)?gate_proj",
    "up": r"mlp\.(?:experts\.\d+\.|shared_experts?\.)?up_proj",
    "down": r"mlp\.(?:experts\.\d+\.|experts\.|shared_experts?\.)?down_proj",
    "gate_up": r"mlp\.experts\.gate_up_proj",
    "router": r"mlp\.(?:gate|router)",
    "shared_gate": r"mlp\.shared_expert_gate",
}
_MIXTRAL = {
    **_EXPERTS,
    "gate": r"block_sparse_moe\.experts\.\d+\.w1",
    "down": r"(?:block_sparse_moe\.experts\.\d+\.w2|mlp\.experts\.down_proj)",
    "up": r"block_sparse_moe\.experts\.\d+\.w3",
    "router": r"(?:block_sparse_moe|mlp)\.gate",
}
_PHI = {
    **{name: pattern for name, pattern in _LLAMA.items() if name in "qkv"},
    "o": r"self_attn\.dense",
    "up": r"mlp\.fc1",
    "down": r"mlp\.fc2",
}
_PHI3 = {
    "qkv": r"self_attn\.qkv_proj",
    "o": r"self_attn\.o_proj",
    "gate_up": r"mlp\.gate_up_proj",
    "down": r"mlp\.down_proj",
}
_NEOX = {
    "qkv": r"attention\.query_key_value",
    "o": r"attention\.dense",
    "up": r"mlp\.dense_h_to_4h",
    "down": r"mlp\.dense_4h_to_h",
}
_GPT2 = {
    "qkv": r"attn\.c_attn",
    "o": r"attn\.c_proj",
    "up": r"mlp\.c_fc",
    "down": r"mlp\.c_proj",
}


@dataclass(frozen=True)
class Architecture:
    """How one family names its tensors: the layer list, the modules inside a layer, embeddings and head."""

    layer: str  # a pattern ending before the layer's number
    modules: Mapping[str, str]
    embeddings: str
    head: str = r"lm_head"
    table: str | None = None  # the token embeddings, where a model has others too
    transposed: bool = False  # whether matrices inside the layers are stored (in, out): transformers' Conv1D
    tied: bool = False  # whether the head is the token embeddings unless the configuration says otherwise


_MODEL = r"(?:model\.)?"
_DECODER = Architecture(_MODEL + r"layers\.", _LLAMA, _MODEL + r"embed_tokens")
_DECODER_TIED = replace(_DECODER, tied=True)
_MOE = Architecture(_MODEL + r"layers\.", _EXPERTS, _MODEL + r"embed_tokens")

#: By ``model_type`` of the configuration.
ARCHITECTURES: Mapping[str, Architecture] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "olmo", "olmo2", "olmo3"), _DECODER),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "smollm3"), _DECODER_TIED),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "olmoe"), _MOE),
    "mixtral": Architecture(_MODEL + r"layers\.", _MIXTRAL, _MODEL + r"embed_tokens"),
    "phi": Architecture(_MODEL + r"layers\.", _PHI, _MODEL + r"embed_tokens"),
    "phi3": Architecture(_MODEL + r"layers\.", _PHI3, _MODEL + r"embed_tokens"),
    "gpt_neox": Architecture(r"(?:gpt_neox\.)?layers\.", _NEOX, r"(?:gpt_neox\.)?embed_in", r"(?:embed_out|lm_head)"),
    "gpt2": Architecture(
        r"(?:transformer\.)?h\.",
        _GPT2,
        r"(?:transformer\.)?(?:wte|wpe)",
        table=r"(?:transformer\.)?wte",
        transposed=True,
        tied=True,
    ),
}

_ATTENTION = ("q", "k", "v", "o", "qkv")


def plain_name(name: str) -> str:
    """A tensor's name without what versions of transformers put before it or call otherwise.

    The hub's GPT-2 lacks the prefix that a fine-tuned copy is saved with; Pythia's head has had two names.
    """
    return re.sub(r"^(?:model|transformer|gpt_neox)\.", "", name).replace("embed_out.", "lm_head.")


def own_names(names: Collection[str]) -> Callable[[str], str | None]:
    """What a checkpoint of these tensors calls a tensor that another may call otherwise; None for one it lacks.

    Where two of its tensors differ by :func:`plain_name` alone, only exact names are found.
    """
    exact = set(names)
    plain = {plain_name(name): name for name in names}

    def of(name: str) -> str | None:
        if name in exact or len(plain) < len(exact):
            return name if name in exact else None
        return plain.get(plain_name(name))

    return of


def stored_transposed(name: str, model_type: str) -> bool:
    """Whether a matrix is stored (in, out) rather than (out, in), as those of a Conv1D are."""
    family = ARCHITECTURES[model_type]
    return family.transposed and re.match(family.layer + r"\d+\.", name) is not None


def tied_table(names: Collection[str], model_type: str, config: Mapping[str, Any]) -> str | None:
    """The token embeddings that the output head is by ``config.json``, or None where the two are apart (or unknown)."""
    family = ARCHITECTURES.get(model_type)
    if family is None or not config.get("tie_word_embeddings", family.tied):
        return None
    pattern = family.table or family.embeddings
    return next((name for name in names if re.fullmatch(pattern, name.removesuffix(".weight"))), None)


@dataclass(frozen=True)
class Place:
    """One tensor's place: ``kind`` is attention, mlp, embeddings, head, norms, biases or other."""

    name: str
    layer: int | None
    module: str
    kind: str


def place(name: str, shape: tuple[int, ...], model_type: str) -> Place:
    """Place one tensor; ``model_type`` must be in :data:`ARCHITECTURES`.

    A matrix inside a layer whose name no pattern knows (a new kind of adapter, say) is a matrix of that layer all
    the same: its kind is ``other`` and its module is its own name.
    """
    family = ARCHITECTURES[model_type]
    inside = re.match(family.layer + r"(\d+)\.(.+)$", name)
    stem = name.removesuffix(".weight")
    if inside is None:
        if name.endswith("bias"):
            return Place(name, None, stem, "biases")
        if re.fullmatch(family.embeddings, stem):
            return Place(name, None, "embeddings", "embeddings")
        if re.fullmatch(family.head, stem):
            return Place(name, None, "head", "head")
        return Place(name, None, stem.rpartition(".")[2], "norms" if "norm" in stem or "ln_" in stem else "other")
    layer, rest = int(inside.group(1)), inside.group(2)
    if rest.endswith("bias"):
        return Place(name, layer, rest, "biases")
    if len(shape) < 2:
        return Place(name, layer, rest.removesuffix(".weight"), "norms")
    rest = rest.removesuffix(".weight")
    for module, pattern in family.modules.items():
        if re.fullmatch(pattern, rest):
            return Place(name, layer, module, "attention" if module in _ATTENTION else "mlp")
    return Place(name, layer, rest, "other")


@dataclass(frozen=True)
class Scope:
    """Which weights of a pair are compared, ranked and restored: one value from the command down to the reader."""

    region: str = "layers"  # one of :data:`REGIONS`; the paper's is "layers"
    layers: tuple[int, int] | None = None  # first and last transformer layer, both included; None for all
    allow_nonfinite: bool = False  # accept weights that are NaN or infinite


#: The paper's (4.2): every weight matrix inside the transformer layers.
PAPER_SCOPE = Scope()


def in_region(shapes: Mapping[str, tuple[int, ...]], model_type: str, scope: Scope = PAPER_SCOPE) -> list[Place]:
    """The tensors of a scope, sorted by name: the order in which equal scores are ranked.

    Raises :class:`InputError` for an unknown region, an architecture whose layout is not known (other than for
    ``all``), an empty region, and layers that the model does not have.
    """
    region, layers = scope.region, scope.layers
    if region not in REGIONS:
        raise InputError(f"region {region!r} is not known{nearest(region, REGIONS)}")
    known = model_type in ARCHITECTURES
    if not known and (region != "all" or layers is not None):
        raise InputError(
            f"architecture {model_type!r} has no known layout, so only the region 'all' is available"
            + nearest(model_type, ARCHITECTURES)
        )
    if known:
        places = [place(name, shapes[name], model_type) for name in sorted(shapes)]
    else:
        places = [Place(name, None, name, "other") for name in sorted(shapes)]
    if layers is not None:
        present = sorted({p.layer for p in places if p.layer is not None})
        first, last = layers
        if not (0 <= first <= last and present and last <= present[-1]):
            raise InputError(f"layers {first}-{last}: the model has layers 0-{present[-1] if present else 'none'}")
        places = [p for p in places if p.layer is not None and first <= p.layer <= last]
    kept = [p for p in places if _belongs(p, region)]
    if not any(all(shapes[p.name]) for p in kept):
        raise InputError(f"region {region!r} of architecture {model_type!r} holds no weight of this model")
    return kept


def depth(shapes: Mapping[str, tuple[int, ...]], model_type: str) -> int:
    """How many transformer layers a model has; 0 for an architecture whose layout is not known."""
    if model_type not in ARCHITECTURES:
        return 0
    return 1 + max((place(name, shapes[name], model_type).layer or 0 for name in shapes), default=-1)


def _belongs(where: Place, region: str) -> bool:
    if region == "layers":
        return where.layer is not None and where.kind in ("attention", "mlp", "other")
    if region == "embeddings":
        return where.kind in ("embeddings", "head")
    return region == "all" or where.kind == region
