"""In which dtype a model may be trained: decided here, before anything is measured or trained."""

from __future__ import annotations

from pathlib import Path

from knowshift.errors import InputError
from knowshift.parameters.files.checkpoint import FLOATS, StoredTensors

_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def check_trainable(name: str, dtype: str | None) -> None:
    """Refuse to train in float16, whose smallest number is 6e-8: Adam's mean of squared gradients becomes 0 in it.

    Then Adam divides by its epsilon alone, and a weight moves by units where the learning rate says 1e-5. bfloat16 has
    the range of float32.

    Args:
        name: what the error line begins with: a model, or the file of a config.
        dtype: of the weights that are trained.

    Raises:
        InputError: float16, with the two dtypes that can be trained.
    """
    if dtype == "float16":
        raise InputError(
            f"{name}: training in float16 destroys a model; use --dtype float32 or --dtype bfloat16 "
            "(in a study's config dtype: float32 or dtype: bfloat16)"
        )


def stored_dtype(folder: Path) -> str | None:
    """What dtype "auto" loads, e.g. "float16", from files alone: config.json's, else that of the first floats.

    None where there are no floats. Raises :class:`InputError` for a damaged checkpoint.
    """
    stored = StoredTensors(folder)
    for part in (stored.config, stored.config.get("text_config")):
        for key in ("dtype", "torch_dtype"):
            if isinstance(part, dict) and isinstance(part.get(key), str):
                return str(part[key]).removeprefix("torch.")
    floats = [tensor.dtype for _, tensor in sorted(stored.tensors.items()) if tensor.dtype in FLOATS]
    return _NAMES[floats[0]] if floats else None
