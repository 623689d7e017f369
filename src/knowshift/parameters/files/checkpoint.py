"""Safetensors checkpoints on disk: where every tensor lies, checked before anything is read; stretches read on demand.

The header is parsed here and the data read with positioned reads into memory of their own, not mapped: a mapped file
counts as resident memory in full once it has been read through, and a truncated one ends the process.
Format: https://github.com/huggingface/safetensors (8 bytes of header length, a JSON header, then the data).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from knowshift.errors import InputError, border, cause_of, nearest
from knowshift.files import read_json
from knowshift.parameters.tensors import BFLOAT16, Array, number_of

STORED_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": BFLOAT16,
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
#: What can be compared and restored; tensors of other dtypes are copied as they are.
FLOATS = ("F64", "F32", "F16", "BF16")
#: Sizes in bytes of dtypes that are only ever copied.
_OTHER_SIZES = {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "U32": 4, "U64": 8}

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HEADER_LIMIT = 100_000_000  # the format's own
_MOST_AXES = 64  # numpy's
_LARGEST = 2**63 - 1  # a file offset, in bytes


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: ``begin:end`` in bytes from the start of ``file``."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its size, where its data begin, its header's identity and its tensors."""

    path: Path
    size: int
    data_begin: int
    header_sha256: str  # of the length and the header: names, dtypes, shapes, metadata
    tensors: Mapping[str, StoredTensor]


def read_shard(path: Path) -> Shard:
    """Parse and check one file; an :class:`InputError` names the file and what is wrong with it."""
    with border(f"{path}: not a readable safetensors file"):
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _HEADER_LIMIT):
                raise InputError(f"{path}: truncated or not a safetensors file ({size} bytes, header of {length})")
            text = file.read(length)
        try:
            header = json.loads(text.decode("utf-8"), object_pairs_hook=_once, parse_int=_whole)
        except (ValueError, RecursionError) as error:  # some of them raised in our own hook
            raise InputError(f"{path}: not a readable safetensors file: {cause_of(error)}") from None
    if not isinstance(header, dict):
        raise InputError(f"{path}: corrupt safetensors header: expected an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{path}: corrupt safetensors header: __metadata__ is no object of texts")
    begin = 8 + length
    digest = hashlib.sha256(length.to_bytes(8, "little") + text).hexdigest()
    tensors = {name: _stored(path, name, entry, begin) for name, entry in header.items()}
    reached = begin
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != reached:
            raise InputError(f"{path}: corrupt safetensors header: tensor {name!r} begins at the wrong byte")
        reached = tensor.end
    if reached != size:
        state = "truncated" if size < reached else "longer than its header says"
        raise InputError(f"{path}: {state}: {size} bytes, expected {reached}")
    return Shard(path, size, begin, digest, tensors)


def _whole(text: str) -> int:
    """A whole number as the format's own reader accepts it: 0 has no sign."""
    if text == "-0":
        raise ValueError("-0 is no size")
    return int(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are distinct and can be encoded as UTF-8, as the format demands."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key stands twice")
    for name in made:
        name.encode()  # half a surrogate pair, written as an escape
    return made


