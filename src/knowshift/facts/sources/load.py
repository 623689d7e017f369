"""Loading facts by the name of their source: what every command does with ``--facts SOURCE``."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import resources
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from knowshift.errors import InputError, check_whole, nearest
from knowshift.facts.fact import Fact
from knowshift.facts.leakage import Leakage, leakage, without_leaked
from knowshift.facts.sources.entity_questions import read_entity_questions
from knowshift.facts.sources.fetching import fetch_entity_questions
from knowshift.facts.sources.public_sets import read_nq_open, read_popqa, read_triviaqa
from knowshift.facts.sources.tables import read_shipped_facts, read_table_facts, read_world_facts
from knowshift.files import expanded

if TYPE_CHECKING:
    import pandas as pd

#: The forms that ``load_facts`` understands.
FORMS = (
    "entity-questions",
    "entity-questions:PATH",
    "world:tiny",
    "world:PATH",
    "popqa:FILE",
    "triviaqa:FILE",
    "nq-open:FILE",
    "FILE.csv",
    "FILE.jsonl",
    "FILE.parquet",
)

#: Published sets that are one file.
_PUBLIC: Mapping[str, Callable[[Path], tuple[Fact, ...]]] = {
    "popqa": read_popqa,
    "triviaqa": read_triviaqa,
    "nq-open": read_nq_open,
}
_SCHEMES = ("entity-questions", "world", *_PUBLIC)
_TABLES = (".csv", ".jsonl", ".parquet")
_every_field = attrgetter(*(field.name for field in fields(Fact)))


@dataclass(frozen=True)
class FactSource:
    """Facts with the name of their source, which holds no path of this machine."""

    name: str  # "entity-questions", "world:tiny", "popqa:test.tsv", "capitals.csv"
    facts: tuple[Fact, ...]
    published: Leakage | None = None  # leakage in the files before any filter, where that differs

    def digest(self) -> str:
        """Sixteen hex digits of SHA-256 over every field of every fact in order; the name does not count."""
        state = hashlib.sha256()
        for fact in self.facts:
            state.update(json.dumps(_every_field(fact), separators=(",", ":")).encode() + b"\n")
        return state.hexdigest()[:16]

    def without_leaks(self) -> FactSource:
        """The source without the test facts whose question is asked in its training facts."""
        return FactSource(self.name, without_leaked(self.facts))

    def summary(self) -> dict[str, Any]:
        """Counts by split, domain and relation, and the leakage from training into test, as plain JSON values.

        ``leaked_test_questions`` and ``answer_overlap`` are those of the files before the filter where the source
        knows them (EntityQuestions), else those of the facts; docs/facts.md says what is compared.
        """
        groups = Counter((fact.split, fact.domain) for fact in self.facts)
        relations: dict[str, dict[str, int]] = {}
        for fact in self.facts:
            relations.setdefault(fact.relation, {"train": 0, "test": 0})[fact.split] += 1
        found = self.published or leakage(self.facts)
        return {
            "source": self.name,
            "digest": self.digest(),
            "train_in_domain": groups["train", "in_domain"],
            "test_in_domain": groups["test", "in_domain"],
            "test_out_of_domain": groups["test", "out_of_domain"],
            "train_out_of_domain": groups["train", "out_of_domain"],
            "relations": relations,
            "leaked_test_questions": found.questions,
            "answer_overlap": found.answer_overlap,
        }

    def to_pandas(self) -> pd.DataFrame:
        """One row a fact."""
        import pandas as pd

        names = [field.name for field in fields(Fact)]
        return pd.DataFrame([_every_field(fact) for fact in self.facts], columns=names)


def load_facts(source: str, aliases: bool = True) -> FactSource:
    """Load the facts that ``source`` names (see :data:`FORMS` and docs/facts.md).

    ``aliases=False`` accepts the answers alone: neither the paper's aliases nor those of a table. Raises
    :class:`InputError` with one line for whatever is missing or malformed.
    """
    scheme, colon, rest = source.partition(":")
    if source.lower().endswith(_TABLES) and not _has_scheme(source):
        loaded = FactSource(Path(source).name, read_table_facts(expanded(source)))
    elif scheme == "entity-questions" and not colon:
        return load_entity_questions(fetch_entity_questions(), aliases)
    elif scheme == "entity-questions" and rest:
        return load_entity_questions(expanded(rest), aliases)
    elif scheme in _PUBLIC and rest:
        loaded = FactSource(f"{scheme}:{Path(rest).name}", _PUBLIC[scheme](expanded(rest)))
    elif scheme == "world" and rest == "tiny":
        loaded = FactSource(source, _shipped_facts())
    elif scheme == "world" and rest:
        loaded = FactSource(f"world:{expanded(rest).resolve().name}", read_world_facts(_world(expanded(rest))))
    else:
        raise InputError(f"unknown fact source {source!r}{_hint(source)}")
    if aliases:
        return loaded
    return replace(loaded, facts=tuple(replace(fact, aliases=()) for fact in loaded.facts))


def load_entity_questions(path: Path, aliases: bool = True, out_of_domain_train: bool = False) -> FactSource:
    """EntityQuestions from its zip or folder: the 97,112 facts of the paper, and 91,526 more if asked for.

    ``out_of_domain_train`` adds what the paper leaves out, for uses that only want many facts.
    """
    read = read_entity_questions(path, paper_aliases() if aliases else {}, out_of_domain_train)
    return FactSource("entity-questions", read.facts, read.published)


@cache
def _shipped_facts() -> tuple[Fact, ...]:
    """The facts of the shipped world, which do not change: read once a process."""
    with resources.as_file(resources.files("knowshift.world").joinpath("tiny", "facts.parquet")) as path:
        return read_shipped_facts(path)


@cache
def paper_aliases() -> Mapping[str, tuple[str, ...]]:
    """Answer to accepted aliases: the table of Ye et al., EMNLP 2025; 29 answers, 40 aliases, some of them loose."""
    text = resources.files(__package__).joinpath("aliases.csv").read_text(encoding="utf-8")
    table: dict[str, tuple[str, ...]] = {}
    for row in csv.DictReader(text.splitlines()):
        table[row["answer"]] = (*table.get(row["answer"], ()), row["alias"])
    return MappingProxyType(table)


def _world(folder: Path) -> Path:
    if not folder.is_dir():
        hint = nearest(str(folder), ("tiny",)) if not folder.parts[1:] else "; expected the folder of a built world"
        raise InputError(f"world:{folder}: no such folder{hint}")
    return folder / "facts.parquet"


def _has_scheme(source: str) -> bool:
    """Whether there is a scheme in front, known or not: a word and a colon, and no file of the whole name."""
    scheme, colon, _ = source.partition(":")
    return (
        bool(colon)
        and len(scheme) > 1
        and scheme.replace("-", "").replace("_", "").isalnum()
        and (scheme in _SCHEMES or not expanded(source).exists())
    )


def _hint(source: str) -> str:
    path = expanded(source)
    if path.suffix == ".zip" or (path.is_dir() and (path / "dataset").is_dir()):
        return f"; nearest: 'entity-questions:{source}'"
    if path.is_dir() and (path / "facts.parquet").is_file():
        return f"; nearest: 'world:{source}'"
    scheme, _, rest = source.partition(":")
    return nearest(source if rest in ("", "tiny") else f"{scheme}:{'FILE' if path.suffix else 'PATH'}", FORMS)


def limited(facts: Sequence[Fact], limit: int | None, seed: int) -> list[Fact]:
    """The first ``limit`` facts of a seeded shuffle, in their own order; all of them where there is no limit."""
    check_whole("seed", seed)
    if limit is None:
        return list(facts)
    check_whole("limit", limit, 1)
    chosen = sorted(np.random.default_rng([seed, 8]).permutation(len(facts))[:limit].tolist())
    return [facts[index] for index in chosen]
