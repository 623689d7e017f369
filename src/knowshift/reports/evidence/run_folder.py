"""A run folder, read: its manifest and its finished cells.

Records only, never a model. A planned cell that is not there yet is counted, not an error, so that a study can be
read while it runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from knowshift.errors import InputError
from knowshift.facts.fact import LEVELS
from knowshift.files import read_json
from knowshift.records import MASTERY, TOKEN_SHIFT, read_table
from knowshift.reports.evidence.checking import (
    check_change,
    check_coordinates,
    check_learned,
    check_manifest,
    check_restored,
    check_scores,
    check_texts,
    check_training,
    shown,
)

#: The largest size again at a smaller rate: the control that separates the data's effect from the step size's.
RATE_CONTROL = "learning_rate"
#: The name of training sets that hold all facts of a level.
ALL = "all"
#: Between the strategy and the rate in the name of a training of a bench: "kl@0.001".
AT = "@"
#: The level of a training set with facts of every level in turn; it sorts after the others.
MIXED = LEVELS

_CHECKS = {
    "change.json": check_change,
    "learned.json": check_learned,
    "record.json": check_training,
    "restored.json": check_restored,
    "scores.json": check_scores,
}


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """What a model was tuned on: a cell's coordinates without the draw."""

    level: int  # 0 to 4, or MIXED
    size: int
    learning_rate: float
    control: str  # "" for the main grid; RATE_CONTROL, ALL, or the name of a variant


@dataclass(frozen=True, slots=True)
class RecordedCell:
    """One finished piece of work on disk."""

    kind: str
    digest: str
    coordinates: Mapping[str, Any]  # "key" in the manifest
    folder: Path

    @property
    def setting(self) -> Setting:
        at = self.coordinates
        level = MIXED if at["level"] is None else int(at["level"])
        return Setting(level, int(at["size"]), float(at["learning_rate"]), str(at.get("control") or ""))

    @property
    def draw(self) -> int:
        return int(self.coordinates["draw"])


@dataclass(frozen=True)
class Run:
    """A study on disk: the manifest, and its finished cells in a fixed order (kind, setting, draw, digest)."""

    path: Path
    manifest: Mapping[str, Any]
    cells: tuple[RecordedCell, ...]
    planned: int

    @property
    def config(self) -> Mapping[str, Any]:
        return dict(self.manifest.get("config") or {})

    @property
    def learning_rate(self) -> float:
        """The rate of the main grid."""
        training = self.config.get("training")
        said = training.get("learning_rate") if isinstance(training, dict) else self.config.get("learning_rate")
        if said is not None:
            return float(said)
        rates = {cell.setting.learning_rate for cell in self.of("evaluation") if not cell.setting.control}
        return min(rates, default=0.0)

    def of(self, kind: str) -> tuple[RecordedCell, ...]:
        """The finished cells of one kind."""
        return tuple(cell for cell in self.cells if cell.kind == kind)


def open_run(path: Path) -> Run:
    """Read a run folder's manifest and find its finished cells; an :class:`InputError` says what is not a run."""
    file = path / "manifest.json"
    if not file.exists():
        raise InputError(f"{path}: not a run folder: manifest.json is missing")
    manifest = read_json(file)
    if not isinstance(manifest.get("cells"), list):
        raise InputError(f"{file}: no list of cells; expected the manifest of a study")
    check_texts(file, manifest)
    check_manifest(file, manifest)
    cells = []
    for entry in manifest["cells"]:
        try:
            kind, digest, coordinates = str(entry["kind"]), str(entry["digest"]), dict(entry["key"])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{file}: a cell needs kind, digest and key, found {shown(entry)}") from None
        # A name that no file system takes would be an error of the system where it is looked for.
        if not re.fullmatch(r"[a-z_]{1,64}", kind) or not re.fullmatch(r"[0-9a-zA-Z_-]{1,64}", digest):
            raise InputError(f"{file}: {shown(kind)}/{shown(digest)} is not the name of a cell")
        check_coordinates(file, kind, coordinates)
        folder = path / "cells" / kind / digest
        if folder.is_dir():
            cells.append(RecordedCell(kind, digest, coordinates, folder))
    cells.sort(key=lambda cell: (cell.kind, _order(cell.coordinates), cell.digest))
    return Run(path, manifest, tuple(cells), len(manifest["cells"]))


def _order(coordinates: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("control", "level", "size", "learning_rate", "draw", "part")
    return tuple(str(coordinates.get(n) or "") if n == "control" else float(coordinates.get(n) or 0) for n in names)


def read_cell_json(cell: RecordedCell, name: str) -> dict[str, Any]:
    """A JSON file of a cell, as an object."""
    file = cell.folder / name
    value = read_json(file)
    check_texts(file, value)
    if name in _CHECKS:
        _CHECKS[name](file, value)
    return value


def read_mastery(run: Run) -> pa.Table:
    """All parts of the mastery records, in the order of their part numbers."""
    parts = [read_table(cell.folder / "mastery.parquet", MASTERY, "mastery")[0] for cell in run.of("mastery")]
    if not parts:
        raise InputError(f"{run.path}: no mastery cell is finished yet; the report needs the base model's levels")
    return pa.concat_tables(parts)


def read_token_shift(cell: RecordedCell) -> pa.Table:
    """One token-shift cell."""
    return read_table(cell.folder / "token_shift.parquet", TOKEN_SHIFT, "token shift")[0]
