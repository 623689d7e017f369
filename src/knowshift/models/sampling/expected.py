"""The probability of a hit from few texts: the model's probability of an answer counts, not what a text happens to say.

A text that is drawn says 0 or 1. Here every text carries a weight, 1 at first, and is never let run into an answer.
At each of its positions the probability that the next token completes an answer is known. That part of the weight is
counted, the rest goes on as a text drawn among the other tokens:

    value of a text = sum over its positions of  weight x P(the next token completes an answer)
    weight         <- weight x (1 - P(the next token completes an answer))

The expectation of the value is R, the probability that an ordinary text holds an answer: each step replaces what an
ordinary draw would have decided by its expectation (docs/mastery.md has the proof). An answer of several tokens would
still need a text that happens to begin it, so its usual spellings (:mod:`.spelling`) are also followed from every
position: a *follower* has weight x P(first token) and goes on with the answer's own tokens. What it comes to is counted
there, and not where the text itself goes the same way. Positions are spent where they matter by random truncation,
which leaves expectations as they are: a follower below the weight :data:`FOLLOWED` is made with a probability, and then
has that weight; a text below the weight :data:`CARRIED` goes on in the same way; and only a share of the texts goes on
beyond each of :data:`THINNED`, with more weight.

Values of texts are independent, so their variance is that of a sample. They are between 0 and 1 but for what
followers and random truncation add.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from knowshift.errors import InputError
from knowshift.models.loading import LoadedModel
from knowshift.models.sampling.cache import Ints
from knowshift.models.sampling.next_token import draw_tokens
from knowshift.models.sampling.philox import stream_key, uniforms
from knowshift.models.sampling.session import nodes_that_fit
from knowshift.models.sampling.settings import Sampling
from knowshift.models.sampling.spelling import Pieces, Spelling, Watch, spelling_of
from knowshift.models.sampling.tree import Chosen, Walk

Floats = NDArray[np.float64]

#: The least weight of a follower.
FOLLOWED = 0.02
#: The least weight of a text.
CARRIED = 0.1
#: The share of texts that goes on beyond so many tokens; their weight grows by its inverse.
THINNED = {4: 0.5, 8: 0.5, 16: 0.5}
#: A weight that is left out: with 32 positions it cannot add up to what a level could notice.
NOTHING = 1e-9
#: What random numbers are for, where a text's own step is decided more than once; nodes of a trie stand for themselves.
_AGAIN, _CARRY, _THIN = 1 << 30, (1 << 30) + 1, (1 << 30) + 2


@dataclass
class _Particles:
    """Texts and followers by number, in arrays that grow.

    Attributes:
        weight: float64.
        text: int64, the text that a particle belongs to; its own number for a text.
        spelling: int64, which automaton.
        state: int64, the automaton's state.
        node: int64, the node of the trie that a follower has come to; 0 for a text.
    """

    weight: Floats
    text: Ints
    spelling: Ints
    state: Ints
    node: Ints
    count: int

    @classmethod
    def of_texts(cls, spelling: Ints) -> _Particles:
        count = len(spelling)
        zeros = np.zeros(count, dtype=np.int64)
        return cls(np.ones(count), np.arange(count), spelling, zeros, zeros.copy(), count)

    def add(self, weight: Floats, text: Ints, spelling: Ints, state: Ints, node: Ints) -> Ints:
        """Numbers of new particles."""
        first, self.count = self.count, self.count + len(weight)
        if self.count > len(self.weight):
            room = self.count + self.count // 2
            for name in ("weight", "text", "spelling", "state", "node"):
                old = getattr(self, name)
                grown = np.zeros(room, dtype=old.dtype)
                grown[:first] = old[:first]
                setattr(self, name, grown)
        mine = slice(first, self.count)
        self.weight[mine], self.text[mine], self.spelling[mine] = weight, text, spelling
        self.state[mine], self.node[mine] = state, node
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
        keep: bool = False,
    ) -> None:
        """``texts``: the most that will be drawn of a prompt; ``keep`` lets prompts stay read between rounds."""
        self.loaded, self.sampling, self.texts = loaded, sampling, texts
        self._spellings, which = _spellings(loaded, accepted, streams)
        self._encoded = loaded.encoder.prompts(prompts, sampling.max_new_tokens)
        self._streams = np.array([stream_key(sampling.seed, key) for key in streams], dtype=np.uint64)
        self._particles = _Particles.of_texts(np.repeat(which, texts))
        self._sum = np.zeros(len(prompts) * texts)
        self._made = np.zeros(len(prompts) * texts, dtype=bool)
        self._walk: Walk[None] = Walk(
            loaded,
            self._encoded,
            self._choose,
            lambda text, token: None,
            lambda prompt, text: False,
            lambda prompt, numbers, text, how: None,
            None,
            sampling.max_new_tokens,
            loaded.stop_ids(),
            max_nodes or nodes_that_fit(loaded, self._encoded, sampling.max_new_tokens),
            keep=keep,
        )
        self._begun = False

    @property
    def positions(self) -> int:
        """Token positions computed so far."""
        return self._walk.positions

    @property
    def value(self) -> Floats:
        result: Floats = np.where(self._made, self._sum, np.nan).reshape(len(self._encoded), self.texts)
        return result

    def draw(self, numbers: Sequence[Ints], begun: Callable[[int], None] = lambda count: None) -> None:
        """Make the texts ``numbers[p]`` of every prompt p; ``begun`` hears of prompts begun, in the first round."""
        own = [prompt * self.texts + its for prompt, its in enumerate(numbers)]
        if self._begun:
            self._walk.again(own)
        else:
            self._begun = True
            self._walk.run(own, begun)
        self._made[np.concatenate(own)] = True

    def _choose(self, logits_KV: torch.Tensor, row: Ints, prompt: Ints, number: Ints, step: Ints) -> Chosen:
        kept = self._particles
        own, node, before = kept.text[number], kept.node[number], kept.weight[number].copy()
        draw, streams = own % self.texts, self._streams[prompt]
        watch = self._watch(number)
        temperature = self.sampling.temperature
        token, chance = draw_tokens(logits_KV, row, uniforms(streams, draw, step), temperature, watch.tokens)
        np.add.at(self._sum, own, before * np.where(watch.counted, chance, 0.0).sum(axis=1))
        texts = node == 0
        self._go_on(texts, before, watch, chance, number, streams, draw, step)
        token[~texts | (kept.weight[number] <= NOTHING)] = -1
        ran_into = np.flatnonzero((token >= 0) & ((token[:, None] == watch.tokens) & watch.hits).any(axis=1))
        if len(ran_into):
            token[ran_into] = self._again(
                logits_KV, row[ran_into], watch.tokens[ran_into], watch.hits[ran_into],
                uniforms(streams[ran_into], draw[ran_into], step[ran_into], _AGAIN),
            )  # fmt: skip
        followers = self._follow(before, watch, chance, number, streams, draw, step)
        self._step(number, token)
        return Chosen(token, *followers)

    def _go_on(
        self,
        texts: NDArray[np.bool_],
        before: Floats,
        watch: Watch,
        chance: Floats,
        number: Ints,
        streams: Any,
        draw: Ints,
        step: Ints,
    ) -> None:
        """The weights of texts after their hits are taken out, and after random truncation."""
        weight = before * np.clip(1 - np.where(watch.hits, chance, 0.0).sum(axis=1), 0.0, 1.0)
        light = weight < CARRIED
        lives = uniforms(streams, draw, step, _CARRY) * CARRIED < weight
        weight = np.where(light, np.where(lives, CARRIED, 0.0), weight)
        for after, share in THINNED.items():
            here = step == after
            lives = uniforms(streams, draw, step, _THIN) < share
            weight = np.where(here, np.where(lives, weight / share, 0.0), weight)
        self._particles.weight[number[texts]] = weight[texts]

    def _follow(
        self, before: Floats, watch: Watch, chance: Floats, number: Ints, streams: Any, draw: Ints, step: Ints
    ) -> tuple[Ints, Ints, Ints]:
        """New followers: which of these particles each goes on from, its number, its token."""
        kept = self._particles
        of, which = np.nonzero(watch.node > 0)
        weight, node, token = before[of] * chance[of, which], watch.node[of, which], watch.tokens[of, which]
        sure = np.minimum(1.0, weight / FOLLOWED)
        lives = uniforms(streams[of], draw[of], step[of], node) < sure
        of, node, token, weight = of[lives], node[lives], token[lives], np.maximum(weight[lives], FOLLOWED)
        parent = number[of]
        spelling = kept.spelling[parent]
        state = np.array(
            [
                self._spellings[s].step(a, t)
                for s, a, t in zip(*_lists(spelling, kept.state[parent], token), strict=True)
            ],
            dtype=np.int64,
        )
        return of, kept.add(weight, kept.text[parent], spelling, state, node), token

    def _step(self, number: Ints, token: Ints) -> None:
        """The states of the texts that go on."""
        kept, spellings = self._particles, self._spellings
        on = number[token >= 0]
        of_text = zip(*_lists(kept.spelling[on], kept.state[on], token[token >= 0]), strict=True)
        kept.state[on] = [spellings[s].step(a, t) for s, a, t in of_text]

    def _watch(self, number: Ints) -> Watch:
        """What each of the particles watches for, as arrays [particles, most]; -1 where one watches for fewer."""
        kept = self._particles
        keys = np.stack([kept.spelling[number], kept.state[number], kept.node[number]], axis=1)
        distinct, inverse = np.unique(keys, axis=0, return_inverse=True)
        found = [self._spellings[s].watch(a, n) for s, a, n in distinct.tolist()]
        width = max((len(one.tokens) for one in found), default=0)
        shape = (len(found), width)
        padded = Watch(np.full(shape, -1), np.zeros(shape, bool), np.zeros(shape, bool), np.full(shape, -1))
        for i, one in enumerate(found):
            size = len(one.tokens)
            padded.tokens[i, :size], padded.hits[i, :size] = one.tokens, one.hits
            padded.counted[i, :size], padded.node[i, :size] = one.counted, one.node
        where = inverse.reshape(-1)
        return Watch(padded.tokens[where], padded.hits[where], padded.counted[where], padded.node[where])

    def _again(
        self, logits_KV: torch.Tensor, row: Ints, tokens: Ints, hits: NDArray[np.bool_], uniform: Floats
    ) -> Ints:
        """Another token for draws that ran into a hit, from the distribution without hits; -1 where nothing is left."""
        rows = logits_KV[torch.from_numpy(row).to(logits_KV.device)].float()
        of, which = np.nonzero(hits)
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
