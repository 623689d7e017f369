"""Finding a model: the folder of its name, and for an adapter that of its base; hub ids are fetched."""

from __future__ import annotations

import hashlib
import importlib.resources
import os
from dataclasses import dataclass
from pathlib import Path

from knowshift.errors import InputError, border, printable
from knowshift.files import digest, expanded
from knowshift.parameters.files.adapter import is_adapter, read_adapter
from knowshift.parameters.files.checkpoint import PICKLED
from knowshift.parameters.files.companions import BESIDE_WEIGHTS, tokenizer_folder

#: What is fetched for a hub id: nothing that could run code.
WANTED = ["*.safetensors", *(pattern for pattern in BESIDE_WEIGHTS if pattern != "*.py")]
#: Small files that decide a model's tokens and where a text ends, so its identity covers them too.
DECIDING = (
    *("config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json", "tekken.json"),
    "adapter_config.json",
    *("tokenizer*", "vocab*", "merges*", "*.model", "*.spm", "*.tiktoken"),
)
#: Up to this many bytes of weights are hashed whole; above it, one MiB in every 32 (see :func:`model_identity`).
HASHED_WHOLE = 4 << 30


@dataclass(frozen=True)
class ModelFiles:
    """Where a model lies: a folder of weights, and the adapter on top of it if there is one."""

    name: str  # as the user gave it
    weights: Path
    adapter: Path | None = None
    merged: Path | None = None  # a temporary folder in which PEFT has merged the two already
    whole_tokenizer: Path | None = None  # another in which the tokenizer lies beside its configuration

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer (:func:`~knowshift.parameters.files.companions.tokenizer_folder`)."""
        return tokenizer_folder(self.adapter, self.weights)

    @property
    def bytes(self) -> int:
        """What the weights take on disk."""
        return sum(file.stat().st_size for file in self.weights.glob("*.safetensors"))

    def identity(self) -> str:
        """:func:`model_identity` of the folder, or over those of base and adapter."""
        whole = model_identity(self.weights)
        return whole if self.adapter is None else digest([whole, model_identity(self.adapter)])


def find_model(
    name: str, *, revision: str | None = None, base: str | None = None, base_revision: str | None = None
) -> ModelFiles:
    """Find (and fetch, where it is a hub id) a model or an adapter, and the base of an adapter.

    ``base`` names the model an adapter is put on; where it is not given, the adapter's own configuration says.
    Raises :class:`InputError` for whatever is missing or pickled, and for a ``base`` of what is no adapter.
    """
    folder = model_folder(name, revision=revision)
    if not is_adapter(folder):
        if base is not None:
            raise InputError(f"{name}: a whole model; a base is for an adapter only")
        check_model_files(name, folder)
        return ModelFiles(name, folder)
    adapter = read_adapter(folder)
    told = base or adapter.base_name
    if not told:
        raise InputError(f"{name}: an adapter that does not say which model it was made for; name it with --base")
    said = adapter.config.get("revision")
    try:
        weights = model_folder(told, revision=base_revision or (said if base is None else None))
    except InputError as error:
        raise InputError(f"{name}: made for {told!r}: {error}; name its base with --base") from None
    if is_adapter(weights):
        raise InputError(f"{name}: its base {told!r} is an adapter too; merge that first")
    check_model_files(told, weights)
    return ModelFiles(name, weights, folder)


def model_folder(name: str, *, revision: str | None = None) -> Path:
    """The local folder of a model name, fetched from the hub (safetensors and text files only) when it is a hub id."""
    if name == "world:tiny":
        folder = Path(str(importlib.resources.files("knowshift.world").joinpath("tiny")))
        if not (folder / "config.json").is_file():
            raise InputError(
                "world:tiny: this installation carries no tiny model; build one with `knowshift world build`"
            )
        return folder
    with border(f"{name}: cannot be looked up as a model folder"):
        path = expanded(name.removeprefix("world:"))
        if path.is_dir():
            return path
        if name.startswith(("world:", "/", ".", "~")) or name.count("/") > 1 or path.is_file():
            raise InputError(f"{name}: no such model folder")
    return _from_hub(name, revision)


def hub_id(name: str) -> str | None:
    """A model's name where that is a hub id; None for a local folder and the shipped model."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if name.startswith(("world:", "/", ".", "~")) or expanded(name).is_dir():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def public_name(name: str) -> str:
    """A model's name for what others read: a hub id whole, of a folder its last part alone, in one line."""
    whole = name if name == "world:tiny" else hub_id(name)
    return printable(whole or os.path.basename(os.path.abspath(expanded(name.removeprefix("world:")))))


def model_identity(folder: Path) -> str:
    """Sixteen hex digits over all files that decide a model's outputs, the same wherever the folder lies.

    That is the weights, config.json, generation_config.json (it names the tokens that end a text) and the
    tokenizer's files. Weights of up to 4 GiB are hashed whole; larger ones by file size and the first MiB of every
    32, which any training run changes, but which an edit of a few neighbouring weights could escape.
    """
    told = hashlib.sha256()
    with border(f"{folder}: cannot be read"):
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
    with border(f"{name}: cannot be read"):
        if not (folder / "config.json").is_file():
            raise InputError(f"{name}: no config.json in {folder}, so it is not a model folder")
        if not any(folder.glob("*.safetensors")):
            pickled = next((file.name for pattern in PICKLED for file in sorted(folder.glob(pattern))), None)
            if pickled:
                raise InputError(
                    f"{name}: only pickled weights ({pickled}), which are refused; convert them to safetensors"
                )
            raise InputError(f"{name}: no *.safetensors weights in {folder}")


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    doing = f"{name}: no such folder, and the hub did not give it"
    log_in = "`hf auth login` or HF_TOKEN"
    with border(doing):
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=WANTED))
        except HFValidationError as error:
            raise InputError(f"{name}: no such folder, and not a hub id of the form owner/name") from error
        except GatedRepoError as error:
            page = f"https://huggingface.co/{name}"
            raise InputError(f"{doing}: it is gated; accept its licence at {page}, then {log_in}") from error
        except RepositoryNotFoundError as error:
            raise InputError(f"{doing}: there is no such model, or it is private ({log_in})") from error
        except RevisionNotFoundError as error:
            raise InputError(f"{doing}: there is no revision {revision!r}") from error
        except LocalEntryNotFoundError as error:
            raise InputError(f"{doing}: it is not in the cache, and the hub cannot be reached") from error
