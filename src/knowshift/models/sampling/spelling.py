"""Which next tokens complete an accepted answer, and which begin one: an automaton over the tokens of a text.

A text is a hit as soon as its bytes hold an accepted answer. While it holds none, all that counts for the future is
how much of an answer its end spells already (the state of Aho and Corasick, 1975), and which of the usual spellings
in tokens it is within. The states of one set of answers are made as texts come to them; there are few.

A *path* is a usual spelling of an answer without its last token: the tokenizer's own ids behind a space, or bare.
Answers of one token have none. Paths make a trie; a node of it is known by its number, the root is 0.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from knowshift.models.loading import LoadedModel
from knowshift.models.sampling.cache import Ints

#: Separates tokens where all are searched at once; no answer in UTF-8 holds it.
_BETWEEN = b"\xff"


@dataclass(frozen=True)
class Pieces:
    """The bytes of every usable token, to be searched by what they hold or begin with."""

    bytes_of: Sequence[bytes]
    usable: Sequence[bool]

    @classmethod
    def of(cls, loaded: LoadedModel) -> Pieces | None:
        """None where the tokenizer's texts must be decoded whole."""
        pieces = loaded.pieces
        if pieces is None:
            return None
        stops = set(loaded.stop_ids())
        usable = loaded.vocabulary.usable
        return cls(pieces, [bool(piece) and i in usable and i not in stops for i, piece in enumerate(pieces)])

    @cached_property
    def _sorted(self) -> tuple[list[bytes], list[int]]:
        order = sorted((i for i, used in enumerate(self.usable) if used), key=lambda i: self.bytes_of[i])
        return [self.bytes_of[i] for i in order], order

    @cached_property
    def _joined(self) -> tuple[bytes, list[int], list[int]]:
        used = [i for i, used in enumerate(self.usable) if used]
        ends = np.cumsum([len(self.bytes_of[i]) + 1 for i in used]).tolist()
        return _BETWEEN.join(self.bytes_of[i] for i in used), ends, used

    def starting(self, part: bytes) -> list[int]:
        """Tokens that begin with ``part``, which is not empty."""
        pieces, order = self._sorted
        last = part[:-1] + bytes([part[-1] + 1]) if part[-1] < 255 else part + b"\xff" * 64
        return order[bisect_left(pieces, part) : bisect_left(pieces, last)]

    def holding(self, part: bytes) -> list[int]:
        """Tokens that hold ``part``, which is not empty."""
        text, ends, used = self._joined
        found, at = [], text.find(part)
        while at >= 0:
            which = bisect_right(ends, at)
            found.append(used[which])
            at = text.find(part, ends[which])
        return found


@dataclass(frozen=True)
class Watch:
    """What a text in some state may do next, by token.

    Attributes:
        tokens: int64 [F], all that complete an answer or go on with a usual spelling of one.
        hits: bool [F], which of them complete an answer.
    """

    tokens: Ints
    hits: np.ndarray


class Spelling:
    """The automaton of one set of accepted answers, on one tokenizer.

    States are numbers, 0 the empty text's. No method takes a state of a text that holds an answer.
    """

    def __init__(self, pieces: Pieces, answers: Sequence[bytes], paths: Sequence[Sequence[int]]) -> None:
        """``paths``: the usual spellings in tokens of the answers, whole; those of one token say nothing here."""
        self._pieces, self._answers = pieces, sorted(set(answers))
        self._whole = {token for answer in self._answers for token in pieces.holding(answer)}
        self._onward: list[dict[int, int]] = [{}]  # of each node of the trie, its children by token
        for path in sorted({tuple(path) for path in paths if len(path) > 1}):
            self._add(path)
        self._states: dict[tuple[bytes, tuple[int, ...]], int] = {}
        self._known: list[tuple[bytes, tuple[int, ...]]] = []
        self._next: dict[tuple[int, int], int] = {}
        self._watched: dict[int, Watch] = {}
        self._hits: dict[bytes, set[int]] = {}
        self._number(b"", ())

    def _add(self, path: tuple[int, ...]) -> None:
        """Add a spelling whose tokens before the last spell a beginning of an answer, with a space or without."""
        begun = b"".join(self._pieces.bytes_of[token] for token in path[:-1])
        if path[-1] not in self._hits_behind(begun.removeprefix(b" ")) or any(a in begun for a in self._answers):
            return
        at = 0
        for token in path[:-1]:
            if token not in self._onward[at]:
                self._onward[at][token] = len(self._onward)
                self._onward.append({})
            at = self._onward[at][token]

    def _number(self, end: bytes, within: tuple[int, ...]) -> int:
        key = (end, within)
        if key not in self._states:
            self._states[key] = len(self._known)
            self._known.append(key)
        return self._states[key]

    def step(self, state: int, token: int) -> int:
        """The state after one more token, which completes no answer."""
        after = self._next.get((state, token))
        if after is None:
            end, within = self._known[state]
            text = end + self._pieces.bytes_of[token]
            longest = max((_overlap(text, answer) for answer in self._answers), default=0)
            nodes = (self._onward[node].get(token) for node in (0, *within))
            after = self._number(text[len(text) - longest :], tuple(sorted(node for node in nodes if node is not None)))
            self._next[state, token] = after
        return after

    def _hits_of(self, end: bytes) -> set[int]:
        """Tokens that complete an answer behind ``end``."""
        if end not in self._hits:
            found = set(self._whole)
            for size in range(1, len(end) + 1):
                found |= self._hits_behind(end[len(end) - size :])
            self._hits[end] = found
        return self._hits[end]

    def _hits_behind(self, begun: bytes) -> set[int]:
        """Tokens that complete an answer of which ``begun`` is the beginning, and no less than one byte."""
        return {
            token
            for answer in self._answers
            if 0 < len(begun) < len(answer) and answer.startswith(begun)
            for token in self._pieces.starting(answer[len(begun) :])
        }

    def watch(self, state: int) -> Watch:
        """What to watch for in a text of this state."""
        if state not in self._watched:
            end, within = self._known[state]
            hits = self._hits_of(end)
            onward = {token for node in (0, *within) for token in self._onward[node]} - hits
            self._watched[state] = Watch(
                np.array([*sorted(hits), *sorted(onward)], dtype=np.int64),
                np.repeat([True, False], [len(hits), len(onward)]),
            )
        return self._watched[state]


def spelling_of(loaded: LoadedModel, pieces: Pieces, answers: Sequence[str]) -> Spelling:
    """The automaton of these answers; their usual spellings are the tokenizer's own, behind a space and bare."""
    usable = pieces.usable
    found = [loaded.encoder.behind("is", f" {answer}") for answer in answers]
    found += loaded.encoder.plain(answers)
    paths = [ids for ids in found if ids and all(token < len(usable) and usable[token] for token in ids)]
    return Spelling(pieces, [answer.encode() for answer in answers], paths)


def _overlap(text: bytes, answer: bytes) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of ``answer``."""
    for size in range(min(len(text), len(answer) - 1), 0, -1):
        if text.endswith(answer[:size]):
            return size
    return 0
