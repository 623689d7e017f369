"""A table as a page shows it: entries of text, each with a small note behind it. Templates make HTML of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from knowshift.html.table import is_missing

#: Stands for a missing number, and between the ends of an interval.
NONE = "\N{EN DASH}"
TO = "\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A text, the note in small letters behind it, and the style (a class of page.css) of its cell."""

    text: str
    note: str = ""
    style: str = ""


DASH = Entry(NONE)


@dataclass(frozen=True)
class Grid:
    """Caption ("": none), head and rows; ``style`` is a class of page.css. A page leaves out a grid without rows."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    style: str = "numbers"


def texts(values: Iterable[str]) -> list[Entry]:
    """Entries without notes."""
    return [Entry(value) for value in values]


def span(low: Any, high: Any, write: Callable[[float], str]) -> str:
    """The ends of an interval: "7.8…45.5"; empty where there is none."""
    return "" if is_missing(low) or is_missing(high) else f"{write(low)}{TO}{write(high)}"


def number(value: Any, write: Callable[[float], str], low: Any = None, high: Any = None, note: str = "") -> Entry:
    """A number with its interval in small letters, or another note; the missing entry where it is missing."""
    return DASH if is_missing(value) else Entry(write(value), span(low, high, write) or note)
