"""EntityQuestions (Sciavolino et al., EMNLP 2021): its files, its rows, and the filter that gives the paper's totals.

The official zip holds ``dataset/{train,dev,test}/P17.train.json``, one JSON list of ``{"question", "answers"}`` a
relation and split; dev is not used. The zip is read where it lies and never extracted.

The filter (found by matching the totals of Ye et al., EMNLP 2025, to the digit): keep the rows with exactly one answer;
then, within each group, keep the first row of every question, over all relations of the group in the order of
``RELATIONS``, file order within a relation. The groups and the facts left in each:

    in-domain training 75,944; in-domain test 9,555; out-of-domain test 11,613.

Dropping repeats before the answers are counted would give 75,942; dropping all rows of a repeated question, 75,447.
Twenty-nine questions are asked by both P131 and P276, whose pattern is one; P131 stands first and keeps them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from knowshift.errors import InputError, cause_of
from knowshift.facts.fact import Domain, Fact, Split
from knowshift.facts.grading import gradable
from knowshift.facts.leakage import Leakage, Row, measure
from knowshift.facts.relations import IN_DOMAIN, OUT_OF_DOMAIN, RELATIONS, Relation
from knowshift.facts.sources.archive import SafeZip
from knowshift.facts.sources.encoding import encodable

#: The largest file read, in bytes; the largest of the real ones has 1.2 MB.
LARGEST_FILE = 64 * 2**20

_LAYOUT = "dataset/train/P17.train.json"


@dataclass(frozen=True)
class EntityQuestions:
    """The facts after the filter, and the leakage in the files before it."""

    facts: tuple[Fact, ...]
    published: Leakage


def file_names() -> tuple[str, ...]:
    """The 48 files a copy must hold, relative to ``dataset/``."""
    return tuple(f"{split}/{name}.{split}.json" for split in ("train", "test") for name in RELATIONS)


def read_entity_questions(
    path: Path, aliases: Mapping[str, tuple[str, ...]], out_of_domain_train: bool = False
) -> EntityQuestions:
    """Read the official zip, or its folder (the one that holds ``dataset/``, or ``dataset`` itself).

    ``aliases`` maps an answer to its accepted aliases. ``out_of_domain_train`` adds the 91,526 facts that the same
    filter leaves of the out-of-domain training files, which the paper does not use. A fact's id is relation, split and
    row in the file, counted from 1: "P19.train.17". Raises :class:`InputError` for anything missing or malformed.
    """
    groups: list[tuple[Split, Domain, tuple[str, ...]]] = [
        ("train", "in_domain", IN_DOMAIN),
        ("test", "in_domain", IN_DOMAIN),
        ("test", "out_of_domain", OUT_OF_DOMAIN),
    ]
    if out_of_domain_train:
        groups.append(("train", "out_of_domain", OUT_OF_DOMAIN))
    facts: list[Fact] = []
    in_domain: dict[Split, list[Row]] = {}
    with ExitStack() as stack:
        read = _open(path, stack)
        for split, domain, names in groups:
            seen: set[str] = set()
            published: list[Row] = []
            for name in names:
                where, text = read(f"{split}/{name}.{split}.json")
                rows = _rows(where, text, RELATIONS[name])
                published.extend((name, question, answers) for _, question, answers in rows)
                for number, (subject, question, answers) in enumerate(rows, start=1):
                    if len(answers) != 1 or question in seen:
                        continue
                    seen.add(question)
                    identity = f"{name}.{split}.{number}"
                    known = aliases.get(answers[0], ())
                    facts.append(Fact(identity, name, split, domain, subject, question, answers[0], known))
            if domain == "in_domain":
                in_domain[split] = published
    return EntityQuestions(tuple(facts), measure(in_domain["test"], in_domain["train"]))


def check_archive(path: Path) -> None:
    """Raise :class:`InputError` unless ``path`` is a harmless zip with all files of the data set, CRCs right."""
    with SafeZip(path) as archive:
        root = _root(path, frozenset(archive.names))
        for name in file_names():
            archive.read(root + name, LARGEST_FILE)


def _open(path: Path, stack: ExitStack) -> Callable[[str], tuple[str, bytes]]:
    """A function from a file's name to (its name in errors, its bytes); all 48 files exist."""
    if path.is_dir():
        present = {
            f"{inner}{name}" for inner in ("dataset/", "") for name in file_names() if (path / inner / name).is_file()
        }
        folder = path / _root(path, frozenset(present))
        return lambda name: (str(folder / name), _read_file(folder / name))
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; expected the EntityQuestions zip or its extracted folder")
    archive = stack.enter_context(SafeZip(path))
    root = _root(path, frozenset(archive.names))
    return lambda name: (f"{path}: {root}{name}", archive.read(root + name, LARGEST_FILE))


def _root(path: Path, present: frozenset[str]) -> str:
    """Where the 48 files lie: under ``dataset/``, or at the top."""
    wanted = file_names()
    root = max(("dataset/", ""), key=lambda inner: sum(inner + name in present for name in wanted))
    missing = [root + name for name in wanted if root + name not in present]
    if len(missing) == len(wanted):
        raise InputError(f"{path}: no EntityQuestions file found; expected {_LAYOUT} and the like")
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"{path}: relation {Path(missing[0]).name.split('.')[0]} is missing: expected {missing[0]}{more}; "
            f"found {len(wanted) - len(missing)} of {len(wanted)} files"
        )
    return root


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if len(text) > LARGEST_FILE:
        raise InputError(f"{path}: larger than {LARGEST_FILE} bytes; expected at most that")
    return text


def _rows(where: str, text: bytes, relation: Relation) -> list[tuple[str, str, tuple[str, ...]]]:
    """Subject, question and answers of every row, checked."""
    try:
        rows = json.loads(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 at byte {error.start}; expected a JSON list") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: broken JSON at line {error.lineno} column {error.colno} ({error.msg}); expected a list of rows"
        ) from None
    except RecursionError:
        raise InputError(f"{where}: JSON nested too deep; expected a list of rows") from None
    except ValueError as error:  # a whole number of more digits than Python reads
        raise InputError(f"{where}: broken JSON ({cause_of(error)}); expected a list of rows") from None
    if not isinstance(rows, list) or not rows:
        found = "an empty list" if rows == [] else type(rows).__name__
        raise InputError(f"{where}: found {found}; expected a list of rows with question and answers")
    return [_row(f"{where}: row {number}", row, relation) for number, row in enumerate(rows, start=1)]


def _row(where: str, row: object, relation: Relation) -> tuple[str, str, tuple[str, ...]]:
    if not isinstance(row, dict):
        raise InputError(f"{where}: found {type(row).__name__}; expected an object with question and answers")
    question, answers = row.get("question"), row.get("answers")
    if not isinstance(question, str) or not encodable(question):
        raise InputError(f"{where}: question is {_found(question)}; expected a text")
    if not isinstance(answers, list) or not answers:
        raise InputError(f"{where}: answers is {_found(answers)}; expected a list of at least one text")
    for answer in answers:
        if not isinstance(answer, str) or not gradable(answer) or not encodable(answer):
            raise InputError(f"{where}: an answer is {_found(answer)}; expected a text with a letter or digit")
    subject = relation.subject_of(question)
    if subject is None or not subject.strip():
        raise InputError(
            f"{where}: question {_short(question)!r} does not fit the pattern of {relation.id}, {relation.question!r}"
        )
    return subject, question, tuple(answers)


def _found(value: object) -> str:
    return "missing" if value is None else _short(json.dumps(value))


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
