"""A LoRA adapter folder as the tuned model: what peft merges is what is compared and written."""

from __future__ import annotations

import gc
import itertools
import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from knowshift.errors import InputError, KnowshiftWarning
from knowshift.parameters.files import adapter
from knowshift.parameters.files.adapter import FIELDS, AdaptedTensors, not_read, read_adapter
from knowshift.parameters.files.checkpoint import StoredTensors
from knowshift.parameters.files.pair import open_pair
from knowshift.parameters.files.restored import identity, restore_checkpoints
from knowshift.parameters.loaded import as_tensor
from knowshift.parameters.regions import Scope
from weights_pairs import loaded, same_bits, tiny_llama


def save_adapter(folder: Path, model: PreTrainedModel, **options: Any) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """(base folder, adapter folder, peft's own merged weights)."""
    model.save_pretrained(folder / "base")
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn_like(parameter.float()) * 0.1)
    adapted.save_pretrained(folder / "adapter")
    again = AutoModelForCausalLM.from_pretrained(folder / "base", dtype="auto")
    merged = PeftModel.from_pretrained(again, folder / "adapter").merge_and_unload()
    return folder / "base", folder / "adapter", {n: p.detach() for n, p in merged.named_parameters()}


LLAMA = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]}


@pytest.mark.parametrize(
    "options",
    [
        LLAMA,
        {**LLAMA, "use_rslora": True},
        {**LLAMA, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {**LLAMA, "modules_to_save": ["lm_head"]},
        {**LLAMA, "target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=["plain", "rslora", "patterns", "saved modules", "embeddings"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reading_an_adapter_is_merging_it(options: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    base, adapter, merged = save_adapter(tmp_path, tiny_llama(dtype=dtype), **options)
    tensors = AdaptedTensors(read_adapter(adapter), StoredTensors(base))
    changed = 0
    # One bfloat16 step: peft also rounds the change itself where the adapter's own weights are bfloat16.
    close = {"rtol": 0.008, "atol": 1e-3} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    for name, expected in merged.items():
        read = as_tensor(tensors.read(name, 0, expected.numel())).reshape(expected.shape)
        assert read.dtype == expected.dtype
        torch.testing.assert_close(read, expected, **close)
        parts = [as_tensor(tensors.read(name, at, min(at + 77, read.numel()))) for at in range(0, read.numel(), 77)]
        assert same_bits(torch.cat(parts), read.reshape(-1))
        changed += name in tensors.touched
    assert changed >= 3


def test_a_restored_adapter_is_a_whole_checkpoint(tmp_path: Path) -> None:
    base, adapter, merged = save_adapter(tmp_path, tiny_llama(), **LLAMA, modules_to_save=["lm_head"])
    pair = open_pair(base, adapter)
    assert len(pair.places) == 14
    done = restore_checkpoints(base, adapter, tmp_path / "out", {"0": 0.0, "0.9": 0.9, "1": 1.0})
    nothing, most, everything = (loaded(done.output[name]) for name in ("0", "0.9", "1"))
    before = loaded(base)
    for name, expected in merged.items():
        torch.testing.assert_close(nothing[name], expected, rtol=1e-5, atol=1e-6)
        inside = ".layers." in name and expected.ndim == 2
        assert same_bits(everything[name], before[name] if inside else nothing[name])
        if inside:
            assert bool(((most[name] == before[name]) | (most[name] == nothing[name])).all())
    assert not (done.output["0"] / "adapter_config.json").exists()
    assert "adapter" in json.loads((done.output["0"] / "knowshift.json").read_text())["tuned"]


def test_an_adapter_made_for_another_model_is_said_to_be(tmp_path: Path) -> None:
    base, adapter, _ = save_adapter(tmp_path, tiny_llama(), **LLAMA)
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    (tmp_path / "other").mkdir()
    for told in ("owner/another", str(tmp_path / "other")):
        path.write_text(json.dumps({**config, "base_model_name_or_path": told}))
        with pytest.warns(KnowshiftWarning, match=f"made for '{told}'; it fits .*base in names and shapes"):
            open_pair(base, adapter)
    for told in ("o/bas", "o/base-Instruct", "x" * 5000):
        path.write_text(json.dumps({**config, "base_model_name_or_path": told}))
        with pytest.warns(KnowshiftWarning, match="made for"):
            open_pair(base, adapter)
    for told in (None, "", str(base), f"{base}/", "owner/base"):  # the last as somebody names what he has fetched
        path.write_text(json.dumps({**config, "base_model_name_or_path": told}))
        open_pair(base, adapter)
    made = identity(open_pair(base, adapter))["tuned"]
    assert made["made_for"] == "owner/base"
    assert made["files"]["adapter_model.safetensors"]["bytes"] == (adapter / "adapter_model.safetensors").stat().st_size


def change_config(adapter: Path, **fields: Any) -> None:
    path = adapter / "adapter_config.json"
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not MISSING}))


MISSING = object()


def test_every_field_of_the_configuration_is_known_or_off(tmp_path: Path) -> None:
    """A new field of a newer peft must be looked at before its adapters are read here."""
    base, adapter, _ = save_adapter(tmp_path, tiny_llama(), **LLAMA)
    stored = StoredTensors(base)
    assert not_read(read_adapter(adapter), stored) is None
    told = LoraConfig().to_dict()
    not_ours = {
        *("use_dora", "lora_bias", "target_parameters", "use_qalora", "use_bdlora", "layer_replication"),
        *("arrow_config", "kasa_config", "monteclora_config", "trainable_token_indices", "velora_config"),
        *("alora_invocation_tokens", "megatron_config"),
    }
    assert set(told) == (set(FIELDS) | not_ours)
    for field in [*not_ours, "a_field_of_tomorrow"]:
        change_config(adapter, **{field: {"x": 1}})
        assert not_read(read_adapter(adapter), stored) == f"{field} is {{'x': 1}}"
        change_config(adapter, **{field: None})
        assert not_read(read_adapter(adapter), stored) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": MISSING}, "no 'r'"),
        ({"lora_alpha": MISSING}, "no 'lora_alpha'"),
        ({"r": 8}, r"has matrices \(4, 48\) and .*; expected rank 8"),
        ({"r": 0}, "PEFT cannot "),
        ({"r": "4"}, "PEFT cannot "),
        ({"lora_alpha": "x"}, "PEFT cannot "),
        ({"lora_alpha": [1]}, "PEFT cannot "),
        ({"lora_alpha": 10**400}, "PEFT cannot |logits"),
        ({"lora_alpha": 1e300}, "logits differ by up to nan"),
        (
            {"target_modules": ["q_proj", "v_proj", "down_proj", "o_proj"]},
            r"no matrices for 'model.layers.0.self_attn.o_proj'",
        ),
        ({"target_modules": r".*\.[0-9]\..*(q|k|v|down)_proj"}, r"no matrices for 'model.layers.0.self_attn.k_proj'"),
        ({"modules_to_save": ["lm_head"]}, r"no tensor of 'lm_head', which modules_to_save names"),
        ({"rank_pattern": {"(": 4}}, "PEFT cannot "),
        ({"rank_pattern": ["q_proj"]}, "PEFT cannot "),
        ({"alpha_pattern": {"q_proj": 4, ".*q_proj": 8}}, r"gives '.*q_proj' 2 values \(4, 8\)"),
        ({"peft_type": "LOTR"}, "adapter of type 'LOTR', which peft .* does not know"),
        ({"peft_type": None}, "adapter of type None"),
        ({"peft_type": ["LORA"]}, "adapter of type"),
        ({"peft_type": "PROMPT_TUNING"}, "cannot be merged into weights"),
        ({"peft_type": "XLORA"}, "cannot be merged into weights"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "megatron_config is set"),
        ({"a_field_of_tomorrow": 1}, "a_field_of_tomorrow is set, which peft .* does not know; a newer peft may"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "'pissa_niter_4', which moves a part of the base .* cannot be repeated",
        ),
        ({"init_lora_weights": "lora_ga"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "corda"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, "merge it with the base that LoftQ made"),
        ({"init_lora_weights": "of tomorrow"}, "cannot be repeated"),
        ({"alora_invocation_tokens": [1, 2]}, "PEFT cannot merge it|logits differ"),
    ],
)
@pytest.mark.filterwarnings("ignore::knowshift.errors.KnowshiftWarning")
def test_what_cannot_be_merged_rightly_is_refused_in_one_line(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    base, adapter, _ = save_adapter(tmp_path, tiny_llama(), **LLAMA)
    change_config(adapter, **fields)
    with pytest.raises(InputError, match=message) as refused:
        restore_checkpoints(base, adapter, tmp_path / "out", {"0": 0.0})
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_part_of_an_adapter_is_never_merged(tmp_path: Path) -> None:
    """PEFT itself only warns of tensors that have no place in the model, or are missing."""
    base, adapter, _ = save_adapter(tmp_path, tiny_llama(), **LLAMA, use_dora=True)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    lost = sorted(tensors)[0]
    for broken, message in (
        ({name: t for name, t in tensors.items() if name != lost}, "is missing for the base"),
        ({**tensors, lost.replace("layers.0", "layers.7"): tensors[lost].clone()}, "has no place in the base"),
    ):
        save_file(broken, path)
        with pytest.warns(KnowshiftWarning, match="PEFT merges it"), pytest.raises(InputError, match=message):
            open_pair(base, adapter)


@pytest.mark.parametrize(
    "place", ["peft.PeftModel.from_pretrained", "transformers.AutoModelForCausalLM.from_pretrained"]
)
@pytest.mark.parametrize(
    "error", [RuntimeError("one\ntwo"), ImportError("no bitsandbytes"), KeyError("x"), MemoryError()]
)
@pytest.mark.filterwarnings("ignore::knowshift.errors.KnowshiftWarning")
def test_what_peft_raises_is_one_line(
    place: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter, _ = save_adapter(tmp_path, tiny_llama(), **LLAMA, use_dora=True)

    def fails(*given: Any, **named: Any) -> None:
        raise error

    monkeypatch.setattr(place, fails)
    with pytest.raises(InputError, match=r"adapter_config\.json: PEFT cannot merge it into .*base: ") as refused:
        open_pair(base, adapter)
    assert len(str(refused.value).splitlines()) == 1


def test_half_an_adapter_and_none_are_refused(tmp_path: Path) -> None:
    base, adapter, _ = save_adapter(tmp_path, tiny_llama(), **LLAMA)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if "layers.0" in name}, path)
    with pytest.raises(InputError, match=r"no matrices for 'model.layers.1.mlp.down_proj', .*: a part of an adapter"):
        open_pair(base, adapter)
    change_config(adapter, layers_to_transform=[0])  # then it is the whole
    open_pair(base, adapter)
    change_config(adapter, layers_to_transform=None, exclude_modules=r".*\.layers\.1\..*")
    open_pair(base, adapter)
    save_file({}, path)
    with pytest.raises(InputError, match="holds no tensors, so the adapter was not saved"):
        open_pair(base, adapter)


