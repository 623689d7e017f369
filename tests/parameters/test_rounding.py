"""Rounding and training kept apart: against torch's casts, against exact arithmetic, and through the command line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import load_file, save_file

from knowshift.cli.app import main
from knowshift.parameters.change import WeightChange, measure_change, measure_pair
from knowshift.parameters.loaded import LoadedTensors, as_array, copy_of
from knowshift.parameters.regions import Place
from knowshift.parameters.rounding import explained
from knowshift.parameters.selection import criteria
from knowshift.parameters.tensors import Array, WeightPair, single
from weights_pairs import move, save_pair, tiny_llama

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
UP = "model.layers.0.mlp.up_proj.weight"
NARROW = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
#: float32 bit patterns: every kind of number is as likely as any other, and so are those around halfway points.
PATTERNS = st.one_of(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(0, 2**16 - 1), st.sampled_from([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])).map(
        lambda halves: halves[0] << 16 | halves[1]
    ),
    st.tuples(st.integers(0, 2**19 - 1), st.sampled_from([0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF])).map(
        lambda parts: parts[0] << 13 | parts[1]
    ),
)
VALUES = arrays.arrays(np.uint32, st.integers(1, 40), elements=PATTERNS).map(lambda bits: bits.view(np.float32))


def change_of(base: Array, tuned: Array) -> Array:
    return criteria.absolute(base, tuned)


def by_definition(base: Array, tuned: Array) -> int:
    """Weights that changed, one of which is, of all numbers of its side's dtype, a nearest to the other: in float64."""

    def nearest(value: float, held: float, dtype: np.dtype[Any]) -> bool:
        with np.errstate(over="ignore"):
            cast = np.float32(value).astype(dtype)
        if not np.isfinite(value) or not np.isfinite(np.float32(cast)):
            return bool(np.float32(cast) == held) or _ties_with_infinity(value, held, dtype)
        around = [cast, np.nextafter(cast, dtype.type(np.inf)), np.nextafter(cast, dtype.type(-np.inf))]
        finite = [float(each) for each in around if np.isfinite(float(each))]
        return np.isfinite(held) and abs(held - value) <= min(abs(each - value) for each in finite)

    count = 0
    for p, s in zip(single(base).tolist(), single(tuned).tolist(), strict=True):
        if p == s or (np.isnan(p) and np.isnan(s)):
            continue
        sides = [(p, s, tuned.dtype), (s, p, base.dtype)]
        count += any(nearest(value, held, dtype) for value, held, dtype in sides if dtype.name in NARROW)
    return count


def _ties_with_infinity(value: float, held: float, dtype: np.dtype[Any]) -> bool:
    """A value just beyond the largest number by half a unit is as near to it as to the number that would follow."""
    most = float(ml_dtypes.finfo(dtype).max)
    unit = most - float(np.nextafter(dtype.type(most), dtype.type(0)))
    return abs(held) == most and np.isfinite(value) and abs(held - value) <= unit / 2


