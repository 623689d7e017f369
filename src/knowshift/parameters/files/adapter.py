"""A LoRA adapter folder read as the tuned checkpoint it stands for: base + scaling x B A, computed where it is read.

The merged weight is rounded to the base's dtype, so a checkpoint written from it is the merged model. No merged model
is held or written for that: products are computed in blocks of rows, always the same blocks, so a weight does not
depend on the stretch in which it is read.

An adapter is read here only when every field of its configuration has a value whose meaning for the merged weight is
implemented here (:func:`not_read`). PEFT itself merges every other (:mod:`knowshift.parameters.files.merging`).

Source: Hu et al., "LoRA", arXiv 2106.09685; file names and scaling as in peft (``alpha / r``, with rank-stabilised
LoRA ``alpha / sqrt(r)``, arXiv 2312.03732).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from knowshift.errors import InputError
from knowshift.files import read_json
from knowshift.parameters.files.checkpoint import (
    INDEX,
    PICKLED,
    SINGLE,
    STORED_DTYPES,
    Shard,
    StoredTensors,
    read_shard,
    read_whole,
)
from knowshift.parameters.regions import ARCHITECTURES, own_names, place, stored_transposed, tied_table
from knowshift.parameters.tensors import Array, as_dtype, single

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_BLOCK = 1 << 20  # weights in a block of rows
_LARGEST = 1e38  # of a float32


def _any(value: Any) -> bool:
    return True


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _patterns(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Accepts a mapping of regular expressions of module names to values."""

    def hold(value: Any) -> bool:
        if not isinstance(value, dict):
            return value is None
        try:
            for pattern in value:
                re.compile(rf"(.*\.)?({pattern})$")
        except re.error:
            return False
        return all(of(one) for one in value.values())

    return hold


def _one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: any(value is one or (isinstance(one, str) and value == one) for one in values)


#: The fields of peft's LoraConfig whose meaning for the merged weight is known here, and the values that are. A field
#: that is not named must be off (false, null or empty).
FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "peft_type": _one_of("LORA"),
    # What the saved tensors say by themselves: which modules have matrices, which were saved whole.
    **dict.fromkeys(
        (
            *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
            *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
        ),
        _any,
    ),
    "bias": _one_of("none", "all", "lora_only"),
    # Of training alone.
    "lora_dropout": _any,
    # Peft decides it for each module by the module's class and saves one flag for all; `_add` decides by the layout.
    "fan_in_fan_out": _any,
    # It matters where head and embeddings are tied, and such an adapter is not read here.
    "ensure_weight_tying": _any,
    "r": _rank,
    "lora_alpha": _number,
    "rank_pattern": _patterns(_rank),
    "alpha_pattern": _patterns(_number),
    "use_rslora": _one_of(True, False, None),
    # Those that leave the base as it is; others put a part of it into A and B.
    "init_lora_weights": _one_of(True, False, None, "gaussian", "eva", "orthogonal"),
    # Read by other initialisations and variants alone.
    **dict.fromkeys(("loftq_config", "eva_config", "corda_config", "lora_ga_config"), _any),
    **dict.fromkeys(("megatron_core", "qalora_group_size"), _any),
}


