"""The prefix tree: many continuations of many prompts, each distinct prefix computed once.

Prompts that begin alike and draws that begin alike are the same thing, branches of one tree, so both are handled by
one walk: a *node* is a distinct prefix; going down one level is one forward pass of one token over the nodes of that
level, whose keys and values lie in a cache with one row a node. All nodes of a level have the same length, so nothing
is ever padded or masked. A node that lies within prompts only is *read*: no distribution is computed for it.

Batches: prompts are sorted by their tokens and taken in groups. When the last few texts of a group are still running,
they are set aside and join the next group when it comes to their length, so that no forward pass is nearly empty.
When a level has more nodes than fit, the rest is set aside likewise. What a text becomes depends on none of this
but for the rounding of float arithmetic (see :mod:`knowshift.models.streams`).

Shapes: N nodes of a level, K of them with a distribution, D draws under way, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from knowshift.models.cache import append_rows, can_append, pick_rows, tree_cache
from knowshift.models.linear import fast_linears
from knowshift.models.loading import LoadedModel

Ints = NDArray[np.int64]
Text = TypeVar("Text")

#: Texts still running, below which they are set aside for the next group.
FEW = 96

#: (logits [K, V], row of each draw [D], its prompt [D], its number [D], its step [D]) -> its next token [D]
Choose = Callable[[torch.Tensor, Ints, Ints, Ints, Ints], Ints]


@dataclass
class _Front(Generic[Text]):
    """The nodes about to be computed, all of them ``depth`` tokens below the root.

    The first ``len(nodes) - len(texts)`` of them are prefixes of prompts; each of the others is a sampled text.
    """

    depth: int
    cache: DynamicCache
    parents: Ints  # [N] the cache row each node continues
    tokens: Ints  # [N] the token it adds
    reading: Ints  # prompts not read to their end yet
    reading_node: Ints  # and the node each has reached
    texts: list[Text]
    prompt: Ints  # [D]
    number: Ints  # [D] which of its prompt's draws
    node: Ints  # [D]

    def nothing_left(self) -> bool:
        return len(self.tokens) == 0


@dataclass
class Walk(Generic[Text]):
    """One run of the tree over many prompts; :meth:`run` calls ``ended`` once for every text that ends.

    Args:
        prompts: token ids, none empty.
        choose: picks the next token of every draw.
        grow: the text after one more token.
        over: whether a text of this prompt needs no more tokens.
        ended: takes (prompt, draw numbers, text, how): "over", "stop" (a stop id) or "length".
    """

    loaded: LoadedModel
    prompts: Sequence[Sequence[int]]
    choose: Choose
    grow: Callable[[Text, int], Text]
    over: Callable[[int, Text], bool]
    ended: Callable[[int, Ints, Text, str], None]
    empty: Text
    max_new_tokens: int
    stop_ids: Sequence[int]
    max_nodes: int
    few: int = FEW
    positions: int = 0  # token positions computed so far

    def run(self, numbers: Sequence[Ints], group_done: Callable[[int], None] = lambda count: None) -> None:
        """Follow the draws ``numbers[p]`` of every prompt p to their ends; ``group_done`` hears of prompts begun."""
        self._numbers = numbers
        self._lengths = np.array([len(ids) for ids in self.prompts], dtype=np.int64)
        if not len(self._lengths):
            return
        self._ids = np.full((len(self.prompts), int(self._lengths.max())), -1, dtype=np.int64)
        for row, ids in zip(self._ids, self.prompts, strict=True):
            row[: len(ids)] = ids
        self._aside: dict[int, list[_Front[Text]]] = {}
        order = np.lexsort(self._ids.T[::-1])
        size = max(1, self.max_nodes // 2)
        with torch.inference_mode(), fast_linears(self.loaded.model):
            for start in range(0, len(order), size):
                group = order[start : start + size]
                self._follow(self._first(group), last=start + size >= len(order))
                group_done(len(group))
                while self._waiting() > self.max_nodes:
                    self._follow(self._take(max(self._aside)), last=False)
            while self._aside:
                self._follow(self._take(min(self._aside)), last=True)

    # -- one group --------------------------------------------------------------------------------------------

    def _first(self, group: Ints) -> _Front[Text]:
        starts, node = _distinct(self._ids[group, :1])
        none = np.empty(0, dtype=np.int64)
        first = self._ids[group[starts], 0]
        cache = tree_cache(self.loaded.model.config)
        return _Front(0, cache, np.arange(len(first)), first, group, node, [], none, none, none)

    def _follow(self, front: _Front[Text], last: bool) -> None:
        """Take a front down until nothing is left of it, or little enough to be set aside."""
        while not front.nothing_left():
            for other in self._aside.pop(front.depth, []):
                if len(front.tokens) + len(other.tokens) <= self.max_nodes and can_append(front.cache):
                    front = _joined(front, other)
                else:
                    self._set_aside(other)
            if len(front.tokens) > self.max_nodes and not len(front.reading):
                for part in _parts(front, self.max_nodes)[1:]:
                    self._set_aside(part)
                front = _parts(front, self.max_nodes)[0]
            small = len(front.tokens) < self.few and not len(front.reading) and can_append(front.cache)
            if small and not last:
                self._set_aside(_compact(front))
                return
            front = self._step(front)

    def _set_aside(self, front: _Front[Text]) -> None:
        self._aside.setdefault(front.depth, []).append(front)

    def _take(self, depth: int) -> _Front[Text]:
        fronts = self._aside[depth]
        front = fronts.pop()
        if not fronts:
            del self._aside[depth]
        return front

    def _waiting(self) -> int:
        return sum(len(front.tokens) for fronts in self._aside.values() for front in fronts)

    # -- one level --------------------------------------------------------------------------------------------

    def _step(self, front: _Front[Text]) -> _Front[Text]:
        here = front.depth + 1  # tokens read so far, this level's included
        nodes, sampled = len(front.tokens), len(front.texts)
        read = nodes - sampled
        finished = self._lengths[front.reading] == here
        new_prompts, new_nodes = front.reading[finished], front.reading_node[finished]
        wanted_read = np.unique(new_nodes)
        wanted = np.concatenate([wanted_read, np.arange(read, nodes)])
        cache, logits_KV = self._forward(front, wanted)

        # Every draw: those that begin here and those under way. `origin` tells texts apart: a prompt that has just
        # been read, or a sampled node (which belongs to one prompt).
        counts = np.array([len(self._numbers[p]) for p in new_prompts], dtype=np.int64)
        prompt = np.concatenate([np.repeat(new_prompts, counts), front.prompt])
        number = np.concatenate([*(self._numbers[p] for p in new_prompts), front.number])
        begin = np.repeat(np.arange(len(new_prompts)), counts)
        origin = np.concatenate([begin, len(new_prompts) + front.node - read])
        begin_row = np.searchsorted(wanted_read, new_nodes)[begin]
        row = np.concatenate([begin_row, len(wanted_read) + front.node - read])
        if len(row):
            step = here - self._lengths[prompt]
            token = self.choose(logits_KV, row, prompt, number, step)
        else:
            token = np.empty(0, dtype=np.int64)
        texts = [self.empty] * len(new_prompts) + front.texts
        parent = np.concatenate([new_nodes, np.arange(read, nodes)])
        alive = self._children(prompt, number, origin, token, texts, parent, here)
        return self._next(front, cache, ~finished, alive)

    def _forward(self, front: _Front[Text], wanted: Ints) -> tuple[DynamicCache, torch.Tensor]:
        """One token for every node; logits [K, V] of the wanted nodes only."""
        device = self.loaded.model.device
        cache = front.cache
        if front.depth and not _in_place(front.parents, front.cache):
            cache = pick_rows(cache, torch.from_numpy(front.parents).to(device))
        rows = torch.from_numpy(wanted if len(wanted) else np.zeros(1, dtype=np.int64)).to(device)
        tokens = torch.from_numpy(front.tokens).to(device)[:, None]
        with _head_on_rows(self.loaded.model, rows):
            out = self.loaded.model(input_ids=tokens, past_key_values=cache, use_cache=True)
        self.positions += len(front.tokens)
        logits = out.logits[:, -1]
        if len(logits) != len(rows):
            logits = logits.index_select(0, rows)
        return out.past_key_values, logits

    def _children(
        self, prompt: Ints, number: Ints, origin: Ints, token: Ints, texts: list[Text], parent: Ints, here: int
    ) -> tuple[Ints, Ints, list[Text], Ints, Ints, Ints]:
        """Split every text by its draws' tokens; report what ends; return what goes on.

        Returns parents and tokens of the new nodes, their texts, and prompt, number and node of the draws.
        """
        if not len(token):
            none = np.empty(0, dtype=np.int64)
            return none, none, [], none, none, none
        width = int(token.max()) + 1
        code = origin * width + token
        order = np.argsort(code, kind="stable")
        code = code[order]
        starts = np.flatnonzero(np.r_[True, code[1:] != code[:-1]])
        ends = np.r_[starts[1:], len(code)]
        first = order[starts]
        stops = np.isin(token[first], self.stop_ids).tolist()
        long = (here - self._lengths[prompt[first]] + 1 >= self.max_new_tokens).tolist()
        kept: list[int] = []
        new_texts: list[Text] = []
        grow, over = self.grow, self.over
        origins, tokens, prompts = origin[first].tolist(), token[first].tolist(), prompt[first].tolist()
        for child, (its_origin, its_token, its_prompt) in enumerate(zip(origins, tokens, prompts, strict=True)):
            text = texts[its_origin]
            if stops[child]:
                how = "stop"
            else:
                text = grow(text, its_token)
                if over(its_prompt, text):
                    how = "over"
                elif long[child]:
                    how = "length"
                else:
                    kept.append(child)
                    new_texts.append(text)
                    continue
            self.ended(its_prompt, number[order[starts[child] : ends[child]]], text, how)
        chosen = np.array(kept, dtype=np.int64)
        sizes = (ends - starts)[chosen]
        mask = np.zeros(len(starts), dtype=bool)
        mask[chosen] = True
        draws = order[np.repeat(mask, ends - starts)]
        node = np.repeat(np.arange(len(chosen)), sizes)
        return parent[origin[first[chosen]]], token[first[chosen]], new_texts, prompt[draws], number[draws], node

    def _next(
        self, front: _Front[Text], cache: DynamicCache, unread: NDArray[np.bool_], alive: tuple[Any, ...]
    ) -> _Front[Text]:
        parents, tokens, texts, prompt, number, node = alive
        reading, at = front.reading[unread], front.reading_node[unread]
        depth = front.depth + 1
        if len(reading):
            starts, reading_node = _distinct(np.stack([at, self._ids[reading, depth]], axis=1))
            parents = np.concatenate([at[starts], parents])
            tokens = np.concatenate([self._ids[reading[starts], depth], tokens])
            node = node + len(starts)
        else:
            reading_node = at
        return _Front(depth, cache, parents, tokens, reading, reading_node, texts, prompt, number, node)


def _distinct(rows: Ints) -> tuple[Ints, Ints]:
    """Runs of equal rows: where each starts, and the run every row lies in."""
    starts = np.r_[True, (rows[1:] != rows[:-1]).any(axis=1)]
    return np.flatnonzero(starts), np.cumsum(starts) - 1


def _in_place(parents: Ints, cache: DynamicCache) -> bool:
    """Whether the nodes continue the cache's rows one by one, so that nothing needs to be moved."""
    rows = cache.layers[0].keys.shape[0]
    return len(parents) == rows and bool((parents == np.arange(rows)).all())


