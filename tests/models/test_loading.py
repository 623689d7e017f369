"""Loading: what is accepted, what is refused in one line, and what identifies a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file

from knowshift.errors import InputError, KnowshiftWarning
from knowshift.models.finding import model_folder, model_identity
from knowshift.models.loading import ALIGNMENT, load_model


@pytest.fixture
def copy(small_world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_world, tmp_path / "model"))


def test_a_local_folder_loads_in_eval_mode_and_float32(small_world: Path) -> None:
    loaded = load_model(str(small_world))
    assert not loaded.model.training
    assert (loaded.dtype, loaded.device, loaded.name) == ("float32", "cpu", str(small_world))
    assert loaded.tokenizer.padding_side == "left"
    assert loaded.context == 512
    assert loaded.stop_ids() == [loaded.tokenizer.eos_token_id]
    assert loaded.about()["identity"] == loaded.identity == model_identity(small_world)
    assert load_model(f"world:{small_world}").identity == loaded.identity


@pytest.mark.parametrize(("asked", "dtype"), [("bfloat16", torch.bfloat16), ("auto", torch.bfloat16)])
def test_dtype_is_the_one_asked_for_or_the_stored_one(copy: Path, asked: str, dtype: torch.dtype) -> None:
    weights = {name: tensor.bfloat16() for name, tensor in load_file(copy / "model.safetensors").items()}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((copy / "config.json").read_text()) | {"dtype": "bfloat16"}
    (copy / "config.json").write_text(json.dumps(config))
    assert load_model(str(copy), dtype=asked).model.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_begin_where_those_of_a_model_in_memory_do(copy: Path, dtype: torch.dtype) -> None:
    """Else a matrix times one row has other last digits on some processors; files are mapped wherever a tensor begins.

    As the dtype in which they are stored, so that nothing is converted on the way.
    """
    weights = {name: tensor.to(dtype) for name, tensor in load_file(copy / "model.safetensors").items()}
    for shift in range(2):  # a longer header moves all tensors
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt", "more": 8 * shift * "x"})
        model = load_model(str(copy), dtype=str(dtype).removeprefix("torch.")).model
        assert {weight.data_ptr() % ALIGNMENT for weight in (*model.parameters(), *model.buffers())} == {0}
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight  # tied, as before
        for name, weight in model.state_dict().items():
            assert name not in weights or torch.equal(weight, weights[name])


def test_the_identity_changes_with_one_weight_and_not_with_the_place(copy: Path, small_world: Path) -> None:
    assert model_identity(copy) == model_identity(small_world)
    weights = load_file(copy / "model.safetensors")
    name = sorted(weights)[-1]
    weights[name].flatten()[0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert model_identity(copy) != model_identity(small_world)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'),
        ("generation_config.json", '"eos_token_id": 2', '"eos_token_id": 3'),
        ("tokenizer.json", '"id": 2', '"id": 3'),
        ("tokenizer_config.json", "</s>", "<s>"),
    ],
)
def test_the_identity_is_that_of_config_and_tokenizer_too(
    copy: Path, small_world: Path, file: str, old: str, new: str
) -> None:
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new, 1))
    assert model_identity(copy) != model_identity(small_world)


@pytest.mark.parametrize("name", ["special_tokens_map.json", "merges.txt", "vocab.json", "added_tokens.json", "t.spm"])
def test_the_identity_changes_with_a_tokenizer_file_that_comes_and_not_with_others(copy: Path, name: str) -> None:
    before = model_identity(copy)
    (copy / "README.md").write_text("about")
    (copy / "trainer_state.json").write_text("{}")
    assert model_identity(copy) == before
    (copy / name).write_text("{}")
    assert model_identity(copy) != before


def test_a_pad_token_that_ends_texts_is_warned_of(copy: Path) -> None:
    config = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": config["eos_token"]}))
    with pytest.warns(KnowshiftWarning, match="the pad token equals the end-of-sequence token"):
        load_model(str(copy))


def _without(*names: str):  # type: ignore[no-untyped-def]
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return spoil


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _a_weight_less(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _no_end(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _unknown_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "no-such-model"}
    (folder / "config.json").write_text(json.dumps(config))


def _adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_without("config.json"), "no config.json"),
        (_without("tokenizer.json"), "no tokenizer in"),
        (_without("model.safetensors"), r"no \*.safetensors weights"),
        (_pickled, r"only pickled weights \(pytorch_model.bin\), which are refused"),
        (_truncated, "model.safetensors: truncated: .* bytes, expected"),
        (_a_weight_less, "1 weights are missing from the checkpoint, the first is 'model.norm.weight'"),
        (_no_end, "no end-of-sequence token"),
        (_unknown_type, "cannot load the model"),
        (_adapter, "holds an adapter .* and a model"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot load the tokenizer"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(copy: Path, spoil, says: str) -> None:  # type: ignore[no-untyped-def]
    spoil(copy)
    with pytest.raises(InputError, match=says) as told:
        load_model(str(copy))
    assert "\n" not in str(told.value)
    assert str(told.value).startswith(str(copy))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (GatedRepoError, r"gated; accept its licence at https://huggingface.co/someone/model, then `hf auth login`"),
        (RepositoryNotFoundError, r"there is no such model, or it is private \(`hf auth login` or HF_TOKEN\)"),
        (RevisionNotFoundError, "there is no revision 'v9'"),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_to_do(
    fault: type[HfHubHTTPError], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object, **more: object) -> None:
        raise fault.__new__(
            fault, "403 Client Error. (Request ID: Root=1-2)"
        )  # without a response, of whatever library

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(InputError, match=rf"^someone/model: no such folder, and the hub did not give it: .*{says}"):
        load_model("someone/model", revision="v9")


def test_names_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, says in [
        (str(tmp_path / "none"), "no such model folder"),
        ("world:/no/such", "no such model folder"),
        ("nobody/nothing-at-all", "the hub did not give it: it is not in the cache, and the hub cannot be reached"),
    ]:
        with pytest.raises(InputError, match=says):
            load_model(name)
    with pytest.raises(InputError, match="dtype 'float31' is unknown; nearest: 'float32'"):
        load_model("x", dtype="float31")
    for device in ("cudda", "cuda:7"):
        with pytest.raises(InputError, match=f"device '{device}'"):
            load_model("x", device=device)


def test_the_shipped_model_is_found() -> None:
    assert (model_folder("world:tiny") / "config.json").is_file()
