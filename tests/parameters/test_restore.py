"""Restoring a loaded model in place: exact counts, nested sets, nothing else touched, undone bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaForCausalLM

from knowshift.errors import InputError
from knowshift.parameters import restore
from knowshift.parameters.files.checkpoint import StoredTensors
from knowshift.parameters.kernels import compiled as kernels
from knowshift.parameters.loaded import as_array, copy_of
from knowshift.parameters.methods import METHODS
from knowshift.parameters.regions import Scope
from knowshift.parameters.restore import RestorationSweep
from knowshift.parameters.selection.criteria import CRITERIA, keys, random_keys
from knowshift.parameters.selection.select import exact_count
from weights_pairs import move, relative_by_definition, same_bits, save_pair, tiny_llama

GROWING = [name for name in METHODS if name not in ("interpolate", "dare", "lines", "dg-hard")]


def pair_of_models(dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], LlamaForCausalLM]:
    model = tiny_llama(dtype=dtype)
    base = copy_of(model)
    move(model)
    return base, model


def region_of(model: LlamaForCausalLM) -> list[str]:
    return sorted(n for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2)


def brute_force(
    base: dict[str, Tensor], tuned: dict[str, Tensor], names: list[str], criterion: str, count: int
) -> Tensor:
    """The restored region as one vector, by a stable sort of all keys."""
    p = torch.cat([base[name].reshape(-1) for name in names])
    s = torch.cat([tuned[name].reshape(-1) for name in names])
    if criterion == "random":
        key = np.concatenate([random_keys(3, name, 0, base[name].numel()) for name in names])
    else:
        key = keys(criterion, as_array(p), as_array(s))
    order = torch.from_numpy(np.argsort(-key.astype(np.int64), kind="stable")[:count])
    out = s.clone()
    out[order] = p[order]
    return out


@given(
    criterion=st.sampled_from(CRITERIA),
    fractions=st.lists(st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.333, 0.6, 0.9, 1.0]), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    piece=st.sampled_from([97, 1000, 1 << 18]),
    threads=st.sampled_from([1, 2]),
)
@settings(max_examples=25, deadline=None)
def test_each_step_is_what_a_sort_would_restore(
    criterion: str, fractions: list[float], dtype: torch.dtype, piece: int, threads: int
) -> None:
    base, model = pair_of_models(dtype)
    tuned = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = region_of(model)
    sweep = RestorationSweep(model, base, criterion, seed=3, piece=piece, threads=threads)
    assert sweep.eligible == sum(base[name].numel() for name in names)
    for fraction, count in sweep.run(sorted(fractions)):
        assert count == exact_count(fraction, sweep.eligible)
        held = dict(model.named_parameters())
        flat = torch.cat([held[name].detach().reshape(-1) for name in names])
        assert same_bits(flat, brute_force(base, tuned, names, criterion, count))
        for name, parameter in held.items():
            if name not in names:
                assert same_bits(parameter.detach(), tuned[name])
    sweep.undo()
    for name, parameter in model.named_parameters():
        assert same_bits(parameter.detach(), tuned[name])


@pytest.mark.parametrize("criterion", METHODS)
def test_nothing_is_the_tuned_model_and_everything_the_base_bit_for_bit(criterion: str) -> None:
    base, model = pair_of_models(torch.bfloat16)
    tuned = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = region_of(model)
    sweep = RestorationSweep(model, base, criterion)
    for fraction, _ in sweep.run([0.0, 1.0] if criterion != "dg-hard" else [0.0]):
        for name, parameter in model.named_parameters():
            restored = fraction == 1.0 and name in names
            if criterion == "lines" and "layers.1." in name:  # LiNeS leaves the last layer as it is
                restored = False
            assert same_bits(parameter.detach(), (base if restored else tuned)[name]), (name, fraction)
    sweep.undo()
    assert all(same_bits(p.detach(), tuned[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("criterion", GROWING)
def test_sets_are_nested(criterion: str) -> None:
    base, model = pair_of_models()
    for parameter in base.values():
        parameter += 100.0  # so that every weight differs, and a restored one shows
    sweep = RestorationSweep(model, base, criterion)
    before = torch.zeros(sweep.eligible, dtype=torch.bool)
    for _, count in sweep.run([0.01, 0.1, 0.3, 0.7]):
        held = dict(model.named_parameters())
        now = torch.cat([(held[n] == base[n]).reshape(-1) for n in region_of(model)])
        assert int(now.sum()) == count
        assert bool((now | ~before).all())
        before = now


def test_a_base_on_disk_streams_past_the_model(tmp_path: Path) -> None:
    base_folder, tuned_folder = save_pair(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tuned_folder)
    in_memory, streamed = {}, {}
    base = copy_of(LlamaForCausalLM.from_pretrained(base_folder))
    for results, source, kept in (
        (in_memory, base, None),
        (streamed, StoredTensors(base_folder), StoredTensors(tuned_folder)),
    ):
        sweep = RestorationSweep(model, source, tuned=kept)
        for fraction, _ in sweep.run([0.1, 0.5]):
            results[fraction] = {name: p.detach().clone() for name, p in model.named_parameters()}
        sweep.undo()
    for fraction, weights in in_memory.items():
        assert all(same_bits(weight, streamed[fraction][name]) for name, weight in weights.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_out_of_the_processors_reach_is_sent_the_same_weights(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, model = pair_of_models(dtype)
    made: list[list[Tensor]] = []
    for in_reach in (True, False):
        monkeypatch.setattr(restore, "_is_in_reach", lambda tensor, in_reach=in_reach: in_reach)
        sweep = RestorationSweep(model, base, piece=500)
        made.append([torch.cat([p.detach().reshape(-1) for p in model.parameters()]) for _ in sweep.run([0.1, 0.4])])
        sweep.undo()
    for one, other in zip(*made, strict=True):
        assert same_bits(one, other)
    assert not same_bits(made[0][0], made[0][1])


def test_a_model_loaded_wider_than_it_is_stored_is_swept_in_its_own_dtype(tmp_path: Path) -> None:
    base, tuned = (StoredTensors(folder) for folder in save_pair(tmp_path, dtype=torch.bfloat16))
    model = LlamaForCausalLM.from_pretrained(tuned.folder, dtype=torch.float32)
    narrow = LlamaForCausalLM.from_pretrained(tuned.folder, dtype=torch.bfloat16)
    sweeps = [RestorationSweep(one, base, tuned=tuned).run([0.1, 0.4]) for one in (model, narrow)]
    for (_, count), (_, same) in zip(*sweeps, strict=True):
        assert count == same > 0
        for wide, stored in zip(model.parameters(), narrow.parameters(), strict=True):
            assert torch.equal(wide.detach(), stored.detach().float())


def test_without_compiled_loops_the_steps_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    base, model = pair_of_models(torch.bfloat16)
    for criterion in ("relative", "authors", "breadcrumbs", "fapm", "same-norm"):
        made: list[list[Tensor]] = []
        for library in (kernels.library(), None):
            monkeypatch.setattr(kernels, "library", lambda library=library: library)
            sweep = RestorationSweep(model, base, criterion, piece=500)
            made.append(
                [torch.cat([p.detach().reshape(-1) for p in model.parameters()]) for _ in sweep.run([0.1, 0.4])]
            )
            sweep.undo()
        for one, other in zip(*made, strict=True):
            assert same_bits(one, other)


class Bare(torch.nn.Module):
    """A model of one matrix."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(weights, requires_grad=False)


