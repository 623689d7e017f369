"""Every bad pair ends in one line that names the tensor or file, and nothing is written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from knowshift.errors import InputError
from knowshift.parameters.files import writing
from knowshift.parameters.files.checkpoint import StoredTensors, read_shard
from knowshift.parameters.files.restored import restore_checkpoints
from knowshift.parameters.methods import METHODS
from knowshift.parameters.regions import PAPER_SCOPE, Scope
from weights_pairs import save_pair, tiny_llama

UP = "model.layers.0.mlp.up_proj.weight"


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def drop(weights: dict[str, torch.Tensor]) -> None:
    del weights[UP]


def refused(folder: Path, message: str, scope: Scope = PAPER_SCOPE, **options: object) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(InputError, match=message) as raised:
        restore_checkpoints(folder / "base", folder / "tuned", folder / "out", {"0.2": 0.2}, scope, **options)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
    assert sorted(folder.iterdir()) == before


def test_tensors_that_do_not_match_are_named(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path)
    kept = {folder: (folder / "model.safetensors").read_bytes() for folder in (base, tuned)}

    def again() -> None:
        for folder, data in kept.items():
            (folder / "model.safetensors").write_bytes(data)

    edit_weights(tuned, drop)
    refused(tmp_path, f"tensor '{UP}': in .*base, missing in .*tuned")
    again()
    edit_weights(base, drop)
    refused(tmp_path, f"tensor '{UP}': in .*tuned, missing in .*base")
    again()
    edit_weights(tuned, lambda weights: weights.update({UP: torch.zeros(48, 16)}))
    refused(tmp_path, rf"tensor '{UP}': shape \(48, 32\) in .*base, \(48, 16\) in .*tuned")
    again()
    edit_weights(tuned, lambda weights: weights.update({UP: weights[UP].to(torch.int8)}))
    refused(tmp_path, f"tensor '{UP}' of .*tuned: dtype I8 cannot be compared")
    again()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        edit_weights(tuned, lambda weights, name=name: weights.update({name: torch.zeros(95, 32)}))  # type: ignore[misc]
    refused(tmp_path, r"shape \(90, 32\) in .*, \(95, 32\) in .*: the vocabulary was resized")


def test_another_architecture_or_none_is_named(tmp_path: Path) -> None:
    _, tuned = save_pair(tmp_path)
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps({**config, "model_type": "mistral"}))
    refused(tmp_path, "architecture 'mistral', but .*base is 'llama'")
    (tuned / "config.json").write_text("{}")
    refused(tmp_path, "config.json: no model_type")
    (tuned / "config.json").write_text("{broken")
    refused(tmp_path, "config.json: not readable as JSON")
    (tuned / "config.json").unlink()
    refused(tmp_path, "config.json: no such file")


@pytest.mark.parametrize("criterion", ["relative", "random", "magnitude", "interpolate", "dare", "fapm", "same-norm"])
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_weights_that_are_not_finite_are_named_and_counted(criterion: str, side: str, tmp_path: Path) -> None:
    save_pair(tmp_path)

    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights[UP].view(-1)[:2] = float("nan")
        weights[UP].view(-1)[2] = float("-inf")

    edit_weights(tmp_path / side, spoil)
    refused(tmp_path, f"tensor '{UP}' of .*{side}: 2 NaN and 1 infinite weights; expected finite", criterion=criterion)
    pair = (tmp_path / "base", tmp_path / "tuned")
    done = restore_checkpoints(
        *pair, tmp_path / "out", {"1": 1.0}, scope=Scope(allow_nonfinite=True), criterion=criterion
    )
    assert done.restored["1"] > 0


def test_what_float32_cannot_hold_is_infinite_and_refused(tmp_path: Path) -> None:
    base, _ = save_pair(tmp_path)
    edit_weights(base, lambda weights: weights.update({UP: torch.full((48, 32), 1e39, dtype=torch.float64)}))
    refused(tmp_path, f"tensor '{UP}' of .*base: 0 NaN and 1536 infinite weights; expected finite")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    _, tuned = save_pair(tmp_path)
    path = tuned / "model.safetensors"
    data = path.read_bytes()
    for spoiled, message in (
        (data[:-10], "truncated"),
        (data + b"12345", "longer than its header says"),
        (data[:100], "truncated or not a safetensors file"),
        (b"", "truncated or not a safetensors file"),
        (data[:8] + b"x" + data[9:], "not a readable safetensors file"),
        (data.replace(b'"BF16"', b'"QQ16"').replace(b'"F32"', b'"Q32"'), "dtype 'Q32', which is not known"),
        (data.replace(b"[48,32]", b"[48,31]", 1), "corrupt safetensors header: tensor"),
        ((2).to_bytes(8, "little") + b"[]", "corrupt safetensors header"),
    ):
        path.write_bytes(spoiled)
        refused(tmp_path, f"model.safetensors: .*{message}" if "corrupt" not in message else message)


@given(st.binary(max_size=60), st.integers(0, 400))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_to_a_header_is_a_traceback(tmp_path: Path, noise: bytes, place: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(3, 4), "b": torch.ones(2)}, path)
    data = path.read_bytes()
    path.write_bytes(data[:place] + noise + data[place + len(noise) :])
    try:
        shard = read_shard(path)
    except InputError:
        return
    assert all(t.end <= shard.size for t in shard.tensors.values())


def test_shards_and_indices_must_agree(tmp_path: Path) -> None:
    _, tuned = save_pair(tmp_path, shard="12KB")
    index = tuned / "model.safetensors.index.json"
    text = index.read_text()
    content = json.loads(text)
    shards = sorted(set(content["weight_map"].values()))
    assert len(shards) > 3
    files = list(content["weight_map"].values())
    first = next(name for name, file in content["weight_map"].items() if files.count(file) > 1)

    def with_map(**changes: object) -> None:
        index.write_text(json.dumps({**content, "weight_map": {**content["weight_map"], **changes}}))

    with_map(**{first: "model-00099-of-00099.safetensors"})
    refused(tmp_path, "names shard 'model-00099-of-00099.safetensors', which is missing")
    with_map(**{first: "../model-00001.safetensors"})
    refused(tmp_path, "lies outside the checkpoint's folder")
    with_map(**{first: next(s for s in shards if s != content["weight_map"][first])})
    refused(tmp_path, f"tensor '{first}' is not in shard")
    index.write_text(json.dumps({"weight_map": {k: v for k, v in content["weight_map"].items() if k != first}}))
    refused(tmp_path, f"tensor '{first}' of shard .* is not in the index")
    index.write_text("{}")
    refused(tmp_path, "no weight_map")
    index.write_text(text)
    (tuned / shards[1]).unlink()
    refused(tmp_path, f"names shard '{shards[1]}', which is missing")


def test_pickled_weights_are_refused_by_name(tmp_path: Path) -> None:
    _, tuned = save_pair(tmp_path)
    (tuned / "model.safetensors").rename(tuned / "pytorch_model.bin")
    refused(tmp_path, r"pickled weights \(pytorch_model.bin\) are refused")
    (tuned / "pytorch_model.bin").unlink()
    refused(tmp_path, "no model.safetensors and no model.safetensors.index.json")
    shutil.rmtree(tuned)
    refused(tmp_path, "no such checkpoint folder")


def test_an_output_folder_must_be_new_and_apart(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for output, message in (
        (base, "is .or lies in. one of the inputs"),
        (tuned / "new", "is .or lies in. one of the inputs"),
        (tmp_path / "full", "is not empty"),
        (tmp_path / "file", "exists and is no folder"),
    ):
        with pytest.raises(InputError, match=message):
            restore_checkpoints(base, tuned, output, {"0.2": 0.2})
    assert (tmp_path / "full" / "file").read_text() == "mine"
    assert not (tuned / "new").exists()


def test_an_output_folder_must_be_makeable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = save_pair(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"file/deep/out: .*/file is a file, not a folder"):
        restore_checkpoints(base, tuned, tmp_path / "file" / "deep" / "out", {"0.2": 0.2})
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "out")
    refused(tmp_path, "out: is a mount point; expected a new folder in it")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folders_parent_must_be_writable(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path)
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(InputError, match=r"closed/deep/out: the folder .*closed cannot be written to"):
        restore_checkpoints(base, tuned, tmp_path / "closed" / "deep" / "out", {"0.2": 0.2})


def test_an_output_may_be_a_link_to_an_empty_folder(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path)
    (tmp_path / "far").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "far")
    done = restore_checkpoints(base, tuned, tmp_path / "out", {"0.2": 0.2})
    assert done.output["0.2"] == tmp_path / "out"
    assert (tmp_path / "far" / "model.safetensors").is_file()


def test_a_wrong_criterion_makes_no_folder_on_the_way(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path)
    with pytest.raises(InputError, match="criterion 'abs' is not known"):
        restore_checkpoints(base, tuned, tmp_path / "new" / "out", {"0.2": 0.2}, criterion="abs")
    assert not (tmp_path / "new").exists()


def test_a_disk_that_fills_up_meanwhile_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pair(tmp_path)

    def full(descriptor: int, data: object, begin: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    refused(tmp_path, "out: No space left on device; nothing was written")


def test_too_little_disk_is_known_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pair(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused(tmp_path, "0.0 GB free, 0.1 GB needed")


def test_fractions_regions_and_criteria_are_checked(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path)
    for fraction in (-0.1, 1.01, float("nan")):
        with pytest.raises(InputError, match="expected a number from 0 to 1"):
            restore_checkpoints(base, tuned, tmp_path / "out", {"x": fraction})
    refused(tmp_path, "region 'layer' is not known; nearest: 'layers'", scope=Scope("layer"))
    refused(tmp_path, "criterion 'abs' is not known", criterion="abs")
    refused(tmp_path, "takes no fraction", criterion="dg-hard")
    refused(tmp_path, "the model has layers 0-1", scope=Scope(layers=(0, 7)))


def test_a_stale_index_beside_a_single_file_is_passed_over_as_transformers_does(tmp_path: Path) -> None:
    base, _ = save_pair(tmp_path)
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    assert len(StoredTensors(base).shards) == 1
    assert tiny_llama().config.model_type == StoredTensors(base).model_type


@pytest.mark.parametrize("criterion", METHODS)
def test_a_tensor_without_weights_is_written_as_it_is(criterion: str, tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path)
    for folder in (base, tuned):
        edit_weights(folder, lambda weights: weights.update({UP: torch.zeros(0, 32)}))
    fraction = 1.0 if criterion == "dg-hard" else 0.5
    done = restore_checkpoints(base, tuned, tmp_path / "out", {"x": fraction}, criterion=criterion)
    assert load_file(done.output["x"] / "model.safetensors")[UP].shape == (0, 32)
    assert done.restored["x"] > 0
