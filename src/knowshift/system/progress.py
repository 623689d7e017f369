"""Progress bars: shown in a terminal and in a notebook, not elsewhere, unless the caller says."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from tqdm import tqdm

#: Hears how much more is done.
Advance = Callable[[float], None]
#: Whether a bar is shown (None: where somebody sees it), or what takes lines for a log instead.
Shown = bool | Callable[[str], None] | None
#: Seconds until the first line of a log, and between two later ones.
FIRST_LINE, LINES = 5.0, 30.0
#: Units whose pace tells a time left, at least.
TELLING = 5


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


def say(line: str, shown: Shown = None) -> None:
    """A line of text, where a bar or lines for a log are shown."""
    if callable(shown):
        shown(line)
    elif is_watched() if shown is None else shown:
        tqdm.write(line, file=sys.stderr)


class Count(Protocol):
    """What a count of things is told: how many are done of how many, and a note on the pace."""

    def __call__(self, done: int, note: str = "") -> None: ...


@contextmanager
def count(what: str, total: int, unit: str, shown: Shown = None) -> Iterator[Count]:
    """A bar, or lines for a log, over ``total`` units. The first call says what was done before; it sets no pace."""
    if callable(shown):
        yield _Lines(what, total, unit, shown)
        return
    hidden = not (is_watched() if shown is None else shown)
    with tqdm(desc=what, total=total, unit=unit, disable=hidden, leave=False) as meter:
        begun = False

        def tell(done: int, note: str = "") -> None:
            nonlocal begun
            if not begun:
                begun = True
                meter.reset(total)
                meter.initial = meter.n = meter.last_print_n = done
            meter.set_postfix_str(note, refresh=False)
            meter.update(done - meter.n)

        yield tell


class _Lines:
    """A line soon after the beginning, and then one now and again, with the time left at the pace so far."""

    def __init__(self, what: str, total: int, unit: str, write: Callable[[str], None]) -> None:
        self._what, self._total, self._unit, self._write = what, total, unit, write
        self._before: int | None = None
        self._began = self._next = time.monotonic()

    def __call__(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if self._before is None:
            self._before, self._began, self._next = done, now, now + FIRST_LINE
        if now < self._next or not self._before < done < self._total:
            return
        self._next = now + LINES
        left = (now - self._began) / (done - self._before) * (self._total - done)
        pace = f", {note}" if note else ""
        told = f", about {duration(left)} left" if done - self._before >= TELLING else ""
        self._write(f"{self._what}: {done} of {self._total} {self._unit}s{pace}{told}")


def duration(seconds: float) -> str:
    """Seconds below two minutes, then minutes, then hours and minutes."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
