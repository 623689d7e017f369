"""A base and a tuned model where there is room for one: asking for one of them lets go of the other."""

from __future__ import annotations

import gc
from collections.abc import Callable

from knowshift.models.loading import LoadedModel
from knowshift.system.allocator import give_back

Opener = Callable[[], LoadedModel]


class Turns:
    """The two models, each loaded when it is asked for and not in memory; nobody else may keep one.

    The order in which a caller asks decides how often a model is loaded.
    """

    def __init__(self, base: Opener, tuned: Opener) -> None:
        self._openers = {"base": base, "tuned": tuned}
        self._held: tuple[str, LoadedModel] | None = None

    @property
    def base(self) -> LoadedModel:
        return self._of("base")

    @property
    def tuned(self) -> LoadedModel:
        return self._of("tuned")

    def close(self) -> None:
        """Let go of the one that is in memory."""
        if self._held is not None:
            self._held = None
            gc.collect()  # a model in a reference cycle stays until Python looks for one
            give_back()

    def _of(self, name: str) -> LoadedModel:
        if self._held is None or self._held[0] != name:
            self.close()
            self._held = name, self._openers[name]()
        return self._held[1]
