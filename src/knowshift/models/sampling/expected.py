"""The probability of a hit from few texts: the model's probability of an answer counts, not what a text happens to say.

A text that is drawn says 0 or 1. Here every text carries a weight, 1 at first, and is never let run into an answer.
At each of its positions the probability that the next token completes an answer is known. That part of the weight is
counted, the rest goes on as a text drawn among the other tokens:

    value of a text = sum over its positions of  weight x P(the next token completes an answer)
    weight         <- weight x (1 - P(the next token completes an answer))

The expectation of the value is R, the probability that an ordinary text holds an answer: each step replaces what an
ordinary draw would have decided by its expectation (docs/mastery.md has the proof).

An answer of several tokens would still need a text that happens to begin it. So a text is divided where it may go on
with a usual spelling of an answer (:mod:`.spelling`): the token that does so becomes a *part* with weight x P(token),
and the text goes on among the other tokens with the rest of its weight. At the next position each part counts what
completes an answer, and of all rests of a text one goes on, drawn by its weight, with the weight of all.

Positions are spent where they matter by random truncation, which leaves expectations as they are: a part below the
weight :data:`FOLLOWED` is made with a probability, and then has that weight; a text below a least weight
(:data:`CARRIED` where none is given) goes on in the same way; and of texts that need not stay whole, those of facts
that the model does not seem to know, and that have come to nothing yet, only a share goes on beyond :data:`THINNED`
and :data:`THINNED_AGAIN` tokens, with more weight.

Values of texts are independent, so their variance is that of a sample. They are between 0 and 1 but for what random
truncation adds.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from knowshift.errors import InputError
from knowshift.models.loading import LoadedModel
from knowshift.models.sampling.cache import Ints
from knowshift.models.sampling.frontier import distinct_runs
from knowshift.models.sampling.next_token import draw_tokens
from knowshift.models.sampling.philox import stream_key, uniforms
from knowshift.models.sampling.session import nodes_that_fit
from knowshift.models.sampling.settings import Sampling
from knowshift.models.sampling.spelling import Pieces, Spelling, spelling_of
from knowshift.models.sampling.tree import Chosen, Walk

Floats = NDArray[np.float64]

#: The least weight of a part that goes on with an answer.
FOLLOWED = 0.02
#: The least weight of a text, where it is not given.
CARRIED = 0.1
#: The token beyond which only a share of texts goes on, unless they are to stay whole, with a weight grown by its
#: inverse.
THINNED = 1
#: The same again, of those that are left, beyond a later token.
THINNED_AGAIN, SHARE_AGAIN = 4, 0.5
#: A text that has come to as much stays whole.
SOMETHING = 1e-3
#: What the probability that an answer is begun counts beside that of one that is complete, in what a prompt promises.
BEGINNING = 0.1
#: A weight that is left out: with 32 positions it cannot add up to what a level could notice.
NOTHING = 1e-9
#: What random numbers are for, where more than a token is decided.
_AGAIN, _CARRY, _THIN, _MERGE, _FOLLOW = range(1, 6)


@dataclass
class _Parts:
    """Texts and their parts by number, in arrays that grow. A text is its own first part.

    Attributes:
        weight: float64.
        text: int64, the text that a part belongs to; its own number for a text.
        spelling: int64, which automaton.
        state: int64, the automaton's state.
        stream: int64, names its random numbers among those of its prompt: a text's own number, or more than any.
    """

    weight: Floats
    text: Ints
    spelling: Ints
    state: Ints
    stream: Ints
    count: int

    @classmethod
    def of_texts(cls, spelling: Ints, texts: int) -> _Parts:
        count = len(spelling)
        number = np.arange(count)
        return cls(np.ones(count), number, spelling, np.zeros(count, dtype=np.int64), number % texts, count)

    def add(self, weight: Floats, text: Ints, spelling: Ints, state: Ints, stream: Ints) -> Ints:
        """Numbers of new parts."""
        first, self.count = self.count, self.count + len(weight)
        if self.count > len(self.weight):
            room = self.count + self.count // 2
            for name in ("weight", "text", "spelling", "state", "stream"):
                old = getattr(self, name)
                grown = np.zeros(room, dtype=old.dtype)
                grown[:first] = old[:first]
                setattr(self, name, grown)
        mine = slice(first, self.count)
        self.weight[mine], self.text[mine], self.spelling[mine] = weight, text, spelling
        self.state[mine], self.stream[mine] = state, stream
        return np.arange(first, self.count)


class ExpectedSession:
    """Prompts to estimate R of, on a model in this process, a few texts at a time.

    Attributes:
        value: float64 [prompts, texts], what each text came to; its expectation is the prompt's R. NaN for texts that
            have not been made.

    Raises:
        InputError: a tokenizer whose texts must be decoded whole, an empty answer, a prompt that does not fit.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompts: Sequence[str],
        accepted: Sequence[Sequence[str]],
        sampling: Sampling,
        texts: int,
        *,
        streams: Sequence[str],
        max_nodes: int | None = None,
        least_weight: float | None = None,
    ) -> None:
        """``texts``: the most that will be drawn of a prompt; ``least_weight``: of a text, :data:`CARRIED` for None."""
        self.loaded, self.sampling, self.texts = loaded, sampling, texts
        self._spellings, which = _spellings(loaded, accepted, streams)
        self._encoded = loaded.encoder.prompts(prompts, sampling.max_new_tokens)
        self._streams = np.array([stream_key(sampling.seed, key) for key in streams], dtype=np.uint64)
        self._parts = _Parts.of_texts(np.repeat(which, texts), texts)
        self._sum = np.zeros(len(prompts) * texts)
        self._share = np.ones(len(prompts))
        self._least = CARRIED if least_weight is None else least_weight
        self._which = which
        self._made = np.zeros(len(prompts) * texts, dtype=bool)
        me = weakref.proxy(self)  # a walk that held its session would keep the caches until Python looks for cycles
        self._walk: Walk[None] = Walk(
            loaded,
            self._encoded,
            lambda *level: me._choose(*level),
            lambda text, token: None,
            lambda prompt, text: False,
            lambda prompt, numbers, text, how: None,
            None,
            sampling.max_new_tokens,
            loaded.stop_ids(),
            max_nodes or nodes_that_fit(loaded, self._encoded, sampling.max_new_tokens),
            keep=True,
        )

    @property
    def positions(self) -> int:
        """Token positions computed so far."""
        return self._walk.positions

    @property
    def value(self) -> Floats:
        result: Floats = np.where(self._made, self._sum, np.nan).reshape(len(self._encoded), self.texts)
        return result

    def read(self) -> Floats:
        """Read the prompts, before any text is made.

        Returns:
            What each prompt promises, float64 [prompts]: the probability that the next token completes an answer, and
            a tenth of the probability that it begins one.
        """
        self._walk.run([np.empty(0, dtype=np.int64)] * len(self._encoded))
        promise = np.zeros(len(self._encoded))
        for prompts, logits_KV in self._walk.read():
            tokens, hits = self._watched(self._which[prompts], np.zeros_like(prompts))
            rows = np.arange(len(prompts))
            _, chance = draw_tokens(logits_KV, rows, np.zeros(len(rows)), self.sampling.temperature, tokens)
            promise[prompts] = (chance * np.where(hits, 1.0, BEGINNING)).sum(axis=1)
        return promise

    def draw(
        self,
        numbers: Sequence[Ints],
        share: Floats | None = None,
        begun: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Make the texts ``numbers[p]`` of every prompt p, which have been read.

        ``share`` [prompts]: of the texts that have come to nothing, how many go on beyond the first token; with 1, all
        texts stay whole. ``begun`` hears of prompts as they are done with.
        """
        self._share = np.ones(len(self._encoded)) if share is None else share
        own = [prompt * self.texts + its for prompt, its in enumerate(numbers)]
        self._walk.again(own, begun)
        self._made[np.concatenate(own)] = True

    def _choose(self, logits_KV: torch.Tensor, row: Ints, prompt: Ints, number: Ints, step: Ints) -> Chosen:
        kept = self._parts
        own, stream, before = kept.text[number], kept.stream[number], kept.weight[number].copy()
        keys = self._streams[prompt]
        tokens, hits = self._watched(kept.spelling[number], kept.state[number])
        token, chance = draw_tokens(logits_KV, row, uniforms(keys, stream, step), self.sampling.temperature, tokens)
        np.add.at(self._sum, own, before * np.where(hits, chance, 0.0).sum(axis=1))
        rest = before * np.clip(1 - chance.sum(axis=1), 0.0, 1.0)
        kept.weight[number] = self._thinned(self._merged(rest, own, stream, keys, step), own, keys, step)
        token[kept.weight[number] <= NOTHING] = -1
        ran_into = np.flatnonzero((token >= 0) & (token[:, None] == tokens).any(axis=1))
        if len(ran_into):
            again = uniforms(keys[ran_into], stream[ran_into], step[ran_into], _AGAIN)
            token[ran_into] = self._again(logits_KV, row[ran_into], tokens[ran_into], again)
        branches = self._branch(before, tokens, hits, chance, number, keys, step)
        self._step(number, token)
        return Chosen(token, *branches)

    def _merged(self, rest: Floats, own: Ints, stream: Ints, keys: Any, step: Ints) -> Floats:
        """Of all parts of a text one goes on, with the weight of all: part i with probability rest_i / their sum.

        They are computed together (:meth:`.frontier.Front.parts`), so this does not depend on which other prompts there
        are.
        """
        order = np.lexsort((stream, own))
        starts, _ = distinct_runs(own[order, None])
        ends = np.r_[starts[1:], len(order)]
        total = np.add.reduceat(rest[order], starts)
        first = order[starts]
        goal = total * uniforms(keys[first], own[first] % self.texts, step[first], _MERGE)
        chosen = first.copy()
        several = np.flatnonzero(ends - starts > 1)
        if len(several):
            passed = np.cumsum(rest[order])
            before = passed[starts[several]] - rest[first[several]]
            at = np.searchsorted(passed, before + goal[several], side="right")
            chosen[several] = order[np.clip(at, starts[several], ends[several] - 1)]
        merged = np.zeros(len(rest))
        merged[chosen] = np.where(rest[chosen] > 0, total, 0.0)
        return merged

    def _thinned(self, weight: Floats, own: Ints, keys: Any, step: Ints) -> Floats:
        """Weights after random truncation."""
        draw = own % self.texts
        lives = uniforms(keys, draw, step, _CARRY) * self._least < weight
        weight = np.where(weight < self._least, np.where(lives, self._least, 0.0), weight)
        share = self._share[own // self.texts]
        again = np.where(step == THINNED_AGAIN, SHARE_AGAIN, 1.0)
        share = np.where((share < 1) & (self._sum[own] < SOMETHING), np.where(step == THINNED, share, again), 1.0)
        lives = uniforms(keys, draw, step, _THIN) < share
        return np.where(lives, weight / share, 0.0)

    def _branch(
        self, before: Floats, tokens: Ints, hits: NDArray[np.bool_], chance: Floats, number: Ints, keys: Any, step: Ints
    ) -> tuple[Ints, Ints, Ints]:
        """The parts that go on with an answer: which of these parts each comes from, its number, its token."""
        kept = self._parts
        of, which = np.nonzero((tokens >= 0) & ~hits)
        weight, token = before[of] * chance[of, which], tokens[of, which]
        stream = (kept.stream[number[of]] * 1_000_003 + step[of] * 8_191 + token) % (1 << 31) + (1 << 31)
        lives = uniforms(keys[of], stream, step[of], _FOLLOW) * FOLLOWED < weight
        of, stream, token, weight = of[lives], stream[lives], token[lives], np.maximum(weight[lives], FOLLOWED)
        parent = number[of]
        spelling = kept.spelling[parent]
        state = np.array(
            [
                self._spellings[s].step(a, t)
                for s, a, t in zip(*_lists(spelling, kept.state[parent], token), strict=True)
            ],
            dtype=np.int64,
        )
        return of, kept.add(weight, kept.text[parent], spelling, state, stream), token

    def _step(self, number: Ints, token: Ints) -> None:
        """The states of the texts that go on."""
        kept, spellings = self._parts, self._spellings
        on = number[token >= 0]
        of_text = zip(*_lists(kept.spelling[on], kept.state[on], token[token >= 0]), strict=True)
        kept.state[on] = [spellings[s].step(a, t) for s, a, t in of_text]

    def _watched(self, spelling: Ints, state: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """What is watched for in each of these states [states, most], -1 where it is less; which are hits."""
        distinct, inverse = np.unique(spelling << 32 | state, return_inverse=True)  # pairs, of which sorting is slow
        found = [self._spellings[key >> 32].watch(key & (1 << 32) - 1) for key in distinct.tolist()]
        width = max((len(one.tokens) for one in found), default=0)
        tokens, hits = np.full((len(found), width), -1), np.zeros((len(found), width), bool)
        for i, one in enumerate(found):
            tokens[i, : len(one.tokens)], hits[i, : len(one.tokens)] = one.tokens, one.hits
        return tokens[inverse], hits[inverse]

    def _again(self, logits_KV: torch.Tensor, row: Ints, tokens: Ints, uniform: Floats) -> Ints:
        """Another token for draws that ran into one of ``tokens``, from the others; -1 where nothing is left."""
        rows = logits_KV[torch.from_numpy(row).to(logits_KV.device)].float()
        of, which = np.nonzero(tokens >= 0)
        where = torch.from_numpy(np.stack([of, tokens[of, which]])).to(rows.device)
        rows[where[0], where[1]] = -torch.inf
        left = torch.isfinite(rows.amax(dim=1)).cpu().numpy()
        found = np.full(len(row), -1, dtype=np.int64)
        if left.any():
            some = rows[torch.from_numpy(np.flatnonzero(left)).to(rows.device)]
            found[left] = draw_tokens(some, np.arange(len(some)), uniform[left], self.sampling.temperature)[0]
        return found


def _lists(*arrays: Ints) -> list[list[int]]:
    return [array.tolist() for array in arrays]


def _spellings(
    loaded: LoadedModel, accepted: Sequence[Sequence[str]], streams: Sequence[str]
) -> tuple[list[Spelling], Ints]:
    """The distinct automata, and which of them each prompt has."""
    pieces = Pieces.of(loaded)
    if pieces is None:
        raise InputError(
            f"{loaded.name}: its tokenizer gives no bytes for each token, which --estimate expected needs; "
            "use --estimate hits"
        )
    known: dict[tuple[str, ...], int] = {}
    made: list[Spelling] = []
    for answers, key in zip(map(tuple, accepted), streams, strict=True):
        if answers in known:
            continue
        if not answers or not all(answer.strip() for answer in answers):
            raise InputError(f"{key}: an accepted answer is empty, so every text would hold it")
        known[answers] = len(made)
        made.append(spelling_of(loaded, pieces, answers))
    return made, np.array([known[tuple(answers)] for answers in accepted], dtype=np.int64)
