"""Where nobody says which, a model is loaded as it is stored, if the device is fast in that, else in float32."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from knowshift.models import dtypes
from knowshift.models.finding import find_model
from knowshift.models.loading import load_model
from knowshift.probing.engines import EngineSpec


@pytest.fixture
def stored(small_world: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The small model, stored in the dtype that a test names; one of its vectors stays float32."""
    folder = tmp_path / "stored"
    shutil.copytree(small_world, folder)
    weights = load_file(folder / "model.safetensors")
    cast = {name: value.to(getattr(torch, request.param)) for name, value in weights.items()}
    name = next(name for name, value in weights.items() if value.dim() == 1)
    cast[name] = weights[name].float()
    save_file(cast, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("stored", "device", "capable", "expected"),
    [
        ("bfloat16", "cpu", {}, "float32"),
        ("bfloat16", "cpu", {"avx512_f": True, "avx512_bf16": False}, "float32"),
        ("bfloat16", "cpu", {"avx512_bf16": True}, "bfloat16"),
        ("bfloat16", "cpu", {"amx_bf16": True}, "bfloat16"),
        ("bfloat16", "cuda", {}, "bfloat16"),
        ("float16", "cpu", {"avx512_fp16": True, "avx512_bf16": True}, "float32"),
        ("float16", "cuda", {}, "float16"),
        ("float32", "cpu", {"avx512_bf16": True}, "float32"),
        ("float32", "cuda", {}, "float32"),
        ("float64", "cuda", {}, "float32"),
    ],
    indirect=["stored"],
)
def test_the_stored_dtype_where_the_device_is_fast_in_it(
    stored: Path, device: str, capable: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtypes, "_capabilities", lambda: capable)
    files = find_model(str(stored))
    assert dtypes.fitting_dtype(files, torch.device(device)) == expected
    if device == "cpu":
        assert load_model(str(stored), dtype=None).dtype == expected
        placed, _ = EngineSpec(str(stored), dtype=None).placed("cpu", None, 1)
        assert placed.dtype == expected


def test_this_processor_says_what_it_can() -> None:
    assert {"avx2", "neon"} & set(dtypes._capabilities())
