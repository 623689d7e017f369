"""A model has one tokenizer: as it is loaded, restored and saved, whatever lies in the folders of adapter and base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from knowshift.models.finding import ModelFiles
from knowshift.models.loading import LoadedModel, load_model, load_tokenizer
from knowshift.models.saving import save_model
from knowshift.parameters.files.companions import TOKENIZER, VOCABULARIES, files_beside
from knowshift.parameters.files.restored import restore_checkpoints
from tiny_models import byte_tokenizer, people_s_files, tiny_checkpoint
from weights_pairs import move


def told(model: LoadedModel) -> dict[str, Any]:
    tokenizer = model.tokenizer
    return {
        "vocabulary": tokenizer.get_vocab(),
        "backend": tokenizer.backend_tokenizer.to_str(),
        "special": tokenizer.special_tokens_map,
        "ids": (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id),
        "chat": tokenizer.chat_template,
        "stop": model.stop_ids(),
    }


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **fields}))


def plain(folder: Path) -> None:
    pass


def named_in_config(folder: Path) -> None:
    change(folder / "tokenizer_config.json", eos_token="<|end|>", pad_token="<pad>", chat_template="in the config")


def named_beside(folder: Path) -> None:
    change(folder / "special_tokens_map.json", eos_token="</s>", pad_token="<|end|>")
    (folder / "chat_template.jinja").write_text("beside")


def whole(folder: Path) -> None:
    byte_tokenizer(None).save_pretrained(folder)


def whole_named_in_config(folder: Path) -> None:
    whole(folder)
    named_in_config(folder)


def whole_named_beside(folder: Path) -> None:
    whole(folder)
    named_beside(folder)


@pytest.mark.parametrize(
    "tuned", [plain, named_in_config, named_beside, whole, whole_named_in_config, whole_named_beside]
)
@pytest.mark.parametrize("base", [plain, named_in_config, named_beside, people_s_files])
@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "checkpoint"])
@pytest.mark.filterwarnings("ignore:.*pad token equals")
def test_loaded_restored_and_saved_have_one_tokenizer(
    adapter: bool, base: Callable[[Path], None], tuned: Callable[[Path], None], tmp_path: Path
) -> None:
    before = tiny_checkpoint(tmp_path / "base", pad=None)
    base(before)
    model = AutoModelForCausalLM.from_pretrained(before)
    after = tmp_path / "tuned"
    if adapter:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False))
    else:
        move(model)
    model.save_pretrained(after)
    tuned(after)
    out = restore_checkpoints(before, after, tmp_path / "out", {"0": 0.0}).output["0"]
    restored = load_model(str(out))
    brings = any((after / file).is_file() for file in VOCABULARIES)
    [source] = {after if brings else before}
    assert {path.name: path.read_bytes() for path in files_beside(Path(out), TOKENIZER)} == {
        path.name: path.read_bytes() for path in files_beside(source, TOKENIZER)
    }
    if adapter or brings:  # a checkpoint without a tokenizer cannot be loaded
        loaded = load_model(str(after))
        (tmp_path / "saved").mkdir()
        save_model(loaded, tmp_path / "saved")
        assert told(loaded) == told(restored) == told(load_model(str(tmp_path / "saved")))


def _metaspace(prepend: str) -> Tokenizer:
    letters = ["<unk>", "<s>", "</s>", "▁", *map(chr, range(33, 127)), "▁W", "Wh", "▁Wh"]
    vocabulary = {text: i for i, text in enumerate(dict.fromkeys(letters))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "W"), ("▁W", "h")], unk_token="<unk>"))
    if prepend == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(["<unk>", "<s>", "</s>", *alphabet])}, merges=[])
    )
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


KINDS = {
    "never": _metaspace("never"),
    "first": _metaspace("first"),
    "normalizer": _metaspace("normalizer"),
    "bytes": _byte_level(),
}
CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast", "GPT2TokenizerFast", "Qwen2TokenizerFast", "GemmaTokenizerFast")
CLASSES = (*CLASSES, "PreTrainedTokenizerFast", "TokenizersBackend", "GPTNeoXTokenizerFast")


def _ids(folder: Path, files: ModelFiles | None = None) -> list[int] | str:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder) if files is None else load_tokenizer(files)
        ids: list[int] = tokenizer("Where was A? 123 Who's")["input_ids"]
    except Exception as error:
        return type(error).__name__
    return ids


@pytest.mark.parametrize("model_type", ["phi3", "mistral", "qwen2", "llama", "gemma"])
def test_an_adapters_tokenizer_is_that_of_the_checkpoint_written_from_it(model_type: str, tmp_path: Path) -> None:
    """transformers chooses a tokenizer's class, and corrects Mistral's, by the config.json beside it."""
    weights, adapter, out = (tmp_path / name for name in ("weights", "adapter", "out"))
    AutoConfig.for_model(model_type).save_pretrained(weights)
    byte_tokenizer().save_pretrained(weights)
    change(weights / "config.json", transformers_version="4.40.0")
    alone = seen = 0
    for number, (kind, tokenizer) in enumerate(KINDS.items()):
        for declared in CLASSES:
            here, there = adapter / f"{number}-{declared}", out / f"{number}-{declared}"
            for folder in (here, there):
                fast = PreTrainedTokenizerFast(
                    tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
                )
                fast.save_pretrained(folder)
                change(folder / "tokenizer_config.json", tokenizer_class=declared, fix_mistral_regex=True)
            (there / "config.json").write_bytes((weights / "config.json").read_bytes())
            written, read = _ids(there), _ids(here, ModelFiles("x", weights, here))
            if isinstance(written, list):
                assert read == written, (kind, declared)
                seen += 1
                alone += _ids(here) != written
    assert seen > 16
    assert (alone > 0) == (model_type not in ("llama", "gemma"))  # without that file, ids of these kinds are the same


def test_loading_a_tokenizer_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    base = tiny_checkpoint(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "adapter")
    tokenizer = load_tokenizer(ModelFiles("x", base, tmp_path / "adapter"))
    assert list((tmp_path / "scratch").iterdir()) == []
    assert tokenizer.name_or_path == str(tmp_path / "adapter")
    assert torch.is_tensor(tokenizer("A", return_tensors="pt")["input_ids"])
