"""Two checkpoints on disk, checked against one another before anything is computed.

BASE is a checkpoint folder; TUNED is one of the same architecture and shapes, or an adapter's folder (PEFT), which is
read as the model it would be merged to. Weights are read tensor by tensor, a stretch at a time, whatever the shards
and dtypes on either side.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

from knowshift.errors import InputError, KnowshiftWarning
from knowshift.files import expanded
from knowshift.parameters.files.adapter import CONFIG as ADAPTER_CONFIG
from knowshift.parameters.files.adapter import (
    AdaptedTensors,
    Adapter,
    check_fits,
    check_patterns,
    is_adapter,
    not_read,
    read_adapter,
)
from knowshift.parameters.files.checkpoint import FLOATS, StoredTensors
from knowshift.parameters.files.merging import merge
from knowshift.parameters.regions import PAPER_SCOPE, Place, Scope, depth, in_region, own_names, place, tied_table
from knowshift.parameters.tensors import RenamedTensors, TensorReader, WeightPair, single, stretches

#: Buffers that older checkpoints carry and transformers computes anew: neither compared nor missed.
_BUFFERS = re.compile(
    r"(?:.*\.)?(?:rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias|attention\.bias|attention\.masked_bias)"
)


@dataclass(frozen=True)
class CheckpointPair:
    """A checked pair and the region that is compared.

    ``layout`` is the checkpoint whose files an output copies: the tuned one, or the base of an adapter that is read
    here; ``adapter`` is the adapter given as TUNED, if it is one. ``copies`` names tensors that are
    stored twice because they are tied: copy -> the one that is counted.
    """

    base: StoredTensors
    tuned: StoredTensors | AdaptedTensors
    layout: StoredTensors
    adapter: Adapter | None
    places: Sequence[Place]
    weights: WeightPair
    depth: int  # layers of the whole model
    copies: Mapping[str, str] = field(default_factory=dict)


def open_pair(
    base_folder: Path,
    tuned_folder: Path,
    scope: Scope = PAPER_SCOPE,
) -> CheckpointPair:
    """Open and check a pair; every :class:`InputError` names the tensor or file."""
    if is_adapter(base_folder):
        raise InputError(f"{base_folder}: an adapter folder; BASE must be a whole checkpoint")
    base = StoredTensors(base_folder)
    tuned, adapter = open_tuned(tuned_folder, base)
    layout = base if isinstance(tuned, AdaptedTensors) else tuned
    if base.model_type != layout.model_type:
        raise InputError(
            f"{tuned_folder}: architecture {layout.model_type!r}, but {base_folder} is {base.model_type!r}"
        )
    copies = _tied(layout)
    reader, origin = _named_alike(base, layout)
    known_tuned = _compared(layout.shapes, copies)
    unheld = {head: table for head, table in _tied(base).items() if head not in known_tuned}
    known_base = _compared(reader.shapes, {**copies, **unheld})
    for name in sorted(known_tuned.keys() - known_base.keys()):
        raise InputError(f"tensor {name!r}: in {tuned_folder}, missing in {base_folder}")
    for name in sorted(known_base.keys() - known_tuned.keys()):
        raise InputError(f"tensor {name!r}: in {base_folder}, missing in {tuned_folder}")
    check_shapes(known_base, known_tuned, str(base_folder), str(tuned_folder))
    places = in_region(known_tuned, layout.model_type, scope)
    for where in places:
        for side, name in ((base, origin[where.name]), (layout, where.name)):
            dtype = side.tensors[name].dtype
            if dtype not in FLOATS:
                raise InputError(
                    f"tensor {name!r} of {side.folder}: dtype {dtype} cannot be compared; expected one of "
                    + ", ".join(FLOATS)
                )
    weights = WeightPair(reader, tuned, [where.name for where in places], strict=not scope.allow_nonfinite)
    deep = depth(layout.shapes, layout.model_type)
    return CheckpointPair(base, tuned, layout, adapter, places, weights, deep, copies)


def open_tuned(folder: Path, base: StoredTensors) -> tuple[StoredTensors | AdaptedTensors, Adapter | None]:
    """A tuned checkpoint, or the one that an adapter folder stands for on this base, and that adapter.

    The one place where an adapter becomes weights: read here where all of its configuration is understood, else merged
    by PEFT (:mod:`knowshift.parameters.files.merging`).
    """
    if not is_adapter(folder):
        return StoredTensors(folder), None
    adapter = read_adapter(folder)
    check_patterns(adapter)
    check_fits(adapter, base)
    why = not_read(adapter, base)
    tuned = AdaptedTensors(adapter, base) if why is None else merge(adapter, base, why)
    _warn_of_another_base(adapter, base)
    return tuned, adapter


def check_shapes(
    base: Mapping[str, tuple[int, ...]],
    tuned: Mapping[str, tuple[int, ...]],
    base_name: str = "the base",
    tuned_name: str = "the tuned model",
) -> None:
    """Raise :class:`InputError` naming the first tensor that the base lacks or holds in another shape."""
    for name in sorted(tuned):
        if name not in base:
            raise InputError(f"tensor {name!r}: missing in {base_name}")
        here, there = tuple(base[name]), tuple(tuned[name])
        if here != there:
            resized = len(here) == len(there) == 2 and here[1] == there[1] and re.search(r"embed|wte|lm_head", name)
            why = ": the vocabulary was resized" if resized else ""
            raise InputError(f"tensor {name!r}: shape {here} in {base_name}, {there} in {tuned_name}{why}")


def refuse_not_finite(pair: WeightPair, base_name: str, tuned_name: str) -> NoReturn:
    """Count what is not finite, tensor by tensor, and raise the :class:`InputError` that says so."""
    found: dict[tuple[str, str], list[int]] = {}
    for tensor, start, stop in stretches(pair.sizes):
        sides = zip((base_name, tuned_name), pair.read(tensor, start, stop), strict=True)
        for side, values in sides:
            held = single(values)  # as it is compared: a float64 beyond float32 is infinite
            nans, infinite = int(np.isnan(held).sum()), int(np.isinf(held).sum())
            if nans or infinite:
                counts = found.setdefault((pair.names[tensor], side), [0, 0])
                counts[0] += nans
                counts[1] += infinite
    assert found, "nothing is wrong with these weights"
    (name, side), (nans, infinite) = next(iter(found.items()))
    more = f" (and {len(found) - 1} more tensors)" if len(found) > 1 else ""
    raise InputError(
        f"tensor {name!r} of {side}: {nans} NaN and {infinite} infinite weights{more}; "
        "expected finite ones, or allow_nonfinite (--allow-nonfinite)"
    )


def _warn_of_another_base(adapter: Adapter, base: StoredTensors) -> None:
    """Warn of an adapter that names another base: it may have the shapes of the wrong one too."""
    told, here = adapter.base_name.rstrip("/"), base.folder.resolve()
    folder = expanded(told)
    if os.path.isdir(folder):  # False, and no error, for what is no path at all
        same = folder.resolve() == here
    else:  # a folder of the hub's cache has the whole name in its path, a downloaded one the last part
        same = f"models--{told.replace('/', '--')}" in here.parts or told.rpartition("/")[2] in here.parts
    if told and not same:
        warnings.warn(
            f"{adapter.folder / ADAPTER_CONFIG}: made for {told!r}; it fits {base.folder} in names and shapes, "
            "which does not make it the same model",
            KnowshiftWarning,
            stacklevel=3,
        )


def _named_alike(base: StoredTensors, tuned: StoredTensors) -> tuple[TensorReader, dict[str, str]]:
    """The base under the tuned side's names, and the base's name for each of these.

    A head that the tuned side stores, and the base ties to its embeddings, is the embeddings there.
    """
    own = own_names(tuned.shapes)
    origin = {own(name) or name: name for name in base.shapes}
    if len(origin) < len(base.shapes):  # two names would become one: keep them apart
        origin = {name: name for name in base.shapes}
    table = tied_table(base.shapes, base.model_type, base.config)
    if table is not None:
        for head in _heads(tuned):
            origin[head] = table
    return (base if all(new == old for new, old in origin.items()) else RenamedTensors(base, origin)), origin


def _heads(checkpoint: StoredTensors) -> list[str]:
    return [
        name
        for name, shape in checkpoint.shapes.items()
        if place(name, shape, checkpoint.model_type).kind == "head" and len(shape) == 2
    ]


def _compared(shapes: Mapping[str, tuple[int, ...]], copies: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in shapes.items() if name not in copies and not _BUFFERS.fullmatch(name)}


def _tied(checkpoint: StoredTensors) -> dict[str, str]:
    """Heads that are stored although they are the embeddings: head -> embeddings."""
    table = tied_table(checkpoint.shapes, checkpoint.model_type, checkpoint.config)
    if table is None:
        return {}
    return {head: table for head in _heads(checkpoint) if checkpoint.shapes[head] == checkpoint.shapes[table]}
