"""Every answer of a run, aligned by fact: a row for each test fact, a column for each model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from knowshift.errors import InputError
from knowshift.facts.fact import DOMAINS, LEVELS
from knowshift.parameters.selection.select import fraction_name
from knowshift.records import ANSWERS, read_table
from knowshift.reports.evidence.run_folder import Run, Setting

#: How the base model was asked, and the record of each: the fine-tuning prompt alone, the same after solved examples,
#: and the plain question.
BASE_PROMPTS = {
    "zero_shot": "answers.parquet",
    "few_shot": "answers_few_shot.parquet",
    "plain": "answers_plain.parquet",
}

#: A restored model's answers: criterion, then the fraction as ``fraction_name`` writes it.
_RESTORED = re.compile(r"answers-(?P<criterion>[a-z_-]+)-(?P<fraction>[0-9]+(?:\.[0-9]+)?(?:e-[0-9]+)?)\.parquet")


@dataclass(frozen=True, slots=True)
class Column:
    """One model whose answers to all test facts were read; ``setting`` is None for the base model."""

    setting: Setting | None
    draw: int
    criterion: str = ""  # "" for a model as it was tuned
    fraction: float = 0.0
    prompt: str = ""  # of the base model: one of BASE_PROMPTS


@dataclass(frozen=True)
class RecordedAnswers:
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


def read_answers(run: Run) -> RecordedAnswers:
    """Align every answer of the run by fact; the first record fixes the order of the facts."""
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
    return RecordedAnswers(
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
