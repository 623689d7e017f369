"""The weights of a loaded model, read again from its files: the same numbers without the memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from knowshift.models.loading import LoadedModel
from knowshift.parameters.files.adapter import AdaptedTensors
from knowshift.parameters.files.checkpoint import FLOATS, StoredTensors
from knowshift.parameters.loaded import LoadedTensors, copy_of, parameters_of
from knowshift.parameters.regions import own_names
from knowshift.parameters.tensors import Array, TensorReader, as_dtype, number_of, stretches


def stored_weights(loaded: LoadedModel) -> TensorReader:
    """A reader of a model's weights as they are now, by the names of its parameters, that does not keep the model.

    It reads the model's files and rounds to the loaded dtype. That is done once here and compared: where the files do
    not give what was loaded, bit for bit (transformers fuses experts, the model was trained), the reader has copies of
    the weights in the memory of the processor instead.

    Raises:
        InputError: the files are gone or damaged.
    """
    held = LoadedTensors(parameters_of(loaded.model))
    names = _names(loaded, held.shapes)
    if names is None:
        return LoadedTensors(copy_of(loaded.model))
    reader = _Rounded(_files(loaded), names, {name: held.read(name, 0, 0).dtype for name in names})
    ordered = list(names)
    for tensor, start, stop in stretches([number_of(held.shapes[name]) for name in ordered]):
        ours, theirs = reader.read(ordered[tensor], start, stop), held.read(ordered[tensor], start, stop)
        if not np.array_equal(ours.view(np.uint8), theirs.view(np.uint8)):
            return LoadedTensors(copy_of(loaded.model))
    return reader


class _Rounded:
    """Another reader's tensors under other names (new -> old), each in a dtype of its own."""

    def __init__(self, reader: TensorReader, origin: Mapping[str, str], dtypes: Mapping[str, np.dtype[Any]]) -> None:
        self._reader, self._origin, self._dtypes = reader, origin, dtypes
        self.shapes: Mapping[str, tuple[int, ...]] = {new: reader.shapes[old] for new, old in origin.items()}

    def read(self, name: str, start: int, stop: int) -> Array:
        return as_dtype(self._dtypes[name], self._reader.read(self._origin[name], start, stop))


def _files(loaded: LoadedModel) -> StoredTensors | AdaptedTensors:
    """What the model was put together from while it was loaded (a temporary folder is kept), else its checkpoint."""
    made = loaded.scratch
    return made if isinstance(made, (AdaptedTensors, StoredTensors)) else StoredTensors(loaded.folder)


def _names(loaded: LoadedModel, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str] | None:
    """Parameter -> tensor of the files; None where one has none of its shape, or no floating-point numbers."""
    files = _files(loaded)
    stored = files.base.tensors if isinstance(files, AdaptedTensors) else files.tensors
    own = own_names(stored)
    found: dict[str, str] = {}
    for name, shape in shapes.items():
        its = own(name)
        if its is None or tuple(stored[its].shape) != shape or stored[its].dtype not in FLOATS:
            return None
        found[name] = its
    return found
