"""Loading a causal language model and its tokenizer: safetensors only, no remote code, every refusal one line."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from knowshift.errors import InputError, KnowshiftWarning, nearest
from knowshift.models.pieces import token_pieces
from knowshift.models.prompts import PromptEncoder
from knowshift.models.vocabulary import Vocabulary, check_vocabulary

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
#: What is fetched for a hub id: nothing that could run code.
WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer*", "*.model", "*.txt", "*.jinja"]
#: Files one of which a tokenizer needs.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
#: Small files that decide what a model reads and when it ends, so that its identity is theirs too.
DECIDING = (
    *("config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json", "tekken.json"),
    *("tokenizer*", "vocab*", "merges*", "*.model", "*.spm", "*.tiktoken"),
)
#: Up to this many bytes of weights are hashed whole; above it, one MiB in every 32 (see :func:`model_identity`).
HASHED_WHOLE = 4 << 30


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with its tokenizer, and what a record needs to say about them."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str  # as the user gave it
    folder: Path
    dtype: str  # of the loaded weights, e.g. "float32"
    device: str
    identity: str  # 16 hex digits over config, tokenizer and weights

    @property
    def context(self) -> int | None:
        """The longest sequence in tokens that the model takes, or None where its config does not say."""
        config = self.model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)

    def stop_ids(self) -> list[int]:
        """The ids that end a text: the generation config's and the tokenizer's EOS, sorted, each once."""
        told = getattr(self.model.generation_config, "eos_token_id", None)
        ids = {self.tokenizer.eos_token_id, *(told if isinstance(told, list) else [told])}
        return sorted(int(i) for i in ids if i is not None)

    @functools.cached_property
    def pieces(self) -> list[bytes] | None:
        """What each token adds to a text; None where texts must be decoded whole."""
        return token_pieces(self.tokenizer, self.vocabulary.usable.size)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """Which ids the tokenizer names and the model has rows for."""
        return Vocabulary.of(self.model, self.tokenizer)

    @functools.cached_property
    def encoder(self) -> PromptEncoder:
        """What makes token ids of prompts, in every stage."""
        return PromptEncoder(self.tokenizer, self.vocabulary, self.context)

    def about(self) -> dict[str, Any]:
        """What records carry: the engine, the name as given, dtype, device and identity."""
        return {
            "engine": "transformers",
            "model": self.name,
            "identity": self.identity,
            "dtype": self.dtype,
            "device": self.device,
        }


def load_model(name: str, *, revision: str | None = None, dtype: str = "float32", device: str = "cpu") -> LoadedModel:
    """Load ``name``: a local folder, a hub id, ``world:tiny`` (the shipped model) or ``world:PATH`` (a built world).

    ``dtype`` is "float32", "bfloat16", "float16", or "auto" for the stored one; ``device`` is a torch device or
    "auto" (cuda where there is one). Raises :class:`InputError` for whatever is missing, pickled or damaged.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown{nearest(dtype, [*DTYPES, 'auto'])}")
    place = torch_device(device)
    folder = model_folder(name, revision=revision)
    check_model_files(name, folder)
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()  # its bar for a few weights would cut into ours
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto" if dtype == "auto" else DTYPES[dtype],
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{name}: cannot load the model: {_first_line(error)}") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise InputError(f"{name}: damaged safetensors file in {folder}: {_first_line(error)}") from error
    finally:
        if bars:
            hf_logging.enable_progress_bar()
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise InputError(f"{name}: {len(missing)} weights are missing from the checkpoint, the first is {missing[0]!r}")
    model = model.to(place).eval()
    loaded = LoadedModel(
        model=model,
        tokenizer=load_tokenizer(name, folder),
        name=name,
        folder=folder,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(place),
        identity=model_identity(folder),
    )
    check_vocabulary(name, loaded.tokenizer, loaded.vocabulary, loaded.encoder.prefix)
    return loaded


def model_folder(name: str, *, revision: str | None = None) -> Path:
    """The local folder of a model name, fetched from the hub (safetensors and text files only) when it is a hub id."""
    if name == "world:tiny":
        folder = Path(str(importlib.resources.files("knowshift.world").joinpath("tiny")))
        if not (folder / "config.json").is_file():
            raise InputError(
                "world:tiny: this installation carries no tiny model; build one with `knowshift world build`"
            )
        return folder
    path = Path(name.removeprefix("world:")).expanduser()
    if path.is_dir():
        return path
    if name.startswith(("world:", "/", ".", "~")) or name.count("/") > 1 or path.is_file():
        raise InputError(f"{name}: no such model folder")
    return _from_hub(name, revision)


def load_tokenizer(name: str, folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer, padding on the left; nothing here ever relies on its pad token."""
    if not any((folder / file).is_file() for file in VOCABULARIES):
        raise InputError(f"{name}: no tokenizer in {folder} (expected one of {', '.join(VOCABULARIES)})")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise InputError(f"{name}: cannot load the tokenizer: {_first_line(error)}") from error
    tokenizer.padding_side = "left"
    if tokenizer.eos_token_id is None:
        raise InputError(f"{name}: the tokenizer has no end-of-sequence token, so no text could ever end")
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        warnings.warn(
            f"{name}: the pad token equals the end-of-sequence token {tokenizer.eos_token!r}; sampling and answering "
            "here never pad, but other tools may cut or empty texts",
            KnowshiftWarning,
            stacklevel=3,
        )
    return tokenizer


def model_identity(folder: Path) -> str:
    """Sixteen hex digits over all that decides what the model says, the same wherever the folder lies.

    That is the weights, config.json, generation_config.json (it names the tokens that end a text) and the
    tokenizer's files. Weights of up to 4 GiB are hashed whole; larger ones by file size and the first MiB of every
    32, which any training run changes, but which an edit of a few neighbouring weights could escape.
    """
    told = hashlib.sha256()
    for small in sorted({file for pattern in DECIDING for file in folder.glob(pattern) if file.is_file()}):
        data = small.read_bytes()
        told.update(f"{small.name}:{len(data)}:".encode() + data)
    files = sorted(folder.glob("*.safetensors"))
    whole = sum(file.stat().st_size for file in files) <= HASHED_WHOLE
    for file in files:
        told.update(f"{file.name}:{file.stat().st_size}".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                told.update(block)
                if not whole:
                    stream.seek(31 << 20, os.SEEK_CUR)
    return told.hexdigest()[:16]


def check_model_files(name: str, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise InputError(f"{name}: a LoRA adapter folder; merge it into its base model first")
        raise InputError(f"{name}: no config.json in {folder}, so it is not a model folder")
    if not any(folder.glob("*.safetensors")):
        pickled = next((file.name for pattern in PICKLED for file in sorted(folder.glob(pattern))), None)
        if pickled:
            raise InputError(
                f"{name}: only pickled weights ({pickled}), which are refused; convert them to safetensors"
            )
        raise InputError(f"{name}: no *.safetensors weights in {folder}")


def torch_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r} is unknown; expected cpu, cuda, cuda:N or auto") from error
    if place.type == "cuda" and (not torch.cuda.is_available() or (place.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"device {device!r}: this machine has {torch.cuda.device_count()} usable GPUs")
    return place


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=WANTED))
    except HFValidationError as error:
        raise InputError(f"{name}: no such folder, and not a hub id of the form owner/name") from error
    except (OSError, ValueError) as error:  # every hub error is one of the two
        raise InputError(f"{name}: no such folder, and the hub did not give it: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