@dataclass(frozen=True)
class Adapter:
    """An adapter folder: its configuration, where its weights lie, and the model that it says it was made for."""

    folder: Path
    config: Mapping[str, Any]
    shard: Shard

    @property
    def base_name(self) -> str:
        """What ``base_model_name_or_path`` says; empty where it says nothing."""
        return str(self.config.get("base_model_name_or_path") or "")

    @property
    def names(self) -> dict[str, str]:
        """Its tensors: key in the file -> name as the base model has it, with what the adapter adds to it."""
        keys = [key for key in self.shard.tensors if key not in self.again]
        return {key: key.removeprefix(_PREFIX).replace(".base_layer.", ".") for key in keys}

    @cached_property
    def again(self) -> frozenset[str]:
        """Keys that peft writes in addition where ``bias`` is set and a module is saved whole.

        They repeat the saved bias, and hold the base's bias, which the model with the adapter does not use.

        Raises:
            InputError: the saved bias is not the same both times.
        """
        found = {key for key in self.shard.tensors if ".modules_to_save." in key or ".original_module." in key}
        if found:
            tensors = read_whole(self.shard)
            for key in sorted(found):
                plain = key.replace(".modules_to_save.", ".")
                if plain != key and not (plain in tensors and np.array_equal(tensors[plain], tensors[key])):
                    raise InputError(f"{self.shard.path}: tensor {key!r} is not {plain!r} once more, as peft writes it")
        return frozenset(found)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter rather than a model.

    Raises:
        InputError: it holds both. What transformers makes of such a folder (the model with the adapter on top) is not
            what the model's weights say.
    """
    if not (folder / CONFIG).is_file():
        return False
    for whole in (SINGLE, INDEX):
        if (folder / whole).is_file():
            raise InputError(f"{folder}: holds an adapter ({CONFIG}) and a model ({whole}); expected one of the two")
    return True


def read_adapter(folder: Path) -> Adapter:
    """Configuration and header of an adapter folder.

    Raises:
        InputError: a damaged configuration or file of weights, no weights, or pickled ones.
    """
    path = folder / WEIGHTS
    config = read_json(folder / CONFIG)
    if not path.is_file():
        pickled = sorted(found.name for pattern in PICKLED for found in folder.glob(pattern))
        what = f"pickled weights ({pickled[0]}) are refused" if pickled else "no adapter weights"
        raise InputError(f"{folder}: {what}; expected {WEIGHTS}")
    return Adapter(folder, config, read_shard(path))


def check_patterns(adapter: Adapter) -> None:
    """Refuse an adapter whose scaling is not determined by its files.

    Where several patterns match a module, the first one holds; but peft sorts them when it saves, so their order in
    training is lost. (The rank, unlike alpha, follows from the matrices.)

    Raises:
        InputError: ``alpha_pattern`` gives a module several values.
    """
    patterns = adapter.config.get("alpha_pattern")
    if not patterns or not _patterns(_number)(patterns):
        return
    for module in {_module(name) for name in adapter.names.values()}:
        values = _told(module, patterns, None)
        if len(values) > 1:
            raise InputError(
                f"{adapter.folder / CONFIG}: alpha_pattern gives {module!r} {len(values)} values "
                f"({', '.join(map(str, sorted(values)))}), and which of them training used is not saved; "
                "keep that one alone"
            )


def check_fits(adapter: Adapter, base: StoredTensors) -> None:
    """Refuse an adapter without tensors, or whose base is quantised or has another vocabulary.

    Raises:
        InputError: one of these, with what to do.
    """
    if not adapter.shard.tensors:
        raise InputError(f"{adapter.shard.path}: holds no tensors, so the adapter was not saved")
    quantised = base.config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise InputError(
            f"{base.folder}: stored quantised ({method or 'quantization_config'}); an adapter is put on the "
            "unquantised model"
        )
    own = own_names(base.shapes)
    for key, name in adapter.names.items():
        here, there = adapter.shard.tensors[key].shape, base.shapes.get(own(name) or "", ())
        if len(here) == len(there) == 2 and here != there and here[1] == there[1]:
            raise InputError(
                f"{adapter.shard.path}: tensor {key!r} has {here[0]} rows, the base {there[0]}: the vocabulary was "
                f"resized; call model.resize_token_embeddings({here[0]}) on the base, and save it, first"
            )


def not_read(adapter: Adapter, base: StoredTensors) -> str | None:
    """Why an adapter cannot be read here, in a few words, or None if it can."""
    kind = adapter.config.get("peft_type")
    if kind != "LORA":
        return f"it is of type {kind!r}"
    for field in ("r", "lora_alpha"):
        if field not in adapter.config:
            raise InputError(f"{adapter.folder / CONFIG}: no {field!r}")
    for field, value in adapter.config.items():
        known = FIELDS.get(field)
        if (bool(value) and field not in FIELDS) or (known is not None and not known(value)):
            return f"{field} is {_shown(value)}"
    if base.model_type not in ARCHITECTURES:
        return f"architecture {base.model_type!r} has no known layout"
    if tied_table(base.shapes, base.model_type, base.config) is not None:
        for name in adapter.names.values():
            if _kind(name, base.model_type) in ("embeddings", "head"):
                return f"it changes {_module(name)!r}, and the base ties head and embeddings"
    return None


class AdaptedTensors:
    """The base with an adapter merged in; a :class:`~knowshift.parameters.tensors.TensorReader`.

    Raises :class:`InputError` for an adapter that names tensors the base does not have or has in other shapes, whose
    matrices are not of the rank that its configuration says, and for damaged weights. Expects an adapter for which
    :func:`not_read` gives None.
    """

    def __init__(self, adapter: Adapter, base: StoredTensors) -> None:
        self.adapter, self.base = adapter, base
        self.shapes: Mapping[str, tuple[int, ...]] = base.shapes
        self._products: dict[str, _Product] = {}
        self._whole: dict[str, Array] = {}
        self._read()
        self._block = lru_cache(maxsize=8)(self._product_block)

    @property
    def touched(self) -> set[str]:
        """Names of the base's tensors that the adapter changes."""
        return set(self._products) | set(self._whole)

    @property
    def saved_whole(self) -> list[str]:
        """Those of which the adapter holds the new values, as of a bias or of ``modules_to_save``, sorted."""
        return sorted(self._whole)

    @np.errstate(all="ignore")  # weights that are not finite are reported by tensor
    def read(self, name: str, start: int, stop: int) -> Array:
        whole = self._whole.get(name)
        base = self.base.read(name, start, stop) if whole is None else whole.reshape(-1)[start:stop]
        if name not in self._products:
            return base
        merged = base.astype(np.float32)
        columns = self.shapes[name][1]
        height = max(1, _BLOCK // columns)
        block = start // columns // height
        while block * height * columns < stop:
            begin = block * height * columns
            delta = self._block(name, block, height)
            first, last = max(start, begin), min(stop, begin + len(delta))
            merged[first - start : last - start] += delta[first - begin : last - begin]
            block += 1
        return as_dtype(base.dtype, merged)

    def _product_block(self, name: str, block: int, height: int) -> Array:
        product = self._products[name]
        delta = product.left[block * height : (block + 1) * height] @ product.right
        delta *= np.float32(product.scaling)
        return delta.reshape(-1)

    def _read(self) -> None:
        own = own_names(self.base.shapes)
        parts: dict[str, dict[str, Array]] = {}
        names = self.adapter.names
        tensors = read_whole(self.adapter.shard)
        for key in names:
            tensor = tensors[key]
            found = re.fullmatch(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B)(?:\.weight)?", names[key])
            name = own(names[key])
            if found:
                parts.setdefault(found.group(1), {})[found.group(2)] = single(tensor)
            elif name is not None:
                self._whole[name] = self._fitting(name, tensor)
            else:
                self._refuse(f"tensor {key!r} belongs to no tensor of the base {self.base.folder}")
        for module, matrices in parts.items():
            name = own(f"{module}.weight")
            if name is None:
                self._refuse(f"adapter for {module!r}, which the base {self.base.folder} does not have")
            self._add(name, module, matrices)
        self._check_whole(set(parts), set(names.values()))

    def _check_whole(self, modules: set[str], names: set[str]) -> None:
        """Refuse a part of an adapter, which would be merged as if it were the whole."""
        config = self.adapter.config
        own = own_names({f"{module}.weight" for module in modules} | names)
        prefix = _prefix(names, self.shapes)
        for name, shape in self.shapes.items():
            where = place(name, shape, self.base.model_type)
            module = prefix + name.removesuffix(".weight") if own(name) is None else _module(own(name) or "")
            # Experts are one tensor in a loaded model, so what names of theirs mean depends on where it was trained.
            matrix = len(shape) == 2 and where.kind != "norms" and ".experts." not in name
            if matrix and module not in modules and own(name) not in names and targeted(module, config):
                self._refuse(f"no matrices for {module!r}, which target_modules names: a part of an adapter")
        for saved in config.get("modules_to_save") or ():
            if not any(_named(_module(name), [saved]) or f".{saved}." in f".{name}" for name in names):
                self._refuse(f"no tensor of {saved!r}, which modules_to_save names: a part of an adapter")

    def _add(self, name: str, module: str, matrices: Mapping[str, Array]) -> None:
        embedding = "lora_embedding_A" in matrices
        a, b = (matrices.get(f"lora_embedding_{x}" if embedding else f"lora_{x}") for x in "AB")
        if a is None or b is None or len(matrices) > 2:
            self._refuse(f"adapter for {module!r} lacks one of its two matrices")
        ranks = _told(module, self.adapter.config.get("rank_pattern"), self.adapter.config["r"])
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] not in ranks:
            expected = " or ".join(map(str, sorted(ranks)))
            self._refuse(f"adapter for {module!r} has matrices {a.shape} and {b.shape}; expected rank {expected}")
        scaling = _scaling(module, a.shape[0], self.adapter.config)
        transposed = embedding or stored_transposed(name, self.base.model_type)
        left, right = (np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)) if transposed else (b, a)
        shape = (left.shape[0], right.shape[1])
        if shape != tuple(self.shapes[name]):
            self._refuse(f"adapter for {module!r} has shape {shape}, the base {self.shapes[name]}")
        self._products[name] = _Product(left, right, scaling)

    def _fitting(self, name: str, tensor: Array) -> Array:
        if tuple(tensor.shape) != tuple(self.shapes[name]):
            self._refuse(f"tensor {name!r} has shape {tuple(tensor.shape)}, the base {self.shapes[name]}")
        return as_dtype(STORED_DTYPES[self.base.tensors[name].dtype], tensor)

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(f"{self.adapter.shard.path}: {what}")


