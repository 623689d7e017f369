"""Weight change against plain sorts, the null's properties, and independence of pieces and threads."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from knowshift.errors import InputError
from knowshift.parameters import null as null_module
from knowshift.parameters.change import measure_change, measure_pair
from knowshift.parameters.files.pair import open_pair
from knowshift.parameters.kernels import compiled as kernels
from knowshift.parameters.loaded import LoadedTensors, copy_of
from knowshift.parameters.null import NULL_BLOCK, null_relative
from knowshift.parameters.record import WEIGHT_CHANGE, write_record
from knowshift.parameters.regions import Place, Scope
from knowshift.parameters.selection.select import FRACTIONS
from knowshift.parameters.tensors import WeightPair
from knowshift.records import read_table
from weights_pairs import move, save_pair, tiny_llama


def share(scores: Tensor, fraction: float) -> float:
    ordered = scores.double().sort(descending=True).values
    return float(ordered[: math.floor(fraction * len(ordered) + 1e-9)].sum() / ordered.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shares_and_tables_are_those_of_a_sort(dtype: torch.dtype) -> None:
    model = tiny_llama(dtype=dtype)
    base = copy_of(model)
    move(model)
    change = measure_change(base, model, FRACTIONS)
    names = [tensor.name for tensor in change.tensors]
    assert names == sorted(n for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2)
    held = copy_of(model)
    p = torch.cat([base[n].reshape(-1) for n in names]).float()
    s = torch.cat([held[n].reshape(-1) for n in names]).float()
    absolute = (s - p).abs()
    relative = torch.where(absolute == 0, torch.zeros_like(absolute), absolute / p.abs())
    assert change.eligible == len(p)
    assert change.changed == int((p != s).sum())
    assert change.changed_share == change.changed / change.eligible
    for fraction in FRACTIONS:
        key = f"{fraction:g}"
        assert change.concentration["relative"][key] == pytest.approx(share(relative, fraction), rel=1e-9)
        assert change.concentration["absolute"][key] == pytest.approx(share(absolute, fraction), rel=1e-9)
        assert change.concentration["squared"][key] == pytest.approx(share(absolute.double() ** 2, fraction), rel=1e-9)
        assert change.null["absolute"][key] == change.concentration["absolute"][key]
    top = torch.zeros(len(p), dtype=torch.bool)
    top[torch.sort(relative, descending=True, stable=True).indices[: len(p) // 5]] = True
    where = torch.cat([torch.full((base[n].numel(),), i) for i, n in enumerate(names)])
    counts = torch.bincount(where[top], minlength=len(names)).tolist()
    assert [tensor.top for tensor in change.tensors] == counts
    assert sum(change.layers.values()) == pytest.approx(1)
    down = sum(tensor.top for tensor in change.tensors if tensor.module == "down")
    assert change.modules["down"] == pytest.approx(down / (len(p) // 5))
    assert list(change.modules) == ["q", "k", "v", "o", "gate", "up", "down"]
    assert list(change.layers) == ["0", "1"]
    json.dumps(change.to_json(), allow_nan=False)
    assert change.largest(1)[0].rms == max(tensor.rms for tensor in change.tensors)


def top_of(scores: list[NDArray[np.float32]], count: int) -> list[int]:
    """How many of each tensor's scores are among the first ``count`` of all, by a stable sort."""
    order = np.argsort(-np.concatenate(scores), kind="stable")[:count]
    tensor = np.repeat(np.arange(len(scores)), [len(its) for its in scores])
    return np.bincount(tensor[order], minlength=len(scores)).tolist()


