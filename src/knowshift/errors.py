"""The two ways the project speaks of bad news: an input it refuses, and a warning that a result may mislead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input. The message is one line: the file, the row or tensor, what was found, what was expected.

    The command line turns it into exit status 2; nothing has been written when it is raised.
    """


class KnowshiftWarning(UserWarning):
    """The result stands but may mislead (a high empty-answer rate, a pad token equal to EOS)."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an error line: the nearest valid choice where one is near, and all the choices."""
    choices = sorted(valid)
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f"; nearest: {near[0]!r}" if near else ""
    return f"{hint}; available: {', '.join(choices)}"
