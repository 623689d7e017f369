"""Float32 matrix products on the CPU through oneDNN instead of MKL.

PyTorch sends float32 products to MKL, which on one AMD processor did not use AVX-512: 80 against 165 GFLOP/s on one
core of an EPYC. On another (Zen 5) the two are within a tenth of one another. PyTorch's compiler reaches oneDNN
through ``torch.ops.mkldnn._linear_pointwise``; the same call serves here, in inference only. Same float32 precision,
another order of summation. Nothing changes on a GPU, in half precision, on other than x86 processors, or with a
PyTorch that lacks the call. The choice depends on machine and installation only, never on a timing, so that a run
gives the same numbers when it is repeated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

#: Rows are filled up to a multiple of this, or to 8 or 16. oneDNN compiles code for every number of rows that it meets,
#: and keeps it: with the many numbers that a tree has, a worker grew by a gigabyte.
ROWS = 32


@contextmanager
def fast_linears(model: nn.Module) -> Iterator[None]:
    """Within the block, the model's float32 CPU ``nn.Linear`` layers run on oneDNN where it serves.

    Outputs carry no gradient. The layers are put back as they were when the block ends, however it ends.
    """
    layers = [m for m in model.modules() if type(m) is nn.Linear and _fits(m)] if onednn_serves() else []
    try:
        for layer in layers:
            layer.forward = _through_onednn(layer.weight, layer.bias)  # type: ignore[method-assign, assignment]
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _fits(layer: nn.Linear) -> bool:
    weight = layer.weight
    plain = "forward" not in layer.__dict__ and not layer._forward_hooks and not layer._forward_pre_hooks
    return plain and weight.device.type == "cpu" and weight.dtype == torch.float32


def _through_onednn(weight: torch.Tensor, bias: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(input: torch.Tensor) -> torch.Tensor:
        flat = input.reshape(-1, input.shape[-1])
        rows = len(flat)
        missing = -rows % next((few for few in (8, 16) if rows <= few), ROWS)
        if missing:
            flat = nn.functional.pad(flat, (0, 0, 0, missing))
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(flat, weight, bias, "none", [], "")
        return result[:rows].view(*input.shape[:-1], -1)

    return forward


@functools.cache
def onednn_serves() -> bool:
    """Whether this is an x86 processor with AVX2 or more, and oneDNN is there and multiplies right."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    generator = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(7, 160, generator=generator), torch.randn(48, 160, generator=generator)
    try:
        with torch.inference_mode():
            product = _through_onednn(weight, None)(rows)
    except (RuntimeError, AttributeError):
        return False
    return torch.allclose(product, nn.functional.linear(rows, weight), rtol=1e-4, atol=1e-4)
