"""A run folder, read: its manifest, its finished cells, and every answer in it lined up by fact.

Records only, never a model. A planned cell that is not there yet is counted, not an error, so that a study can be
looked at while it runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from knowshift.errors import InputError
from knowshift.files import read_json
from knowshift.parameters.selection.select import fraction_name
from knowshift.records import ANSWERS, MASTERY, TOKEN_SHIFT, read_table
from knowshift.reports.evidence.checking import check_change, check_key, check_manifest, check_restored, check_texts

DOMAINS = ("in_domain", "out_of_domain")
LEVELS = 5

#: The largest size again at a smaller rate: the control that asks whether the data or the step size did it.
RATE_CONTROL = "learning_rate"

#: How the base model was asked, and the record of each: the fine-tuning prompt alone, the same after solved examples,
#: and the plain question.
BASE_PROMPTS = {
    "zero_shot": "answers.parquet",
    "few_shot": "answers_few_shot.parquet",
    "plain": "answers_plain.parquet",
}

_CHECKS = {"change.json": check_change, "restored.json": check_restored}
#: A restored model's answers: criterion, then the fraction as ``weights.selection.fraction_name`` writes it.
_RESTORED = re.compile(r"answers-(?P<criterion>[a-z_-]+)-(?P<fraction>[0-9]+(?:\.[0-9]+)?(?:e-[0-9]+)?)\.parquet")


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """What a model was tuned on: everything of a cell's key but the draw."""

    level: int
    size: int
    learning_rate: float
    control: str  # "" for the main grid


@dataclass(frozen=True, slots=True)
class Cell:
    """One finished piece of work on disk."""

    kind: str
    digest: str
    key: Mapping[str, Any]
    folder: Path

    @property
    def setting(self) -> Setting:
        key = self.key
        return Setting(int(key["level"]), int(key["size"]), float(key["learning_rate"]), str(key.get("control") or ""))

    @property
    def draw(self) -> int:
        return int(self.key["draw"])


@dataclass(frozen=True, slots=True)
class Column:
    """One model whose answers to all test facts were read; ``setting`` is None for the base model."""

    setting: Setting | None
    draw: int
    criterion: str = ""  # "" for a model as it was tuned
    fraction: float = 0.0
    prompt: str = ""  # of the base model: one of BASE_PROMPTS


@dataclass(frozen=True)
class Answers:
    """Every test fact (rows) under every model (columns): two graders, empty answers, and where the texts are.

    Only facts that every model answered and whose mastery level is known are kept; ``dropped`` counts the others.
    """

    facts: tuple[str, ...]
    relation: tuple[str, ...]
    domain: NDArray[np.int64]  # index into DOMAINS
    level: NDArray[np.int64]
    columns: tuple[Column, ...]
    substring: NDArray[np.bool_]  # F x C
    word: NDArray[np.bool_]
    empty: NDArray[np.bool_]
    files: tuple[Path, ...]
    dropped: int

    def rows(self, column: int, facts: list[str]) -> dict[str, dict[str, str]]:
        """Question, gold answer and raw text of one model on a few facts, read again from its record."""
        table, _ = read_table(self.files[column], ANSWERS, "answers")
        kept = table.filter(pc.is_in(table["fact"], pa.array(facts, pa.string())))
        wanted = kept.select(["fact", "question", "answer", "text"]).to_pylist()
        return {row["fact"]: {name: value or "" for name, value in row.items()} for row in wanted}


@dataclass(frozen=True)
class Run:
    """A study on disk: the manifest, and its finished cells in a fixed order (kind, setting, draw, digest)."""

    path: Path
    manifest: Mapping[str, Any]
    cells: tuple[Cell, ...]
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

    def of(self, kind: str) -> tuple[Cell, ...]:
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
            kind, digest, key = str(entry["kind"]), str(entry["digest"]), dict(entry["key"])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{file}: a cell needs kind, digest and key, found {str(entry)[:80]!r}") from None
        if not re.fullmatch(r"[a-z_]+", kind) or not re.fullmatch(r"[0-9a-zA-Z_-]+", digest):
            raise InputError(f"{file}: {kind!r}/{digest!r} is not the name of a cell")
        check_key(file, kind, key)
        folder = path / "cells" / kind / digest
        if folder.is_dir():
            cells.append(Cell(kind, digest, key, folder))
    cells.sort(key=lambda cell: (cell.kind, _order(cell.key), cell.digest))
    return Run(path, manifest, tuple(cells), len(manifest["cells"]))