def test_a_quantised_base_and_another_vocabulary_are_told(tmp_path: Path) -> None:
    base, adapter, _ = save_adapter(tmp_path, tiny_llama(), **LLAMA, modules_to_save=["lm_head"])
    path = base / "config.json"
    plain = path.read_text()
    path.write_text(json.dumps({**json.loads(plain), "quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(
        InputError, match=r"base: stored quantised \(bitsandbytes\); an adapter is put on the unquantised"
    ):
        open_pair(base, adapter)
    path.write_text(plain)
    tensors = load_file(adapter / "adapter_model.safetensors")
    head = next(name for name in tensors if "lm_head" in name)
    tensors[head] = torch.zeros(96, 32)
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"has 96 rows, the base 90: .*resize_token_embeddings\(96\)"):
        open_pair(base, adapter)


def test_a_merge_needs_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter, _ = save_adapter(tmp_path, tiny_llama(), **LLAMA, use_dora=True)

    def none(*given: Any, **named: Any) -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(InputError, match=r"adapter: no temporary folder \(TMPDIR\) to merge it in: No usable"):
        open_pair(base, adapter)


def test_a_merge_needs_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter, _ = save_adapter(tmp_path, tiny_llama(), **LLAMA, use_dora=True)
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
        with pytest.raises(InputError, match=r"GB of memory, 0\.0 GB are free"):
            open_pair(base, adapter)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match="GB free"):
        open_pair(base, adapter)


