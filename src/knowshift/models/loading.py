"""Loading a causal language model and its tokenizer: safetensors only, no remote code, every refusal one line."""

from __future__ import annotations

import functools
import hashlib
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from knowshift.errors import InputError, KnowshiftWarning, border, cause_of, nearest
from knowshift.models.divided import load_divided
from knowshift.models.dtypes import TORCH_DTYPES, fitting_dtype
from knowshift.models.finding import HASHED_WHOLE, ModelFiles, find_model
from knowshift.models.prompts import PromptEncoder
from knowshift.models.token_bytes import token_pieces
from knowshift.models.vocabulary import Vocabulary, check_vocabulary
from knowshift.parameters.files.adapter import AdaptedTensors, not_read, read_adapter
from knowshift.parameters.files.checkpoint import StoredTensors
from knowshift.parameters.files.companions import VOCABULARIES, tokenizer_beside
from knowshift.parameters.files.pair import open_tuned
from knowshift.parameters.loaded import as_tensor, parameters_of
from knowshift.parameters.regions import own_names
from knowshift.system.group import own_device
from knowshift.system.quiet import no_bars_of_transformers

#: Bytes: where memory that PyTorch takes for a tensor begins, a multiple of every vector register's width.
ALIGNMENT = 64


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with its tokenizer, and what a record needs to say about them."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str  # as the user gave it
    folder: Path  # of weights and configuration: the base's under an adapter, or a temporary one where PEFT merged it
    dtype: str  # of the loaded weights, e.g. "float32"
    device: str
    identity: str  # 16 hex digits over config, tokenizer and weights
    own_tokenizer: Path | None = None  # an adapter's folder that brings a tokenizer; None where ``folder`` has it
    scratch: object | None = field(default=None, repr=False, compare=False)  # keeps a temporary ``folder`` alive

    @property
    def context(self) -> int | None:
        """The longest sequence in tokens that the model takes, or None where its config does not say."""
        config = self.model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)

    @property
    def weight_bytes(self) -> int:
        """What the loaded weights take."""
        return sum(weight.numel() * weight.element_size() for weight in self.model.parameters())

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


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str | None = "float32",
    device: str = "cpu",
    base: str | None = None,
    base_revision: str | None = None,
    divided: bool = False,
) -> LoadedModel:
    """Load ``name``: a local folder, a hub id, ``world:tiny`` (the shipped model), ``world:PATH`` (a built world), or
    an adapter (a folder or a hub id), which is loaded as the model that it and its base make.

    ``dtype`` is "float32", "bfloat16", "float16", "auto" for the stored one, or None for :func:`fitting_dtype`;
    ``device`` is a torch device or "auto" (cuda where there is one). ``base`` and ``base_revision`` as in
    :func:`find_model`. ``divided``: by every process of a group, each its part of the model
    (:mod:`knowshift.models.divided`), on the device of its own. Raises :class:`InputError` for whatever is missing,
    pickled or damaged.
    """
    _check_asked(dtype, device)
    files = find_model(name, revision=revision, base=base, base_revision=base_revision)
    return load_found(files, dtype=dtype, device=device, divided=divided)


@contextmanager
def prepared(files: ModelFiles) -> Iterator[ModelFiles]:
    """The same model, with its temporary folders made beforehand: for processes that each load it.

    An adapter that PEFT merges is merged once, here, and its folder is removed when the block ends, also by an error;
    a worker that is terminated would leave its own folder behind.
    """
    if files.adapter is None:
        yield files
        return
    with tokenizer_beside(files.tokenizer, files.weights) as tokenizer:
        ready = replace(files, whole_tokenizer=tokenizer)
        base = StoredTensors(files.weights)
        if not_read(read_adapter(files.adapter), base) is None:
            yield ready
            return
        merged, _ = open_tuned(files.adapter, base)
        assert isinstance(merged, StoredTensors)
        try:
            yield replace(ready, merged=merged.folder)
        finally:
            shutil.rmtree(merged.folder, ignore_errors=True)  # now: a traceback may keep the folder alive


def load_found(
    files: ModelFiles, *, dtype: str | None = "float32", device: str = "cpu", divided: bool = False
) -> LoadedModel:
    """:func:`load_model` of what :func:`find_model` has found."""
    if divided:
        device = own_device(device)
    place, name = _check_asked(dtype, device), files.name
    folder, tuned = files.merged or files.weights, None
    if files.adapter is not None and files.merged is None:
        tuned, _ = open_tuned(files.adapter, StoredTensors(folder))
        folder = tuned.folder if isinstance(tuned, StoredTensors) else folder
    asked = fitting_dtype(replace(files, merged=folder), place) if dtype is None else dtype
    source = tuned or StoredTensors(folder)
    model = load_divided(name, source, asked, place) if divided else _load(name, folder, asked)
    if isinstance(tuned, AdaptedTensors) and not divided:  # else it is read with the rest
        _put(model, tuned, name)
    elif files.adapter is not None:
        for tensor, parameter in model.named_parameters():
            _check_finite(name, tensor, parameter)
    with border(f"{name}: cannot move the model to {place}"):
        model = model.to(place).eval()
    loaded = LoadedModel(
        model=model,
        tokenizer=load_tokenizer(files),
        name=name,
        folder=folder,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(place),
        identity=files.identity(),
        own_tokenizer=files.tokenizer if files.tokenizer == files.adapter else None,
        scratch=tuned,
    )
    check_vocabulary(name, loaded.tokenizer, loaded.vocabulary, loaded.encoder.prefix)
    return loaded


