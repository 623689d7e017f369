"""One level of the prefix tree on its way down: its nodes, the texts and draws at them, and the cache they share."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
from transformers import DynamicCache

from knowshift.models.sampling.cache import ROOM, Ints, append_rows, continue_rows, pick_rows

Text = TypeVar("Text")


@dataclass
class Front(Generic[Text]):
    """The nodes about to be computed, all of them ``depth`` tokens below the root.

    A node is a prefix of prompts being read, or one text of one prompt, or both at once never.
    Shapes: N nodes, R prompts being read, T texts, D draws.
    """

    depth: int
    cache: DynamicCache
    parents: Ints  # [N] the cache row each node continues
    tokens: Ints  # [N] the token it adds
    reading: Ints  # [R] prompts not read to their end yet
    reading_node: Ints  # [R] the node each has reached
    texts: list[Text]  # T of them
    text_node: Ints  # [T]
    prompt: Ints  # [D]
    number: Ints  # [D] which of its prompt's draws
    text: Ints  # [D] which of the texts
    borrowed: bool = False  # whether the cache is another's, to be read only

    @property
    def nodes(self) -> int:
        return len(self.tokens)

    def settle(self) -> None:
        """Let the cache have one row for each node, in the nodes' order; nodes may be renumbered."""
        if not self.depth:
            return
        row = continue_rows(self.cache, self.parents)
        tokens = np.empty_like(self.tokens)
        tokens[row] = self.tokens
        self.tokens, self.parents = tokens, np.arange(self.nodes)
        self.reading_node, self.text_node = row[self.reading_node], row[self.text_node]

    def part(self, start: int, end: int) -> Front[Text]:
        """The texts from ``start`` to ``end`` as a front of their own, with its own cache. No prompt is being read."""
        mine = self._only(start, end)
        rows = mine.parents
        return replace(mine, cache=pick_rows(self.cache, rows, ROOM), parents=np.arange(len(rows)), borrowed=False)

    def parts(self, size: int) -> list[Front[Text]]:
        """Fronts of at most ``size`` nodes. The texts of a prompt stay together, if they are not more than that.

        The first goes on with this one's cache, if that is its own, and takes this one's place.
        """
        prompt_T = np.empty(len(self.texts), dtype=np.int64)
        prompt_T[self.text] = self.prompt
        (_, first), *others = itertools.pairwise(edges_of_parts(prompt_T, size))
        rest = [self.part(start, end) for start, end in others]
        return [self.part(0, first) if self.borrowed else self._only(0, first), *rest]

    def _only(self, start: int, end: int) -> Front[Text]:
        """The texts from ``start`` to ``end`` as a front with the same cache. No prompt is being read."""
        assert not len(self.reading)
        nodes = self.text_node[start:end]
        mine = (self.text >= start) & (self.text < end)
        return replace(
            self,
            parents=self.parents[nodes],
            tokens=self.tokens[nodes],
            texts=self.texts[start:end],
            text_node=np.arange(len(nodes)),
            prompt=self.prompt[mine],
            number=self.number[mine],
            text=self.text[mine] - start,
        )

    def join(self, other: Front[Text]) -> None:
        """Take in a front of the same depth that reads no prompt."""
        assert self.depth == other.depth
        assert not len(other.reading)
        self.settle()
        append_rows(self.cache, other.cache, other.parents[other.text_node])
        nodes, texts = self.nodes, len(self.texts)
        self.parents = np.arange(nodes + other.nodes)
        self.tokens = np.concatenate([self.tokens, other.tokens[other.text_node]])
        self.texts = self.texts + other.texts
        self.text_node = np.concatenate([self.text_node, nodes + np.arange(other.nodes)])
        self.prompt = np.concatenate([self.prompt, other.prompt])
        self.number = np.concatenate([self.number, other.number])
        self.text = np.concatenate([self.text, other.text + texts])


def first_front(cache: DynamicCache, prompts: Ints, ids: Ints, depth: int) -> Front[Any]:
    """The tokens at ``depth`` of prompts that are sorted by their ids [prompts, longest], and alike before that."""
    starts, node = distinct_runs(ids[:, : depth + 1])
    none = np.empty(0, dtype=np.int64)
    parents = np.zeros(len(starts), dtype=np.int64) if depth else np.arange(len(starts))
    return Front(depth, cache, parents, ids[starts, depth], prompts, node, [], none, none, none, none)


def shared_tokens(ids: Ints, shortest: int) -> int:
    """How many tokens all rows [prompts, longest] begin with, of the first ``shortest``."""
    differs = (ids[:, :shortest] != ids[0, :shortest]).any(axis=0)
    return int(differs.argmax()) if differs.any() else shortest


def edges_of_parts(of_T: Ints, size: int) -> list[int]:
    """Where parts of at most ``size`` elements begin, and the end; equal neighbours part only if they are more."""
    edges = [0]
    starts, _ = distinct_runs(of_T[:, None])
    for start, end in itertools.pairwise([*starts.tolist(), len(of_T)]):
        if end - edges[-1] > size and start > edges[-1]:
            edges.append(start)
        while end - edges[-1] > size:
            edges.append(edges[-1] + size)
    return [*edges, len(of_T)]


def distinct_runs(rows: Ints) -> tuple[Ints, Ints]:
    """Runs of equal rows: where each starts, and the run every row lies in."""
    starts = np.r_[len(rows) > 0, (rows[1:] != rows[:-1]).any(axis=1)][: len(rows)]
    return np.flatnonzero(starts), np.cumsum(starts) - 1