def _order(key: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("control", "level", "size", "learning_rate", "draw", "part")
    return tuple(str(key.get(n) or "") if n == "control" else float(key.get(n) or 0) for n in names)


def read_cell_json(cell: Cell, name: str) -> dict[str, Any]:
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


def read_token_shift(cell: Cell) -> pa.Table:
    """One token-shift cell."""
    return read_table(cell.folder / "token_shift.parquet", TOKEN_SHIFT, "token shift")[0]


def _sources(run: Run) -> list[tuple[Column, Path]]:
    found: list[tuple[Column, Path]] = []
    for cell in run.of("base")[:1]:
        for prompt, name in BASE_PROMPTS.items():
            if (cell.folder / name).exists():
                found.append((Column(None, 0, prompt=prompt), cell.folder / name))
    for cell in run.of("evaluation"):
        found.append((Column(cell.setting, cell.draw), cell.folder / "answers.parquet"))
    for cell in run.of("restoration"):
        restored = []
        for file in cell.folder.glob("answers-*.parquet"):
            match = _RESTORED.fullmatch(file.name)
            if not match or fraction_name(float(match["fraction"])) != match["fraction"]:
                raise InputError(f"{file}: expected answers-CRITERION-FRACTION.parquet")
            column = Column(cell.setting, cell.draw, match["criterion"], float(match["fraction"]))
            restored.append((column, file))
        found.extend(sorted(restored, key=lambda item: (item[0].criterion, item[0].fraction)))
    return found


def read_answers(run: Run) -> Answers:
    """Line up every answer of the run by fact; the first record fixes the order of the facts."""
    sources = _sources(run)
    if not sources:
        raise InputError(f"{run.path}: no evaluation is finished yet; nothing to report")
    facts: list[str] = []
    about: pa.Table | None = None
    reference: pa.Array | None = None
    scored: NDArray[np.bool_] | None = None
    graded: list[tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]] = []
    for _, file in sources:
        table, _ = read_table(file, ANSWERS, "answers")
        table = table.combine_chunks()
        if about is None:
            about = table.filter(pc.equal(table["split"], "test"))
            reference = about["fact"].combine_chunks()
            facts = reference.to_pylist()
            if len(set(facts)) != len(facts):
                raise InputError(f"{file}: a fact stands twice among the answers")
            scored = np.ones(len(facts), dtype=bool)
        assert reference is not None
        assert scored is not None
        if not table["fact"].combine_chunks().equals(reference):
            table = table.take(pc.index_in(reference, value_set=table["fact"].combine_chunks()))
        hit, word = table["substring_hit"], table["word_hit"]
        scored &= pc.and_(pc.is_valid(hit), pc.is_valid(word)).to_numpy()
        blank = pc.equal(pc.utf8_trim_whitespace(pc.fill_null(table["text"], "")), "")
        graded.append(tuple(pc.fill_null(c, False).to_numpy().astype(bool) for c in (hit, word, blank)))
    assert about is not None
    assert scored is not None
    levels = pc.fill_null(about["level"], -1).to_numpy().astype(np.int64)
    domain_names = about["domain"].to_pylist()
    unknown = sorted(set(domain_names) - set(DOMAINS))
    if unknown:
        raise InputError(f"{sources[0][1]}: unknown domain {unknown[0]!r}; available: {', '.join(DOMAINS)}")
    keep = scored & (levels >= 0) & (levels < LEVELS)
    kept = np.flatnonzero(keep)
    relations = about["relation"].to_pylist()
    return Answers(
        facts=tuple(facts[i] for i in kept),
        relation=tuple(relations[i] for i in kept),
        domain=np.asarray([DOMAINS.index(domain_names[i]) for i in kept], dtype=np.int64),
        level=levels[kept],
        columns=tuple(column for column, _ in sources),
        substring=np.stack([hit[kept] for hit, _, _ in graded], axis=1),
        word=np.stack([word[kept] for _, word, _ in graded], axis=1),
        empty=np.stack([blank[kept] for _, _, blank in graded], axis=1),
        files=tuple(file for _, file in sources),
        dropped=len(facts) - len(kept),
    )
