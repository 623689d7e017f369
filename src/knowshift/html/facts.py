"""A list of facts in a page: search, filters, sorting, each fact's answers; data for facts.js, gzip in base64.

A page includes ``facts.css`` and ``facts.html.jinja`` of this package's templates, and gives the latter the text of
:func:`packed` as ``data``. What columns there are, and whose answers, is up to the page.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from knowshift.errors import border

#: Names of moves, in the order of their numbers; facts.css has a colour for the first two.
MOVES = ("lost", "gained", "kept", "never")
#: Characters of an answer that are kept, and half of those of a question.
LONGEST = 200


@dataclass(frozen=True)
class Column:
    """One property of every fact: of a few names (``names``), a number, or a text of each fact's own (``texts``).

    Attributes:
        key: what links, sorting and ``said`` of :class:`FactList` call it: small letters.
        head: over the column, and before its filter.
        values: [F] places in ``names``, or whole numbers, which are shown over 10 ** ``digits`` with at most two
            decimals; -1 is missing. Empty for a column of moves that the page computes.
        width: of the column in rem; 0 for one that is not in the list, but in filters, in CSV and in ``said``.
        narrow: the same on a phone.
        by: two columns by whose difference (first minus second) it is sorted; its own values where there are none.
    """

    key: str
    head: str
    values: Sequence[int] = ()
    names: Sequence[str] = ()
    texts: Sequence[str] = ()
    digits: int = 0
    width: float = 0
    narrow: float = 0
    by: tuple[str, str] | None = None


@dataclass(frozen=True)
class Answered:
    """One answer to every fact: whether it is right; its texts, where the page keeps them."""

    right: Sequence[bool]
    texts: Sequence[str | None] | None = None


@dataclass(frozen=True)
class AnswerRow:
    """A line of the table of one fact's answers: an answer, or none, under each head; ``group`` is for a chooser."""

    name: str
    answers: Sequence[Answered | None]
    group: str = ""


@dataclass(frozen=True)
class FactList:
    """All that a page's list shows of F facts.

    Attributes:
        question, answer: [F].
        filters: keys of columns of names that the list can be filtered by.
        heads: over the table of one fact's answers, the first over the names of rows.
        said: a sentence on one fact; {answer} and {KEY} of a column are filled in.
        sort: key of the column that the list is sorted by at first.
        compared: rows of ``rows`` that are compared at first. The page then offers a choice of both, and computes the
            column ``move``. None where that column has values.
        groups: keys of columns of names by which the page counts moves.
    """

    question: Sequence[str]
    answer: Sequence[str]
    columns: Sequence[Column]
    filters: Sequence[str]
    heads: Sequence[str]
    rows: Sequence[AnswerRow]
    said: str
    sort: str
    compared: tuple[int, int] | None = None
    groups: Sequence[str] = ()


def packed(facts: FactList) -> str:
    """The data of facts.js as text that can stand in a page: letters, digits, "+", "/" and "=" only.

    The same list gives the same text.
    """
    keys = {column.key for column in facts.columns}
    assert all(re.fullmatch("[a-z]+", key) for key in keys)
    assert {*facts.filters, *facts.groups} <= keys
    texts: dict[str, int] = {}

    def place(text: str | None) -> int:
        return -1 if text is None else texts.setdefault(text.strip()[:LONGEST], len(texts))

    data: dict[str, Any] = {
        "moves": MOVES,
        "question": [question[: 2 * LONGEST] for question in facts.question],
        "answer": [place(answer) for answer in facts.answer],
        "columns": [_column(column) for column in facts.columns],
        "filters": list(facts.filters),
        "groups": list(facts.groups),
        "heads": list(facts.heads),
        "rows": [
            {"name": row.name, "group": row.group, "answers": [_answered(one, place) for one in row.answers]}
            for row in facts.rows
        ],
        "said": facts.said,
        "sort": facts.sort,
        "compared": facts.compared,
        "texts": list(texts),
    }
    written = json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()
    return base64.b64encode(gzip.compress(written, compresslevel=9, mtime=0)).decode("ascii")


def unpacked(text: str) -> Mapping[str, Any]:
    """What :func:`packed` wrote, as facts.js reads it.

    Raises:
        InputError: the text is not of that kind.
    """
    with border("the facts of a page: cannot be read"):
        found: Mapping[str, Any] = json.loads(gzip.decompress(base64.b64decode(text, validate=True)))
    return found


def _column(column: Column) -> dict[str, Any]:
    found: dict[str, Any] = {
        "key": column.key,
        "head": column.head,
        "width": column.width,
        "narrow": column.narrow,
        "by": column.by,
    }
    if column.texts:
        found["texts"] = [text[:LONGEST] for text in column.texts]
    else:
        found |= {"values": list(column.values), "digits": column.digits}
        if column.names:
            found["names"] = list(column.names)
    return found


def _answered(answered: Answered | None, place: Any) -> dict[str, Any] | None:
    if answered is None:
        return None
    found: dict[str, Any] = {"right": "".join("1" if right else "0" for right in answered.right)}
    if answered.texts is not None:
        found["texts"] = [place(text) for text in answered.texts]
    return found
