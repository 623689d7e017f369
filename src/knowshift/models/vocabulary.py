"""A model's vocabulary against its tokenizer's: which token ids both know. Checked once, when a model is loaded.

The two differ in both directions. Embeddings are padded to a round number of rows, so some logits belong to no
token; and tokens are added to a tokenizer without resizing the embeddings, so some tokens have no row.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from knowshift.errors import InputError, KnowshiftWarning


@dataclass(frozen=True)
class TokenIds:
    """Token ids as columns of logits: all below ``size`` except ``holes``."""

    size: int
    holes: tuple[int, ...] = ()

    @classmethod
    def of(cls, ids: Iterable[int]) -> TokenIds:
        present = set(ids)
        size = max(present, default=-1) + 1
        return cls(size, tuple(sorted(set(range(size)) - present)))

    def __len__(self) -> int:
        return self.size - len(self.holes)

    def __contains__(self, token: object) -> bool:
        return isinstance(token, int) and 0 <= token < self.size and token not in self._left_out

    @cached_property
    def _left_out(self) -> frozenset[int]:
        return frozenset(self.holes)

    def columns(self, logits_XV: Tensor) -> Tensor:
        """Logits [..., V] -> [..., size], minus infinity in the holes; a view of the same memory without holes."""
        logits_XS = logits_XV[..., : self.size]
        if not self.holes:
            return logits_XS
        return logits_XS.index_fill(-1, torch.tensor(self.holes, device=logits_XS.device), -torch.inf)


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer calls each id, and how many ids the model has an embedding and a logit for."""

    tokens: Mapping[int, str]
    embeddings: int  # rows of the input embeddings
    logits: int  # rows of the output head

    @classmethod
    def of(cls, model: Any, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        told = int(model.config.get_text_config().vocab_size)
        return cls(
            _tokens(tokenizer), _rows(model.get_input_embeddings(), told), _rows(model.get_output_embeddings(), told)
        )

    @cached_property
    def usable(self) -> TokenIds:
        """Ids that name a token and have an embedding and a logit: those that can be drawn, answered and compared."""
        rows = min(self.embeddings, self.logits)
        return TokenIds.of(token for token in self.tokens if token < rows)

    @cached_property
    def without_embedding(self) -> tuple[int, ...]:
        """Ids of tokens that the tokenizer knows and the model cannot read, sorted."""
        return tuple(sorted(token for token in self.tokens if token >= self.embeddings))

    @property
    def remedy(self) -> str:
        """What to do about tokens that have no row."""
        return f"call model.resize_token_embeddings({max(self.tokens) + 1}) and train, or remove the token"


def check_vocabulary(
    name: str, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, prefix: Iterable[int]
) -> None:
    """Warn of tokens that the model cannot read, and refuse a model that cannot read or write what every text needs.

    Args:
        prefix: the ids that every prompt begins with.

    Raises:
        InputError: EOS has no embedding or no logit, or a token of the prefix has no embedding.
    """
    rows = min(vocabulary.embeddings, vocabulary.logits)
    end = tokenizer.eos_token_id
    if end not in vocabulary.usable:
        raise InputError(
            f"{name}: the end-of-sequence token {tokenizer.eos_token!r} has id {end}, expected an id below the "
            f"{rows} rows of the model's embeddings; {vocabulary.remedy}"
        )
    for token in prefix:
        if token >= vocabulary.embeddings:
            raise InputError(
                f"{name}: every prompt begins with {vocabulary.tokens.get(token)!r}, whose id is {token}, expected an "
                f"id below the {vocabulary.embeddings} rows of the model's embeddings; {vocabulary.remedy}"
            )
    missing = vocabulary.without_embedding
    if missing:
        warnings.warn(
            f"{name}: the tokenizer knows {len(missing)} tokens that the model has no embedding for, the first is "
            f"{vocabulary.tokens[missing[0]]!r} (id {missing[0]}, {vocabulary.embeddings} rows); a prompt or answer "
            "with one of them is refused",
            KnowshiftWarning,
            stacklevel=3,
        )


def _tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    tokens = {token: text for text, token in tokenizer.get_vocab().items()}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Of two ids with one text, get_vocab names one; the other can be drawn too.
        for token in range(max(tokens, default=-1)):
            if token not in tokens and (text := backend.id_to_token(token)) is not None:
                tokens[token] = text
    return tokens


def _rows(layer: Any, otherwise: int) -> int:
    """Rows of an embedding or an output head; a quantised one's weight has another shape."""
    for attribute in ("num_embeddings", "out_features"):
        rows = getattr(layer, attribute, None)
        if isinstance(rows, int):
            return rows
    return otherwise
