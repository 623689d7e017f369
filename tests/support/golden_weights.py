"""What ``change.json`` of the golden study should say, from the weights of two models and plain numpy."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import numpy as np
import pytest

CONCENTRATION = (0.01, 0.03, 0.05, 0.1, 0.2, 0.4, 0.6)

#: Weights: 38 words x 64 twice, two layers of q 64 x 64, k and v 32 x 64, o 64 x 64, three of 16 x 64, norms of 64.
LAYER = {"q": 4096, "k": 2048, "v": 2048, "o": 4096, "gate": 1024, "up": 1024, "down": 1024}
NORMS = {"input_layernorm": 64, "post_attention_layernorm": 64}
WEIGHTS = 2 * 38 * 64 + 2 * (sum(LAYER.values()) + 128) + 64

CHANGE = {
    *("region", "seed", "eligible", "changed", "changed_share", "base_zero", "concentration", "null"),
    *("layers", "modules", "null_layers", "null_modules", "layer_weights", "module_weights", "rounding", "tensors"),
}


def weights_of(model: Any) -> dict[str, Any]:
    return {name: weight.detach().numpy() for name, weight in model.named_parameters()}


def module_of(name: str) -> str:
    last = name.removesuffix(".weight").split(".")[-1]
    return {"embed_tokens": "embeddings", "lm_head": "head"}.get(last, last.removesuffix("_proj"))


def hold_change(told: dict[str, Any], base: dict[str, Any], tuned: dict[str, Any], seed: int) -> None:
    """Every number of the record. ``seed`` is that of the null."""
    names = sorted(base)
    p = np.concatenate([base[name].ravel() for name in names])
    layer = np.concatenate([np.full(base[n].size, int(n.split(".")[2]) if ".layers." in n else -1) for n in names])
    place = np.concatenate([np.full(base[n].size, i) for i, n in enumerate(names)])
    assert len(p) == WEIGHTS == 35904
    change = np.abs(np.concatenate([tuned[name].ravel() for name in names]) - p)
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.where(change == 0, np.float32(0), change / np.abs(p))
    null = _null(base, tuned, names, seed)
    assert (told["region"], told["seed"], told["eligible"], told["rounding"]) == ("all", seed, WEIGHTS, None)
    assert told["changed"] == np.count_nonzero(change) == round(told["changed_share"] * WEIGHTS)
    assert told["base_zero"] == np.count_nonzero(np.isinf(r)) == 6
    squared = change.astype(np.float64) ** 2
    for which, scores in (("concentration", r), ("null", null)):
        measures = {"relative": (scores, scores), "absolute": (change, change), "squared": (change, squared)}
        assert set(told[which]) == set(measures)
        for measure, (rank, amount) in measures.items():
            held = np.where(np.isinf(amount), 0.0, amount).astype(np.float64)[np.argsort(-rank, kind="stable")]
            shares = [held[: math.floor(f * WEIGHTS + 1e-9)].sum() / held.sum() for f in CONCENTRATION]
            assert list(told[which][measure]) == [str(f) for f in CONCENTRATION]
            assert list(told[which][measure].values()) == pytest.approx(shares, abs=1e-6), measure
    top = np.argsort(-r, kind="stable")[:7180]  # a fifth of all weights
    null_top = np.argsort(-null, kind="stable")[:7180]
    modules = np.array([module_of(name) for name in names])[place]
    for before, first in (("", top), ("null_", null_top)):
        assert told[f"{before}layers"] == {str(k): np.mean(layer[first] == k) for k in (0, 1)}
        shares = {m: pytest.approx(np.mean(modules[first] == m)) for m in dict.fromkeys(modules)}
        assert told[f"{before}modules"] == shares
    assert told["layer_weights"] == dict.fromkeys("01", (sum(LAYER.values()) + 128) / WEIGHTS)
    sizes = {**LAYER, **NORMS}
    ends = {"embeddings": 2432 / WEIGHTS, "head": 2432 / WEIGHTS, "norm": 64 / WEIGHTS}
    assert told["module_weights"] == {**{m: 2 * n / WEIGHTS for m, n in sizes.items()}, **ends}
    assert [t["name"] for t in told["tensors"]] == names
    for number, tensor in enumerate(told["tensors"]):
        here = place == number
        finite = np.where(np.isinf(r[here]), 0.0, r[here]).astype(np.float64)
        assert tensor == {
            "name": names[number],
            "layer": None if layer[here][0] < 0 else layer[here][0],
            "module": module_of(names[number]),
            "size": int(here.sum()),
            "changed": np.count_nonzero(change[here]),
            "base_zero": np.count_nonzero(np.isinf(r[here])),
            "relative_sum": pytest.approx(finite.sum(), rel=1e-6),
            "absolute_sum": pytest.approx(change[here].astype(np.float64).sum(), rel=1e-6),
            "squared_sum": pytest.approx(squared[here].sum(), rel=1e-6),
            "top": int(here[top].sum()),
            "null_top": int(here[null_top].sum()),
            "rounded": None,
        }
    assert set(told) == CHANGE


def seed_of(*parts: object) -> int:
    text = json.dumps([str(part) for part in parts], separators=(",", ":"))
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) % 2**31


def _null(base: dict[str, Any], tuned: dict[str, Any], names: list[str], seed: int) -> Any:
    """r of every tensor's own |p| with its own |s - p| in an order drawn for the tensor."""
    scores = []
    for name in names:
        p, change = np.abs(base[name].ravel()), np.abs(tuned[name].ravel() - base[name].ravel())
        word = hashlib.sha256(f"null\0{seed}\0{name}\0{1}".encode()).digest()
        change = change[np.random.default_rng(int.from_bytes(word, "little")).permutation(len(p))]
        with np.errstate(divide="ignore", invalid="ignore"):
            scores.append(np.where(change == 0, np.float32(0), change / p))
    return np.concatenate(scores)
