"""Restoring on disk: two checkpoints in, one or several restored ones out, all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knowshift.files import check_space, folder_beside
from knowshift.parameters.files.checkpoint import Shard
from knowshift.parameters.files.merging import MergedTensors
from knowshift.parameters.files.pair import CheckpointPair, open_pair, refuse_not_finite
from knowshift.parameters.files.writing import (
    bytes_needed,
    check_beside,
    check_output,
    write_checkpoints,
    write_provenance,
)
from knowshift.parameters.methods import plan_restoration
from knowshift.parameters.regions import PAPER_SCOPE, Scope
from knowshift.parameters.selection.criteria import NotFinite
from knowshift.parameters.selection.select import exact_count
from knowshift.parameters.tensors import PIECE, workers
from knowshift.version import __version__


@dataclass(frozen=True)
class Restoration:
    """What was written; the keys of every mapping are the fractions as they were given ("0.2")."""

    eligible: int
    restored: dict[str, int]
    threshold: dict[str, float | None]
    output: dict[str, Path]


def restore_checkpoints(
    base: Path,
    tuned: Path,
    output_dir: Path,
    fractions: Mapping[str, float],
    scope: Scope = PAPER_SCOPE,
    *,
    criterion: str = "relative",
    seed: int = 0,
    threads: int | None = None,
    piece: int = PIECE,
    about: Mapping[str, Any] | None = None,
    selecting: Callable[[int], None] = lambda weights: None,
    writing: Callable[[int], None] = lambda written: None,
) -> Restoration:
    """Write a restored checkpoint for every fraction: into ``output_dir`` itself for one, else into a folder each.

    ``fractions`` maps the name of each output to its fraction. ``about`` is added to each ``knowshift.json``.
    ``selecting`` is called with weights ranked, ``writing`` with bytes written. Raises :class:`InputError` for every
    bad input, and leaves no output then.
    """
    check_output(output_dir, [base, tuned])
    pair = open_pair(base, tuned, scope)
    check_beside(pair)
    for fraction in fractions.values():
        exact_count(fraction, 0)
    check_space(output_dir, bytes_needed(pair, len(fractions)))
    names = list(fractions)
    eligible = sum(pair.weights.sizes)
    shared = {**made_of(pair, criterion, scope), "seed": seed, "eligible": eligible, **(about or {})}
    try:
        with workers(threads) as run:
            plan = plan_restoration(
                pair.weights,
                pair.places,
                pair.depth,
                criterion,
                list(fractions.values()),
                seed,
                run,
                piece=piece,
                progress=selecting,
            )
            with folder_beside(output_dir.resolve()) as beside:
                folders = [beside] if len(names) == 1 else [beside / name for name in names]
                for folder in folders:
                    folder.mkdir(exist_ok=True)
                written = write_checkpoints(pair, plan, folders, run, piece=piece, progress=writing)
                for number, (name, folder, made) in enumerate(zip(names, folders, written, strict=True)):
                    assert plan.counts[number] in (None, made.restored), "counts of selection and writing differ"
                    own = {
                        "fraction": fractions[name],
                        "restored": made.restored,
                        "threshold": _finite(plan.thresholds[number]),
                        "files": made.files,
                    }
                    write_provenance(folder, {**shared, **own})
    except NotFinite:
        refuse_not_finite(pair.weights, str(base), str(tuned))
    outputs = [output_dir] if len(names) == 1 else [output_dir / name for name in names]
    return Restoration(
        eligible,
        {name: made.restored for name, made in zip(names, written, strict=True)},
        {name: _finite(score) for name, score in zip(names, plan.thresholds, strict=True)},
        dict(zip(names, outputs, strict=True)),
    )


def made_of(pair: CheckpointPair, criterion: str, scope: Scope) -> dict[str, Any]:
    """What every ``knowshift.json`` of a restored model says: by what it was made, from what, and where."""
    return {
        "made_by": f"knowshift {__version__}",
        **identity(pair),
        "criterion": criterion,
        "region": scope.region,
        "layers": list(scope.layers) if scope.layers else None,
        "allow_nonfinite": scope.allow_nonfinite,
    }


def identity(pair: CheckpointPair) -> dict[str, Any]:
    """Which files were read, for records: folder, and each weight file with its size and its header's SHA-256."""
    if pair.adapter is None:
        of_tuned: dict[str, Any] = {"folder": str(pair.layout.folder), "files": _files(pair.layout.shards)}
    else:
        adapter = pair.adapter
        of_tuned = {
            "adapter": str(adapter.folder),
            "files": _files([adapter.shard]),
            "made_for": adapter.base_name,
            "merged_by": pair.tuned.merged_by if isinstance(pair.tuned, MergedTensors) else "knowshift",
        }
    return {"base": {"folder": str(pair.base.folder), "files": _files(pair.base.shards)}, "tuned": of_tuned}


def _files(shards: Sequence[Shard]) -> dict[str, dict[str, Any]]:
    return {shard.path.name: {"bytes": shard.size, "header_sha256": shard.header_sha256} for shard in shards}


def _finite(score: float | None) -> float | None:
    """JSON has no infinity: where weights with a zero base come last, there is no score to state."""
    return None if score is None or score == float("inf") else score
