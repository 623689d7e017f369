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
from dataclasses import dataclass, field
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


@dataclass
class _Node:
    """A node of the trie of paths."""

    last: set[int] = field(default_factory=set)  # tokens that complete an answer here
    children: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Watch:
    """What a text in some state may do next, by token.

    Attributes:
        tokens: int64 [F], all that matter.
        hits: bool [F], tokens that complete an answer.
        counted: bool [F], those of them whose probability belongs to R here, and not to a path followed from before.
        node: int64 [F], the node of the trie that a token leads to from where this text follows; -1 for none.
    """

    tokens: Ints
    hits: np.ndarray
    counted: np.ndarray
    node: Ints


class Spelling:
    """The automaton of one set of accepted answers, on one tokenizer.

    States are numbers, 0 the empty text's. No method takes a state of a text that holds an answer.
    """

    def __init__(self, pieces: Pieces, answers: Sequence[bytes], paths: Sequence[Sequence[int]]) -> None:
        """``paths``: the usual spellings in tokens of the answers, whole; those of one token say nothing here."""
        self._pieces, self._answers = pieces, sorted(set(answers))
        self._whole = {token for answer in self._answers for token in pieces.holding(answer)}
        self._nodes = [_Node()]
        self._way: list[tuple[int, ...]] = [()]
        for path in sorted({tuple(path) for path in paths if len(path) > 1}):
            self._add(path)
        self._make_distinct()
        self._states: dict[tuple[bytes, tuple[int, ...]], int] = {}
        self._known: list[tuple[bytes, tuple[int, ...]]] = []
        self._next: dict[tuple[int, int], int] = {}
        self._watched: dict[tuple[int, int], Watch] = {}
        self._hits: dict[bytes, set[int]] = {}
        self._number(b"", ())

    def _add(self, path: tuple[int, ...]) -> None:
        """Add a spelling whose tokens before the last spell a beginning of an answer, with a space or without."""
        begun = b"".join(self._pieces.bytes_of[token] for token in path[:-1])
        bare = begun.removeprefix(b" ")
        ends = {
            token
            for answer in self._answers
            if 0 < len(bare) < len(answer) and answer.startswith(bare)
            for token in self._pieces.starting(answer[len(bare) :])
        }
        if path[-1] not in ends or any(answer in begun for answer in self._answers):
            return
        at = 0
        for token in path[:-1]:
            if token not in self._nodes[at].children:
                self._nodes[at].children[token] = len(self._nodes)
                self._nodes.append(_Node())
                self._way.append((*self._way[at], token))
            at = self._nodes[at].children[token]
        self._nodes[at].last |= ends

    def _make_distinct(self) -> None:
        """Let no hit complete two paths: it belongs to the shortest, and to none where one token holds an answer."""
        for number in sorted(range(1, len(self._nodes)), key=lambda n: len(self._way[n])):
            node, way = self._nodes[number], self._way[number]
            node.last -= self._whole
            for other in range(1, len(self._nodes)):
                if len(self._way[other]) < len(way) and way[-len(self._way[other]) :] == self._way[other]:
                    node.last -= self._nodes[other].last
        for node in reversed(self._nodes):  # children have higher numbers
            alive = {token: to for token, to in node.children.items() if self._leads_on(to)}
            node.children = alive

    def _leads_on(self, node: int) -> bool:
        return bool(self._nodes[node].last or self._nodes[node].children)

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
            paths = (self._nodes[node].children.get(token) for node in (0, *within))
            after = self._number(text[len(text) - longest :], tuple(sorted(node for node in paths if node is not None)))
            self._next[state, token] = after
        return after

    def _hits_of(self, end: bytes) -> set[int]:
        """Tokens that complete an answer behind ``end``."""
        if end not in self._hits:
            found = set(self._whole)
            for answer in self._answers:
                for size in range(1, min(len(end), len(answer) - 1) + 1):
                    if end.endswith(answer[:size]):
                        found.update(self._pieces.starting(answer[size:]))
            self._hits[end] = found
        return self._hits[end]

    def watch(self, state: int, node: int = 0) -> Watch:
        """What to watch for in a text of this state; with a ``node``, in a text that only follows the paths from it."""
        key = (state, node)
        if key not in self._watched:
            end, within = self._known[state]
            hits = self._hits_of(end)
            if node:
                counted = self._nodes[node].last
            else:
                counted = hits - {token for other in within for token in self._nodes[other].last}
            onward = {token: to for token, to in self._nodes[node].children.items() if token not in hits}
            relevant = counted if node else hits
            tokens = [*sorted(relevant), *sorted(onward)]
            self._watched[key] = Watch(
                np.array(tokens, dtype=np.int64),
                np.array([token in relevant for token in tokens], dtype=bool),
                np.array([token in counted for token in tokens], dtype=bool),
                np.array([onward.get(token, -1) for token in tokens], dtype=np.int64),
            )
        return self._watched[key]


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
