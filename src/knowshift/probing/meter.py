"""How far a measurement has come, while its parts are under way in this process or in others."""

from __future__ import annotations

from collections.abc import Callable

from knowshift.system.workers import Tally

#: (facts done, facts in all, token positions computed in this run)
Progress = Callable[[int, int, int], None]


class Meter:
    """What is done, told whenever it is more: facts of finished parts, or as many as the prompts begun come to."""

    def __init__(self, progress: Progress, done: int, total: int, prompts: int) -> None:
        """``done`` of ``total`` facts are recorded already; ``prompts`` are those of the others."""
        self._own = (0, 0)  # prompts begun and token positions, in this process
        self._tally: Tally | None = None  # in workers
        self._progress, self._before, self._done, self._told, self._total = progress, done, done, done, total
        self._facts_of_prompt = (total - done) / max(prompts, 1)

    def follow(self, tally: Tally) -> None:
        """From now on count what workers add to it: prompts begun and token positions."""
        self._tally = tally

    def finished(self, done: int) -> None:
        """So many facts are recorded."""
        self._done = done
        self.look()

    def look(self) -> None:
        """Tell what all processes have done since."""
        begun, positions = self._own if self._tally is None else self._tally.read()
        # The last facts begun are not done; a run is over when its parts are.
        now = max(self._done, min(self._before + int(begun * self._facts_of_prompt), self._total - 1), self._told)
        if now > self._told:
            self._told = now
            self._progress(now, self._total, positions)

    def tell(self, prompts: int, positions: int) -> None:
        """From this process: more prompts begun, more positions computed."""
        self._own = (self._own[0] + prompts, self._own[1] + positions)
        self.look()
