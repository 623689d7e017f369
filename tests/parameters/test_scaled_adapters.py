"""A part of an adapter undone as an adapter: PEFT's own merge of it is the interpolation of PEFT's own merge."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import knowshift
from adapter_cases import Case, cases, save_base, train_adapter
from knowshift.errors import InputError
from knowshift.parameters.files.pair import open_pair
from knowshift.parameters.files.scaled import CRITERIA, not_scaled
from knowshift.parameters.regions import Scope
from knowshift.parameters.selection.published import lines_scale

PLAIN = Case("llama", False, "float32", False, "LoraConfig", {"r": 4, "target_modules": ["q_proj", "down_proj"]})
#: Options whose result is more than products of two matrices, or other than them.
NOT_LOW_RANK = ("bias", "modules_to_save", "trainable_token_indices", "use_dora", "init_lora_weights")
TAKEN: Counter[str] = Counter()


def merged(base: Path, adapter: Path) -> dict[str, Tensor]:
    """PEFT's merge, in float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        whole = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {name: tensor.detach().clone() for name, tensor in whole.state_dict().items()}


def plain(base: Path) -> dict[str, Tensor]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    case=cases(),
    criterion=st.sampled_from(CRITERIA),
    fraction=st.sampled_from([0.0, 0.3, 0.75, 1.0]),
    region=st.sampled_from(["layers", "attention", "mlp"]),
    low_rank=st.booleans(),
)
def is_an_interpolation(case: Case, criterion: str, fraction: float, region: str, low_rank: bool) -> None:
    if low_rank and case.kind == "LoraConfig":
        kept = {name: value for name, value in case.options.items() if name not in NOT_LOW_RANK}
        case = replace(case, options=kept)
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base, adapter, output = (Path(name) / part for part in ("base", "adapter", "output"))
        save_base(base, case)
        train_adapter(base, adapter, case)
        try:
            pair = open_pair(base, adapter, Scope(region))
        except InputError:
            TAKEN["refused"] += 1
            return
        options = {"output_dir": output, "fraction": fraction, "criterion": criterion, "region": region}
        if not_scaled(pair, criterion) is not None:
            with pytest.raises(InputError, match="adapter cannot stand"):
                knowshift.restore(base, adapter, as_adapter=True, **options)  # type: ignore[arg-type]
            assert not output.exists()
            TAKEN["not scaled"] += 1
            return
        knowshift.restore(base, adapter, as_adapter=True, **options)  # type: ignore[arg-type]
        before, tuned, found = plain(base), merged(base, adapter), merged(base, output)
        places = {where.name: where for where in pair.places}
        ends = {name: next((own for own in places if name.endswith(own)), None) for name in tuned}
        assert any(ends.values())
        for name_, own in ends.items():
            layer = places[own].layer if own else None
            left = (
                1.0
                if own is None
                else lines_scale(layer, pair.depth, fraction)
                if criterion == "lines"
                else 1 - fraction
            )
            expected = before[name_] + left * (tuned[name_] - before[name_])
            torch.testing.assert_close(found[name_], expected, rtol=1e-5, atol=2e-6)
        TAKEN["scaled"] += 1


def test_is_an_interpolation() -> None:
    TAKEN.clear()
    is_an_interpolation()
    assert TAKEN["scaled"] >= 8
    assert TAKEN["not scaled"] >= 8


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    save_base(tmp_path / "base", PLAIN)
    train_adapter(tmp_path / "base", tmp_path / "adapter", PLAIN)
    (tmp_path / "adapter" / "chat_template.jinja").write_text("{{ messages }}")
    return tmp_path / "base", tmp_path / "adapter"


def test_what_an_output_holds(pair: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "output"
    knowshift.restore(*pair, output_dir=output, fraction=["0", "0.5"], criterion="interpolate", as_adapter=True)
    names = ["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "knowshift.json"]
    for fraction in ("0", "0.5"):
        assert sorted(path.name for path in (output / fraction).iterdir()) == names
    told = json.loads((output / "0.5" / "knowshift.json").read_text())
    assert (told["criterion"], told["fraction"], told["as_adapter"]) == ("interpolate", 0.5, True)
    config = json.loads((output / "0.5" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(pair[0].resolve())  # whatever it named before
    kept, half = (load_file(output / fraction / "adapter_model.safetensors") for fraction in ("0", "0.5"))
    first = load_file(pair[1] / "adapter_model.safetensors")
    assert all(torch.equal(kept[name], first[name]) for name in first)
    assert {name for name in first if not torch.equal(half[name], first[name])} == {n for n in first if "lora_B" in n}


def test_does_not_depend_on_the_stored_dtype(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        folder = tmp_path / str(dtype)
        folder.mkdir()
        tensors = {name: t.to(dtype) for name, t in load_file(pair[1] / "adapter_model.safetensors").items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_bytes((pair[1] / "adapter_config.json").read_bytes())
        output = tmp_path / f"output-{dtype}"
        knowshift.restore(pair[0], folder, output_dir=output, fraction=0.25, criterion="interpolate", as_adapter=True)
        for name, found in load_file(output / "adapter_model.safetensors").items():
            expected = (tensors[name].float() * (0.75 if "lora_B" in name else 1)).to(dtype)
            assert found.dtype == dtype
            assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"criterion": "relative"}, "'relative' does not multiply whole matrices; expected interpolate or lines"),
        ({"criterion": "interpolate", "region": "embeddings"}, "holds no weight"),
        ({"criterion": "interpolate", "fraction": 1.5}, "1.5"),
    ],
    ids=str,
)
def test_refuses(pair: tuple[Path, Path], tmp_path: Path, options: dict[str, object], says: str) -> None:
    if options.get("region") == "embeddings":
        options, says = {**options, "region": "heads"}, "region 'heads' is not known"
    with pytest.raises(InputError, match=says):
        knowshift.restore(*pair, output_dir=tmp_path / "output", as_adapter=True, **{"fraction": 0.5, **options})  # type: ignore[arg-type]
    assert not (tmp_path / "output").exists()


def test_refuses_a_model_and_damage(pair: tuple[Path, Path], tmp_path: Path) -> None:
    options = {"output_dir": tmp_path / "output", "fraction": 0.5, "criterion": "interpolate", "as_adapter": True}
    with pytest.raises(InputError, match="it is no adapter"):
        knowshift.restore(pair[0], pair[0], **options)  # type: ignore[arg-type]
    path = pair[1] / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match="NaN or infinite"):
        knowshift.restore(*pair, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "output").exists()