@pytest.mark.parametrize("criterion", ["relative", "absolute", "least", "authors", "ties", "magnitude"])
def test_a_base_value_that_the_model_cannot_hold_is_infinite_and_stops_nothing(criterion: str) -> None:
    base = torch.full((4, 4), 1.0)
    base[0, 0] = 7e4  # beyond float16
    model = Bare(torch.full((4, 4), 0.5, dtype=torch.float16))
    sweep = RestorationSweep(model, {"matrix": base}, criterion, scope=Scope(region="all"))
    for _, count in sweep.run([0.5, 0.75, 1.0]):
        assert int((model.matrix != 0.5).sum()) == count
    assert torch.equal(model.matrix, base.half())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(dtype: torch.dtype) -> None:
    for weights, base in ((dtype, dtype), (torch.float32, dtype), (dtype, torch.float32)):
        model = Bare(torch.ones(40, 40).to(weights))
        with pytest.raises(InputError, match=r"tensor 'matrix': dtype \w+ cannot be compared; expected one of float64"):
            list(
                RestorationSweep(model, {"matrix": torch.zeros(40, 40).to(base)}, scope=Scope(region="all")).run([0.5])
            )


def test_a_tuned_reader_of_another_model_is_refused(tmp_path: Path) -> None:
    base, model = pair_of_models()
    _, other = save_pair(tmp_path, hidden_size=16)
    with pytest.raises(InputError, match=r"shape .* in the tuned reader, .* in the model"):
        RestorationSweep(model, base, tuned=StoredTensors(other))