def test_the_temporary_folder_of_a_merge_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter, _ = save_adapter(tmp_path, tiny_llama(), **LLAMA, use_dora=True)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with pytest.warns(KnowshiftWarning, match=r"adapter: use_dora is True, so PEFT merges it, in a temporary folder"):
        pair = open_pair(base, adapter)
    assert len(list(scratch.iterdir())) == 1
    del pair
    gc.collect()
    assert not list(scratch.iterdir())


def test_both_a_model_and_an_adapter_in_one_folder_are_refused(tmp_path: Path) -> None:
    """Transformers would put the adapter on top when it loads the folder; the weights alone do not say so."""
    base, adapter, _ = save_adapter(tmp_path, tiny_llama(), **LLAMA)
    for file in adapter.iterdir():
        shutil.copyfile(file, base / file.name)
    for sides in ((base, adapter), (base, base)):
        with pytest.raises(InputError, match=r"holds an adapter .* and a model .*; expected one of the two"):
            open_pair(*sides)


def test_a_head_that_the_base_ties_is_compared_with_its_embeddings(tmp_path: Path) -> None:
    """Whole checkpoints too: an untied copy of a tied model."""
    model = tiny_llama(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "base")
    tuned = tiny_llama(tie_word_embeddings=False)
    with torch.no_grad():
        tuned.lm_head.weight.copy_(tuned.model.embed_tokens.weight + 1.0)
    tuned.save_pretrained(tmp_path / "tuned")
    pair = open_pair(tmp_path / "base", tmp_path / "tuned", Scope("embeddings"))
    assert [place.name for place in pair.places] == ["lm_head.weight", "model.embed_tokens.weight"]
    base, head = pair.weights.read(0, 0, 90 * 32)
    np.testing.assert_allclose(head - base, 1.0, atol=1e-6)
    done = restore_checkpoints(
        tmp_path / "base", tmp_path / "tuned", tmp_path / "out", {"1": 1.0}, scope=Scope(region="embeddings")
    )
    again = loaded(done.output["1"])
    assert same_bits(again["lm_head.weight"], again["model.embed_tokens.weight"])


