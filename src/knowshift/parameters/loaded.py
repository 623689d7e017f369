"""Weights that torch holds in memory: read as arrays, and the region of a loaded model.

Importing this module does not import torch: a caller that has a tensor has imported it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from knowshift.errors import InputError
from knowshift.parameters.files.adapter import AdaptedTensors
from knowshift.parameters.files.checkpoint import FLOATS, STORED_DTYPES, StoredTensors
from knowshift.parameters.regions import Place, Scope, in_region, own_names
from knowshift.parameters.slices import slices_of
from knowshift.parameters.tensors import BFLOAT16, Array, TensorReader, as_dtype

if TYPE_CHECKING:
    import torch


_COMPARED = tuple(STORED_DTYPES[kind].name for kind in FLOATS)


class LoadedTensors:
    """Tensors that are in memory: a state dict, or :func:`parameters_of` a model; on any device."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self.shapes: Mapping[str, tuple[int, ...]] = {name: tuple(t.shape) for name, t in tensors.items()}

    def read(self, name: str, start: int, stop: int) -> Array:
        tensor = self._tensors[name].detach()
        check_dtype(name, tensor)
        return as_array(tensor.reshape(-1)[start:stop])


class RoundedTensors:
    """Another reader's tensors under other names (new -> old), each in a dtype of its own."""

    def __init__(self, reader: TensorReader, origin: Mapping[str, str], dtypes: Mapping[str, np.dtype[Any]]) -> None:
        self._reader, self._origin, self._dtypes = reader, origin, dtypes
        self.shapes: Mapping[str, tuple[int, ...]] = {new: reader.shapes[old] for new, old in origin.items()}

    def read(self, name: str, start: int, stop: int) -> Array:
        return as_dtype(self._dtypes[name], self._reader.read(self._origin[name], start, stop))


def read_as(
    files: StoredTensors | AdaptedTensors,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, np.dtype[Any]],
) -> RoundedTensors | None:
    """What files hold, by the names of a model's parameters and in their dtypes.

    None where a parameter has no tensor of its shape, or none of floating-point numbers.
    """
    stored = files.base.tensors if isinstance(files, AdaptedTensors) else files.tensors
    own = own_names(stored)
    found: dict[str, str] = {}
    for name, shape in shapes.items():
        its = own(name)
        if its is None or tuple(stored[its].shape) != tuple(shape) or stored[its].dtype not in FLOATS:
            return None
        found[name] = its
    return RoundedTensors(files, found, dtypes)


def check_dtype(name: str, tensor: torch.Tensor) -> None:
    """Raise :class:`InputError` for weights that are no plain floating-point numbers: quantised ones, for instance."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _COMPARED:
        raise InputError(f"tensor {name!r}: dtype {dtype} cannot be compared; expected one of " + ", ".join(_COMPARED))


def as_array(tensor: torch.Tensor) -> Array:
    """A tensor as numpy sees it; on the CPU both share their memory."""
    import torch

    held = tensor.cpu()
    return held.view(torch.int16).numpy().view(BFLOAT16) if held.dtype == torch.bfloat16 else held.numpy()


def as_tensor(array: Array) -> torch.Tensor:
    """The reverse of :func:`as_array`."""
    import torch

    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def parameters_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A model's parameters by name, tied ones once; they share memory with the model."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def copy_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of a model's parameters on the CPU: the base's weights, to be taken before it is fine-tuned."""
    return {name: parameter.to("cpu", copy=True) for name, parameter in parameters_of(model).items()}


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's parameters, whole ones where the model holds slices."""
    slices = slices_of(model) or {}
    return {
        name: slices[name].shape if name in slices else tuple(tensor.shape)
        for name, tensor in parameters_of(model).items()
    }


def model_region(model: torch.nn.Module, scope: Scope) -> list[Place]:
    """The places of a loaded model that a scope holds; its architecture is its configuration's ``model_type``."""
    return in_region(shapes_of(model), model_type_of(model), scope)


def model_type_of(model: torch.nn.Module) -> str:
    """A loaded model's architecture as its configuration names it, or else its class."""
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))


def as_reader(tensors: Mapping[str, torch.Tensor] | torch.nn.Module | TensorReader) -> TensorReader:
    """A reader of a mapping, a module or another reader."""
    if isinstance(tensors, Mapping):
        return LoadedTensors(tensors)
    if hasattr(tensors, "named_parameters"):
        return LoadedTensors(parameters_of(cast("torch.nn.Module", tensors)))
    return tensors
