"""Restored checkpoints on disk: what transformers loads, what stays byte for byte, what is recorded."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

from knowshift.parameters.files import writing
from knowshift.parameters.files.checkpoint import StoredTensors, read_shard
from knowshift.parameters.files.restored import restore_checkpoints
from knowshift.parameters.kernels import compiled as kernels
from knowshift.parameters.methods import METHODS
from knowshift.parameters.regions import Scope
from knowshift.parameters.restore import RestorationSweep
from knowshift.parameters.selection.select import exact_count
from weights_pairs import loaded, move, same_bits, save_pair, tiny_llama


def stored(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(load_file(path))
    return found


def header(path: Path) -> bytes:
    return path.read_bytes()[: read_shard(path).data_begin]


def save_tokenizer(folder: Path) -> None:
    """A real byte-level BPE of a few dozen tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(["where was he born", "in a town"], trainers.BpeTrainer(special_tokens=["[UNK]"]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)


@given(
    fractions=st.lists(st.sampled_from([0.0, 0.013, 0.2, 0.5, 1.0]), min_size=1, max_size=3, unique=True),
    shard=st.sampled_from(["50GB", "12KB"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    piece=st.sampled_from([333, 1 << 18]),
    threads=st.sampled_from([1, 2]),
    criterion=st.sampled_from(["relative", "absolute", "random", "least", "magnitude"]),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_files_hold_what_the_loaded_model_would(
    tmp_path_factory: pytest.TempPathFactory,
    fractions: list[float],
    shard: str,
    dtype: torch.dtype,
    piece: int,
    threads: int,
    criterion: str,
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    base, tuned = save_pair(folder, shard=shard, dtype=dtype)
    named = {f"{fraction:g}": fraction for fraction in fractions}
    done = restore_checkpoints(base, tuned, folder / "out", named, criterion=criterion, piece=piece, threads=threads)
    model = AutoModelForCausalLM.from_pretrained(tuned, dtype="auto")
    before = stored(tuned)
    for fraction, count in RestorationSweep(model, StoredTensors(base), criterion).run(sorted(fractions)):
        output = done.output[f"{fraction:g}"]
        assert done.restored[f"{fraction:g}"] == count == exact_count(fraction, done.eligible)
        written = loaded(output)
        for name, parameter in model.named_parameters():
            assert same_bits(written[name], parameter.detach()), name
        for path in tuned.glob("*.safetensors"):
            assert header(output / path.name) == header(path)
        untouched = [name for name in before if ".layers." not in name or "norm" in name]
        assert len(untouched) == 7
        assert all(same_bits(before[name], stored(output)[name]) for name in untouched)


def test_nothing_and_everything_are_tuned_and_base_byte_for_byte(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path)
    done = restore_checkpoints(base, tuned, tmp_path / "out", {"0": 0.0, "1": 1.0}, scope=Scope(region="all"))
    assert (done.output["0"] / "model.safetensors").read_bytes() == (tuned / "model.safetensors").read_bytes()
    assert (done.output["1"] / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert done.threshold["0"] is None


def test_the_folder_is_complete_and_says_how_it_was_made(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path, shard="12KB")
    save_tokenizer(tuned)
    (tuned / "training_args.bin").write_bytes(b"pickle")
    (tuned / "trainer_state.json").write_text("{}")
    (tuned / "checkpoint-10").mkdir()
    (tuned / "pytorch_model.bin.index.json").write_text("{}")
    (tuned / "LICENSE").write_text("as before")
    (tuned / "additional_chat_templates").mkdir()
    (tuned / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    done = restore_checkpoints(base, tuned, tmp_path / "out", {"0.2": 0.2}, seed=4, about={"note": "test"})
    output = done.output["0.2"]
    assert output == tmp_path / "out"
    left = {"training_args.bin", "trainer_state.json", "checkpoint-10", "pytorch_model.bin.index.json"}
    expected = {path.name for path in tuned.iterdir()} - left
    assert {path.name for path in output.iterdir()} == expected | {"knowshift.json"}
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer("where was he")["input_ids"]
    assert tokenizer.chat_template == {"tools": "{{ messages }}"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]  # nothing left beside
    made = json.loads((output / "knowshift.json").read_text())
    assert made["restored"] == done.restored["0.2"] == exact_count(0.2, made["eligible"])
    assert made["threshold"] == done.threshold["0.2"]
    assert (made["criterion"], made["region"], made["seed"], made["note"]) == ("relative", "layers", 4, "test")
    assert set(made["files"]) == {path.name for path in tuned.glob("*.safetensors")}
    for name, file in made["files"].items():
        assert file["sha256"] == hashlib.sha256((output / name).read_bytes()).hexdigest()
        assert file["bytes"] == (output / name).stat().st_size
    index = "model.safetensors.index.json"
    assert (output / index).read_bytes() == (tuned / index).read_bytes()


def test_a_tuned_folder_without_a_tokenizer_gets_the_bases(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path)
    save_tokenizer(base)
    done = restore_checkpoints(base, tuned, tmp_path / "out", {"0.1": 0.1})
    assert AutoTokenizer.from_pretrained(done.output["0.1"])("town")["input_ids"]


def test_the_same_command_writes_the_same_bytes(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path)
    for name, threads in (("one", 1), ("two", 2)):
        restore_checkpoints(base, tuned, tmp_path / name, {"0.3": 0.3}, criterion="dare", seed=1, threads=threads)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("criterion", METHODS)
def test_without_compiled_loops_the_bytes_are_the_same(
    criterion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned = save_pair(tmp_path, dtype=torch.bfloat16)
    fraction = 1.0 if criterion == "dg-hard" else 0.3
    for name in ("compiled", "plain"):
        restore_checkpoints(base, tuned, tmp_path / name, {"x": fraction}, criterion=criterion, seed=3)
        monkeypatch.setattr(kernels, "library", lambda: None)
    compiled, plain = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("compiled", "plain"))
    assert compiled == plain


@pytest.mark.parametrize("criterion", METHODS)
def test_every_criterion_writes_what_the_sweep_computes(criterion: str, tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path, dtype=torch.bfloat16)
    fraction = 1.0 if criterion == "dg-hard" else 0.7
    done = restore_checkpoints(base, tuned, tmp_path / "out", {"x": fraction}, criterion=criterion, seed=2, piece=700)
    model = AutoModelForCausalLM.from_pretrained(tuned, dtype="auto")
    for _, count in RestorationSweep(model, StoredTensors(base), criterion, seed=2).run([fraction]):
        written = loaded(done.output["x"])
        assert all(same_bits(written[name], p.detach()) for name, p in model.named_parameters())
        assert done.restored["x"] == count
    assert any(not same_bits(written[n], t) for n, t in loaded(tuned).items())


def test_mixed_dtypes_keep_the_tuned_sides(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path, dtype=torch.bfloat16)
    weights = load_file(tuned / "model.safetensors")
    for name in list(weights)[::2]:
        weights[name] = weights[name].to(torch.float32) * 1.001
    save_file(weights, tuned / "model.safetensors", {"format": "pt"})
    done = restore_checkpoints(base, tuned, tmp_path / "out", {"1": 1.0})
    written, before = load_file(done.output["1"] / "model.safetensors"), load_file(base / "model.safetensors")
    for name, tensor in written.items():
        assert tensor.dtype == weights[name].dtype
        if ".layers." in name and "norm" not in name:
            assert torch.equal(tensor.float(), before[name].float())


@pytest.mark.parametrize("stored_twice", [False, True])
def test_tied_embeddings_count_once_and_are_written_alike(stored_twice: bool, tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path, tiny_llama(tie_word_embeddings=True))
    for folder in (base, tuned) if stored_twice else ():
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    done = restore_checkpoints(base, tuned, tmp_path / "out", {"0.5": 0.5}, scope=Scope(region="embeddings"))
    assert done.eligible == 90 * 32
    assert done.restored["0.5"] == 45 * 32
    written = load_file(done.output["0.5"] / "model.safetensors")
    assert ("lm_head.weight" in written) is stored_twice
    if stored_twice:
        assert same_bits(written["lm_head.weight"], written["model.embed_tokens.weight"])
    model = AutoModelForCausalLM.from_pretrained(done.output["0.5"])
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_tied_head_stored_on_one_side_only_is_no_difference(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path, tiny_llama(tie_word_embeddings=True))
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    assert restore_checkpoints(base, tuned, tmp_path / "out", {"1": 1.0}, scope=Scope(region="all")).restored["1"] > 0


def test_gpt2_from_the_hub_lacks_a_prefix_and_is_the_same_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=90))
    base, tuned = save_pair(tmp_path, model)
    weights = {k.removeprefix("transformer."): v for k, v in load_file(base / "model.safetensors").items()}
    weights["h.0.attn.bias"] = torch.ones(1, 1, 64, 64).tril()  # the hub's file carries its masks
    weights["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    done = restore_checkpoints(base, tuned, tmp_path / "out", {"1": 1.0})
    written = load_file(done.output["1"] / "model.safetensors")
    name = "h.1.mlp.c_fc.weight"
    assert same_bits(written[f"transformer.{name}"], weights[name])


def test_a_mixture_of_experts_is_restored_expert_by_expert(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 90}
    model = MixtralForCausalLM(
        MixtralConfig(**options, num_attention_heads=4, num_key_value_heads=2, num_local_experts=3)
    )
    base, tuned = save_pair(tmp_path, model)
    done = restore_checkpoints(base, tuned, tmp_path / "out", {"0.5": 0.5, "1": 1.0})
    assert done.eligible == sum(p.numel() for n, p in model.named_parameters() if ".layers." in n and p.ndim > 1)
    before, after = loaded(base), loaded(done.output["1"])
    for name, tensor in after.items():
        assert same_bits(tensor, (before if ".layers." in name and "norm" not in name else loaded(tuned))[name])


def test_interrupting_leaves_nothing_behind(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path)

    def stop(written: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_checkpoints(base, tuned, tmp_path / "out", {"0.5": 0.5}, writing=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]
    (tmp_path / "out").mkdir()  # an empty folder may stand there
    restore_checkpoints(base, tuned, tmp_path / "out", {"0.5": 0.5})
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("block", [writing._READ_BACK, 999])
def test_what_is_read_back_wrong_is_never_delivered(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_READ_BACK", block)
    base, tuned = save_pair(tmp_path)
    import os

    write = os.pwrite

    def spoiled(descriptor: int, data: Any, begin: int) -> int:
        return write(descriptor, bytes(data[:-1]) + b"\x7f" if len(data) > 1000 else data, begin)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", spoiled)
        with pytest.raises(OSError, match="read back differ"):
            restore_checkpoints(base, tuned, tmp_path / "out", {"0.5": 0.5})
    assert not (tmp_path / "out").exists()
    assert restore_checkpoints(base, tuned, tmp_path / "out", {"0.5": 0.5}).restored["0.5"] > 0


def test_the_moved_share_is_what_was_moved(tmp_path: Path) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path / "base")
    move(model, share=0.25)
    model.save_pretrained(tmp_path / "tuned")
    changed = [
        (one != other).float().mean()
        for one, other in zip(loaded(tmp_path / "base").values(), loaded(tmp_path / "tuned").values(), strict=True)
        if one.numel() > 500
    ]
    assert len(changed) > 10
    assert float(torch.stack(changed).mean()) == pytest.approx(0.25, abs=0.02)
