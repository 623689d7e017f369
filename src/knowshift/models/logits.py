"""Logits of the next token after a prompt, from a forward pass, in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from knowshift.models.loading import LoadedModel


def next_logits(
    loaded: LoadedModel, prompts: Sequence[str], batch_size: int = 128
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield (indices of prompts, logits [B, V] in float32), prompts of equal token length together.

    Equal lengths need no padding, so nothing but the prompt is attended to. V: ids below the largest one that names a
    token and has a row; minus infinity for ids below it that name none or have none.

    Raises:
        InputError: a prompt without tokens, with one that has no embedding, or longer than the model's context.
    """
    encoded = loaded.encoder.prompts(prompts, 0)
    by_length: dict[int, list[int]] = {}
    for index, ids in enumerate(encoded):
        by_length.setdefault(len(ids), []).append(index)
    for _, members in sorted(by_length.items()):
        for start in range(0, len(members), batch_size):
            batch = members[start : start + batch_size]
            ids_BT = torch.tensor([encoded[index] for index in batch], device=loaded.model.device)
            with torch.inference_mode():
                logits_BR = loaded.model(input_ids=ids_BT, use_cache=False, logits_to_keep=1).logits[:, -1]
                logits_BV = loaded.vocabulary.usable.columns(logits_BR).float()
            yield batch, logits_BV
