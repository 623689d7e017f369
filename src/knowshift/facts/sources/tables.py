"""Facts in a table: a user's CSV, JSONL or Parquet file, and the `facts.parquet` of a built world.

One row per fact. The columns are described in docs/facts.md; what is not named there is ignored.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard, cast

import numpy as np
import pyarrow as pa

from knowshift.errors import InputError, border, nearest
from knowshift.facts.asking import QUESTION, SLOTS, is_filled_in, slot_in_question, unknown_slot
from knowshift.facts.fact import DOMAINS, Domain, Fact, Split
from knowshift.facts.grading import gradable
from knowshift.facts.relations import SLOT
from knowshift.facts.sources.encoding import encodable, lines_of
from knowshift.facts.sources.fields import NOT_GIVEN, Number, list_or_text, load_json, plain, shown
from knowshift.files import digest
from knowshift.records import FACTS, read_parquet, write_table

#: Relation of a fact whose table names none.
NO_RELATION = "none"

_SPLITS: tuple[Split, ...] = ("train", "test")
_COLUMNS = (
    *("question", "subject", "answer", "answers"),
    *("id", "relation", "split", "domain", "aliases", "prompts", "exposures"),
)

_SLIPS = ("alias", "prompt", "exposure")
_LISTS = ("answer", "answers", "aliases", "prompts")
_ANSWERS = ("answer", "answers", "aliases")

#: Where a row stands, for errors ("row 3"), and its cells.
_Row = tuple[str, Mapping[str, Any]]


def read_table_facts(path: Path) -> tuple[Fact, ...]:
    """The facts of a user's table; the file's ending names its format. Raises :class:`InputError`."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: unknown kind of table {path.suffix!r}{nearest(path.suffix, _READERS)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a table of facts")
    try:
        columns, rows = reader(path)
        return _facts(path, columns, ((place, _with_lists(f"{path}: {place}", cells)) for place, cells in rows))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_world_facts(path: Path) -> tuple[Fact, ...]:
    """The facts of a built world: a Parquet file with every column of :data:`~knowshift.records.FACTS`."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the facts of a world made by `knowshift world build`")
    columns, rows = _parquet(path)
    for name in FACTS.names:
        if name not in columns:
            raise InputError(f"{path}: not the facts of a world: column {name!r} is missing")
    return _facts(path, columns, rows)


def read_shipped_facts(path: Path) -> tuple[Fact, ...]:
    """The facts of the world that comes with the package, as :func:`read_world_facts` gives them.

    They were checked when the package was tested; checking them again takes as long as reading them.
    """
    rows = read_parquet(path, FACTS.names)[0].to_pylist()
    return tuple(Fact(**{**row, "aliases": tuple(row["aliases"] or ())}) for row in rows)


def write_facts(
    path: Path,
    facts: Sequence[Fact],
    promises: Mapping[str, float] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write facts as a table that both readers take.

    Its columns are those of ``records.FACTS``, and ``prompts`` where a fact has its own.
    ``promises``, by a fact's id, is a column more; ``about`` stands in the file's metadata.
    """
    columns: dict[str, list[Any]] = {name: [getattr(fact, name) for fact in facts] for name in FACTS.names}
    schema = FACTS
    if any(fact.prompts for fact in facts):
        schema = schema.append(pa.field("prompts", pa.list_(pa.string())))
        columns["prompts"] = [fact.prompts for fact in facts]
    if promises is not None:
        schema = schema.append(pa.field("promise", pa.float64()))
        columns["promise"] = [promises.get(fact.id) for fact in facts]
    write_table(path, schema, columns, {"facts": digest([fact.id for fact in facts]), **(about or {})})


def _facts(path: Path, columns: Iterable[str] | None, rows: Iterable[_Row]) -> tuple[Fact, ...]:
    """Check and build. ``columns`` is None where every row has its own (JSONL)."""
    if columns is not None:
        _check_columns(str(path), tuple(columns))
    facts: list[Fact] = []
    places: dict[str, str] = {}
    constant: dict[str, tuple[str, str]] = {}  # prompt without a slot to its subject and row
    for number, (place, cells) in enumerate(rows, start=1):
        if columns is None:
            _check_columns(f"{path}: {place}", tuple(cells))
        fact = _fact(f"{path}: {place}", number, cells)
        if fact.id in places:
            raise InputError(
                f"{path}: {place}: id {fact.id!r} is that of {places[fact.id]} too; expected every id once"
            )
        places[fact.id] = place
        prompts = _prompts(f"{path}: {place}", cells, fact.subject, fact.question)
        for prompt in prompts:
            if SLOT not in prompt and QUESTION not in prompt:
                subject, first = constant.setdefault(prompt, (fact.subject, place))
                if subject != fact.subject:
                    raise InputError(
                        f"{path}: {place}: prompt {shown(prompt)} is that of {first} too, and of {subject!r}; "
                        f"expected {' or '.join(SLOTS)} in it"
                    )
        filled = tuple(prompt.replace(SLOT, fact.subject) for prompt in prompts)
        facts.append(replace(fact, prompts=filled))
    if not facts:
        raise InputError(f"{path}: the table is empty; expected at least one row")
    return tuple(facts)