@dataclass(frozen=True)
class _Product:
    """delta = scaling x left @ right, of the shape of the stored tensor; both float32."""

    left: Array  # (rows, rank)
    right: Array  # (rank, columns)
    scaling: float


def _module(name: str) -> str:
    """The module that a tensor of an adapter belongs to."""
    return re.sub(r"\.(?:lora_\w+(?:\.weight)?|weight|bias)$", "", name)


def _kind(name: str, model_type: str) -> str:
    """The kind of place of that module: attention, mlp, embeddings, head, norms, biases or other."""
    return place(f"{_module(name)}.weight", (1, 1), model_type).kind


def _scaling(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """Scaling of a module's product; ``rank`` is that of its matrices."""
    [alpha] = _told(module, config.get("alpha_pattern"), config["lora_alpha"])
    return float(alpha / math.sqrt(rank)) if config.get("use_rslora") else float(alpha / rank)


def _told(module: str, patterns: Mapping[str, Any] | None, otherwise: Any) -> set[Any]:
    """The values that a module's patterns give it: one, unless several patterns match."""
    matching = {value for pattern, value in (patterns or {}).items() if re.match(rf"(.*\.)?({pattern})$", module)}
    return matching or {otherwise}


def targeted(module: str, config: Mapping[str, Any]) -> bool:
    """Whether a configuration gives a module matrices, as peft decides it from the module's name.

    False where names do not decide it ("all-linear", which peft replaces by names when it saves).
    """
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    if not targets or targets == "all-linear" or not _named(module, targets) or (excluded and _named(module, excluded)):
        return False
    layers = config.get("layers_to_transform")
    if layers is None:
        return True
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = re.match(rf".*\.{pattern}\.(\d+)\.", f".{module}")
        if found:
            return int(found[1]) in ([layers] if isinstance(layers, int) else layers)
    return False


def _named(module: str, names: Any) -> bool:
    """Whether a regular expression matches the whole name, or the name ends in one of several."""
    try:
        if isinstance(names, str):
            return re.fullmatch(names, module) is not None
        return any(module == name or module.endswith(f".{name}") for name in names)
    except (re.error, TypeError):
        return False


def _prefix(names: Collection[str], shapes: Collection[str]) -> str:
    """The prefix of the adapter's names that the base's names lack: "transformer." beside the hub's GPT-2.

    An output head stands before the prefix and has none, so the longest counts.
    """
    own = own_names(shapes)
    whole = {f"{_module(name)}.{kind}" for name in names for kind in ("weight", "bias")}
    found = [(name, its) for name in whole if (its := own(name)) is not None and name.endswith(its)]
    return max((name.removesuffix(its) for name, its in found), key=len, default="")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:60]}..."
