"""The weights of a loaded model, read again from its files: the same numbers without the memory."""

from __future__ import annotations

import numpy as np

from knowshift.models.loading import LoadedModel
from knowshift.parameters.files.adapter import AdaptedTensors
from knowshift.parameters.files.checkpoint import StoredTensors
from knowshift.parameters.loaded import LoadedTensors, copy_of, parameters_of, read_as, shapes_of
from knowshift.parameters.slices import slices_of
from knowshift.parameters.tensors import TensorReader, number_of, stretches


def stored_weights(loaded: LoadedModel) -> TensorReader:
    """A reader of a model's weights as they are now, by the names of its parameters, that does not keep the model.

    It reads the model's files and rounds to the loaded dtype. That is done once here and compared: where the files do
    not give what was loaded, bit for bit (transformers fuses experts, the model was trained), the reader has copies of
    the weights in the memory of the processor instead. Of a model that is divided among processes, whole tensors are
    read; they are those it was made of, not as they are now.

    Raises:
        InputError: the files are gone or damaged.
    """
    held = LoadedTensors(parameters_of(loaded.model))
    shapes = shapes_of(loaded.model)
    reader = read_as(_files(loaded), shapes, {name: held.read(name, 0, 0).dtype for name in shapes})
    if slices_of(loaded.model) is not None:
        assert reader is not None, "a model that is divided was read so"
        return reader
    if reader is None:
        return LoadedTensors(copy_of(loaded.model))
    ordered = list(shapes)
    for tensor, start, stop in stretches([number_of(shapes[name]) for name in ordered]):
        ours, theirs = reader.read(ordered[tensor], start, stop), held.read(ordered[tensor], start, stop)
        if not np.array_equal(ours.view(np.uint8), theirs.view(np.uint8)):
            return LoadedTensors(copy_of(loaded.model))
    return reader


def _files(loaded: LoadedModel) -> StoredTensors | AdaptedTensors:
    """What the model was put together from while it was loaded (a temporary folder is kept), else its checkpoint."""
    made = loaded.scratch
    return made if isinstance(made, (AdaptedTensors, StoredTensors)) else StoredTensors(loaded.folder)
