"""PopQA, TriviaQA and NQ-open in the layouts in which they are published.

- PopQA (Mallen et al., ACL 2023): a TSV of 16 kinds of Wikidata facts with `subj`, `prop`, `obj`, `question` and
  `possible_answers`, a list of texts. Five kinds mean what a relation of the study means and use its prompts.
- TriviaQA (Joshi et al., ACL 2017): one JSON object whose `Data` lists `Question`, `QuestionId` and `Answer`, with
  `Value` and `Aliases`; reading comprehension and unfiltered files alike. Files may be as large as memory, so they are
  read piece by piece, and their other fields are dropped.
- NQ-open (Lee et al., ACL 2019): JSON lines with `question` and a list `answer`.

Where there is no relation, prompts are the generic ones of :mod:`knowshift.facts.asking`. A file whose name says
"train" is a training set (in-domain), every other one a test set (out-of-domain): none of them has the study's
division. A malformed row refuses the whole file. Only a row whose answers are all without a letter or digit is left
out, with a warning: such a row is valid (NQ-open asks for "---" in Morse code), but it cannot be graded.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from knowshift.errors import InputError, KnowshiftWarning
from knowshift.facts.asking import GENERIC
from knowshift.facts.fact import Domain, Fact, Split
from knowshift.facts.grading import gradable
from knowshift.facts.relations import RELATIONS
from knowshift.facts.sources.encoding import LARGEST_ROW, encodable, lines_of
from knowshift.facts.sources.fields import NotAList, parse_list

#: Characters that are read at once.
_PIECE = 1 << 20

#: PopQA's name of a property to the study's relation of the same meaning. PopQA's "genre" (P136) is that of any
#: work, while the study's P136 asks for music.
POPQA_RELATIONS: Mapping[str, str] = {
    "author": "P50",
    "capital": "P36",
    "country": "P17",
    "occupation": "P106",
    "place of birth": "P19",
}

_POPQA_COLUMNS = ("subj", "prop", "obj", "question", "possible_answers")
_TRAIN = re.compile(r"(?<![a-z])train(?![a-z])")


def read_popqa(path: Path) -> tuple[Fact, ...]:
    """The facts of PopQA's table, tabs or commas between its cells; ids are "popqa.ID". Raises :class:`InputError`."""
    return _read(path, "PopQA's table", _popqa)


def read_triviaqa(path: Path) -> tuple[Fact, ...]:
    """The facts of one of TriviaQA's JSON files; ids are "triviaqa.QUESTIONID". Raises :class:`InputError`."""
    return _read(path, "one of TriviaQA's JSON files", _triviaqa)


def read_nq_open(path: Path) -> tuple[Fact, ...]:
    """The facts of one of NQ-open's files; ids are "nq-open.LINE", from 1. Raises :class:`InputError`."""
    return _read(path, "one of NQ-open's JSONL files", _nq_open)


#: (place in the file, fact without answers, right answers) of each row.
_Rows = Iterator[tuple[str, Fact, list[str]]]


def _read(path: Path, what: str, rows: Callable[[Path, Split, Domain], _Rows]) -> tuple[Fact, ...]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected {what}")
    train = _TRAIN.search(path.name.lower())
    split, domain = ("train", "in_domain") if train else ("test", "out_of_domain")
    facts: dict[str, Fact] = {}
    ungradable: list[str] = []
    try:
        for place, fact, texts in rows(path, split, domain):  # type: ignore[arg-type]
            if not any(texts):
                raise InputError(f"{path}: {place}: no answer; found {_shown(texts)}")
            answers = tuple(dict.fromkeys(text for text in texts if gradable(text)))
            if not answers:
                ungradable.append(place)
                continue
            if fact.id in facts:
                raise InputError(f"{path}: {place}: id {fact.id!r} stands twice; expected every id once")
            facts[fact.id] = replace(fact, answer=answers[0], aliases=answers[1:])
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason}); expected {what}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not facts:
        raise InputError(f"{path}: no rows{' that can be graded' if ungradable else ''}; expected {what}")
    if ungradable:
        rows_of = f"{len(ungradable)} of {len(facts) + len(ungradable)} rows"
        warnings.warn(
            f"{path}: {rows_of} left out, the first is {ungradable[0]}: no answer with a letter or digit",
            KnowshiftWarning,
            stacklevel=4,
        )
    return tuple(facts.values())


# -- PopQA ----------------------------------------------------------------------------------------------------


def _popqa(path: Path, split: Split, domain: Domain) -> _Rows:
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.readline(LARGEST_ROW)
        file.seek(0)
        lines = csv.reader(file, delimiter="\t" if "\t" in head else ",", strict=True)
        try:
            header = next(lines, [])
            for name in _POPQA_COLUMNS:
                if header.count(name) != 1:
                    found = ", ".join(header[:20])[:200] or "nothing"
                    raise InputError(f"{path}: column {name!r} is {_times(header.count(name))}; found {found}")
            for number, line in enumerate((line for line in lines if line), start=1):
                place = f"row {number}"
                where = f"{path}: {place}"
                if len(line) != len(header):
                    raise InputError(f"{where}: {len(line)} cells; expected {len(header)} as in the header")
                cells = dict(zip(header, line, strict=True))
                subject, prop = (_text(where, name, cells.get(name)) for name in ("subj", "prop"))
                texts = [cells["obj"].strip(), *_texts(where, "possible_answers", cells["possible_answers"])]
                question = _text(where, "question", cells["question"])
                relation = POPQA_RELATIONS.get(prop, f"popqa {prop}")
                prompts = () if relation in RELATIONS else GENERIC
                identity = f"popqa.{cells.get('id') or number}"
                yield place, Fact(identity, relation, split, domain, subject, question, "", prompts=prompts), texts
        except csv.Error as error:
            raise InputError(f"{path}: line {lines.line_num}: not a table ({error})") from None


