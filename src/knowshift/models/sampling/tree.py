"""The prefix tree: many continuations of many prompts, each distinct prefix computed once.

Prompts that begin alike and draws that begin alike are the same thing, branches of one tree, so both are handled by
one walk: a *node* is a distinct prefix; going down one level is one forward pass of one token over the nodes of that
level, whose keys and values lie in a cache with one row a node. All nodes of a level have the same length, so nothing
is ever padded or masked. What all prompts begin with is one path, and read in one pass; where it is long, as examples
before every question are, rows do not repeat it. Where a node lies within prompts only, no distribution is computed.

Batches: prompts are sorted by their tokens and taken in groups. When the last few texts of a group are still running,
they are set aside and join the next group when it comes to their length, so that no forward pass is nearly empty.
When a level has more nodes than fit, the rest is set aside likewise. What a text becomes depends on none of this
but for the rounding of float arithmetic (see :mod:`knowshift.models.sampling.philox`).

Shapes: N nodes of a level, K of them with a distribution, D draws under way, V vocabulary (the ids that the model can
give: rows of the output head that no token has take no part).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic

import numpy as np
import torch
from transformers import DynamicCache

from knowshift.errors import InputError
from knowshift.models.layers.attention import LONG, NAME, USUAL, Prefix
from knowshift.models.layers.llama import Layers, whole_layers
from knowshift.models.loading import LoadedModel
from knowshift.models.sampling.cache import Arena, Ints, all_plain, can_append, pick_rows, prefix_of, tree_cache
from knowshift.models.sampling.frontier import Front, Text, distinct_runs, first_front, shared_tokens
from knowshift.models.sampling.pages import NotByNodes, Pool, check_by_nodes
from knowshift.system import patches

#: Texts still running, below which they are set aside for the next group.
FEW = 64
#: Tokens that all prompts begin with, from which on they are held once and not in every row.
LONG_PREFIX = 16


@dataclass(frozen=True)
class Chosen:
    """What draws choose: a next token each, and draws that branch off to another token.

    Attributes:
        token: int64 [D]; -1 ends a draw without a word.
        of: int64 [E], the draw that each new one branches off from.
        number: int64 [E], the new one's number.
        branch: int64 [E], the new one's token.
    """

    token: Ints
    of: Ints
    number: Ints
    branch: Ints


#: (logits [K, V], row of each draw [D], its prompt [D], its number [D], its step [D]) -> its next token [D]
Choose = Callable[[torch.Tensor, Ints, Ints, Ints, Ints], Ints | Chosen]


@dataclass(frozen=True)
class _Leaves:
    """Prompts of one length that have been read: one cache row and one row of logits for each."""

    length: int
    prompts: Ints
    cache: DynamicCache
    logits: torch.Tensor  # [prompts, V]


@dataclass
class Walk(Generic[Text]):
    """One run of the tree over many prompts; :meth:`run` calls ``ended`` once for every text that ends.

    Args:
        prompts: token ids, none empty.
        choose: picks the next token of every draw.
        grow: the text after one more token.
        over: whether a text of this prompt needs no more tokens.
        ended: takes (prompt, draw numbers, text, how): "over", "stop" (a stop id) or "length".
        empty: the text of no tokens.
        stop_ids: tokens that end a text and are not part of it.
        max_nodes: nodes of one level computed at once; more wait.
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
    keep: bool = False  # whether prompts stay read after :meth:`run`, so that :meth:`again` can draw more
    few: int = FEW
    positions: int = 0  # token positions computed so far
    _aside: dict[int, list[Front[Text]]] = field(default_factory=dict)
    _leaves: list[_Leaves] = field(default_factory=list)
    _prefix: list[Prefix] | None = None  # of each layer
    _layers: Layers = field(default_factory=Layers)
    _drawing: bool = False  # whether a text has got a token

    def run(self, numbers: Sequence[Ints], begun: Callable[[int], None] = lambda count: None) -> None:
        """Follow the draws ``numbers[p]`` of every prompt p to their ends; ``begun`` hears of prompts begun."""
        if not len(self.prompts):
            return
        self._numbers = numbers
        self._lengths = np.array([len(ids) for ids in self.prompts], dtype=np.int64)
        self._ids = np.full((len(self.prompts), int(self._lengths.max())), -1, dtype=np.int64)
        for row, ids in zip(self._ids, self.prompts, strict=True):
            row[: len(ids)] = ids
        order = np.lexsort(self._ids.T[::-1])
        common, model = held_once(self.loaded, self.prompts), self.loaded.model
        with torch.inference_mode(), patches.attention(model, USUAL, NAME), whole_layers(model) as self._layers:
            held = self._hold(common)
            length = int(self._lengths.max()) + self.max_new_tokens - held
            if not self._by_nodes(order, length, begun):
                self._all(order, Arena(self.max_nodes, length), begun)

    def _by_nodes(self, order: Ints, length: int, begun: Callable[[int], None]) -> bool:
        """All prompts, with rows as lists of nodes; False, and nothing done, where layers do not attend by nodes."""
        if not self._may_share(length):
            return False
        read = self.positions
        try:
            self._all(order, Pool(self.max_nodes * length), begun)
        except NotByNodes:
            if self._drawing:  # it is known at the first level, before any text
                raise
            self.positions = read
            return False
        return True

    def _all(self, order: Ints, memory: Pool | Arena, begun: Callable[[int], None]) -> None:
        """All prompts, in this order of their ids."""
        # A prompt branches into its texts; of many draws, several are alike to begin with.
        most = max(map(len, self._numbers), default=0)
        size = max(1, self.max_nodes // min(max(most, 1), 4))
        for start in range(0, len(order), size):
            group = order[start : start + size]
            front = self._first(tree_cache(self.loaded.model.config, memory, self._prefix), group)
            self._follow(front, last=start + size >= len(order))
            begun(len(group))
            while self._waiting() > self.max_nodes:
                self._follow(self._take(max(self._aside)), last=True)
        del memory, front  # what waits has memory of its own, or needs the nodes of a pool
        while self._aside:
            self._follow(self._take(min(self._aside)), last=True)

    def again(self, numbers: Sequence[Ints], begun: Callable[[int], None] = lambda count: None) -> None:
        """More draws from prompts that :meth:`run` has read; only new nodes are computed.

        All go down together, so ``begun`` hears of a share of the prompts with every level.
        """
        assert self.keep
        self._numbers = numbers
        none = np.empty(0, dtype=np.int64)
        asked = np.array([len(own) > 0 for own in numbers])
        lengths = self._lengths[asked]
        told, model = 0, self.loaded.model
        with torch.inference_mode(), patches.attention(model, USUAL, NAME), whole_layers(model) as self._layers:
            for leaves in self._leaves:
                rows = np.flatnonzero(asked[leaves.prompts])
                if not len(rows):
                    continue
                front: Front[Text] = Front(
                    leaves.length - 1, leaves.cache, none, none, none, none, [], none, none, none, none
                )
                here = self._branch(front, leaves.logits, leaves.prompts[rows], rows, np.arange(len(leaves.prompts)))
                if here.nodes:
                    here.borrowed = True
                    self._set_aside(here)
            while self._aside:
                front = self._take(min(self._aside))
                while front.nodes:
                    levels = front.depth - int(lengths.min()) + 1
                    now = len(lengths) * levels // (int(lengths.max() - lengths.min()) + self.max_new_tokens)
                    begun(max(0, now - told))
                    told = max(now, told)
                    front = self._down(front)
        begun(len(lengths) - told)

    def read(self) -> Iterator[tuple[Ints, torch.Tensor]]:
        """Prompts that :meth:`run` has read, with the logits [prompts, V] of what follows each."""
        return ((leaves.prompts, leaves.logits) for leaves in self._leaves)

    def share(self, other: Walk[Any]) -> None:
        """Draw from the prompts that ``other`` has read, which must be the same."""
        self._lengths, self._ids, self._leaves = other._lengths, other._ids, other._leaves

    def _follow(self, front: Front[Text], last: bool) -> None:
        """Take a front down until nothing is left of it, or, unless it is the last, little enough to be set aside."""
        while front.nodes:
            if not last and self._may_wait(front):
                self._set_aside(front.part(0, front.nodes))
                return
            front = self._down(front)

    def _may_wait(self, front: Front[Text]) -> bool:
        """Whether a front has few nodes, and there is room for them beside those that wait already."""
        few = front.nodes < self.few and front.nodes + self._waiting() <= self.max_nodes // 2
        return few and not len(front.reading) and can_append(front.cache)

    def _down(self, front: Front[Text]) -> Front[Text]:
        """One level down, with what waits there, as far as it fits."""
        if not len(front.reading) and front.nodes > self.max_nodes:
            front, *rest = front.parts(self.max_nodes)
            for part in rest:
                self._set_aside(part)
        else:
            self._take_in(front)
        return self._step(front)

    def _set_aside(self, front: Front[Text]) -> None:
        self._aside.setdefault(front.depth, []).append(front)

    def _take(self, depth: int) -> Front[Text]:
        """One of the fronts that wait there, with a cache of its own; of too many nodes, some."""
        fronts = self._aside[depth]
        front = fronts.pop()
        if not fronts:
            del self._aside[depth]
        if not front.borrowed:
            return front
        front, *rest = front.parts(self.max_nodes)
        for part in rest:
            self._set_aside(part)
        return front

    def _take_in(self, front: Front[Text]) -> None:
        """Let fronts that wait at this depth join, as far as they fit."""
        if not can_append(front.cache):
            return
        for other in self._aside.pop(front.depth, []):
            if front.nodes + other.nodes <= self.max_nodes:
                front.join(other)
            else:
                self._set_aside(other)

    def _waiting(self) -> int:
        return sum(front.nodes for fronts in self._aside.values() for front in fronts)

    def _step(self, front: Front[Text]) -> Front[Text]:
        """One level: compute the nodes, let every draw choose, and make the nodes of the next level."""
        front.settle()
        here = front.depth + 1  # tokens of every node, this level's included
        finished = self._lengths[front.reading] == here
        begin, begin_node = front.reading[finished], front.reading_node[finished]
        wanted = np.unique(np.concatenate([begin_node, front.text_node]))
        logits_KV = self._forward(front.tokens[:, None], front.cache, wanted)
        row = np.searchsorted(wanted, np.arange(front.nodes))
        if self.keep and len(begin):
            kept = torch.from_numpy(row[begin_node]).to(logits_KV.device)
            self._leaves.append(_Leaves(here, begin, pick_rows(front.cache, begin_node), logits_KV[kept]))
        front.reading, front.reading_node = front.reading[~finished], front.reading_node[~finished]
        return self._branch(front, logits_KV, begin, begin_node, row)

    def _branch(
        self, front: Front[Text], logits_KV: torch.Tensor, begin: Ints, begin_node: Ints, row: Ints
    ) -> Front[Text]:
        """Let every draw choose its next token: those of the texts, and those that begin at prompts read just now.

        ``begin_node`` is the cache row of every beginning prompt, ``row`` the row of ``logits_KV`` of every node.
        """
        texts = [self.empty] * len(begin) + front.texts
        node = np.concatenate([begin_node, front.text_node])
        counts = np.array([len(self._numbers[p]) for p in begin], dtype=np.int64)
        prompt = np.concatenate([np.repeat(begin, counts), front.prompt])
        number = np.concatenate([*(self._numbers[p] for p in begin), front.number])
        text = np.concatenate([np.repeat(np.arange(len(begin)), counts), front.text + len(begin)])
        token = np.empty(0, dtype=np.int64)
        if len(text):
            self._drawing = True
            chosen = self.choose(logits_KV, row[node[text]], prompt, number, front.depth + 1 - self._lengths[prompt])
            if isinstance(chosen, Chosen):
                on = np.concatenate([np.flatnonzero(chosen.token >= 0), chosen.of])
                number = np.concatenate([number[chosen.token >= 0], chosen.number])
                token = np.concatenate([chosen.token[chosen.token >= 0], chosen.branch])
                prompt, text = prompt[on], text[on]
            else:
                token = chosen
        return self._children(front, texts, node, prompt, number, text, token)

    def _hold(self, length: int) -> int:
        """Read so many tokens that all prompts begin with, and hold them for all rows; how many are held.

        None are, if the layers of this model do not attend to a prefix, as one more token shows.
        """
        config, none = self.loaded.model.config, np.empty(0, dtype=np.int64)
        if not length:
            return 0
        cache = tree_cache(config)
        self._forward(self._ids[:1, :length], cache, none)
        self._prefix = prefix_of(cache)
        if self._prefix is not None:
            self._forward(self._ids[:1, length : length + 1], tree_cache(config, prefix=self._prefix), none)
            if all(own.used == 1 for own in self._prefix):
                return length
        self._prefix = None
        longest = int(self._lengths.max()) + self.max_new_tokens
        self.max_nodes = max(1, self.max_nodes * (longest - length) // longest)
        return 0

    def _may_share(self, length: int) -> bool:
        """Whether rows of so many tokens may be lists of nodes in a pool, if the layers attend by nodes."""
        model = self.loaded.model
        return not self._prefix and length <= LONG and model.device.type == "cpu" and all_plain(model.config)

    def _first(self, cache: DynamicCache, prompts: Ints) -> Front[Text]:
        """The first nodes of prompts that are sorted by their ids, behind what all of them begin with."""
        ids = self._ids[prompts]
        shared = shared_tokens(ids, int(self._lengths[prompts].min()))
        # Examples or a template that all prompts begin with are read at once: token by token, each would cost a pass
        # over all weights. The last token that is shared is a node, with a distribution where a prompt ends there.
        if shared > 1:
            begun = self._prefix[0].length if self._prefix else 0
            self._forward(ids[:1, begun : shared - 1], cache, np.empty(0, dtype=np.int64))
        return first_front(cache, prompts, ids, max(shared - 1, 0))

    @cached_property
    def _cache_argument(self) -> str:
        return _cache_argument(self.loaded.model)

    def _forward(self, tokens: Ints, cache: DynamicCache, wanted: Ints) -> torch.Tensor:
        """More tokens [N, 1 or more] for every node; logits [K, V] of the wanted nodes (or of one, if none is)."""
        model = self.loaded.model
        rows = torch.from_numpy(wanted if len(wanted) else np.zeros(1, dtype=np.int64)).to(model.device)
        # A layer that chooses rows of its keys would lose the prefix before them.
        with _head_on_rows(model, rows), self._layers.only(None if self._prefix else rows):
            ids = torch.from_numpy(tokens).to(model.device)
            given = {"input_ids": ids, self._cache_argument: cache, "use_cache": True}
            logits = self.loaded.vocabulary.usable.columns(model(**given).logits[:, -1])
        check_by_nodes(cache)
        self.positions += tokens.size
        return logits if len(logits) == len(rows) else logits.index_select(0, rows)

    def _children(
        self,
        front: Front[Text],
        texts: list[Text],
        node: Ints,
        prompt: Ints,
        number: Ints,
        text: Ints,
        token: Ints,
    ) -> Front[Text]:
        """Split every text by its draws' tokens, report what ends, and gather what goes on."""
        here, reading, at = front.depth + 1, front.reading, front.reading_node
        order = np.lexsort((token, text))
        starts, child = distinct_runs(np.stack([text[order], token[order]], axis=1))
        edges = [*starts.tolist(), len(order)]
        first = order[starts]
        stops = np.isin(token[first], self.stop_ids).tolist()
        full = (here - self._lengths[prompt[first]] + 1 >= self.max_new_tokens).tolist()
        kept: list[int] = []
        grown: list[Text] = []
        grow, over = self.grow, self.over
        of_child = zip(text[first].tolist(), token[first].tolist(), prompt[first].tolist(), strict=True)
        for i, (its_text, its_token, its_prompt) in enumerate(of_child):
            so_far = texts[its_text]
            if stops[i]:
                how = "stop"
            else:
                so_far = grow(so_far, its_token)
                if over(its_prompt, so_far):
                    how = "over"
                elif full[i]:
                    how = "length"
                else:
                    kept.append(i)
                    grown.append(so_far)
                    continue
            self.ended(its_prompt, number[order[edges[i] : edges[i + 1]]], so_far, how)
        renumbered = np.full(len(starts), -1, dtype=np.int64)
        renumbered[kept] = np.arange(len(kept))
        goes_on = renumbered[child] >= 0
        draws = order[goes_on]
        next_ids = self._ids[reading, here] if len(reading) else reading
        starts_of, reading_node = distinct_runs(np.stack([at, next_ids], axis=1))
        return Front(
            depth=here,
            cache=front.cache,
            parents=np.concatenate([at[starts_of], node[text[first[kept]]]]),
            tokens=np.concatenate([next_ids[starts_of], token[first[kept]]]),
            reading=reading,
            reading_node=reading_node,
            texts=grown,
            text_node=len(starts_of) + np.arange(len(kept)),
            prompt=prompt[draws],
            number=number[draws],
            text=renumbered[child[goes_on]],
        )


def held_once(loaded: LoadedModel, prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with that need not lie in every row of a cache; 0 where they are few.

    Two less than they have in common: a row has a token of its own, and the last is a node. Only on a CPU, where
    attention is ours.
    """
    if len(prompts) < 2 or loaded.model.device.type != "cpu" or patches.attention_of(loaded.model) != USUAL:
        return 0
    least, most = min(map(list, prompts)), max(map(list, prompts))  # what these have in common, all have
    shared = next((i for i, (one, other) in enumerate(zip(least, most, strict=False)) if one != other), len(least))
    return shared - 2 if shared - 2 >= LONG_PREFIX else 0


def _cache_argument(model: Any) -> str:
    """The name under which the model takes a cache; other models would read every token as the first of its text."""
    taken = inspect.signature(model.forward).parameters
    for name in ("past_key_values", "cache_params"):
        if name in taken:
            return name
    raise InputError(
        f"model type {model.config.model_type!r} takes no cache of what it has read; expected one that does"
    )


@contextmanager
def _head_on_rows(model: Any, rows: torch.Tensor) -> Iterator[None]:
    """Within the block, the output head sees these rows' last hidden states only, whatever the head consists of."""

    def narrow(module: Any, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0][:, -1:].index_select(0, rows), *output[1:])
        output.last_hidden_state = output.last_hidden_state[:, -1:].index_select(0, rows)
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
