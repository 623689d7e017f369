"""A model that is divided between two processes (gloo, on processors) against the model of one process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import tiny_models
from divided_work import asked, one_dies, restored, together
from knowshift.errors import InputError
from knowshift.models.divided import check_divisible
from knowshift.models.loading import load_model
from knowshift.parameters.slices import Slice, even_slice
from knowshift.system.group import ProcessGroup, decided, own_device
from tiny_models import tiny_checkpoint

#: Four heads and two of keys; maps with biases and fused keys; norms over all heads, whose maps are put together again.
FAMILIES = {
    "LlamaConfig": {"num_key_value_heads": 2},
    "GPTNeoXConfig": {},
    "Olmo2Config": {"num_key_value_heads": 2, "intermediate_size": 48},
}
CRITERIA = ("relative", "random", "dare")


def _pair(folder: Path, family: str) -> tuple[str, str]:
    """A random model, and another whose weights are somewhat changed."""
    base = tiny_checkpoint(folder / family, family, num_attention_heads=4, **FAMILIES[family])
    tuned = tiny_checkpoint(folder / f"{family}-tuned", family, num_attention_heads=4, **FAMILIES[family])
    torch.manual_seed(1)
    weights = load_file(tuned / "model.safetensors")
    changed = {name: weight + 0.02 * torch.randn_like(weight) for name, weight in weights.items()}
    save_file(changed, tuned / "model.safetensors", metadata={"format": "pt"})
    return str(base), str(tuned)


def test_two_processes_hold_one_model_and_one_that_dies_ends_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits, answers, draws and restored weights of each family, from one start of a group."""
    monkeypatch.setitem(tiny_models.FAMILIES, "Olmo2Config", {})
    processes = ProcessGroup(2, "cpu", imports="imported")
    for family in FAMILIES:
        base, tuned = _pair(tmp_path, family)
        found = processes.do(family, together, base, tuned, CRITERIA)
        before, after = load_model(base), load_model(tuned)
        alone = asked(after)
        assert np.abs(np.array(found["logits"]) - alone["logits"]).max() < 1e-5, family
        assert np.abs(alone["logits"]).max() > 0.1
        assert (found["greedy"], found["hits"]) == (alone["greedy"], alone["hits"]), family
        assert found["held"] < 0.8 * sum(weight.numel() for weight in after.model.parameters())
        expected = restored(before, after, CRITERIA)
        for criterion in CRITERIA:
            assert found["restored"][criterion] == expected[criterion], (family, criterion)
            counts = [count for count, _ in expected[criterion]]
            assert 0 < counts[0] < counts[1], "something was restored"
    with pytest.raises(InputError, match=r"^a unit: one of its 2 processes was killed.*; what is done stays"):
        processes.do("a unit", one_dies)
    processes.end()


@given(st.data())
def test_a_slice_takes_its_part_of_any_stretch(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(4, 6), (6, 4), (8,), (2, 4, 3), (2, 2)]))
    dim = data.draw(st.integers(0, 1 if len(shape) == 2 else 0))
    part = even_slice(shape, dim, data.draw(st.integers(0, 1)), 2)
    whole = torch.arange(float(np.prod(shape)))
    edges = sorted(data.draw(st.lists(st.integers(0, whole.numel()), max_size=6)))
    held = torch.full(part.own_shape, -1.0)
    for start, stop in zip([0, *edges], [*edges, whole.numel()], strict=True):
        before = held.clone()
        part.put(held, start, stop, whole[start:stop])
        assert part.touches(start, stop) or torch.equal(before, held)
    assert torch.equal(held, whole.view(shape).narrow(dim, part.start, part.stop - part.start))


@pytest.mark.parametrize(
    ("told", "devices", "said"),
    [
        ({"num_attention_heads": 4, "num_key_value_heads": 1}, 2, "do not divide the 1 key-value heads .* one of 1$"),
        ({"num_attention_heads": 4, "num_key_value_heads": 4}, 8, "do not divide the 4 attention heads .* 1, 2, 4$"),
        ({"num_attention_heads": 4, "intermediate_size": 6}, 4, "do not divide the 6 feed-forward units .* 1, 2$"),
        ({"model_type": "gpt2"}, 2, "no plan to divide the architecture 'gpt2'"),
        ({"model_type": "mixtral"}, 2, "divides layers.*experts.* by '.*', which is not supported"),
    ],
)
def test_a_model_that_cannot_be_divided_is_refused_by_its_config(
    told: dict[str, object], devices: int, said: str
) -> None:
    sizes = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96}
    with pytest.raises(InputError, match=f"^devices: .*{said}"):
        check_divisible("a model", {**sizes, **told}, devices)
    check_divisible("a model", {**sizes, "num_attention_heads": 4, "num_key_value_heads": 2}, 2)


def test_a_process_that_is_alone_decides_for_itself() -> None:
    assert decided([1]) == [1]
    assert own_device("cuda") == "cuda"
    assert Slice((4, 2), 0, 0, 2).own_shape == (2, 2)
