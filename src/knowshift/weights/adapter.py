"""A LoRA adapter folder read as the tuned checkpoint it stands for: base + scaling x B A, computed where it is read.

The merged weight is rounded to the base's dtype, as ``peft``'s ``merge_and_unload`` does, so a checkpoint written from
it is the merged model. No merged model is held or written to get there: products are taken block of rows by block of
rows, always the same blocks, so a weight does not depend on the stretch in which it is read.

Source: Hu et al., "LoRA", arXiv 2106.09685; file names and scaling as in peft (``alpha / r``, with rank-stabilised
LoRA ``alpha / sqrt(r)``, arXiv 2312.03732).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from knowshift.errors import InputError
from knowshift.weights.checkpoint import DTYPES, PICKLED, StoredTensors, read_json, read_shard, read_whole
from knowshift.weights.tensors import Array, as_dtype, single

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: Options that change what the adapter adds; refused rather than read as plain LoRA.
_UNREAD = (
    "use_dora",
    "lora_bias",
    "target_parameters",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "trainable_token_indices",
    "alora_invocation_tokens",
)
_PREFIX = "base_model.model."
_BLOCK = 1 << 20  # weights in a block of rows


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter rather than a model."""
    return (folder / CONFIG).is_file()


@dataclass(frozen=True)
class _Product:
    """delta = scaling x left @ right, of the shape of the stored tensor; both float32."""

    left: Array  # (rows, rank)
    right: Array  # (rank, columns)
    scaling: float


class AdaptedTensors:
    """The base with an adapter merged in; a :class:`~knowshift.weights.tensors.TensorReader`.

    Raises :class:`InputError` for an adapter that is not plain LoRA, one that names tensors the base does not have or
    has in other shapes, and pickled or damaged adapter weights.
    """

    def __init__(self, folder: Path, base: StoredTensors) -> None:
        self.folder = folder
        self.base = base
        self.shapes: Mapping[str, tuple[int, ...]] = base.shapes
        config = read_json(folder / CONFIG)
        self._check(config)
        self.base_name = str(config.get("base_model_name_or_path") or "")  # what it says it was made for
        self._products: dict[str, _Product] = {}
        self._whole: dict[str, Array] = {}
        self._read(config)
        self._block = lru_cache(maxsize=8)(self._product_block)

    @property
    def touched(self) -> set[str]:
        """Names of the tensors that the adapter changes."""
        return set(self._products) | set(self._whole)

    @np.errstate(all="ignore")  # what is not finite is told as such, by tensor
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

    def _check(self, config: Mapping[str, Any]) -> None:
        kind = config.get("peft_type")
        if kind != "LORA":
            raise InputError(f"{self.folder / CONFIG}: adapter of type {kind!r}; only 'LORA' can be read")
        for option in _UNREAD:
            if config.get(option):
                raise InputError(
                    f"{self.folder / CONFIG}: {option} is set; only plain LoRA can be read: merge the adapter first"
                )

    def _read(self, config: Mapping[str, Any]) -> None:
        path = self.folder / WEIGHTS
        if not path.is_file():
            pickled = sorted(found.name for pattern in PICKLED for found in self.folder.glob(pattern))
            what = f"pickled weights ({pickled[0]}) are refused" if pickled else "no adapter weights"
            raise InputError(f"{self.folder}: {what}; expected {WEIGHTS}")
        self.shard = read_shard(path)  # names what is wrong with a damaged file
        parts: dict[str, dict[str, Array]] = {}
        for key, tensor in read_whole(self.shard).items():
            name = key.removeprefix(_PREFIX).replace(".base_layer.", ".")
            found = re.fullmatch(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B)(?:\.weight)?", name)
            if found:
                parts.setdefault(found.group(1), {})[found.group(2)] = single(tensor)
            elif name in self.base.shapes:
                self._whole[name] = self._fitting(name, tensor)
            else:
                raise InputError(f"{path}: tensor {key!r} belongs to no tensor of the base {self.base.folder}")
        for module, found_parts in parts.items():
            self._add(path, module, found_parts, config)

    def _add(self, path: Path, module: str, parts: Mapping[str, Array], config: Mapping[str, Any]) -> None:
        name = f"{module}.weight"
        if name not in self.base.shapes:
            raise InputError(f"{path}: adapter for {module!r}, which the base {self.base.folder} does not have")
        embedding = "lora_embedding_A" in parts
        a, b = (parts.get(f"lora_embedding_{x}" if embedding else f"lora_{x}") for x in "AB")
        if a is None or b is None:
            raise InputError(f"{path}: adapter for {module!r} lacks one of its two matrices")
        scaling = _scaling(module, config)
        transposed = embedding or bool(config.get("fan_in_fan_out"))
        product = (
            _Product(np.ascontiguousarray(a.T), np.ascontiguousarray(b.T), scaling)
            if transposed
            else _Product(b, a, scaling)
        )
        shape = (product.left.shape[0], product.right.shape[1])
        if shape != tuple(self.base.shapes[name]):
            raise InputError(f"{path}: adapter for {module!r} has shape {shape}, the base {self.base.shapes[name]}")
        self._products[name] = product

    def _fitting(self, name: str, tensor: Array) -> Array:
        if tuple(tensor.shape) != tuple(self.base.shapes[name]):
            raise InputError(
                f"{self.folder / WEIGHTS}: tensor {name!r} has shape {tuple(tensor.shape)}, "
                f"the base {self.base.shapes[name]}"
            )
        return as_dtype(DTYPES[self.base.tensors[name].dtype], tensor)


def _scaling(module: str, config: Mapping[str, Any]) -> float:
    rank = _pattern(module, config.get("rank_pattern") or {}, config["r"])
    alpha = _pattern(module, config.get("alpha_pattern") or {}, config["lora_alpha"])
    return float(alpha / math.sqrt(rank)) if config.get("use_rslora") else float(alpha / rank)


def _pattern(module: str, patterns: Mapping[str, Any], otherwise: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise
