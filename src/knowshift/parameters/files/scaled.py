"""A part of an adapter undone as an adapter: its B matrices multiplied by what is left of their change.

Interpolation and LiNeS multiply the change of each weight matrix, which for LoRA is ``scaling x B A``, by one factor.
The result is then an adapter of the same form, a few megabytes instead of a whole model, and goes wherever the first
one went. Its B is rounded to the dtype in which it is stored.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from knowshift.errors import InputError
from knowshift.files import check_space, folder_beside, write_json
from knowshift.parameters.files.adapter import CONFIG, WEIGHTS, AdaptedTensors, Adapter
from knowshift.parameters.files.checkpoint import FLOATS, STORED_DTYPES, read_whole
from knowshift.parameters.files.companions import copy_files, files_beside
from knowshift.parameters.files.pair import CheckpointPair, open_pair
from knowshift.parameters.files.restored import Restoration, made_of
from knowshift.parameters.files.writing import check_output, write_provenance
from knowshift.parameters.regions import PAPER_SCOPE, Scope, own_names
from knowshift.parameters.selection.published import lines_scale
from knowshift.parameters.selection.select import exact_count
from knowshift.parameters.tensors import as_dtype, single

#: Criteria that multiply the change of a matrix by one factor.
CRITERIA = ("interpolate", "lines")


def not_scaled(pair: CheckpointPair, criterion: str) -> str | None:
    """Why the tuned side, restored by a criterion, is no adapter with scaled weights; None where it is one."""
    if pair.adapter is None:
        return "it is no adapter"
    if criterion not in CRITERIA:
        return f"criterion {criterion!r} does not multiply whole matrices; expected {' or '.join(CRITERIA)}"
    if not isinstance(pair.tuned, AdaptedTensors):
        return "it is not a plain LoRA adapter"
    whole = pair.tuned.saved_whole
    if whole:
        return f"it holds {whole[0]!r} as a whole tensor"
    odd = [key for key, stored in pair.adapter.shard.tensors.items() if stored.dtype not in FLOATS]
    return f"its tensor {odd[0]!r} is not of floating point" if odd else None


def restore_adapter(
    base: Path,
    tuned: Path,
    output_dir: Path,
    fractions: Mapping[str, float],
    scope: Scope = PAPER_SCOPE,
    *,
    criterion: str,
    about: Mapping[str, Any] | None = None,
) -> Restoration:
    """Write a scaled adapter for every fraction, as :func:`.restored.restore_checkpoints` writes checkpoints.

    Raises:
        InputError: bad input of any kind, an adapter or a criterion that is not scaled (:func:`not_scaled`); no output
            is left then.
    """
    check_output(output_dir, [base, tuned])
    pair = open_pair(base, tuned, scope)
    why = not_scaled(pair, criterion)
    if why is not None:
        raise InputError(
            f"{tuned}: {why}, so an adapter cannot stand for what is asked; expected a checkpoint to be written"
        )
    assert pair.adapter is not None
    if not scope.allow_nonfinite:
        _check_finite(pair.adapter)
    files_beside(tuned)
    for fraction in fractions.values():
        exact_count(fraction, 0)
    check_space(output_dir, len(fractions) * (pair.adapter.shard.size + (1 << 26)))
    shared = {**made_of(pair, criterion, scope), "as_adapter": True, **(about or {})}
    outputs = {name: output_dir if len(fractions) == 1 else output_dir / name for name in fractions}
    with folder_beside(output_dir.resolve()) as beside:
        for name, fraction in fractions.items():
            folder = beside if len(fractions) == 1 else beside / name
            folder.mkdir(exist_ok=True)
            content = _scaled(pair, criterion, fraction)
            (folder / WEIGHTS).write_bytes(content)
            write_json(folder / CONFIG, {**pair.adapter.config, **_its_base(about or {})})
            copy_files(tuned, folder)
            files = {WEIGHTS: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}}
            write_provenance(folder, {**shared, "fraction": fraction, "files": files})
    none: dict[str, float | None] = dict.fromkeys(fractions)
    return Restoration(sum(pair.weights.sizes), dict.fromkeys(fractions, 0), none, outputs)


def _its_base(about: Mapping[str, Any]) -> dict[str, Any]:
    """What the adapter is loaded on: the base it was scaled beside, whichever its configuration named before."""
    name = about.get("base_name")
    if name is None:
        return {}
    path = Path(str(name)).expanduser()
    told = str(path.resolve()) if path.is_dir() else str(name)
    return {"base_model_name_or_path": told, "revision": about.get("base_revision")}


def _factor(pair: CheckpointPair, criterion: str, layer: int | None, fraction: float) -> float:
    """What is left of the change of a matrix."""
    return lines_scale(layer, pair.depth, fraction) if criterion == "lines" else 1.0 - fraction


def _scaled(pair: CheckpointPair, criterion: str, fraction: float) -> bytes:
    """The adapter's file with every B of the region multiplied by its layer's factor."""
    assert pair.adapter is not None
    shard = pair.adapter.shard
    content = np.fromfile(shard.path, np.uint8)
    own, places = own_names(pair.base.shapes), {where.name: where for where in pair.places}
    for key, name in pair.adapter.names.items():
        found = re.fullmatch(r"(.+)\.lora_(?:embedding_)?B(?:\.weight)?", name)
        where = places.get(own(f"{found[1]}.weight") or "") if found else None
        if where is None:
            continue
        stored = shard.tensors[key]
        values = content[stored.begin : stored.end].view(STORED_DTYPES[stored.dtype])
        values[:] = as_dtype(values.dtype, single(values) * np.float32(_factor(pair, criterion, where.layer, fraction)))
    return content.tobytes()


def _check_finite(adapter: Adapter) -> None:
    for key, tensor in read_whole(adapter.shard).items():
        if not np.isfinite(single(tensor)).all():
            raise InputError(
                f"{adapter.shard.path}: tensor {key!r} holds NaN or infinite weights; expected finite ones, or "
                "allow_nonfinite (--allow-nonfinite)"
            )