def test_adapters_of_one_kind_or_another_base_are_refused(tmp_path: Path) -> None:
    base, adapter, _ = save_adapter(tmp_path, tiny_llama(), **LLAMA)
    with pytest.raises(InputError, match="BASE must be a whole checkpoint"):
        open_pair(adapter, adapter)
    other = tmp_path / "other"
    tiny_llama(num_hidden_layers=1).save_pretrained(other)
    with pytest.raises(InputError, match=r"adapter for 'model.layers.1\..*', which the base .* does not have"):
        open_pair(other, adapter)
    tiny_llama(hidden_size=64).save_pretrained(other)
    with pytest.raises(InputError, match=r"has shape .*, the base"):
        open_pair(other, adapter)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match=r"pickled weights \(adapter_model.bin\) are refused"):
        open_pair(base, adapter)


@pytest.mark.parametrize("names", list(itertools.permutations(["lm_head", "transformer.h.0.attn", "transformer.wte"])))
def test_the_prefix_that_a_base_lacks_is_not_that_of_its_head(names: tuple[str, ...]) -> None:
    """In whatever order names come: the head stands beside the prefix, so it has none."""
    shapes = ["h.0.attn.weight", "lm_head.weight", "wte.weight"]
    assert adapter._prefix([f"{name}.weight" for name in names], shapes) == "transformer."
    assert adapter._prefix([f"{name.removeprefix('transformer.')}.weight" for name in names], shapes) == ""