def _check_columns(where: str, columns: tuple[str, ...]) -> None:
    found = f"found {', '.join(columns)}" if columns else "found none"
    if "question" not in columns:
        raise InputError(f"{where}: column 'question' is missing; {found}")
    if not {"answer", "answers"} & set(columns):
        raise InputError(f"{where}: column 'answer' (or 'answers') is missing; {found}")
    # Other columns of the user are ignored, so a misspelt one must be refused: it would be ignored too.
    for name in columns:
        if name not in _COLUMNS and name.strip().lower() in (*_COLUMNS, *_SLIPS):
            raise InputError(f"{where}: unknown column {name!r}{nearest(name, _COLUMNS)}")


def _fact(where: str, number: int, cells: Mapping[str, Any]) -> Fact:
    # A question without a subject stands for itself.
    subject = _text(where, "subject", cells) if "subject" in cells else _text(where, "question", cells)
    accepted = [*_texts(where, "answers", cells)]
    if isinstance(cells.get("answer"), list):
        accepted = [*_texts(where, "answer", cells), *accepted]
    elif cells.get("answer") not in (None, ""):
        accepted = [_text(where, "answer", cells), *accepted]
    if not accepted:
        raise InputError(f"{where}: no answer; expected a text in 'answer' or 'answers'")
    aliases = dict.fromkeys((*accepted[1:], *_texts(where, "aliases", cells)))
    aliases.pop(accepted[0], None)
    for answer in (accepted[0], *aliases):
        if not gradable(answer):
            raise InputError(
                f"{where}: answer {shown(answer)} is empty after normalisation; expected a letter or digit"
            )
    return Fact(
        id=_text(where, "id", cells, f"row-{number}"),
        relation=_text(where, "relation", cells, NO_RELATION),
        split=cast(Split, _choice(where, "split", cells, "test", _SPLITS)),
        domain=cast(Domain, _choice(where, "domain", cells, "in_domain", DOMAINS)),
        subject=subject,
        question=_question(where, cells, subject),
        answer=accepted[0],
        aliases=tuple(aliases),
        exposures=_count(where, "exposures", cells),
    )


def _question(where: str, cells: Mapping[str, Any], subject: str) -> str:
    question = _text(where, "question", cells)
    slot = slot_in_question(question, subject)
    if slot is not None:
        raise InputError(
            f"{where}: question {shown(question)}: nothing fills in {slot!r}; expected the question as it is asked"
        )
    return question


def _prompts(where: str, cells: Mapping[str, Any], subject: str, question: str) -> list[str]:
    """The prompts with their slots, each of them checked to name this fact."""
    prompts = _texts(where, "prompts", cells)
    for prompt in prompts:
        if SLOT in prompt and "subject" not in cells:
            raise InputError(f"{where}: prompt {shown(prompt)}: nothing fills in {SLOT!r} without a column 'subject'")
        unknown = unknown_slot(prompt, subject, question)
        if unknown is not None:
            raise InputError(f"{where}: prompt {shown(prompt)}: nothing fills in {unknown!r}{nearest(unknown, SLOTS)}")
        if not any(slot in prompt for slot in SLOTS) and not is_filled_in(prompt, subject, question):
            raise InputError(
                f"{where}: prompt {shown(prompt)} has no slot and does not name {subject!r}; "
                f"expected {' or '.join(SLOTS)}"
            )
    return prompts


def _with_lists(where: str, cells: Mapping[str, Any]) -> Mapping[str, Any]:
    """The cells of a user's row: texts that spell lists become lists, cells that spell a missing value are left out."""
    texts = {name: cells[name] for name in _COLUMNS if type(cells.get(name)) is str}
    read = {**cells, **{name: list_or_text(where, name, text, name in _LISTS) for name, text in texts.items()}}
    for name in _ANSWERS:
        cell = read.get(name)
        parts = cell.split("|") if isinstance(cell, str) and name != "answer" else cell
        if isinstance(parts, list) and any(_is_missing(part) for part in parts):
            read[name] = [part for part in parts if not _is_missing(part)]
    if _is_missing(told := read.get("answer")):
        if not read.get("answers"):
            raise InputError(
                f"{where}: answer is {told!r}, which stands for a missing cell; expected a text "
                "(if it is the answer, write it in capitals: the word rule ignores case)"
            )
        read["answer"] = None
    return read


def _is_missing(cell: object) -> TypeGuard[str]:
    return isinstance(cell, str) and cell.strip() in NOT_GIVEN


