"""Facts in a table: a user's CSV, JSONL or Parquet file, and the `facts.parquet` of a built world.

One row per fact. The columns are described in docs/facts.md; what is not named there is ignored.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from knowshift.errors import InputError, nearest
from knowshift.facts.encoding import encodable, lines_of
from knowshift.facts.fact import DOMAINS, Domain, Fact, Split
from knowshift.facts.grading import gradable
from knowshift.records import FACTS

#: Relation of a fact whose table names none.
NO_RELATION = "none"

_SPLITS: tuple[Split, ...] = ("train", "test")
_COLUMNS = (
    *("question", "subject", "answer", "answers"),
    *("id", "relation", "split", "domain", "aliases", "prompts", "exposures"),
)

_SLIPS = ("alias", "prompt", "exposure")

#: Where a row stands, for errors ("row 3"), and its cells.
_Row = tuple[str, Mapping[str, Any]]


def read_table_facts(path: Path) -> tuple[Fact, ...]:
    """The facts of a user's table; its kind is told by the file's ending. Raises :class:`InputError`."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: unknown kind of table {path.suffix!r}{nearest(path.suffix, _READERS)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a table of facts")
    try:
        columns, rows = reader(path)
        return _facts(path, columns, rows)
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


def _facts(path: Path, columns: Iterable[str] | None, rows: Iterable[_Row]) -> tuple[Fact, ...]:
    """Check and build. ``columns`` is None where every row has its own (JSONL)."""
    if columns is not None:
        _check_columns(str(path), tuple(columns))
    facts: list[Fact] = []
    places: dict[str, str] = {}
    for number, (place, cells) in enumerate(rows, start=1):
        if columns is None:
            _check_columns(f"{path}: {place}", tuple(cells))
        fact = _fact(f"{path}: {place}", number, cells)
        if fact.id in places:
            raise InputError(
                f"{path}: {place}: id {fact.id!r} is that of {places[fact.id]} too; expected every id once"
            )
        places[fact.id] = place
        facts.append(fact)
    if not facts:
        raise InputError(f"{path}: the table is empty; expected at least one row")
    return tuple(facts)


def _check_columns(where: str, columns: tuple[str, ...]) -> None:
    found = f"found {', '.join(columns)}" if columns else "found none"
    for name in ("question", "subject"):
        if name not in columns:
            raise InputError(f"{where}: column {name!r} is missing; {found}")
    if not {"answer", "answers"} & set(columns):
        raise InputError(f"{where}: column 'answer' (or 'answers') is missing; {found}")
    # An ordinary extra column is the user's own business; a misspelt one would be lost in silence.
    for name in columns:
        if name not in _COLUMNS and name.strip().lower() in (*_COLUMNS, *_SLIPS):
            raise InputError(f"{where}: unknown column {name!r}{nearest(name, _COLUMNS)}")


def _fact(where: str, number: int, cells: Mapping[str, Any]) -> Fact:
    subject = _text(where, "subject", cells)
    accepted = [*_texts(where, "answers", cells)]
    if cells.get("answer") not in (None, ""):
        answer = _text(where, "answer", cells)
        accepted = [answer, *(other for other in accepted if other != answer)]
    if not accepted:
        raise InputError(f"{where}: no answer; expected a text in 'answer' or 'answers'")
    aliases = dict.fromkeys((*accepted[1:], *_texts(where, "aliases", cells)))
    aliases.pop(accepted[0], None)
    for answer in (accepted[0], *aliases):
        if not gradable(answer):
            raise InputError(f"{where}: answer {answer!r} is empty after normalisation; expected a letter or digit")
    return Fact(
        id=_text(where, "id", cells, f"row-{number}"),
        relation=_text(where, "relation", cells, NO_RELATION),
        split=cast(Split, _choice(where, "split", cells, "test", _SPLITS)),
        domain=cast(Domain, _choice(where, "domain", cells, "in_domain", DOMAINS)),
        subject=subject,
        question=_text(where, "question", cells),
        answer=accepted[0],
        aliases=tuple(aliases),
        exposures=_count(where, "exposures", cells),
        prompts=tuple(prompt.replace("{subject}", subject) for prompt in _texts(where, "prompts", cells)),
    )


def _text(where: str, name: str, cells: Mapping[str, Any], default: str | None = None) -> str:
    value = cells.get(name)
    if default is not None and (value is None or value == ""):
        return default
    # Numbers make sense as ids and answers (a year); a table's reader has often guessed them to be numbers.
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not text.strip() or not encodable(text):
        found = "empty" if value is None or value == "" else repr(value)
        raise InputError(f"{where}: {name} is {found}; expected a text")
    return text.strip()


def _texts(where: str, name: str, cells: Mapping[str, Any]) -> list[str]:
    """A list of texts: a list as it is, or one text cut at each "|"."""
    value = cells.get(name)
    if value is None or value == "":
        return []
    parts = value.split("|") if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(
        isinstance(part, str) and part.strip() and encodable(part) for part in parts
    ):
        raise InputError(f"{where}: {name} is {value!r}; expected a list of texts, or texts separated by '|'")
    return [part.strip() for part in parts]


def _choice(where: str, name: str, cells: Mapping[str, Any], default: str, valid: tuple[str, ...]) -> str:
    value = _text(where, name, cells, default)
    if value not in valid:
        raise InputError(f"{where}: unknown {name} {value!r}{nearest(value, valid)}")
    return value


def _count(where: str, name: str, cells: Mapping[str, Any]) -> int | None:
    value = cells.get(name)
    if value is None or value == "":
        return None
    count = value
    if (isinstance(value, str) and value.strip().isdecimal()) or (isinstance(value, float) and value.is_integer()):
        count = int(value)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < 2**31:
        raise InputError(f"{where}: {name} is {value!r}; expected a whole number, 0 or more, below 2^31")
    return count


def _csv(path: Path) -> tuple[Iterable[str], Iterator[_Row]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file, strict=True))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; expected a UTF-8 table") from None
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV table ({error})") from None
    header = lines[0] if lines else []
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


def _jsonl(path: Path) -> tuple[None, Iterator[_Row]]:
    def rows() -> Iterator[_Row]:
        for place, line in lines_of(path):
            try:
                cells = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}: {place}: broken JSON ({error}); expected one object") from None
            if not isinstance(cells, dict):
                raise InputError(f"{path}: {place}: found {type(cells).__name__}; expected one object")
            yield place, cells

    return None, rows()


def _parquet(path: Path) -> tuple[Iterable[str], Iterator[_Row]]:
    try:
        columns = pq.read_schema(path).names
        table = pq.read_table(path, columns=[name for name in _COLUMNS if name in columns])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None

    def rows() -> Iterator[_Row]:
        number = 0
        for batch in table.to_batches():
            for cells in batch.to_pylist():
                number += 1
                yield f"row {number}", cells

    return columns, rows()


_READERS: Mapping[str, Callable[[Path], tuple[Iterable[str] | None, Iterator[_Row]]]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