@pytest.mark.parametrize(
    ("base", "tuned"), [(F32, BF16), (F32, F16), (BF16, F16), (F16, BF16), (F64, F32), (F64, BF16), (F64, F16)]
)
def test_a_pure_cast_by_torch_is_all_explained_in_both_directions(base: torch.dtype, tuned: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    size = 100_000
    scale = torch.exp(torch.empty(size, dtype=F64).uniform_(-25, 5, generator=generator))  # subnormal float16 too
    values = (torch.randn(size, generator=generator, dtype=F64) * scale).to(base)
    p, s = as_array(values), as_array(values.to(tuned))
    changed = int(np.count_nonzero(single(p) != single(s)))
    assert changed > size // 100 or tuned == F32
    for one, other in ((p, s), (s, p)):
        assert explained(one, other, change_of(one, other)) == changed
    # Rounded straight to the narrow dtype, a float64 may end elsewhere than by way of float32: as near.
    if base == F64 and tuned == F16:
        s = p.astype(np.float16)
        assert explained(p, s, change_of(p, s)) == np.count_nonzero(single(p) != single(s))


@pytest.mark.parametrize("name", NARROW)
@given(values=VALUES, truncated=st.booleans())
@settings(max_examples=200, deadline=None)
def test_exactly_what_is_nearest_is_explained(name: str, values: Array, truncated: bool) -> None:
    narrow = NARROW[name]
    with np.errstate(all="ignore"):
        cast = values.astype(narrow)
        for steps in (0, 1, -1, 2):
            held = (cast.view(np.uint16) + np.uint16(steps % (1 << 16))).view(narrow)  # the neighbours of a cast
            for one, other in ((values, held), (held, values)):
                assert explained(one, other, change_of(one, other)) == by_definition(one, other)
    if np.isfinite(single(cast)).all():
        assert explained(values, cast, change_of(values, cast)) == np.count_nonzero(values != single(cast))


@given(bits=arrays.arrays(np.uint16, 30), other=arrays.arrays(np.uint16, 30), cast=st.booleans())
@settings(max_examples=200, deadline=None)
def test_between_the_two_narrow_dtypes_either_may_be_the_rounded_one(bits: Array, other: Array, cast: bool) -> None:
    with np.errstate(all="ignore"):
        wide = bits.view(NARROW["bfloat16"])
        half = single(wide).astype(np.float16) if cast else other.view(np.float16)
        for one, two in ((wide, half), (half, wide)):
            assert explained(one, two, change_of(one, two)) == by_definition(one, two)


@pytest.mark.parametrize("compiled", ["0", "1"])
@pytest.mark.parametrize("tuned", [BF16, F16])
def test_a_real_update_beyond_rounding_is_not_explained(
    tuned: torch.dtype, compiled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from knowshift.parameters.kernels import compiled as kernels

    monkeypatch.setenv("KNOWSHIFT_COMPILED", compiled)
    kernels.library.cache_clear()
    try:
        base = {"a": torch.randn(200_000, generator=torch.Generator().manual_seed(1)) * 0.02}
        held = base["a"].to(tuned)
        pair = WeightPair(LoadedTensors(base), LoadedTensors({"a": held}), ["a"])
        cast = measure_pair(pair, [Place("a", 0, "q", "attention")], [0.2], threads=2)
        assert cast.rounding is not None
        assert cast.rounding.explained == cast.changed == cast.tensors[0].rounded
        assert cast.rounding.share_of_changed == 1.0
        trained = held.view(torch.int16).clone()
        trained[:1000] += 2  # two units in the last place
        pair = WeightPair(LoadedTensors(base), LoadedTensors({"a": trained.view(tuned)}), ["a"])
        change = measure_pair(pair, [Place("a", 0, "q", "attention")], [0.2], threads=2, piece=1 << 15)
        assert change.rounding is not None
        assert change.changed - change.rounding.explained == 1000
        assert change.rounding.share_of_all == change.rounding.explained / 200_000
    finally:
        kernels.library.cache_clear()


def test_equal_dtypes_have_no_rounding_and_mixed_ones_are_told_tensor_by_tensor() -> None:
    model = tiny_llama()
    base = copy_of(model)
    move(model)
    assert measure_change(base, model).rounding is None
    assert all(tensor.rounded is None for tensor in measure_change(base, model).tensors)
    names = [name for name in base if ".layers." in name and "norm" not in name]
    stored = {name: tensor.to(BF16 if i % 2 else F16) for i, (name, tensor) in enumerate(sorted(base.items()))}
    stored[names[0]] = base[names[0]]
    change = measure_change(stored, tiny_llama())
    told = {tensor.name: tensor for tensor in change.tensors}
    assert told[names[0]].rounded is None
    assert change.rounding is not None
    assert change.rounding.base == ["bfloat16", "float16"]
    assert change.rounding.tuned == ["float32"]
    assert change.rounding.to == ["bfloat16", "float16"]
    assert change.rounding.weights == change.eligible - told[names[0]].size
    assert change.rounding.explained == change.changed == sum(tensor.rounded or 0 for tensor in change.tensors)


def test_float64_beside_float32_has_nothing_to_explain() -> None:
    model = tiny_llama()
    change = measure_change({name: tensor.double() + 1e-12 for name, tensor in copy_of(model).items()}, model)
    assert change.rounding is not None
    assert (change.rounding.to, change.rounding.explained) == (["float32"], 0)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["knowshift", *map(str, arguments)])
        monkeypatch.setattr("knowshift.cli.output.console.width", 400)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


def recast(folder: Path, dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_a_bfloat16_copy_is_told_as_one_in_text_json_record_and_figure(tmp_path: Path, run: Run) -> None:
    model = tiny_llama()
    for name in ("base", "tuned"):
        model.save_pretrained(tmp_path / name)
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    files = ("--output", tmp_path / "w.parquet", "--figure", tmp_path / "f.svg")
    code, out, err = run("weights", base, tuned, "--json", *files)
    assert (code, json.loads(out)["rounding"]) == (0, None)
    assert "stored in" not in err
    assert pq.read_table(tmp_path / "w.parquet")["rounded"].to_pylist() == [None] * 14
    assert "rounding" not in (tmp_path / "f.svg").read_text()
    recast(tuned, BF16)
    code, out, err = run("weights", base, tuned, "--json", *files)
    result = json.loads(out)
    assert code == 0
    assert result["changed_share"] > 0.9
    assert result["rounding"] == {
        "base": ["float32"],
        "tuned": ["bfloat16"],
        "to": ["bfloat16"],
        "weights": result["eligible"],
        "explained": result["changed"],
        "share_of_changed": 1.0,
        "share_of_all": result["changed_share"],
    }
    assert (
        f"{base} is stored in float32, {tuned} in bfloat16: 100.00% of the weights that changed "
        f"({result['changed_share']:.2%} of all) changed by no more than rounding to bfloat16 explains"
    ) in err
    assert sum(pq.read_table(tmp_path / "w.parquet")["rounded"].to_pylist()) == result["changed"]
    assert "100.0% of these by rounding to bfloat16" in (tmp_path / "f.svg").read_text()


def test_a_narrower_base_is_told_to_round_nothing_of_a_model_trained_from_it(tmp_path: Path, run: Run) -> None:
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    for folder in (base, tuned):
        tiny_llama().save_pretrained(folder)
    recast(base, BF16)
    code, out, err = run("weights", base, tuned, "--json", "--figure", tmp_path / "f.svg")
    assert code == 0
    rounding = json.loads(out)["rounding"]
    assert (rounding["to"], rounding["share_of_changed"]) == (["bfloat16"], 1.0)
    text = " ".join(err.split())
    assert "no change of a model trained from this base is explained by rounding" in text
    assert f"If {tuned} was trained from a wider original of it, at most 100.00% of the weights that changed" in text
    figure = " ".join(re.findall(r">([^<>]+)</text>", (tmp_path / "f.svg").read_text()))
    assert "at most 100.0% of these by rounding" in figure
    assert "if it was trained from a wider" in figure


def test_training_is_what_is_left_when_rounding_is_told_apart(tmp_path: Path, run: Run) -> None:
    """A pair stored alike, and its tuned side in bfloat16: what the first calls changed is what rounding leaves."""
    base, tuned = save_pair(tmp_path)
    _, alike, _ = run("weights", base, tuned, "--json")
    recast(tuned, BF16)
    _, mixed, _ = run("weights", base, tuned, "--json")
    trained, seen = json.loads(alike), json.loads(mixed)
    left = seen["changed"] - seen["rounding"]["explained"]
    # Updates of 1e-2 on weights of 2e-2 are seldom within half a unit of bfloat16.
    assert left == pytest.approx(trained["changed"], rel=0.02)
    assert left <= trained["changed"]
    assert seen["changed"] > 1.5 * left


def test_what_restoring_across_dtypes_gives_is_the_base_rounded_to_the_tuned_dtype(tmp_path: Path, run: Run) -> None:
    base, tuned = save_pair(tmp_path)
    recast(tuned, BF16)
    code, _, err = run("restore", base, tuned, "--fraction", "1", "--output-dir", tmp_path / "o")
    assert code == 0, err
    made, before = load_file(tmp_path / "o" / "model.safetensors"), load_file(base / "model.safetensors")
    assert torch.equal(made[UP], before[UP].to(BF16))
    assert made[UP].dtype == BF16


def plain(change: WeightChange) -> dict[str, Any]:
    return json.loads(json.dumps(change.to_json(), allow_nan=False))  # type: ignore[no-any-return]


def test_the_number_of_pieces_and_threads_does_not_matter() -> None:
    model = tiny_llama()
    base = {name: tensor.to(F16) for name, tensor in copy_of(model).items()}
    move(model)
    names = [name for name in sorted(base) if "proj" in name]
    pair = WeightPair(LoadedTensors(base), LoadedTensors(copy_of(model)), names)
    places = [Place(name, 0, name, "mlp") for name in names]
    first = plain(measure_pair(pair, places, [0.2], threads=1))["rounding"]
    assert 0 < first["explained"] < first["weights"]
    for piece, threads in ((61, 1), (500, 2)):
        assert plain(measure_pair(pair, places, [0.2], threads=threads, piece=piece))["rounding"] == first


def test_a_base_value_beyond_the_tuned_dtype_is_refused_and_not_written_as_infinity(tmp_path: Path, run: Run) -> None:
    base, tuned = save_pair(tmp_path)
    weights = load_file(base / "model.safetensors")
    weights[UP][3, 4] = 7e4
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    recast(tuned, F16)
    for criterion in ("relative", "interpolate"):
        words = ("--fraction", "1", "--criterion", criterion, "--output-dir", tmp_path / "o")
        code, _, err = run("restore", base, tuned, *words)
        assert code == 2
        assert f"knowshift: tensor '{UP}': a restored weight is beyond float16" in err
        assert not (tmp_path / "o").exists()
    assert run("restore", base, tuned, *words, "--allow-nonfinite")[0] == 0
    assert torch.isinf(load_file(tmp_path / "o" / "model.safetensors")[UP][3, 4])