def coarse(size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Weights of few values and changes of fewer, with zeros among both: most scores are ties, and some infinite."""
    base = rng.integers(-6, 7, size) / 4
    tuned = base + rng.integers(0, 3, size) / 8 * (rng.random(size) < 0.5)
    return torch.tensor(base, dtype=torch.float32), torch.tensor(tuned, dtype=torch.float32)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_the_nulls_top_weights_by_tensor_are_those_of_a_sort(
    monkeypatch: pytest.MonkeyPatch, compiled: bool, seed: int
) -> None:
    """With ties across tensors, zeros in base and change, tensors without weights, blocks and pieces that cut."""
    monkeypatch.setattr(null_module, "NULL_BLOCK", 128)
    if not compiled:
        monkeypatch.setattr(kernels, "library", lambda: None)
    rng = np.random.default_rng(seed)
    sizes = {"a": 700, "b": 0, "c": 1, "d": 256, "e": 333, "f": 90}
    made = {name: coarse(size, rng) for name, size in sizes.items()}
    for half in made["a"]:
        half[300:] = torch.from_numpy(rng.normal(size=400)).float()  # and some that are not ties
    pair = WeightPair(*(LoadedTensors({n: both[i] for n, both in made.items()}) for i in (0, 1)), list(made))
    places = [Place(name, number % 3, "qk"[number % 2], "attention") for number, name in enumerate(made)]
    for piece in (64, 250, NULL_BLOCK):
        change = measure_pair(pair, places, [0.05, 0.2, 0.9], seed, threads=2, piece=piece)
        scores = [
            null_relative(pair, seed, number, 0, size) if size else np.empty(0, np.float32)
            for number, size in enumerate(sizes.values())
        ]
        top = top_of(scores, change.eligible // 5)
        assert [tensor.null_top for tensor in change.tensors] == top
        assert change.null_layers == {str(k): sum(top[k::3]) / sum(top) for k in range(3)}
        assert change.null_modules == {m: pytest.approx(sum(top[i::2]) / sum(top)) for i, m in enumerate("qk")}
    assert np.isinf(np.concatenate(scores)).any()
    assert top != [tensor.top for tensor in change.tensors]


def test_the_nulls_top_weights_where_hardly_any_changed() -> None:
    """Fewer changed than the top 20% takes: the rest are zeros, taken in the order of tensors."""
    base = {name: torch.ones(50) for name in "ab"}
    tuned = {name: weights.clone() for name, weights in base.items()}
    tuned["b"][:8] += 1
    pair = WeightPair(LoadedTensors(base), LoadedTensors(tuned), ["a", "b"])
    change = measure_pair(pair, [Place("a", 0, "q", "attention"), Place("b", 1, "q", "attention")], [0.2], threads=1)
    assert [tensor.null_top for tensor in change.tensors] == [tensor.top for tensor in change.tensors] == [12, 8]
    assert change.null_layers == {"0": 0.6, "1": 0.4}
    few = WeightPair(LoadedTensors({"a": torch.ones(4)}), LoadedTensors({"a": torch.zeros(4)}), ["a"])
    none = measure_pair(few, [Place("a", 0, "q", "attention")], [0.5], threads=1)  # a fifth of four is none
    assert (none.tensors[0].null_top, none.null_layers) == (0, {})


def test_where_changes_follow_weights_the_null_sits_elsewhere() -> None:
    """A layer whose largest weights change most is among the top for the null alone; a Gaussian one is as the null."""
    torch.manual_seed(0)
    base = {name: torch.randn(40_000) for name in "ab"}
    noise = {name: torch.randn(40_000) for name in "ab"}
    places = [Place("a", 0, "q", "attention"), Place("b", 1, "q", "attention")]

    def moved(tuned: dict[str, Tensor]) -> float:
        pair = WeightPair(LoadedTensors(base), LoadedTensors(tuned), ["a", "b"])
        change = measure_pair(pair, places, [0.2], threads=1)
        return change.layers["1"] - change.null_layers["1"]

    independent = {name: weights + 0.01 * noise[name] for name, weights in base.items()}
    assert abs(moved(independent)) < 0.01
    in_proportion = {**independent, "b": base["b"] * (1 + 0.01 * noise["b"].abs())}
    assert moved(in_proportion) < -0.2


def test_pieces_and_threads_do_not_matter() -> None:
    model = tiny_llama()
    base = copy_of(model)
    move(model)
    pair = WeightPair(LoadedTensors(base), LoadedTensors(copy_of(model)), [n for n in sorted(base) if "proj" in n])
    places = [Place(name, 0, name, "mlp") for name in pair.names]
    first = measure_pair(pair, places, FRACTIONS, 5, threads=1)
    for piece, threads in ((61, 1), (500, 2)):
        other = measure_pair(pair, places, FRACTIONS, 5, threads=threads, piece=piece)
        assert other.layers == first.layers
        assert [t.top for t in other.tensors] == [t.top for t in first.tensors]
        assert [t.null_top for t in other.tensors] == [t.null_top for t in first.tensors]
        for name in first.concentration:
            assert other.concentration[name] == pytest.approx(first.concentration[name], rel=1e-12)
            assert other.null[name] == pytest.approx(first.null[name], rel=1e-12)


def test_the_null_pairs_each_change_with_another_weight_of_its_tensor() -> None:
    torch.manual_seed(0)
    size = 2 * NULL_BLOCK + 1000
    base = torch.rand(size, dtype=torch.float32) + 1.0
    tuned = base + torch.rand(size) * 0.01
    pair = WeightPair(LoadedTensors({"a": base}), LoadedTensors({"a": tuned}), ["a"])
    null = torch.from_numpy(null_relative(pair, 3, 0, 0, size))
    paired = null * base.abs()  # the changes, as they were dealt out
    changes = (tuned - base).abs()
    torch.testing.assert_close(paired.sort().values, changes.sort().values, rtol=1e-5, atol=1e-8)
    assert float((paired - changes).abs().mean()) > 1e-3  # and not where they were
    assert np.array_equal(null[1234:5678], null_relative(pair, 3, 0, 1234, 5678))
    assert not np.array_equal(null, null_relative(pair, 4, 0, 0, size))


def test_independent_gaussian_updates_look_like_the_null_and_dependent_ones_do_not() -> None:
    torch.manual_seed(0)
    size = 400_000
    base = torch.randn(size) * 0.02
    places = [Place("a", 0, "q", "attention")]

    def measured(tuned: Tensor) -> tuple[float, float]:
        pair = WeightPair(LoadedTensors({"a": base}), LoadedTensors({"a": tuned}), ["a"])
        change = measure_pair(pair, places, [0.2], threads=1)
        found, null = change.concentration["relative"]["0.2"], change.null["relative"]["0.2"]
        assert found is not None
        assert null is not None
        return found, null

    found, null = measured(base + torch.randn(size) * 1e-4)
    assert found == pytest.approx(null, abs=0.03)
    assert found == pytest.approx(0.92, abs=0.03)  # docs/measures.md: about 92% at 20%
    found, null = measured(base * (1 + torch.rand(size) * 0.01))  # every weight changed in proportion
    assert found < 0.5 < 0.85 < null


def test_no_change_at_all_has_no_shares() -> None:
    model = tiny_llama()
    change = measure_change(copy_of(model), model, [0.2])
    assert change.changed == 0
    assert change.concentration == {name: {"0.2": None} for name in ("relative", "absolute", "squared")}


def test_zero_bases_are_counted_and_stay_out_of_the_sum() -> None:
    model = tiny_llama()
    base = copy_of(model)
    move(model)
    name = "model.layers.0.mlp.up_proj.weight"
    base[name].view(-1)[:10] = 0
    change = measure_change(base, model, [0.01, 1.0])
    assert 0 < change.base_zero <= 10
    assert change.concentration["relative"]["1"] == pytest.approx(1.0)
    assert all(math.isfinite(tensor.relative_sum) for tensor in change.tensors)


def test_files_and_loaded_models_give_the_same_measurement(tmp_path: Path) -> None:
    model = tiny_llama(dtype=torch.bfloat16)
    base = copy_of(model)
    folders = save_pair(tmp_path, model, shard="20KB")
    pair = open_pair(*folders)
    stored = measure_pair(pair.weights, pair.places, FRACTIONS, 1)
    assert stored.to_json() == measure_change(base, model, FRACTIONS, 1).to_json()


def test_weights_that_are_not_finite_are_refused() -> None:
    model = tiny_llama()
    base = copy_of(model)
    move(model)
    with torch.no_grad():
        dict(model.named_parameters())["model.layers.1.self_attn.q_proj.weight"][0, 0] = float("inf")
    with pytest.raises(
        InputError, match=r"'model.layers.1.self_attn.q_proj.weight' of the model: 0 NaN and 1 infinite"
    ):
        measure_change(base, model)
    assert measure_change(base, model, scope=Scope(allow_nonfinite=True)).changed > 0


def test_the_record_holds_each_tensors_own_sums(tmp_path: Path) -> None:
    """Every column against sums over the tensors themselves in float64, with a zero base and an unmoved weight."""
    model = tiny_llama()
    base = copy_of(model)
    move(model)
    name = "model.layers.0.mlp.up_proj.weight"
    base[name].view(-1)[:3] = 0
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[5:12] = base[name].view(-1)[5:12]
    change = measure_change(base, model, FRACTIONS)
    write_record(tmp_path / "change.parquet", change, {"base": "b"})
    table, about = read_table(tmp_path / "change.parquet", WEIGHT_CHANGE, "weight change")
    assert about["eligible"] == change.eligible
    assert about["base"] == "b"
    assert "tensors" not in about
    held, rows = copy_of(model), table.to_pylist()
    assert [row["name"] for row in rows] == [tensor.name for tensor in change.tensors]
    for row in rows:
        p, s = base[row["name"]], held[row["name"]]
        moved = (s - p).abs()
        finite = p != 0
        assert row["size"] == p.numel()
        assert row["changed"] == int((p != s).sum())
        assert row["base_zero"] == int(((p == 0) & (s != 0)).sum())
        assert row["relative_sum"] == pytest.approx(float((moved / p.abs())[finite].double().sum()), rel=1e-6)
        assert row["absolute_sum"] == pytest.approx(float(moved.double().sum()), rel=1e-9)
        assert row["squared_sum"] == pytest.approx(float((moved.double() ** 2).sum()), rel=1e-9)
        assert row["rounded"] is None
    changed = {row["name"]: row for row in rows}[name]
    assert 0 < changed["changed"] < changed["size"]
    assert changed["base_zero"] == 3
    assert change.base_zero == 3


def test_the_null_crosses_blocks_and_pairs_every_tensor_in_a_way_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes are written as their own places, so the null shows which place each weight was given."""
    monkeypatch.setattr(null_module, "NULL_BLOCK", 100)
    size = 5 * 100 + 30
    places = torch.arange(1, size + 1, dtype=torch.float32)
    names = ["a", "b"]
    zero = {name: torch.ones(size) for name in names}
    pair = WeightPair(LoadedTensors(zero), LoadedTensors(dict.fromkeys(names, places + 1)), names)
    sources = []
    for seed in range(4):
        null_module._partners.cache_clear()
        null_module._order.cache_clear()
        for tensor in range(2):
            given = null_relative(pair, seed, tensor, 0, size).astype(int) - 1
            assert sorted(given) == list(range(size))  # each change is used once
            blocks, inside = given[:500].reshape(5, 100) // 100, given[:500].reshape(5, 100) % 100
            assert (blocks == blocks[:, :1]).all()
            assert (inside == inside[0]).all()
            assert sorted(inside[0]) == list(range(100))
            assert set(given[500:]) == set(range(500, size))
            for order, many in ((inside[0], 100), (given[500:] - 500, 30)):
                assert (order == np.arange(many)).sum() < 10  # one on average stays where it was
            sources.append((tuple(blocks[:, 0]), tuple(inside[0]), tuple(given[500:])))
    assert len({blocks for blocks, _, _ in sources}) > 4
    assert sum(blocks == tuple(range(5)) for blocks, _, _ in sources) < 2
    assert len({inside for _, inside, _ in sources}) == 8
    assert len({last for _, _, last in sources}) == 8
