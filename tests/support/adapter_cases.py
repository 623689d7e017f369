"""Tiny models of five families, and adapters of every kind that PEFT makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils import logging as hf_logging

from weights_pairs import tiny_llama

hf_logging.disable_progress_bar()
hf_logging.set_verbosity_error()

VOCABULARY = 90
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "head_dim": 8,
}


@dataclass(frozen=True)
class Family:
    """How to make a tiny model, and what its modules are called."""

    make: Callable[[bool], PreTrainedModel]  # with head and embeddings tied or not
    linear: tuple[str, ...]
    square: str  # a module whose matrix is square: a transposition does not show in its shape
    embeddings: str
    head: str
    norm: str
    layers: str


def _gpt2(tied: bool) -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            vocab_size=VOCABULARY,
            bos_token_id=0,
            eos_token_id=0,
            tie_word_embeddings=tied,
        )
    )


def _neox(tied: bool) -> PreTrainedModel:
    sizes = {name: size for name, size in _SIZES.items() if name not in ("num_key_value_heads", "head_dim")}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, max_position_embeddings=64, tie_word_embeddings=tied))


_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FAMILIES = {
    "llama": Family(
        lambda tied: tiny_llama(tie_word_embeddings=tied), _LLAMA, "q_proj", "embed_tokens", "lm_head", "norm", "layers"
    ),
    "gpt2": Family(_gpt2, ("c_attn", "c_proj", "c_fc"), "attn.c_proj", "wte", "lm_head", "ln_f", "h"),
    "gpt_neox": Family(
        _neox,
        ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        "attention.dense",
        "embed_in",
        "lm_head",
        "final_layer_norm",
        "layers",
    ),
    "gemma": Family(
        lambda tied: GemmaForCausalLM(GemmaConfig(**_SIZES, tie_word_embeddings=tied)),
        _LLAMA,
        "q_proj",
        "embed_tokens",
        "lm_head",
        "norm",
        "layers",
    ),
    "qwen2": Family(
        lambda tied: Qwen2ForCausalLM(Qwen2Config(**_SIZES, tie_word_embeddings=tied)),
        _LLAMA,
        "q_proj",
        "embed_tokens",
        "lm_head",
        "norm",
        "layers",
    ),
}


@dataclass(frozen=True)
class Case:
    """One adapter on one base."""

    family: str
    tied: bool
    dtype: str  # in which the base is stored
    hub_names: bool  # GPT-2's tensors without the prefix that transformers writes
    kind: str  # of configuration in peft
    options: dict[str, Any]

    @property
    def shares_trained(self) -> bool:
        """Whether matrices of an adapter work on a tied head or on tied embeddings: PEFT's own merge is wrong there."""
        targets, family = self.options.get("target_modules"), FAMILIES[self.family]
        names = [targets] if isinstance(targets, str) else list(targets or ())
        return self.tied and any(end in name for name in names for end in (family.embeddings, family.head))


@st.composite
def cases(draw: Callable[[Any], Any]) -> Case:
    """Any adapter of PEFT's that can be merged, on any of the families."""
    family_name = draw(st.sampled_from(sorted(FAMILIES)))
    family = FAMILIES[family_name]
    tied = draw(st.booleans())
    dtype = draw(st.sampled_from(["float32", "float32", "bfloat16", "mixed"]))
    hub_names = family_name == "gpt2" and draw(st.booleans())
    others = ["IA3Config"] if family_name == "gpt2" else OTHERS  # the others know no Conv1D
    kind = draw(st.sampled_from(["LoraConfig"] * 12 + others))
    if kind != "LoraConfig":
        targets = draw(st.lists(st.sampled_from(family.linear), min_size=1, max_size=3, unique=True))
        return Case(
            family_name, tied, dtype, hub_names, kind, {"target_modules": sorted(targets), **_EXTRA.get(kind, {})}
        )
    return Case(family_name, tied, dtype, hub_names, kind, draw(_lora(family)))


#: Other methods that PEFT merges, and what each needs at this size.
_EXTRA: dict[str, dict[str, Any]] = {
    "IA3Config": {"feedforward_modules": []},
    "OFTConfig": {"oft_block_size": 4},
    "AdaLoraConfig": {"total_step": 10},
    "HiraConfig": {},
    "LoHaConfig": {"r": 2},
    "LoKrConfig": {"r": 2},
    "HRAConfig": {"r": 2},
    "VeraConfig": {"r": 2},
}
OTHERS = [*_EXTRA]