def _compact(front: _Front[Text]) -> _Front[Text]:
    """The same front with a cache of its own rows only."""
    rows = torch.from_numpy(front.parents).to(front.cache.layers[0].keys.device)
    cache = pick_rows(front.cache, rows)
    return _Front(
        front.depth,
        cache,
        np.arange(len(front.parents)),
        front.tokens,
        front.reading,
        front.reading_node,
        front.texts,
        front.prompt,
        front.number,
        front.node,
    )


def _parts(front: _Front[Text], size: int) -> list[_Front[Text]]:
    """Cut a front that reads no prompt into fronts of at most ``size`` nodes, each with its own cache."""
    parts = []
    for start in range(0, len(front.tokens), size):
        end = min(start + size, len(front.tokens))
        mine = (front.node >= start) & (front.node < end)
        parts.append(
            _compact(
                _Front(
                    front.depth,
                    front.cache,
                    front.parents[start:end],
                    front.tokens[start:end],
                    front.reading,
                    front.reading_node,
                    front.texts[start:end],
                    front.prompt[mine],
                    front.number[mine],
                    front.node[mine] - start,
                )
            )
        )
    return parts


def _joined(front: _Front[Text], other: _Front[Text]) -> _Front[Text]:
    """Both fronts as one; ``other`` reads no prompt and its cache has its own rows only."""
    front = _compact(front)
    append_rows(front.cache, other.cache)
    nodes = len(front.tokens)
    return _Front(
        front.depth,
        front.cache,
        np.concatenate([front.parents, other.parents + nodes]),
        np.concatenate([front.tokens, other.tokens]),
        front.reading,
        front.reading_node,
        front.texts + other.texts,
        np.concatenate([front.prompt, other.prompt]),
        np.concatenate([front.number, other.number]),
        np.concatenate([front.node, other.node + nodes]),
    )


@contextmanager
def _head_on_rows(model: Any, rows: torch.Tensor) -> Iterator[None]:
    """Within the block, the output head sees these rows of the hidden states only, whatever the head consists of."""

    def narrow(module: Any, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0].index_select(0, rows), *output[1:])
        output.last_hidden_state = output.last_hidden_state.index_select(0, rows)
        return output

    inner = model.base_model
    if inner is model:
        yield
        return
    handle = inner.register_forward_hook(narrow)
    try:
        yield
    finally:
        handle.remove()
