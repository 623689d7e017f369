"""What strategies do to tuned weights: the result of ``knowshift.restore``, of formulas, and of the SVD."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import knowshift
from knowshift.models.loading import LoadedModel
from knowshift.models.saving import save_model
from knowshift.parameters.loaded import parameters_of
from knowshift.tuning.after.intruders import Intruders
from knowshift.tuning.registry import STRATEGIES, strategy_of
from knowshift.tuning.weights.lora import adapted
from small_trainings import Trained, Weights

AFTER = [name for name, kind in STRATEGIES.items() if kind.kind == "after" and name != "intruders"]


@pytest.fixture
def tuned(base: LoadedModel, trained: Trained) -> LoadedModel:
    """A copy of the base with the weights of plain fine-tuning."""
    model = copy.deepcopy(base.model)
    model.load_state_dict(trained("sft")[1])
    return replace(base, model=model)


def after(name: str, base: LoadedModel, tuned: LoadedModel, **settings: float) -> Weights:
    strategy_of(name, settings).after(parameters_of(base.model), tuned.model, 7)
    return tuned.model.state_dict()


@pytest.mark.parametrize("name", AFTER)
def test_weights_are_those_that_restore_writes(
    name: str, base: LoadedModel, tuned: LoadedModel, tmp_path: Path
) -> None:
    save_model(base, tmp_path / "base")
    save_model(tuned, tmp_path / "tuned")
    strategy = strategy_of(name)
    criterion = getattr(strategy, "criterion", name)
    written = knowshift.restore(
        tmp_path / "base",
        tmp_path / "tuned",
        fraction=getattr(strategy, "fraction", None),
        criterion=criterion,
        seed=7,
        output_dir=tmp_path / "out",
    )
    (folder,) = written.output.values()
    expected = load_file(Path(folder) / "model.safetensors")
    found = after(name, base, tuned)
    assert all(torch.equal(found[key], weight) for key, weight in expected.items())
    assert any(not torch.equal(found[key], base.model.state_dict()[key]) for key in expected)


def test_lines_scales_the_change_by_the_papers_formula(base: LoadedModel, tuned: LoadedModel) -> None:
    before, full = base.model.state_dict(), copy.deepcopy(tuned.model.state_dict())
    found = after("lines", base, tuned, fraction=0.3)
    depth = base.model.config.num_hidden_layers
    alpha, beta = 0.7, 0.3
    for name, weight in found.items():
        if ".layers." not in name or weight.dim() < 2:
            assert torch.equal(weight, full[name])
            continue
        layer = int(name.split(".")[2]) + 1
        scale = alpha + beta * (layer - 1) / (depth - 1)
        expected = before[name].double() + scale * (full[name].double() - before[name].double())
        torch.testing.assert_close(weight.double(), expected, rtol=1e-6, atol=1e-8)


def test_interpolation_is_the_weighted_mean(base: LoadedModel, tuned: LoadedModel) -> None:
    before, full = base.model.state_dict(), copy.deepcopy(tuned.model.state_dict())
    for name, weight in after("interpolate", base, tuned, fraction=0.25).items():
        if ".layers." in name and weight.dim() == 2:
            expected = 0.75 * full[name].double() + 0.25 * before[name].double()
            torch.testing.assert_close(weight.double(), expected, rtol=1e-6, atol=1e-8)


def intruding(base: LoadedModel, strategy: Intruders, size: float) -> tuple[Weights, Weights]:
    """(W + BA of random adapters of this size, the weights that the strategy merges), by name."""
    model = copy.deepcopy(base.model)
    full: Weights = {}
    with adapted(model, strategy.config(), 3, strategy.reduce) as wrapped:
        for name, module in wrapped.base_model.model.named_modules():
            if hasattr(module, "lora_A"):
                generator = torch.Generator().manual_seed(len(full))
                torch.nn.init.normal_(module.lora_B["default"].weight, std=size, generator=generator)
                full[f"{name}.weight"] = (module.base_layer.weight + module.get_delta_weight("default")).detach()
    return full, model.state_dict()


def test_new_directions_are_scaled_down_as_the_paper_says(base: LoadedModel) -> None:
    strategy = Intruders(rank=8, top=4, similarity=0.7, factor=0.25)
    full, found = intruding(base, strategy, 0.5)
    before, reduced = base.model.state_dict(), 0
    for name, weight in full.items():
        w, tuned = before[name].double().numpy(), weight.double().numpy()
        own = np.linalg.svd(w, full_matrices=False)[0]
        left, values, right = np.linalg.svd(tuned, full_matrices=False)
        alike = np.abs(left.T @ own).max(1)
        new = [i for i in range(4) if alike[i] < 0.7]
        reduced += len(new)
        change = tuned - (1 - 0.25) * (left[:, new] * values[new]) @ right[new] - w
        u, s, v = np.linalg.svd(change, full_matrices=False)
        expected = w + (u[:, :8] * s[:8]) @ v[:8]  # PEFT keeps the adapter's rank
        np.testing.assert_allclose(found[name].double().numpy(), expected if new else tuned, atol=2e-5)
    assert reduced > len(full)


def test_without_new_directions_it_is_lora(base: LoadedModel) -> None:
    full, found = intruding(base, Intruders(similarity=0.0), 0.5)
    for name, weight in full.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6)