def test_leaving_early_and_running_again_start_from_the_tuned_model() -> None:
    base, model = pair_of_models()
    tuned = {name: p.detach().clone() for name, p in model.named_parameters()}
    sweep = RestorationSweep(model, base, "relative")
    for _ in sweep.run([0.5]):
        break
    counts = dict(sweep.run([0.1]))
    changed = sum(int((p != tuned[n]).sum()) for n, p in model.named_parameters())
    assert 0 < changed <= counts[0.1]
    assert sweep.thresholds[0.1] is not None
    sweep.undo()
    sweep.undo()
    assert all(same_bits(p.detach(), tuned[n]) for n, p in model.named_parameters())


def test_a_layer_range_leaves_the_other_layers_alone() -> None:
    base, model = pair_of_models()
    tuned = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in RestorationSweep(model, base, scope=Scope(layers=(1, 1))).run([1.0]):
        for name, parameter in model.named_parameters():
            inside = "layers.1." in name and parameter.ndim == 2
            assert torch.equal(parameter, (base if inside else tuned)[name])


def test_same_norm_takes_back_as_much_of_the_update_as_the_papers_choice() -> None:
    base, model = pair_of_models()
    tuned = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = region_of(model)

    def gone() -> float:
        held = dict(model.named_parameters())
        before = sum(float(((tuned[n] - base[n]).double() ** 2).sum()) for n in names)
        return before - sum(float(((held[n].detach() - base[n]).double() ** 2).sum()) for n in names)

    removed: dict[str, list[float]] = {}
    counts: dict[str, list[int]] = {}
    for criterion in ("relative", "same-norm"):
        sweep = RestorationSweep(model, base, criterion)
        removed[criterion], counts[criterion] = [], []
        for _, count in sweep.run([0.05, 0.2, 0.4]):
            removed[criterion].append(gone())
            counts[criterion].append(count)
        sweep.undo()
    largest = max(float((tuned[n] - base[n]).abs().max()) for n in names) ** 2
    for ours, paper in zip(removed["same-norm"], removed["relative"], strict=True):
        assert paper - 1e-9 <= ours <= paper + largest + 1e-9
    assert counts["same-norm"] != counts["relative"]


def test_bad_input_is_named_and_the_model_stays_as_it_was() -> None:
    base, model = pair_of_models()
    tuned = {name: p.detach().clone() for name, p in model.named_parameters()}
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(InputError, match="criterion 'relativ' is not known; nearest: 'relative'"):
        list(RestorationSweep(model, base, "relativ").run([0.1]))
    with pytest.raises(InputError, match=r"fraction 1\.5: expected a number from 0 to 1"):
        list(RestorationSweep(model, base).run([1.5]))
    with pytest.raises(InputError, match="ascending"):
        list(RestorationSweep(model, base).run([0.2, 0.1]))
    with pytest.raises(InputError, match=f"tensor '{name}': missing in the base"):
        RestorationSweep(model, {n: t for n, t in base.items() if n != name})
    with pytest.raises(InputError, match=r"shape \(2, 2\) in the base"):
        RestorationSweep(model, {**base, name: torch.zeros(2, 2)})
    spoiled = {n: t.clone() for n, t in base.items()}
    spoiled[name].view(-1)[:3] = float("nan")
    spoiled[name].view(-1)[4] = float("inf")
    with pytest.raises(InputError, match=f"tensor '{name}' of the base: 3 NaN and 1 infinite"):
        list(RestorationSweep(model, spoiled).run([0.1]))
    assert all(same_bits(p.detach(), tuned[n]) for n, p in model.named_parameters())
    assert dict(RestorationSweep(model, spoiled, scope=Scope(allow_nonfinite=True)).run([0.1]))[0.1] > 0


