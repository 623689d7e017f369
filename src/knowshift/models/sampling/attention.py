"""Attention of one new token over a short cache on the CPU, over the cache as it lies in memory.

PyTorch's fused kernel is made for long queries: with one token a row, what it does for each row and head costs more
than the few products in it. So it is two batched matrix products over rows and key-value heads; where heads are narrow,
a matrix product costs more than what is in it too, and plain products and sums are faster. Same float32 precision,
another order of summation. Keys and values of two bytes are widened first: on an Intel Xeon without instructions for
bfloat16, 160 rows of 9 heads over 3 of keys, 24 tokens, took 1.4 ms and the kernel 6.4 (one thread, 2026-11-26).
Anything else (a mask, soft capping, attention sinks, a long cache, another device) goes to the kernel as before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

#: Its name in transformers; models are loaded with PyTorch's (:func:`knowshift.system.patches.attention`).
NAME = "knowshift_one_token"
USUAL = "sdpa"
#: Width of a head, up to which products and sums are faster than matrix products.
NARROW = 32
#: Tokens in the cache, up to which this was faster than the kernel: matrix products, and products and sums.
LONG, LONG_NARROW = 512, 64
#: Rows at a time, so that products before their sum, a megabyte or two, stay in the processor's own memory.
ROWS_AT_ONCE = 128


def one_token_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(q k / sqrt(W)) v for query [N, H, 1, W], key and value [N, G, L, W], G dividing H: [N, 1, H, W]."""
    rows, heads, length, width = query.shape
    special = any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias", "cache"))
    short = key.shape[2] <= (LONG_NARROW if width <= NARROW else LONG)
    plain = length == 1 and attention_mask is None and short and not special
    if not plain or query.device.type != "cpu" or query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        output: torch.Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )[0]
        return output, None
    dtype = query.dtype
    query, key, value = query.float(), key.float(), value.float()  # themselves where they are wide already
    groups = key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    if width > NARROW:
        keys, values = key.flatten(0, 1), value.flatten(0, 1)  # [N G, L, W]
        scores = torch.bmm(query.reshape(rows * groups, heads // groups, width), keys.transpose(1, 2))
        return torch.bmm(scores.mul_(scale).softmax(dim=-1), values).view(rows, 1, heads, width).to(dtype), None
    queries = query.reshape(rows, 1, groups, heads // groups, width)
    keys, values = key.transpose(1, 2).unsqueeze(3), value.transpose(1, 2).unsqueeze(3)  # [N, L, G, 1, W]
    result = query.new_empty(rows, 1, heads, width)
    for start in range(0, rows, ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        weights = (keys[some] * queries[some]).sum(dim=-1).mul_(scale).softmax(dim=1)
        torch.sum(
            values[some] * weights.unsqueeze(-1), dim=1, out=result[some].view(-1, groups, heads // groups, width)
        )
    return result.to(dtype), None


AttentionInterface.register(NAME, one_token_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