@st.composite
def _lora(draw: Callable[[Any], Any], family: Family) -> dict[str, Any]:
    rank = draw(st.sampled_from([2, 4]))
    options: dict[str, Any] = {"r": rank, "lora_alpha": draw(st.sampled_from([1, 4, 16, 3.5]))}
    options["fan_in_fan_out"] = draw(st.booleans())
    options["use_rslora"] = draw(st.booleans())
    ends = [family.embeddings, family.head]
    how = draw(st.sampled_from(["names", "names", "names", "names", "ends", "pattern", "all-linear"]))
    linear = sorted(draw(st.lists(st.sampled_from(family.linear), min_size=1, max_size=3, unique=True)))
    if how == "ends":
        options["target_modules"] = linear + sorted(draw(st.lists(st.sampled_from(ends), min_size=1, unique=True)))
        # PEFT 0.21.2 does not load back the tied adapters of GPT-2 and GPT-NeoX that it has saved; they are refused.
        options["ensure_weight_tying"] = family.embeddings == "embed_tokens" and draw(st.booleans())
    elif how == "pattern":
        options["target_modules"] = rf".*\.{family.layers}\.[01]\..*({'|'.join(linear)})"
    else:
        options["target_modules"] = linear if how == "names" else how
    if how == "names" and draw(st.booleans()):
        options["layers_to_transform"] = draw(st.sampled_from([0, [1], [0, 1]]))
        options["layers_pattern"] = family.layers
    elif how == "names" and draw(st.booleans()):
        options["exclude_modules"] = rf".*\.{family.layers}\.1\..*{linear[0]}"
    if draw(st.booleans()):
        options["rank_pattern"] = {rf".*\.0\..*{linear[0]}": 2, rf".*\.1\..*{linear[-1]}": 4}
    if draw(st.booleans()):
        options["alpha_pattern"] = {rf"{family.layers}.0.*{linear[-1]}": 7, rf".*\.1\..*{linear[0]}": 3}
    options["bias"] = draw(st.sampled_from(["none", "none", "all", "lora_only"]))
    if draw(st.integers(0, 2)) == 0:
        free = [end for end in ends if how != "ends" and not (how == "all-linear" and end == family.head)]
        saved = draw(st.lists(st.sampled_from([*free, family.norm]), min_size=1, unique=True))
        options["modules_to_save"] = sorted(saved)
        options.setdefault("ensure_weight_tying", draw(st.booleans()))
    elif how != "ends" and draw(st.integers(0, 7)) == 0:
        options["trainable_token_indices"] = [1, 5, 8]
    # Variants of plain LoRA; some initialisations are not made for every kind of layer.
    variant = draw(st.sampled_from(["none", "none", "none", "none", "use_dora", "init", "init"]))
    if variant == "use_dora" and how != "ends":
        options["use_dora"] = True
    elif variant == "init" and how != "ends":
        of_conv1d = family.linear[0] == "c_attn"
        harmless = [True, "gaussian", "eva"] + ([] if of_conv1d else ["orthogonal"])
        options["init_lora_weights"] = draw(
            st.sampled_from(["pissa", *harmless, *harmless] + ([] if of_conv1d else ["olora"]))
        )
    return options


def save_base(folder: Path, case: Case) -> None:
    """Write the base as the case has it, with a tokenizer of its own."""
    torch.manual_seed(0)
    model = FAMILIES[case.family].make(case.tied)
    with torch.no_grad():  # a fresh model's biases and norms say nothing by being 0 and 1
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    if case.dtype == "bfloat16":
        model = model.to(torch.bfloat16)
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if case.dtype == "mixed":  # norms in float32, as some vendors store them
        tensors = {name: t.to(torch.bfloat16) if t.ndim > 1 else t for name, t in tensors.items()}
    if case.hub_names:
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    small_tokenizer().save_pretrained(folder)


def small_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: w0, w1, ... and an end of text."""
    words = {"</s>": 0, "<unk>": 1, **{f"w{number}": number for number in range(2, VOCABULARY)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def train_adapter(base: Path, folder: Path, case: Case, size: float = 0.05) -> peft.PeftModel:
    """An adapter on the base in float32, each of its parameters moved as a training would; also written."""
    config = getattr(peft, case.kind)(task_type="CAUSAL_LM", **case.options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        torch.manual_seed(1)
        adapted = peft.get_peft_model(model, config)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * size)
        adapted.save_pretrained(folder)
        trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
        targets = case.options["target_modules"]
        for named in [*(targets if isinstance(targets, list) else ()), *case.options.get("modules_to_save", ())]:
            assert any(named in name for name in trained), named  # or the case would say nothing of it
    return adapted.eval()
