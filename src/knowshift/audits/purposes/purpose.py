"""What the search for a repair asks of a purpose, and several purposes as one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from knowshift.models.loading import LoadedModel

Floats = NDArray[np.float64]

#: Of questions and tasks, the share that a repair may lose.
SUFFER = 0.02
#: How often each item is asked in a short search: of the base, of the tuned model, and halves of them for the repairs
#: that are tried first and for the one that is confirmed.
ASKED = 5.5
#: Share of a search's time that they may take; the rest is for facts.
SHARE = 0.5
#: Items by which their pace is measured, and items that are asked whatever the time.
PROBED, FEWEST = 16, 40


class Purpose(Protocol):
    """Items that a model does well or not."""

    @property
    def name(self) -> str:
        """What pages call it."""

    @property
    def suffer(self) -> float:
        """How much of it a repair may lose, in units of the scores that the search makes."""

    @property
    def is_text(self) -> bool:
        """Whether scores are nats; the search then counts the share of what the tuning has gained."""

    @property
    def texts(self) -> Sequence[str]:
        """Of each item the text whose hash says in which half it is."""

    def __len__(self) -> int:
        """How many items there are."""

    def scores(self, loaded: LoadedModel, which: Sequence[int]) -> Floats:
        """Of these items, float64 [items]: 0 to 1, or nats a token."""


def in_time(purpose: Purpose, loaded: LoadedModel, seed: int, ends: float) -> Purpose:
    """As much of it as a search that ends at a time of :func:`time.monotonic` can ask: a seeded choice of its items."""
    order = np.random.default_rng([seed, 24]).permutation(len(purpose))
    began = time.monotonic()
    purpose.scores(loaded, order[:PROBED].tolist())
    now = time.monotonic()
    fit = SHARE * (ends - now) / (ASKED * (now - began) / min(PROBED, len(purpose)))
    if fit >= len(purpose):
        return purpose
    return Some(purpose, tuple(sorted(order[: max(FEWEST, int(fit))].tolist())))


def dealt(which: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[NDArray[np.int64], list[int]]]:
    """Items of several parts, one after the other, by part.

    Args:
        which: numbers of items in the whole.
        sizes: how many items each part has.

    Yields:
        For each part, the places in ``which`` of those that are its own, and their numbers in it.
    """
    asked = np.asarray(which, dtype=np.int64)
    start = 0
    for size in sizes:
        mine = np.flatnonzero((asked >= start) & (asked < start + size))
        yield mine, (asked[mine] - start).tolist()
        start += size


@dataclass(frozen=True)
class Described:
    """What is said of a purpose once all is scored; attributes as :class:`Purpose` has them."""

    name: str
    suffer: float
    is_text: bool
    items: int

    @classmethod
    def of(cls, purpose: Purpose) -> Described:
        return cls(purpose.name, purpose.suffer, purpose.is_text, len(purpose))


@dataclass(frozen=True)
class Some:
    """Some of the items of a purpose, by their numbers in it."""

    whole: Purpose
    places: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.whole.name

    @property
    def suffer(self) -> float:
        return self.whole.suffer

    @property
    def is_text(self) -> bool:
        return self.whole.is_text

    @property
    def texts(self) -> Sequence[str]:
        every = self.whole.texts
        return [every[place] for place in self.places]

    def __len__(self) -> int:
        return len(self.places)

    def scores(self, loaded: LoadedModel, which: Sequence[int]) -> Floats:
        """As the whole scores them."""
        return self.whole.scores(loaded, [self.places[number] for number in which])


@dataclass(frozen=True)
class Together:
    """The items of several purposes, one after the other; none of them a text."""

    parts: tuple[Purpose, ...]

    def __post_init__(self) -> None:
        assert not any(part.is_text for part in self.parts)

    @property
    def name(self) -> str:
        return " and ".join(part.name for part in self.parts)

    @property
    def suffer(self) -> float:
        return SUFFER

    @property
    def is_text(self) -> bool:
        return False

    @property
    def texts(self) -> Sequence[str]:
        return [text for part in self.parts for text in part.texts]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def scores(self, loaded: LoadedModel, which: Sequence[int]) -> Floats:
        """Of these items, float64 [items], 0 to 1."""
        found = np.zeros(len(which))
        for part, (places, own) in zip(self.parts, dealt(which, [len(part) for part in self.parts]), strict=True):
            found[places] = part.scores(loaded, own)
        return found