def _stored(path: Path, name: str, entry: Any, data_begin: int) -> StoredTensor:
    corrupt = f"{path}: corrupt safetensors header: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"{corrupt}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise InputError(f"{corrupt}: dtype is no text")
    width = STORED_DTYPES[dtype].itemsize if dtype in STORED_DTYPES else _OTHER_SIZES.get(dtype)
    if width is None:
        raise InputError(
            f"{path}: tensor {name!r} has dtype {dtype!r}, which is not known{nearest(dtype, STORED_DTYPES)}"
        )
    if not _are_sizes(shape) or len(shape) > _MOST_AXES:
        raise InputError(f"{corrupt}: shape is no list of at most {_MOST_AXES} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise InputError(f"{corrupt}: data_offsets are no two offsets")
    begin, end = offsets
    # An empty tensor may have other extents of any size, whose product numpy could not hold.
    if width * number_of([max(1, extent) for extent in shape]) > _LARGEST:
        raise InputError(f"{corrupt}: shape {tuple(shape)} is beyond any file")
    if end - begin != number_of(shape) * width:
        raise InputError(f"{corrupt}: shape {tuple(shape)} has {end - begin} bytes")
    return StoredTensor(path, dtype, tuple(shape), data_begin + begin, data_begin + end)


def _are_sizes(value: Any) -> bool:
    """Whether it is a list of whole numbers that a file offset can hold; True, 1.0 and Infinity are none."""
    return isinstance(value, list) and all(type(part) is int and 0 <= part <= _LARGEST for part in value)


def read_whole(shard: Shard) -> dict[str, Array]:
    """Every tensor of one (small) file, in its shape."""
    content = np.fromfile(shard.path, np.uint8)
    found = {}
    for name, stored in shard.tensors.items():
        if stored.dtype not in STORED_DTYPES:
            raise InputError(
                f"{shard.path}: tensor {name!r} has dtype {stored.dtype}; expected one of " + ", ".join(STORED_DTYPES)
            )
        found[name] = content[stored.begin : stored.end].copy().view(STORED_DTYPES[stored.dtype]).reshape(stored.shape)
    return found


class StoredTensors:
    """A checkpoint folder, read tensor by tensor; a :class:`~knowshift.parameters.tensors.TensorReader`.

    Reads ``model.safetensors`` where there is one, as transformers does, and else the shards of
    ``model.safetensors.index.json``. Raises :class:`InputError` for a missing shard, a damaged file, a tensor that
    the index and its shard do not agree on, and pickled weights, which are refused.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such checkpoint folder")
        self.folder = folder
        self.index_file: Path | None = None
        if (folder / SINGLE).is_file():
            self.shards = [read_shard(folder / SINGLE)]
        elif (folder / INDEX).is_file():
            self.index_file = folder / INDEX
            self.shards = _indexed(self.index_file)
        else:
            pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
            if pickled:
                raise InputError(
                    f"{folder}: pickled weights ({pickled[0]}) are refused, since loading them can run code; "
                    "expected model.safetensors"
                )
            raise InputError(f"{folder}: no {SINGLE} and no {INDEX}")
        self.tensors: dict[str, StoredTensor] = {}
        for shard in self.shards:
            for name, tensor in shard.tensors.items():
                if name in self.tensors:
                    raise InputError(f"{shard.path}: tensor {name!r} stands in {self.tensors[name].file.name} too")
                self.tensors[name] = tensor
        self.shapes: Mapping[str, tuple[int, ...]] = {name: t.shape for name, t in self.tensors.items()}
        self._files: dict[Path, int] = {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.json`` of the folder."""
        return read_json(self.folder / "config.json")

    @property
    def model_type(self) -> str:
        """The architecture, as ``config.json`` names it."""
        model_type = self.config.get("model_type")
        if not isinstance(model_type, str):
            raise InputError(f"{self.folder / 'config.json'}: no model_type")
        return model_type

    def read(self, name: str, start: int, stop: int) -> Array:
        stored = self.tensors[name]
        dtype = STORED_DTYPES[stored.dtype]
        piece = np.empty(stop - start, dtype)
        self.read_bytes(stored.file, stored.begin + start * dtype.itemsize, piece)
        return piece

    def read_bytes(self, path: Path, begin: int, piece: Array) -> None:
        """Fill a contiguous array with the bytes of a file from ``begin``."""
        # Descriptors are kept open: one piece in a thousand would otherwise open a file. A race opens one twice.
        descriptor = self._files.get(path)
        if descriptor is None:
            descriptor = self._files.setdefault(path, os.open(path, os.O_RDONLY))
        buffer = memoryview(piece.view(np.uint8).data)
        done = 0
        while done < len(buffer):
            got = os.preadv(descriptor, [buffer[done:]], begin + done)
            if got == 0:
                raise InputError(f"{path}: ended at byte {begin + done} while it was read")
            done += got

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound here: at exit the module os may be gone
        for descriptor in getattr(self, "_files", {}).values():
            close(descriptor)


def _indexed(index: Path) -> list[Shard]:
    content = read_json(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise InputError(f"{index}: no weight_map")
    shards = []
    for file in sorted(set(weight_map.values())):
        path = index.parent / file
        if Path(file).name != file:
            raise InputError(f"{index}: shard {file!r} lies outside the checkpoint's folder")
        if not os.path.isfile(path):  # False also for a name longer than any file's
            raise InputError(f"{index}: names shard {file!r}, which is missing")
        shards.append(read_shard(path))
    held = {name: shard.path.name for shard in shards for name in shard.tensors}
    for name, file in weight_map.items():
        if held.get(name) != file:
            raise InputError(f"{index}: tensor {name!r} is not in shard {file!r} as the index says")
    for name, file in held.items():
        if name not in weight_map:
            raise InputError(f"{index}: tensor {name!r} of shard {file!r} is not in the index")
    return shards
