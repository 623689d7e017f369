"""Lists in cells of text, as JSON, Python, pandas and NumPy write them; numbers as they were written.

Nothing is evaluated: a cell is JSON, or it is cut into quoted texts and numbers.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from knowshift.errors import InputError
from knowshift.facts.asking import SLOTS

#: For the end of an error line.
_EXPECTED = 'expected a list like ["a", "b"]; a text that is in brackets itself is written ["[a]"]'

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_QUOTED_BY = {"'": r"'(?:[^'\\]|\\.)*'", '"': r'"(?:[^"\\]|\\.)*"'}
_QUOTED = "|".join(_QUOTED_BY.values())
# Brackets and quotes, by the kinds of quotes that are still closed; one that is not closed matches alone.
_BRACKETS = {
    quotes: re.compile("|".join([*(_QUOTED_BY[quote] for quote in quotes), rf"[\[\]{quotes}]"]), re.DOTALL)
    for quotes in ("'\"", "'", '"', "")
}
# A quoted text, a scalar as NumPy 2 writes it, a bracket, a comma, or anything else up to one of these or a blank.
_PART = re.compile(
    rf"\s*(?:np\.(?:str_|u?int\d+|float\d+)\((?P<scalar>{_QUOTED}|[^()'\"]*)\)|(?P<quoted>{_QUOTED})|(?P<mark>[\[\](),])"
    rf"|(?P<bare>[^\s,'\"()\[\]]+|['\"]))",
    re.DOTALL,
)
# Other forms that str() gives a container: without an order, or not read here.
_BRACES = re.compile(r"\{\s*['\"].*\}", re.DOTALL)
_CONTAINER = re.compile(
    r"(?:list|tuple|set|frozenset|array|\w*Index|\w*Series|Categorical|deque|(?:odict|dict)_\w+)\(\s*[\[({'\"].*\)"
    r"|(?:set|frozenset|array|Index|Series|deque|list|tuple)\(.*\)"
    r"|<[\w.]*Array(?: object at \w+)?>\s.*|.*\n[^\n]*\bdtype: \S+",
    re.DOTALL,
)
#: Missing elements as pandas and Python spell them in a column that was converted to text.
NOT_GIVEN = frozenset(("None", "null", "nan", "NaN", "NaT", "<NA>"))


class Number(str):
    """A number from a table, spelled as the table spells it; one without a spelling in its shortest form."""

    __slots__ = ()

    def __repr__(self) -> str:  # in error lines it is no quoted text
        return str(self)


class NotAList(ValueError):
    """A cell in brackets that cannot be read as a list; the message says why."""


def load_json(text: str | bytes) -> Any:
    """:func:`json.loads` with every number as :class:`Number`, so that 5.0 and 1e3 stay what they are."""
    return json.loads(text, parse_int=Number, parse_float=Number)


def plain(value: Any, shortest: Callable[[float], str] = repr) -> Any:
    """A cell without its type: finite numbers as :class:`Number`, whole ones without ".0"; NaN as None; lists likewise.

    pandas turns whole numbers to floats where a cell is missing, so 1990.0 is read as the year 1990.
    ``shortest`` spells a float in the fewest digits that tell it apart.
    """
    if isinstance(value, list):
        return [plain(part, shortest) for part in value]
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return value
    if value != value:
        return None
    if isinstance(value, int):
        return Number(value)
    exact = Decimal(shortest(value)) if isinstance(value, float) else value
    if not exact.is_finite():
        return value
    text = format(exact, "f")
    return Number(re.sub(r"\.0*$", "", text) if isinstance(value, float) else text)


def list_or_text(where: str, name: str, text: str, may_be_list: bool) -> str | list[Any]:
    """A user's cell: a list where its text is one; :class:`InputError` where it seems to be one and cannot be read.

    Where no list is allowed, a name may be in brackets ("[REC]"), but quoted texts in brackets are a list.
    """
    text = _decoded_twice(text)
    if not may_be_list:
        if ("'" in text or '"' in text) and _can_be_read(text):
            raise InputError(f"{where}: {name} is {shown(text)}, a list; expected a text")
        return text
    listed = _is_bracketed(text) or _is_tuple(text)
    if (
        _CONTAINER.fullmatch(text.strip())
        or (_BRACES.fullmatch(text.strip()) and not (name == "prompts" and _is_json_prompt(text)))
        or (not listed and (any(map(_is_bracketed, text.split("|"))) or _goes_on(text)))
    ):
        raise InputError(f"{where}: {name} is {shown(text)}; {_EXPECTED}")
    if not listed:
        return text
    try:
        return parse_list(text)
    except NotAList as reason:
        raise InputError(f"{where}: {name} is {shown(text)}, but {reason}; {_EXPECTED}") from None


def shown(value: object) -> str:
    """A cell in an error line."""
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _decoded_twice(text: str) -> str:
    """The inner text of a list that was written as JSON twice; any other text as it is."""
    if re.match(r'\s*"\s*\[', text):
        try:
            inner = json.loads(text)
        except (ValueError, RecursionError):
            return text
        if isinstance(inner, str) and _is_bracketed(inner):
            return inner
    return text


def _is_bracketed(text: str) -> bool:
    """Whether one pair of brackets encloses the whole text, as in "[a, b]" but not in "[INST] {question} [/INST]"."""
    text = text.strip()
    if not text.startswith("["):
        return False
    end = _closing(text)
    if end is not None:
        return end == len(text)
    return text.endswith("]") or text[1:].lstrip()[:1] in ("'", '"')  # never closed: a list that was cut


def _closing(text: str) -> int | None:
    """Where the first bracket of the text is closed, outside quotes; None where it is not."""
    depth, at = 0, 0
    quotes = "'\""
    while found := _BRACKETS[quotes].search(text, at):
        at = found.end()
        if found[0] in quotes:  # never closed; no later one of its kind is looked for, which would take quadratic time
            quotes = quotes.replace(found[0], "")
        depth += {"[": 1, "]": -1}.get(found[0], 0)
        if depth == 0 and found[0] == "]":
            return at
    return None


def _is_tuple(text: str) -> bool:
    """Whether the text is a tuple as Python writes it, of texts and numbers, so that "(1,500)" is none."""
    text = text.strip()
    if not (text.startswith("(") and text.endswith(")") and "," in text):
        return False
    try:
        parts = _parts(text)
    except NotAList:
        return False
    return not any(isinstance(part, Number) for part in parts) or not re.search(r",(?=[^\s)])", text)


def _can_be_read(text: str) -> bool:
    """Whether the text is a list, and not a name in brackets."""
    if not (_is_bracketed(text) or _is_tuple(text)):
        return False
    try:
        parse_list(text)
    except NotAList:
        return False
    return True


def _goes_on(text: str) -> bool:
    """Whether more stands behind a list of quoted texts: "['a', 'b']\\nLength: 2"."""
    text = text.strip()
    if not re.match(r"\[\s*['\"]", text):
        return False
    end = _closing(text)
    return end is not None and end < len(text) and _can_be_read(text[:end])


def _is_json_prompt(text: str) -> bool:
    """Whether braces are a JSON object with a slot rather than a set of prompts."""
    if not any(slot in text for slot in SLOTS):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def parse_list(text: str) -> list[Any]:
    """The elements of a list in a text: texts, :class:`Number`, and what else JSON can hold.

    Raises:
        NotAList: it is no list of texts and numbers.
    """
    try:
        value = load_json(text)
    except RecursionError:
        raise NotAList("it is nested too deep") from None
    except ValueError:
        if not ((text.strip().endswith("]") and _is_bracketed(text)) or _is_tuple(text)):
            raise NotAList("its brackets do not match") from None
        return _parts(text.strip())
    if not isinstance(value, list):
        raise NotAList("it is no list")
    return [plain(part) for part in value]


def _parts(text: str) -> list[Any]:
    """Elements of a list or tuple that is no JSON: all with commas between them (Python), or all without (NumPy)."""
    shape = ""
    parts: list[Any] = []
    for found in _PART.finditer(text[1:-1].rstrip()):
        mark, scalar, quoted, bare = found.group("mark", "scalar", "quoted", "bare")
        if mark and mark != ",":
            raise NotAList("it holds a list")
        if not mark:
            told = next(part for part in (scalar, quoted, bare) if part is not None)
            parts.append(_unquoted(told) if told[:1] in ("'", '"') and told[1:] else _bare(told))
        shape += "," if mark else " x" if found[0][0].isspace() else "x"
    if not re.fullmatch(r" ?x(?: x)*|(?: ?x,)+(?: ?x)?", shape):
        raise NotAList("its commas and elements do not alternate")
    return parts


def _bare(word: str) -> Number:
    if word == "...":
        raise NotAList("its middle was left out when it was written")
    if word in NOT_GIVEN:
        raise NotAList(f"{word} stands for a missing element")
    if not _NUMBER.fullmatch(word):
        raise NotAList(f"{word[:40]} is neither a quoted text nor a number")
    return Number(word.removesuffix("."))  # NumPy's whole floats: 1990.


def _unquoted(text: str) -> str:
    if "\\" not in text:
        return text[1:-1]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an escape that Python does not know
            return str(ast.literal_eval(text))
    except (SyntaxError, ValueError, Warning):
        raise NotAList(f"{text[:40]} has an escape that cannot be read") from None