def _text(where: str, name: str, cells: Mapping[str, Any], default: str | None = None) -> str:
    value = cells.get(name)
    if default is not None and (value is None or value == ""):
        return default
    # A number may be a name, an id or an answer (a year), but not a question.
    text = "" if name == "question" and isinstance(value, Number) else value
    if not isinstance(text, str) or not text.strip() or not encodable(text):
        found = "empty" if value is None or value == "" else shown(value)
        raise InputError(f"{where}: {name} is {found}; expected a text")
    return text.strip()


def _texts(where: str, name: str, cells: Mapping[str, Any]) -> list[str]:
    """A list of texts and numbers: a list as it is, or one text cut at each "|"; an empty one is a missing cell."""
    value = cells.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    parts = value.split("|") if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(
        isinstance(part, str) and part.strip() and encodable(part) for part in parts
    ):
        raise InputError(f"{where}: {name} is {shown(value)}; expected a list of texts, or texts separated by '|'")
    return [part.strip() for part in parts]


def _choice(where: str, name: str, cells: Mapping[str, Any], default: str, valid: tuple[str, ...]) -> str:
    value = _text(where, name, cells, default)
    if value not in valid:
        raise InputError(f"{where}: unknown {name} {shown(value)}{nearest(value[:100], valid)}")
    return value


def _count(where: str, name: str, cells: Mapping[str, Any]) -> int | None:
    value = cells.get(name)
    if value is None or value == "":
        return None
    count = value
    if isinstance(value, str) and (whole := re.fullmatch(r"\s*(\d{1,10})(?:\.0*)?\s*", value)):
        count = int(whole[1])
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < 2**31:
        raise InputError(f"{where}: {name} is {shown(value)}; expected a whole number, 0 or more, below 2^31")
    return count


def _csv(path: Path) -> tuple[Iterable[str], Iterator[_Row]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file, strict=True))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; expected a UTF-8 table") from None
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV table ({error})") from None
    lines = _without_empty_ends(lines)
    header = lines[0] if lines else []
    other = [mark for mark in (";", "\t") if len(header) == 1 and mark in header[0]]
    if other:
        raise InputError(f"{path}: separated by {other[0]!r}; expected commas")
    twice = {name for name in header if header.count(name) > 1}
    if not lines:
        raise InputError(f"{path}: the table is empty; expected a header and at least one row")
    if twice:
        raise InputError(f"{path}: column {min(twice)!r} stands twice; expected every column once")

    def rows() -> Iterator[_Row]:
        for number, line in enumerate((line for line in lines[1:] if line), start=1):
            if len(line) != len(header):
                raise InputError(f"{path}: row {number}: {len(line)} cells; expected {len(header)} as in the header")
            yield f"row {number}", dict(zip(header, line, strict=True))

    return header, rows()


def _without_empty_ends(lines: list[list[str]]) -> list[list[str]]:
    """The lines of a table without the empty rows and columns that spreadsheets write at its ends."""
    while lines and not any(cell.strip() for cell in lines[-1]):
        lines.pop()
    width = max((n for line in lines for n, cell in enumerate(line, start=1) if cell.strip()), default=0)
    if not lines or width == len(lines[0]) or any(len(line) not in (0, len(lines[0])) for line in lines):
        return lines
    return [line[:width] for line in lines]


def _jsonl(path: Path) -> tuple[None, Iterator[_Row]]:
    def rows() -> Iterator[_Row]:
        for place, line in lines_of(path):
            try:
                cells = load_json(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}: {place}: broken JSON ({error}); expected one object") from None
            if not isinstance(cells, dict):
                raise InputError(f"{path}: {place}: found {type(cells).__name__}; expected one object")
            yield place, {name: plain(value) for name, value in cells.items()}

    return None, rows()


def _parquet(path: Path) -> tuple[Iterable[str], Iterator[_Row]]:
    table, columns = read_parquet(path, _COLUMNS)

    shortest = {field.name: _SHORTEST.get(_values(field.type), repr) for field in table.schema}

    def rows() -> Iterator[_Row]:
        number = 0
        for batch in table.to_batches():
            cells: dict[str, list[Any]] = {}
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                with border(f"{path}: column {name!r} cannot be read"):
                    cells[name] = [plain(cell, shortest[name]) for cell in column.to_pylist()]
            for i in range(batch.num_rows):
                number += 1
                yield f"row {number}", {name: column[i] for name, column in cells.items()}

    return columns, rows()


def _values(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values, inside its lists."""
    while (inner := getattr(kind, "value_type", None)) is not None:
        kind = inner
    return kind


# Spelled as doubles, these would have digits that the file has not.
_SHORTEST: Mapping[pa.DataType, Callable[[float], str]] = {
    pa.float32(): lambda value: str(np.float32(value)),
    pa.float16(): lambda value: str(np.float16(value)),
}

_READERS: Mapping[str, Callable[[Path], tuple[Iterable[str] | None, Iterator[_Row]]]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
