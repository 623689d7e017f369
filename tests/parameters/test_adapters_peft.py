"""Adapters of every kind that PEFT makes: what every command sees is the model with its adapter.

``KNOWSHIFT_EXAMPLES=3000`` draws more configurations than the 48 of the ordinary run.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, event, given, settings
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from adapter_cases import Case, cases, save_base, train_adapter
from knowshift.errors import InputError
from knowshift.models.loading import load_model
from knowshift.parameters.files.pair import open_pair
from knowshift.parameters.files.restored import restore_checkpoints
from knowshift.parameters.loaded import as_tensor
from knowshift.parameters.regions import Scope, own_names
from weights_pairs import loaded, same_bits

EXAMPLES = int(os.environ.get("KNOWSHIFT_EXAMPLES", "48"))
IDS = torch.tensor([[3, 14, 15, 9], [2, 71, 82, 81]])

#: How often each way was taken: a test in which every case is refused would check nothing.
TAKEN: Counter[str] = Counter()


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # a configuration is small as it is, and shrinking one takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(case=cases())
def every_command_sees_the_model_with_its_adapter(case: Case) -> None:
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        how = check_case(case, Path(name))
        TAKEN[how] += 1
        event(how)


@pytest.mark.slow
def test_every_command_sees_the_model_with_its_adapter() -> None:
    TAKEN.clear()
    every_command_sees_the_model_with_its_adapter()
    assert min(TAKEN[way] for way in ("AdaptedTensors", "MergedTensors")) > EXAMPLES / 5
    assert sum(TAKEN.values()) >= EXAMPLES


_SQUARE = {"r": 4, "target_modules": ["q_proj", "o_proj"]}
REPORTED = {
    "pissa saved unconverted": Case(
        "llama", False, "float32", False, "LoraConfig", {**_SQUARE, "init_lora_weights": "pissa"}
    ),
    "olora saved unconverted": Case(
        "qwen2", False, "float32", False, "LoraConfig", {**_SQUARE, "init_lora_weights": "olora"}
    ),
    "tied embeddings saved whole": Case(
        "llama", True, "float32", False, "LoraConfig", {**_SQUARE, "modules_to_save": ["embed_tokens"]}
    ),
    "the hub's names of GPT-2": Case(
        "gpt2", True, "float32", True, "LoraConfig", {"r": 4, "target_modules": ["c_attn"]}
    ),
    "Conv1D and Linear in one adapter": Case(
        "gpt2", False, "float32", False, "LoraConfig", {"r": 4, "target_modules": ["attn.c_proj", "lm_head"]}
    ),
    "all biases beside a norm saved whole": Case(
        "gpt2",
        False,
        "float32",
        False,
        "LoraConfig",
        {"r": 4, "target_modules": ["c_attn"], "bias": "all", "modules_to_save": ["ln_f"]},
    ),
    "a flag that is wrong for Linear": Case(
        "llama", False, "float32", False, "LoraConfig", {**_SQUARE, "fan_in_fan_out": True}
    ),
}


@pytest.mark.parametrize("case", REPORTED.values(), ids=REPORTED.keys())
@pytest.mark.filterwarnings("ignore")
def test_reported_faults(case: Case, tmp_path: Path) -> None:
    check_case(case, tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_peft_does_not_load_back_is_refused(tmp_path: Path) -> None:
    options = {"r": 2, "target_modules": ["c_attn", "lm_head", "wte"], "ensure_weight_tying": True}
    case = Case("gpt2", True, "float32", False, "LoraConfig", options)
    save_base(tmp_path / "base", case)
    train_adapter(tmp_path / "base", tmp_path / "adapter", case)
    with pytest.raises(InputError, match=r"tensor 'base_model.model.lm_head.lora_A.weight' has no place in the base"):
        open_pair(tmp_path / "base", tmp_path / "adapter")


def check_case(case: Case, folder: Path) -> str:
    """Which way the adapter was read."""
    base, adapter = folder / "base", folder / "adapter"
    save_base(base, case)
    adapted = train_adapter(base, adapter, case)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.inference_mode():
        expected = adapted(input_ids=IDS).logits[:, -1]
        before = plain(input_ids=IDS).logits[:, -1]
    assert float((expected - before).abs().max()) > 1e-5  # the adapter says something
    # What `restore --fraction 0` writes.
    done = restore_checkpoints(base, adapter, folder / "out", {"0": 0.0})
    written = loaded(done.output["0"])
    # What `weights` compares.
    pair = open_pair(base, adapter, Scope("all"))
    own = own_names(written)
    for place in pair.places:
        shape = pair.tuned.shapes[place.name]
        read = as_tensor(
            pair.tuned.read(place.name, 0, shape.numel() if isinstance(shape, torch.Size) else _size(shape))
        )
        counterpart = written[own(place.name) or ""]
        assert same_bits(read.reshape(shape), counterpart.to(read.dtype)), place.name
    # What `tokens`, `evaluate` and `mastery` run.
    model = load_model(str(adapter), base=str(base))
    for name, parameter in model.model.named_parameters():
        assert same_bits(parameter.detach(), written[name].to(torch.float32)), name
    with torch.inference_mode():
        logits = model.model(input_ids=IDS).logits[:, -1]
    # Where the base is stored in bfloat16, rounding may blur a tenth of what the adapter says.
    blur = 0.1 * float((expected - before).abs().max())
    close = {"rtol": 1e-4, "atol": 1e-4} if case.dtype == "float32" else {"rtol": 0.0, "atol": max(blur, 0.02)}
    torch.testing.assert_close(logits, expected, **close)
    check_merge(case, plain, adapter, written)
    return type(pair.tuned).__name__


def check_merge(case: Case, plain: PreTrainedModel, adapter: Path, written: dict[str, Tensor]) -> None:
    """Weight by weight against PEFT's own merge, but for where that is not the model with its adapter.

    The base's model is changed.
    """
    if case.shares_trained:
        return
    merged = PeftModel.from_pretrained(plain, adapter).merge_and_unload()
    close = {"rtol": 1e-5, "atol": 1e-6} if case.dtype == "float32" else {"rtol": 2**-8, "atol": 1e-6}
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(written[name].float(), parameter.detach(), **close)


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