def _times(count: int) -> str:
    return "missing" if count == 0 else f"there {count} times"


# -- NQ-open --------------------------------------------------------------------------------------------------


def _nq_open(path: Path, split: Split, domain: Domain) -> _Rows:
    for place, line in lines_of(path):
        where = f"{path}: {place}"
        row = _object(where, _json(where, line))
        texts = _texts(where, "answer", row.get("answer"))
        question = _text(where, "question", row.get("question"))
        identity = f"nq-open.{place.removeprefix('line ')}"
        yield place, Fact(identity, "nq-open", split, domain, "", question, "", prompts=GENERIC), texts


# -- TriviaQA -------------------------------------------------------------------------------------------------


def _triviaqa(path: Path, split: Split, domain: Domain) -> _Rows:
    with path.open("rb") as file:
        for number, value in enumerate(_Stream(path, file).rows("Data"), start=1):
            place = f"row {number}"
            where = f"{path}: {place}"
            row = _object(where, value)
            told = row.get("Answer")
            if told is None:
                raise InputError(f"{where}: Answer is missing; a test file without answers cannot be graded")
            found = _object(f"{where}: Answer", told)
            # NormalizedAliases are the same in lower case without punctuation, which grading by words does itself.
            others = found.get("Aliases")
            if others is None:
                others = found.get("NormalizedAliases") or []
            first = _text(f"{where}: Answer", "Value", found.get("Value"), may_be_empty=True)
            texts = [first, *_texts(f"{where}: Answer", "Aliases", others)]
            question = _text(where, "Question", row.get("Question"))
            identity = f"triviaqa.{_text(where, 'QuestionId', row.get('QuestionId'))}"
            yield place, Fact(identity, "triviaqa", split, domain, "", question, "", prompts=GENERIC), texts


class _Stream:
    """The rows of one list in a JSON object that may be too large for memory, one row at a time."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._parse = json.JSONDecoder().raw_decode
        self._text, self._at, self._over = "", 0, False

    def rows(self, key: str) -> Iterator[Any]:
        """Every element of the list at ``key`` of the outermost object, whose other keys are passed over."""
        self._take("{", "an object")
        names: list[Any] = []
        while self._next() != "}":
            if names:
                self._take(",", "a comma between keys")
            names.append(self._value("a key"))
            self._take(":", "a colon after a key")
            if names[-1] == key:
                yield from self._elements(key)
            else:
                self._value(f"the value of {_shown(names[-1])}")
        if key not in names:
            raise InputError(f"{self._path}: {key!r} is missing; expected an object with a list of rows there")

    def _elements(self, key: str) -> Iterator[Any]:
        self._take("[", f"a list at {key!r}")
        number = 0
        while self._next() != "]":
            if number:
                self._take(",", f"a comma after row {number}")
            number += 1
            yield self._value(f"row {number}")
        self._take("]", "the end of the list")

    def _more(self) -> bool:
        """Read on; False at the end of the file."""
        if self._over:
            return False
        data = self._file.read(max(_PIECE, len(self._text) - self._at))
        self._over = not data
        self._text = self._text[self._at :] + self._decode.decode(data, final=self._over)
        self._at = 0
        return not self._over

    def _next(self) -> str:
        """The next character that is no blank, left where it is; "" at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\r\n":
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def _take(self, character: str, what: str) -> None:
        found = self._next()
        if found != character:
            raise InputError(f"{self._path}: broken JSON: found {found or 'the end'!r}; expected {what}")
        self._at += 1

    def _value(self, what: str) -> Any:
        self._next()
        while True:
            trouble: Exception | None = None
            try:
                value, end = self._parse(self._text, self._at)
                # A number at the edge may go on in the next piece ("1" or "1." of "1.0").
                if self._over or self._text[end : end + 1].strip(".eE+-0123456789"):
                    self._at = end
                    return value
            except RecursionError:
                raise InputError(f"{self._path}: {what}: JSON nested too deep") from None
            except ValueError as error:
                trouble = error
            if len(self._text) - self._at > LARGEST_ROW:
                raise InputError(f"{self._path}: {what}: broken JSON, or more than {LARGEST_ROW} characters")
            if not self._more() and trouble is not None:
                raise InputError(f"{self._path}: {what}: broken JSON ({_line(trouble)})") from None


# -- what a row holds -----------------------------------------------------------------------------------------


def _json(where: str, text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise InputError(f"{where}: JSON nested too deep") from None
    except ValueError as error:
        raise InputError(f"{where}: broken JSON ({_line(error)})") from None


def _line(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else " ".join(str(error).split())[:100]


def _object(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: found {type(value).__name__}; expected an object")
    return value


def _text(where: str, name: str, value: Any, may_be_empty: bool = False) -> str:
    if not isinstance(value, str) or not (value.strip() or may_be_empty) or not encodable(value):
        found = "missing" if value is None else "empty" if value == "" else _shown(value)
        raise InputError(f"{where}: {name} is {found}; expected a text")
    return value.strip()


def _texts(where: str, name: str, value: Any) -> list[str]:
    listed = value
    if isinstance(value, str):  # of a table, or written by a tool that makes a text of a list
        with suppress(NotAList):
            listed = parse_list(value)
    if not isinstance(listed, list):
        found = "missing" if value is None else _shown(value)
        raise InputError(f"{where}: {name} is {found}; expected a list of texts")
    return [_text(where, f"one of {name}", text, may_be_empty=True) for text in listed]


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