def _check_asked(dtype: str | None, device: str) -> torch.device:
    if dtype not in (None, "auto", *TORCH_DTYPES):
        raise InputError(f"dtype {dtype!r} is unknown{nearest(str(dtype), [*TORCH_DTYPES, 'auto'])}")
    return torch_device(device)


def _load(name: str, folder: Path, dtype: str) -> PreTrainedModel:
    with no_bars_of_transformers(), border(f"{name}: cannot load the model"):
        try:
            if (folder / "generation_config.json").is_file():  # transformers would ignore an unreadable one
                GenerationConfig.from_pretrained(folder)
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype="auto" if dtype == "auto" else TORCH_DTYPES[dtype],
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except SafetensorError as error:
            raise InputError(f"{name}: damaged safetensors file in {folder}: {cause_of(error)}") from error
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise InputError(f"{name}: {len(missing)} weights are missing from the checkpoint, the first is {missing[0]!r}")
    loaded: PreTrainedModel = model
    _align(loaded)
    return loaded


@torch.no_grad()
def _align(model: PreTrainedModel) -> None:
    """Copy weights that lie where a file is mapped, between the bounds of vector registers.

    Some processors (AMD Zen 4) add up the product of such a matrix and one row in another order, so that a model would
    answer otherwise, in the last digits, when it comes from a file than when it was made in memory.
    """
    for weight in (*model.parameters(), *model.buffers()):
        if weight.device.type == "cpu" and weight.data_ptr() % ALIGNMENT:
            weight.data = weight.data.clone()


@torch.no_grad()
def _put(model: PreTrainedModel, tuned: AdaptedTensors, name: str) -> None:
    """Write the weights that an adapter changes into the loaded base."""
    parameters = dict(model.named_parameters())
    own = own_names(parameters)
    for tensor in sorted(tuned.touched):
        parameter = parameters.get(own(tensor) or "")
        if parameter is None:  # fused in memory: the experts of a mixture
            raise InputError(
                f"{name}: the adapter changes {tensor!r}, which the loaded base does not have by itself; "
                "write the merged model with `knowshift restore --fraction 0`"
            )
        parameter.view(-1).copy_(as_tensor(tuned.read(tensor, 0, parameter.numel())))
        _check_finite(name, tensor, parameter)


def _check_finite(name: str, tensor: str, parameter: torch.Tensor) -> None:
    """Refuse what an adapter made infinite or NaN, without a copy: aminmax gives NaN if any weight is NaN."""
    if (
        parameter.is_floating_point()
        and parameter.numel()
        and not torch.stack(torch.aminmax(parameter.detach())).isfinite().all()
    ):
        dtype = str(parameter.dtype).removeprefix("torch.")
        raise InputError(f"{name}: with the adapter, tensor {tensor!r} has NaN or infinite weights in {dtype}")


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256, in hex, over the names and weights of a loaded model as they are now.

    Above :data:`~knowshift.models.finding.HASHED_WHOLE` bytes, one MiB in every 32 of a tensor, as of files.
    """
    told = hashlib.sha256()
    parameters = parameters_of(model)
    whole = sum(tensor.nbytes for tensor in parameters.values()) <= HASHED_WHOLE
    for name, tensor in parameters.items():
        held = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()
        told.update(f"{name}:{len(held)}:".encode())
        step = max(1, len(held)) if whole else 32 << 20
        for start in range(0, len(held), step):
            told.update(held[start : start + (step if whole else 1 << 20)].data)
    return told.hexdigest()


def load_tokenizer(files: ModelFiles) -> PreTrainedTokenizerBase:
    """A model's tokenizer, padding on the left; its pad token is never used here.

    It equals that of the checkpoint which `restore` writes, whose config.json is the one beside the weights.
    """
    name, folder = files.name, files.tokenizer
    if not any((folder / file).is_file() for file in VOCABULARIES):
        raise InputError(f"{name}: no tokenizer in {folder} (expected one of {', '.join(VOCABULARIES)})")
    with border(f"{name}: cannot load the tokenizer"):
        ready = files.whole_tokenizer
        with tokenizer_beside(folder, files.weights) if ready is None else nullcontext(ready) as whole:
            tokenizer = AutoTokenizer.from_pretrained(whole, trust_remote_code=False)
        tokenizer.name_or_path = str(folder)
        end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    tokenizer.padding_side = "left"
    if end is None:
        raise InputError(f"{name}: the tokenizer has no end-of-sequence token, so no text could ever end")
    if pad is not None and pad == end:
        warnings.warn(
            f"{name}: the pad token equals the end-of-sequence token {tokenizer.eos_token!r}; sampling and answering "
            "here never pad, but other tools may cut or empty texts",
            KnowshiftWarning,
            stacklevel=3,
        )
    return tokenizer


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
