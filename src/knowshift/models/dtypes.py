"""The dtype a model is loaded in, where nobody says which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from knowshift.models.finding import ModelFiles
from knowshift.parameters.files.checkpoint import StoredTensors

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # as safetensors names them

#: What a processor says of itself that multiplies bfloat16 numbers as fast as float32 ones or faster. Without any of
#: these PyTorch widens every number, and a model answers several times more slowly than in float32.
FAST_BFLOAT16 = ("avx512_bf16", "amx_bf16")


def fitting_dtype(files: ModelFiles, device: torch.device) -> str:
    """The dtype in which most weights of a model are stored, or "float32" where this device is slow in it.

    Slow is bfloat16 on a CPU without instructions for it (ARM processors count as such: not measured), and float16 on
    any CPU. Another stored dtype, as of quantised weights, gives "float32" too. Of an adapter, the base's counts.

    Raises:
        InputError: no checkpoint, or a damaged one.
    """
    counts: Counter[str] = Counter()
    for tensor in StoredTensors(files.merged or files.weights).tensors.values():
        counts[tensor.dtype] += prod(tensor.shape)
    most = _STORED.get(counts.most_common(1)[0][0], "float32") if counts else "float32"
    fast = device.type != "cpu" or (most == "bfloat16" and any(_capabilities().get(flag) for flag in FAST_BFLOAT16))
    return most if fast else "float32"


def _capabilities() -> Mapping[str, Any]:
    """What the processor can do; nothing where this PyTorch (before 2.11) does not tell."""
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return found