@pytest.mark.parametrize("criterion", METHODS)
def test_no_criterion_touches_a_model_whose_base_is_not_finite(criterion: str) -> None:
    base, model = pair_of_models()
    tuned = {name: p.detach().clone() for name, p in model.named_parameters()}
    name = "model.layers.1.self_attn.v_proj.weight"  # the last in ranking order
    base[name].view(-1)[-1] = float("nan")
    with pytest.raises(InputError, match=f"tensor '{name}' of the base: 1 NaN and 0 infinite"):
        list(RestorationSweep(model, base, criterion).run([0.0, 1.0]))
    assert all(same_bits(p.detach(), tuned[n]) for n, p in model.named_parameters())


def test_many_steps_are_told_apart() -> None:
    base, model = pair_of_models()
    for parameter in base.values():
        parameter += 100.0  # so that every weight differs, and a restored one shows
    sweep = RestorationSweep(model, base, "random", threads=1, piece=1 << 20)
    for steps in (1, 2, 255, 256):
        *_, (_, count) = sweep.run([step / 300 for step in range(steps)])
        held = dict(model.named_parameters())
        assert sum(int((held[n] == base[n]).sum()) for n in region_of(model)) == count
        assert count == exact_count((steps - 1) / 300, sweep.eligible)


AWKWARD = [
    0.0,
    -0.0,
    1e-45,
    -1e-45,
    2.0**-126,
    1.0,
    -1.0,
    1.5,
    3.4e38,
    -3.4e38,
    float("inf"),
    float("-inf"),
    float("nan"),
]


@given(
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    share=st.sampled_from([0.1, 0.6, 1.0]),
    fractions=st.lists(st.floats(0, 1), min_size=1, max_size=3, unique=True),
    piece=st.sampled_from([97, 1 << 18]),
)
@settings(max_examples=25, deadline=None)
def test_zeros_denormals_infinities_and_ties_rank_as_a_sort_ranks_them(
    seed: int, dtype: torch.dtype, share: float, fractions: list[float], piece: int
) -> None:
    base, model = pair_of_models(dtype)
    names = region_of(model)
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor(AWKWARD).to(dtype)
    held = dict(model.named_parameters())
    for side in (base, {name: p.detach() for name, p in held.items()}):
        for name in names:
            drawn = values[torch.randint(len(values), side[name].shape, generator=generator)]
            awkward = torch.rand(side[name].shape, generator=generator) < share
            side[name].copy_(torch.where(awkward, drawn, side[name]))
    p = torch.cat([base[name].reshape(-1) for name in names])
    s = torch.cat([held[name].detach().reshape(-1).clone() for name in names])
    scores = [relative_by_definition(*both) for both in zip(p.tolist(), s.tolist(), strict=True)]
    order = torch.tensor(sorted(range(len(scores)), key=lambda place: -scores[place]))  # a stable sort
    sweep = RestorationSweep(model, base, scope=Scope(allow_nonfinite=True), piece=piece)
    for fraction, count in sweep.run(sorted(fractions)):
        assert count == exact_count(fraction, sweep.eligible)
        expected = s.clone()
        expected[order[:count]] = p[order[:count]]
        assert same_bits(torch.cat([held[name].detach().reshape(-1) for name in names]), expected)


def test_authors_mode_restores_what_their_rule_does_up_to_ties() -> None:
    base, model = pair_of_models(torch.bfloat16)
    tuned = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = region_of(model)
    p = torch.cat([base[name].reshape(-1) for name in names])
    s = torch.cat([tuned[name].reshape(-1) for name in names])
    score = (s - p).abs() / (p.abs() + 1e-8)  # their order of steps, each rounded to bfloat16
    held = dict(model.named_parameters())
    for fraction, count in RestorationSweep(model, base, "authors").run([0.01, 0.2, 0.4]):
        assert count == int(len(score) * (100 * fraction) / 100.0)  # how they count
        last = torch.topk(score, count).values[-1]
        now = torch.cat([held[name].detach().reshape(-1) for name in names])
        assert torch.equal(now[score > last], p[score > last])
        assert torch.equal(now[score < last], s[score < last])
        tied = score == last
        assert int((now != s)[tied].sum()) == count - int((score > last).sum())
