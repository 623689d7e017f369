"""Checks on texts and lines of untrusted files: they can be encoded as UTF-8, and their length is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from knowshift.errors import InputError

#: The largest row of a file, in bytes; the largest of real ones, with pages of search results, have some ten thousand.
LARGEST_ROW = 16 << 20


def encodable(text: str) -> bool:
    r"""False for a text with half of a surrogate pair, which JSON can spell ("\ud83d") and no UTF-8 file can hold."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def lines_of(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file that are not blank, with their places ("line 3"); too long a one is an InputError."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LARGEST_ROW + 1):
            number += 1
            if len(line) > LARGEST_ROW:
                raise InputError(f"{path}: line {number}: longer than {LARGEST_ROW} bytes; expected one row")
            if line.strip():
                yield f"line {number}", line
