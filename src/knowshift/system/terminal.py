"""The one kind of console: what it is given to print is shown as it is, and cannot steer the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from knowshift.errors import inert


class Terminal(Console):
    """A console of rich for texts of users, files, servers and models: paths, names of tensors and relations.

    rich takes square brackets for markup (a path with ``[/y]`` raises), ``:name:`` for an emoji, and passes escape
    sequences on. Here every text, also one in a table, loses the sequences and keeps the rest letter by letter.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(inert(text), **{**options, "markup": False, "emoji": False})
