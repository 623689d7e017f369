"""Pre-training a pocket Llama on a world's corpus: tokenizer, model, one pass."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from knowshift.errors import InputError

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


@dataclass(frozen=True)
class Recipe:
    """How the base model is made. Lengths in tokens."""

    vocabulary: int = 4096
    hidden: int = 160
    feed_forward: int = 448
    layers: int = 4
    heads: int = 5
    context: int = 96  # tokens of one training row
    batch: int = 24  # rows of one step
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup: float = 0.03  # share of the steps
    bfloat16: bool = True  # autocast; the weights themselves are float32 while training

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with <s>, </s>, <pad>; encoding adds <s> once, padding is on the left (generation needs it)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, padding_side="left"
    )


def encode_corpus(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> NDArray[np.uint16]:
    """The corpus as one row of token ids, each sentence as <s> ... </s>: uint16 of shape (tokens,)."""
    assert len(tokenizer) < 1 << 16
    parts: list[NDArray[np.uint16]] = []
    stream = iter(texts)
    while block := list(islice(stream, 20_000)):
        for encoding in tokenizer.backend_tokenizer.encode_batch_fast(block):
            parts.append(np.array([*encoding.ids, tokenizer.eos_token_id], dtype=np.uint16))
    return np.concatenate(parts)


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A randomly initialised Llama in float32 with tied embeddings."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.feed_forward,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def pretrain(
    model: LlamaForCausalLM,
    tokens: NDArray[np.uint16],
    recipe: Recipe,
    progress: Callable[[int, int, float], None] | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """One pass over ``tokens`` in order; the model is changed in place.

    Args:
        tokens: shape (tokens,); the rest that fills no whole step is left out.
        progress: called with (step, steps, loss in nats per token).

    Raises:
        InputError: the corpus is shorter than two steps.

    Returns:
        steps, tokens seen, mean loss of the last 5% of steps (nats per token), seconds.
    """
    rows = recipe.batch * recipe.context
    steps = len(tokens) // rows
    if steps < 2:
        raise InputError(f"a corpus of {len(tokens)} tokens: expected at least two steps of {rows}")
    data = torch.from_numpy(tokens[: steps * rows].astype(np.int64)).view(steps, recipe.batch, recipe.context)
    model.to(device).train()
    decay = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    warmup = max(1, int(recipe.warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, steps - warmup)))
        ),
    )
    began, losses = time.perf_counter(), []
    for step in range(steps):
        ids = data[step].to(device)
        with torch.autocast(device.split(":")[0], dtype=torch.bfloat16, enabled=recipe.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if progress is not None:
            progress(step + 1, steps, losses[-1])
    model.eval()
    tail = losses[-max(1, steps // 20) :]
    return {
        "steps": steps,
        "tokens": steps * rows,
        "final_loss": sum(tail) / len(tail),
        "seconds": round(time.perf_counter() - began, 1),
    }


def token_lengths(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> NDArray[np.int64]:
    """Tokens of each text as it stands inside a sentence (after a space): shape (texts,)."""
    encoded = tokenizer.backend_tokenizer.encode_batch_fast([f" {text}" for text in texts], add_special_tokens=False)
    return np.array([len(item.ids) for item in encoded])
