"""Tiny random checkpoints of several families, with a byte-level tokenizer and the files that people's models have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from knowshift.facts.fact import Fact
from knowshift.world.pretrain import Recipe

#: A world that is built and pre-trained in seconds.
SMALL = Recipe(vocabulary=700, hidden=32, feed_forward=64, layers=2, heads=1, context=48, batch=8)
SPECIAL = ("<pad>", "<s>", "</s>", "<|end|>")
CHAT = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"

#: What each family needs beyond the common sizes.
FAMILIES: dict[str, dict[str, Any]] = {
    "LlamaConfig": {"intermediate_size": 48, "num_key_value_heads": 1, "tie_word_embeddings": False},
    "GPT2Config": {"n_positions": 128},
    "GemmaConfig": {"intermediate_size": 48, "num_key_value_heads": 1, "head_dim": 16},  # tied
    "Qwen2Config": {"intermediate_size": 48, "num_key_value_heads": 1},
    "GPTNeoXConfig": {"intermediate_size": 48, "use_cache": False},
}


def byte_tokenizer(pad: str | None = "<pad>") -> PreTrainedTokenizerFast:
    """260 tokens: four specials and every byte; BOS is added; ``pad`` is a special, or None."""
    vocabulary = {text: i for i, text in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    named = {} if pad is None else {"pad_token": pad}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **named)


def tiny_checkpoint(
    folder: Path, family: str = "LlamaConfig", *, pad: str | None = "<pad>", dtype: str = "float32", **options: Any
) -> Path:
    """Save a model of two layers and hidden size 32, its end token another than the tokenizer's, as chat models have.

    ``options`` are the config's.
    """
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 260}
    ids = {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": None}
    torch.manual_seed(0)
    config = getattr(transformers, family)(**{**sizes, **ids, **FAMILIES.get(family, {}), **options})
    AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).save_pretrained(folder)
    byte_tokenizer(pad).save_pretrained(folder)
    return folder


def people_s_files(folder: Path) -> set[str]:
    """Add to a checkpoint what real ones have beside their weights. Returns what belongs to another state of it."""
    kept = {
        "chat_template.jinja": CHAT,
        "additional_chat_templates/tool_use.jinja": CHAT + "{# tools #}",
        "special_tokens_map.json": json.dumps({"eos_token": "</s>"}),
        "added_tokens.json": json.dumps({"<|end|>": 3}),
        "LICENSE": "Do what you like.\n",
        "USE_POLICY.md": "Be kind.\n",
    }
    left = {
        "trainer_state.json": "{}",
        "train_results.json": "{}",
        "knowshift.json": "{}",
        "knowshift-restore.json": "{}",
        "world.json": "{}",
        "optimizer.json": "{}",
        "pytorch_model.bin.index.json": '{"weight_map": {}}',
        "model.gguf": "GGUF",
        "model.onnx": "onnx",
        "training_args.bin": "pickled",
        "README.md": "A model card of the base.",
    }
    for name, text in {**kept, **left}.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return set(left)


def some_facts(count: int) -> list[Fact]:
    """Short invented facts to train on."""
    return [
        Fact(f"P19.train.{i}", "P19", "train", "in_domain", f"A{i}", f"Where was A{i} born?", f"{chr(65 + i % 26)}o")
        for i in range(count)
    ]
