"""Tokenizers of every kind that causal models come with, made for real, and a tiny model for any of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from knowshift.models.loading import LoadedModel

BOS, EOS, PAD, UNKNOWN = "<s>", "</s>", "<pad>", "<unk>"
SPECIAL = [PAD, BOS, EOS, UNKNOWN]
TEXTS = [
    "The capital of Brehi is Zukarobaq. It is said that the owner of Zukar Hill was born in Rome.",
    "<|question|> Where was Ann born? <|answer|> Rome ",
    "Question: Who wrote it? Answer: Jane Austen. " * 3,
] * 4


def _byte_level() -> Tokenizer:
    """As GPT-2 and Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _sentence_piece() -> Tokenizer:
    """As Llama 2: "▁" for a space and before every text, bytes for what has no token, no pre-tokenizer."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    told = json.loads(trained.to_str())["model"]
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *told["vocab"]]
    merges = [tuple(pair) for pair in told["merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def _unigram() -> Tokenizer:
    """As T5 and XLM-R."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=SPECIAL, unk_token=UNKNOWN, show_progress=False, initial_alphabet=["q", "é"]
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _crossing() -> Tokenizer:
    """BPE without a pre-tokenizer, so that merges cross the border between prompt and answer ("> ")."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.Fuse()
    letters = [chr(code) for code in range(32, 127)]  # and no others, which are dropped
    trainer = trainers.BpeTrainer(
        vocab_size=160, special_tokens=SPECIAL, initial_alphabet=letters, limit_alphabet=95, show_progress=False
    )
    tokenizer.train_from_iterator(["<|answer|> Rome ", "> R", "is it so?"] * 4, trainer)
    return tokenizer


@cache
def _trained(kind: str) -> str:
    return str(KINDS[kind]().to_str())


KINDS = {
    "byte-level": _byte_level,
    "sentence-piece": _sentence_piece,
    "unigram": _unigram,
    "crossing": _crossing,
}


@dataclass(frozen=True)
class Form:
    """What a tokenizer's files may say beside its vocabulary."""

    kind: str
    bos: int = 1  # how often the template puts it before a text
    eos: int = 0
    marks: bool = False  # <|question|> and <|answer|> are special tokens
    pad: bool = True
    cut: bool = False  # truncation and padding are set

    def bare(self) -> Tokenizer:
        """Without template, truncation and padding: the ids of texts themselves."""
        tokenizer = Tokenizer.from_str(_trained(self.kind))
        if self.marks:
            tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in ("<|question|>", "<|answer|>")])
        return tokenizer

    def make(self) -> PreTrainedTokenizerFast:
        tokenizer = self.bare()
        template = " ".join([BOS] * self.bos + ["$A"] + [EOS] * self.eos)
        known = [(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=known)
        if self.cut:
            tokenizer.enable_truncation(max_length=4)
            tokenizer.enable_padding(length=7, pad_id=0, pad_token=PAD)
        more = {"pad_token": PAD} if self.pad else {}
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN, **more
        )


class DressedByLength(ByT5Tokenizer):  # type: ignore[misc]
    """A slow tokenizer that puts something else round texts of different lengths; ids 3 and 4 are bytes 0 and 1."""

    def build_inputs_with_special_tokens(self, first: list[int], second: Any = None) -> list[int]:
        return [3 + len(first) % 2, *first, self.eos_token_id]


def tiny_model(tokenizer: PreTrainedTokenizerBase, rows: int | None = None, context: int = 256) -> LoadedModel:
    """A random Llama of one layer, whose answers depend on what it reads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) if rows is None else rows,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=context,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8 if weight.dim() > 1 else 1)
    return LoadedModel(model, tokenizer, "tiny", Path(), "float32", "cpu", "0" * 16)
