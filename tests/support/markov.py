"""A real Llama whose next token depends on the last one only, with probabilities that a test chooses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from knowshift.models.loading import LoadedModel, load_model

#: Next-token probabilities by last token; "." stands for the end of the text.
Chain = Mapping[str, Mapping[str, float]]


def byte_tokenizer(pairs: Sequence[tuple[str, str]] = ()) -> PreTrainedTokenizerFast:
    """One token a byte and one for each of the ``pairs`` of bytes; BOS is put in front once."""
    letters = {letter: i + 3 for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    both = {first + second: 3 + len(letters) + i for i, (first, second) in enumerate(pairs)}
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **letters, **both}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(pairs)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )


def markov_model(
    folder: Path,
    chain: Chain,
    temperature: float = 0.7,
    context: int = 64,
    pairs: Sequence[tuple[str, str]] = (),
) -> LoadedModel:
    """At ``temperature`` the model follows ``chain``: attention and MLP add nothing, the head is a table of logs."""
    tokenizer = byte_tokenizer(pairs)
    size = len(tokenizer)
    width = size + size % 2
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=width,
            intermediate_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=context,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size, width))
        head = torch.full((size, width), -1e4)
        for last, following in chain.items():
            for token, probability in following.items():
                row = 2 if token == "." else tokenizer.convert_tokens_to_ids(token)
                head[row, tokenizer.convert_tokens_to_ids(last)] = temperature * float(
                    torch.tensor(probability, dtype=torch.float64).log()
                )
        model.lm_head.weight.copy_(head / width**0.5)  # RMSNorm makes the one in a one-hot vector sqrt(width)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(str(folder))


def texts_of(chain: Chain, last: str, length: int, stop: str = "\0") -> dict[tuple[str, str], float]:
    """Every (text, how it ends) that follows ``last`` within ``length`` characters, with its probability."""
    found: dict[tuple[str, str], float] = {}

    def follow(text: str, now: str, probability: float) -> None:
        for token, share in chain[now].items():
            whole = text if token == "." else text + token
            how = "stop" if token == "." else "over" if stop in whole else "length" if len(whole) == length else ""
            if how:
                found[whole, how] = found.get((whole, how), 0.0) + probability * share
            else:
                follow(whole, token, probability * share)

    follow("", last, 1.0)
    return found


def rate_of(chain: Chain, last: str, length: int, answers: Sequence[str]) -> float:
    """The probability that a text of at most ``length`` tokens behind ``last`` holds one of the answers."""

    def holding(text: str, now: str, left: int) -> Iterator[float]:
        if any(answer in text for answer in answers):
            yield 1.0
        elif left:
            for token, share in chain[now].items():
                if token != ".":
                    yield from (share * value for value in holding(text + token, token, left - 1))

    return sum(holding("", last, length))
