"""Progress bars: shown in a terminal and in a notebook, not elsewhere, unless the caller says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

#: Hears how much more is done.
Advance = Callable[[float], None]


def is_watched() -> bool:
    """Whether somebody sees what stands on standard error: a terminal or a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or type(shell).__name__ == "ZMQInteractiveShell"


@contextmanager
def bar(what: str, total: float | None, unit: str, shown: bool | None = None) -> Iterator[Advance]:
    """A bar over ``total`` units (None where nobody knows); ``shown`` None means where somebody sees it."""
    hidden = not (is_watched() if shown is None else shown)
    with tqdm(desc=what, total=total, unit=unit, unit_scale=unit == "B", disable=hidden, leave=False) as meter:

        def advance(more: float) -> None:
            meter.update(more)

        yield advance
