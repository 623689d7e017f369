"""Weights read again from a model's files are those that were loaded, or are kept in memory where they are not."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import peft
import pytest
import torch

from knowshift.models.loading import LoadedModel, load_model
from knowshift.models.stored import stored_weights
from knowshift.parameters.files.checkpoint import StoredTensors
from knowshift.parameters.loaded import LoadedTensors, as_array, parameters_of
from knowshift.parameters.tensors import TensorReader
from tiny_models import FAMILIES, tiny_checkpoint


def _same(reader: TensorReader, loaded: LoadedModel) -> None:
    held = parameters_of(loaded.model)
    assert {name: tuple(tensor.shape) for name, tensor in held.items()} == reader.shapes
    for name, tensor in held.items():
        read, expected = reader.read(name, 1, tensor.numel()), as_array(tensor).reshape(-1)[1:]
        assert read.dtype == expected.dtype
        np.testing.assert_array_equal(read.view(np.uint8), expected.view(np.uint8), err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_files_give_what_was_loaded(tmp_path: Path, dtype: str, stored: str, tied: bool) -> None:
    folder = tiny_checkpoint(tmp_path / "model", dtype=stored, tie_word_embeddings=tied)
    loaded = load_model(str(folder), dtype=dtype)
    reader = stored_weights(loaded)
    assert not isinstance(reader, LoadedTensors)
    _same(reader, loaded)
    model = weakref.ref(loaded.model)
    del loaded
    gc.collect()
    assert model() is None


@pytest.mark.filterwarnings("ignore::knowshift.errors.KnowshiftWarning")
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_on_its_base_is_read_as_it_was_put_together(tmp_path: Path, dtype: str, dora: bool) -> None:
    """A plain one, which is read from both; and one that PEFT merges into a temporary folder."""
    base = load_model(str(tiny_checkpoint(tmp_path / "base")))
    wanted = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], use_dora=dora, init_lora_weights=False)
    peft.get_peft_model(base.model, wanted).save_pretrained(tmp_path / "adapter")
    loaded = load_model(str(tmp_path / "adapter"), base=str(tmp_path / "base"), dtype=dtype)
    reader = stored_weights(loaded)
    assert not isinstance(reader, LoadedTensors)
    _same(reader, loaded)
    name = "model.layers.0.self_attn.q_proj.weight"
    plain = StoredTensors(tmp_path / "base").read(name, 0, 64)
    assert not np.array_equal(reader.read(name, 0, 64).astype(np.float32), plain)


def test_what_the_files_do_not_give_is_kept_in_memory(tmp_path: Path) -> None:
    loaded = load_model(str(tiny_checkpoint(tmp_path / "model")))
    with torch.no_grad():
        parameters_of(loaded.model)["model.norm.weight"][3] += 1
    reader = stored_weights(loaded)
    assert isinstance(reader, LoadedTensors)
    _same(reader, loaded)
    with torch.no_grad():  # a copy, not the model's own
        parameters_of(loaded.model)["model.norm.weight"][3] += 1
    assert reader.read("model.norm.weight", 3, 4) == parameters_of(loaded.model)["model.norm.weight"][3] - 1


def test_experts_that_are_fused_in_memory_are_kept_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size": 48, "num_key_value_heads": 1}
    monkeypatch.setitem(FAMILIES, "MixtralConfig", sizes)
    loaded = load_model(str(tiny_checkpoint(tmp_path / "model", "MixtralConfig")))
    _same(stored_weights(loaded), loaded)
