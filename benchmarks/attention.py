"""Attention of one token over a short cache: the loop in C, what PyTorch does without it, and PyTorch's fused kernel.

    python benchmarks/attention.py [--seconds 0.5] [--results FILE.json]

For shapes of the shipped world (5 heads of 32) and of two public sizes (SmolLM2-135M: 9 heads of 64 over 3 of keys;
LLaMA-3-8B: 32 of 128 over 8), on one thread: milliseconds of one layer, the best of the turns that fit into the time,
the three ways in turns. The largest difference from float64 is beside each.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from knowshift.models.layers import attention
from knowshift.models.sampling.cache import TreeLayer

#: (rows, heads, heads of keys, width, tokens in the cache)
SHAPES = [(2000, 5, 5, 32, 10), (500, 5, 5, 32, 24), (160, 9, 3, 64, 24), (500, 9, 3, 64, 40), (200, 32, 8, 128, 30)]


def ways(
    rows: int, heads: int, groups: int, width: int, tokens: int, dtype: torch.dtype
) -> dict[str, Callable[[], torch.Tensor]]:
    """What is compared, on one query and one cache."""
    layer = TreeLayer()
    new = torch.randn(2, rows, groups, tokens, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    key, value = layer.update(*new)
    query = torch.randn(rows, heads, 1, width, generator=torch.Generator().manual_seed(1)).to(dtype)

    def ours() -> torch.Tensor:
        return attention.one_token_attention(nn.Module(), query, key, value, None)[0]

    def without() -> torch.Tensor:
        with mock.patch.object(attention, "library", return_value=None):
            return ours()

    def fused() -> torch.Tensor:
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=heads > groups)
        return found.transpose(1, 2)

    return {"loop in C": ours, "PyTorch, products": without, "PyTorch, fused": fused}


def main() -> None:
    """Take the options, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each shape and dtype")
    parser.add_argument("--results", type=Path, help="JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if attention.library() is None:
        print("the loop in C is not compiled here: its line is PyTorch's")
    told = []
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            for shape in SHAPES:
                compared = ways(*shape, dtype)
                exact = ways(*shape, torch.float64)["PyTorch, fused"]() if dtype == torch.float32 else None
                best = dict.fromkeys(compared, float("inf"))
                end = time.perf_counter() + arguments.seconds
                while time.perf_counter() < end or float("inf") in best.values():
                    for name, way in compared.items():
                        start = time.perf_counter()
                        way()
                        best[name] = min(best[name], time.perf_counter() - start)
                line = {"dtype": str(dtype).removeprefix("torch."), "shape": shape}
                line |= {name: round(1e3 * seconds, 3) for name, seconds in best.items()}
                if exact is not None:
                    line["off"] = {name: float(f"{(way() - exact).abs().max():.1e}") for name, way in compared.items()}
                told.append(line)
                print(line, flush=True)
    if arguments.results:
        arguments.results.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
