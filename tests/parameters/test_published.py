"""The published methods against their formulas, worked out independently."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from knowshift.parameters.loaded import copy_of
from knowshift.parameters.regions import Scope
from knowshift.parameters.restore import RestorationSweep
from knowshift.parameters.selection import published
from weights_pairs import move, tiny_llama


@pytest.fixture
def tensors() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    base = torch.randn(48, 32) * 0.1
    return base, base + torch.randn(48, 32) * 0.01 * (torch.rand(48, 32) < 0.6)


def restored_by(criterion: str, fraction: float) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], int]:
    model = tiny_llama()
    base = copy_of(model)
    move(model)
    tuned = copy_of(model)
    counts = [count for _, count in RestorationSweep(model, base, criterion).run([fraction])]
    return base, tuned, copy_of(model), counts[0]


def test_interpolation_is_the_line_between_the_two() -> None:
    base, tuned, made, count = restored_by("interpolate", 0.25)
    for name in base:
        inside = ".layers." in name and base[name].ndim == 2
        expected = 0.25 * base[name] + 0.75 * tuned[name] if inside else tuned[name]
        torch.testing.assert_close(made[name], expected)
    assert count == sum(t.numel() for n, t in base.items() if ".layers." in n and t.ndim == 2)


def test_dare_drops_a_share_and_rescales_the_rest() -> None:
    base, tuned, made, count = restored_by("dare", 0.3)
    dropped = kept = 0
    for name in base:
        if ".layers." not in name or base[name].ndim != 2:
            continue
        change = tuned[name] - base[name]
        back = (made[name] == base[name]) & (change != 0)
        stays = ~back & (change != 0)
        torch.testing.assert_close((made[name] - base[name])[stays], change[stays] / 0.7, rtol=1e-3, atol=1e-6)
        dropped, kept = dropped + int(back.sum()), kept + int(stays.sum())
    assert abs(dropped / (dropped + kept) - 0.3) < 0.02
    assert abs(count / sum(t.numel() for n, t in base.items() if ".layers." in n and t.ndim == 2) - 0.3) < 0.02


def test_breadcrumbs_restore_outliers_and_the_smallest_of_each_tensor() -> None:
    base, tuned, made, _ = restored_by("breadcrumbs", 0.5)
    for name in base:
        if ".layers." not in name or base[name].ndim != 2:
            continue
        size = base[name].numel()
        change = (tuned[name] - base[name]).abs().reshape(-1)
        order = torch.sort(change, descending=True, stable=True).indices
        outliers = math.floor(0.01 * size)
        back = torch.zeros(size, dtype=torch.bool)
        back[order[:outliers]] = True
        back[order[size - (size // 2 - outliers) :]] = True
        expected = torch.where(back.reshape(base[name].shape), base[name], tuned[name])
        assert torch.equal(made[name], expected)


def test_fapm_restores_the_smallest_scores_of_each_tensor(tensors: tuple[Tensor, Tensor]) -> None:
    base, tuned, made, _ = restored_by("fapm", 0.9)
    for name in base:
        if ".layers." not in name or base[name].ndim != 2:
            continue
        change = (tuned[name] - base[name]).abs()
        score = change - float(base[name].abs().double().mean()) * (change / base[name].abs())
        order = torch.sort(score.reshape(-1), stable=True).indices
        back = torch.zeros(base[name].numel(), dtype=torch.bool)
        back[order[: math.floor(0.9 * len(back) + 1e-9)]] = True
        assert torch.equal(made[name], torch.where(back.reshape(base[name].shape), base[name], tuned[name]))
    zero = np.float32([0.0, 0.0, 1.0, 1.0]), np.float32([0.1, 0.0, 1.0, 1.1])
    assert np.argsort(-published.fapm_keys(*zero, mean=0.5).astype(np.int64), kind="stable").tolist() == [0, 1, 2, 3]


def test_lines_scales_by_depth() -> None:
    assert [published.lines_scale(layer, 5, 0.8) for layer in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert published.lines_scale(None, 5, 0.8) == pytest.approx(0.2)
    assert published.lines_scale(0, 1, 0.8) == 1.0
    base, tuned, made, _ = restored_by("lines", 0.4)
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(made[name], base[name] + 0.6 * (tuned[name] - base[name]))
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(made[name], tuned[name])


def test_lines_goes_by_the_models_depth_whatever_layers_are_asked_for() -> None:
    model = tiny_llama(num_hidden_layers=3)
    base = copy_of(model)
    move(model)
    tuned = copy_of(model)
    for _ in RestorationSweep(model, base, "lines", scope=Scope(layers=(0, 1))).run([0.5]):
        for layer, scale in enumerate((0.5, 0.75, 1.0)):
            name = f"model.layers.{layer}.mlp.up_proj.weight"
            expected = base[name] + scale * (tuned[name] - base[name])
            torch.testing.assert_close(dict(model.named_parameters())[name].detach(), expected)


def test_the_spectral_threshold_has_its_published_values() -> None:
    assert published.hard_threshold(1.0) == pytest.approx(4 / math.sqrt(3), abs=1e-12)
    # Gavish and Donoho give 2.858 for a square matrix of unknown noise: threshold over median.
    assert published.hard_threshold(1.0) / published.marchenko_pastur_median(1.0) == pytest.approx(2.858, abs=1e-3)
    assert published.hard_threshold(0.5) / published.marchenko_pastur_median(0.5) == pytest.approx(2.1711, abs=2e-3)
    for aspect in (0.05, 0.25, 0.5, 1.0):
        torch.manual_seed(1)
        columns = 800
        noise = torch.randn(round(aspect * columns), columns) / math.sqrt(columns)
        median = float(np.median(torch.linalg.svdvals(noise).numpy()))
        assert published.marchenko_pastur_median(aspect) == pytest.approx(median, rel=0.02)


def test_spectral_filtering_keeps_a_planted_signal_and_drops_noise(tensors: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(2)
    signal = 3.0 * torch.randn(200, 3) @ torch.randn(3, 300)
    noisy = signal + torch.randn(200, 300)
    filtered, kept = published.spectral_filter(noisy.numpy())
    assert kept == 3
    assert float((torch.from_numpy(filtered) - signal).norm()) < 0.25 * float((noisy - signal).norm())
    assert published.spectral_filter(torch.randn(200, 300).numpy())[1] == 0
    base, tuned, made, _ = restored_by("dg-hard", 1.0)
    name = "model.layers.0.mlp.up_proj.weight"
    expected, _ = published.spectral_filter((tuned[name] - base[name]).numpy())
    torch.testing.assert_close(made[name], base[name] + torch.from_numpy(expected))
