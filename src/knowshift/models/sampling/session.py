"""Sampling and greedy answering with any causal language model: sessions on a prefix tree."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from knowshift.errors import InputError
from knowshift.facts.grading import Grader
from knowshift.facts.words import settled
from knowshift.models.divided import divides_heads
from knowshift.models.loading import LoadedModel
from knowshift.models.sampling.cache import Ints
from knowshift.models.sampling.next_token import draw_tokens
from knowshift.models.sampling.philox import stream_key, uniforms
from knowshift.models.sampling.settings import Sampling
from knowshift.models.sampling.tree import Walk, held_once
from knowshift.system import group
from knowshift.system.group import decided

#: Nodes of one level at most, where memory does not ask for less.
MAX_NODES = 2048
#: Bytes that the keys and values of one level may take, by kind of device.
CACHE_BYTES = {"cpu": 768 << 20, "cuda": 8 << 30}
#: Bytes that prompts may take that stay read between rounds.
STAY_BYTES = {"cpu": 640 << 20, "cuda": 16 << 30}
#: Tokens of an ordinary prompt, and room for some more.
ORDINARY = 32
#: Bytes that the logits of one level may take.
LOGIT_BYTES = 256 << 20


@dataclass(frozen=True)
class SampledHits:
    """What sampling found, prompt by prompt, in the order the prompts were given."""

    hit: NDArray[np.bool_]  # [prompts, draws] whether draw i of prompt p holds an accepted answer
    positions: int  # token positions computed
    texts: list[Counter[str]] | None = field(default=None, repr=False)  # ended texts of each prompt with their counts

    @property
    def hits(self) -> NDArray[np.int64]:
        """Hits of each prompt [prompts]."""
        result: NDArray[np.int64] = self.hit.sum(axis=1)
        return result

    @property
    def draws(self) -> int:
        """Draws made of each prompt."""
        return int(self.hit.shape[1])


class TreeSession:
    """Prompts to draw from, on a model in this process; what is drawn may be chosen round by round.

    Draw i of a prompt is a function of (model, prompt, its key, seed, i): other prompts, other draws, rounds, order
    and ``max_nodes`` change it only where float rounding moves the boundary between two tokens across a random number
    (about one token in a million); with the same calls and threads it is the same to the bit.

    Attributes:
        hit: int8 [prompts, draws], 1 for a draw that holds an accepted answer, 0 for one that does not, -1 for one
            that has not been made.
        expected: float64 [prompts, 2], how often the draws made so far came to the first token of an answer, in
            expectation: the sum of that token's probability over all positions of all draws; for the answer spelled
            after a space, and for other spellings. NaN where an answer's first token cannot be told, or where it is
            not watched for.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompts: Sequence[str],
        accepted: Sequence[Sequence[str]],
        sampling: Sampling,
        *,
        streams: Sequence[str],
        max_nodes: int | None = None,
        keep: bool = True,
        watch: bool = True,
        keep_texts: bool = False,
    ) -> None:
        """See :func:`sample`; ``keep`` lets prompts stay read between rounds, ``watch`` computes ``expected``."""
        assert len(prompts) == len(accepted) == len(streams)
        self.loaded, self.sampling = loaded, sampling
        self._needles = [_needles(answers, key) for answers, key in zip(accepted, streams, strict=True)]
        self._graders = _graders(accepted, streams) if sampling.grading == "word" else None
        self._encoded = loaded.encoder.prompts(prompts, sampling.max_new_tokens)
        self._streams = np.array([stream_key(sampling.seed, key) for key in streams], dtype=np.uint64)
        self._accepted = accepted
        self._keep = keep
        self.hit = np.full((len(prompts), sampling.draws_per_prompt), -1, dtype=np.int8)
        self.texts: list[Counter[str]] | None = [Counter() for _ in prompts] if keep_texts else None
        self.expected = np.full((len(prompts), 2), 0.0 if watch else np.nan)
        self._watched: list[Ints] | None = None
        if watch:
            self._watched = _first_tokens(loaded, accepted)
            self.expected[self._watched[0][:, 0] < 0] = np.nan
        self._limits = max_nodes or nodes_that_fit(loaded, self._encoded, sampling.max_new_tokens)
        self._walk = self._new_walk()
        self._begun = False
        self._scored = 0
        self._ratio = np.full(len(prompts), np.nan)

    @property
    def positions(self) -> int:
        """Token positions computed so far."""
        return self._walk.positions + self._scored

    def draw(self, numbers: Sequence[Ints], begun: Callable[[int], None] = lambda count: None) -> None:
        """Make the draws ``numbers[p]`` of every prompt p; ``begun`` hears of prompts begun, in the first round."""
        if self._begun:
            self._walk.again(numbers)
        else:
            self._begun = True
            self._walk.run(numbers, begun)

    def direct(self, prompts: Ints) -> NDArray[np.float64]:
        """P(the answer right after the prompt) / P(its first token there), for prompts that have been read.

        The first accepted answer only, spelled as the tokenizer does after a space: float64 [len(prompts)]. Computed
        once for each prompt; many prompts at a time are cheaper than one by one.
        """
        new = prompts[np.isnan(self._ratio[prompts])]
        if len(new):
            self._ratio[new] = self._score(new)
        return self._ratio[prompts]

    def _score(self, prompts: Ints) -> NDArray[np.float64]:
        spelled: dict[str, list[int] | None] = {}
        for answer in {self._accepted[p][0] for p in prompts}:
            spelled[answer] = _answer_ids(self.loaded, answer)
        answers = {int(p): spelled[self._accepted[p][0]] for p in prompts}
        ratio = dict.fromkeys(answers, 1.0)
        numbers = [np.empty(0, dtype=np.int64)] * len(self._encoded)
        for p, ids in answers.items():
            if ids is not None and len(ids) > 1:
                numbers[p] = np.zeros(1, dtype=np.int64)

        def forced(logits_KV: torch.Tensor, row: Ints, prompt: Ints, number: Ints, step: Ints) -> Ints:
            tokens = np.array([(answers[p] or [0])[s] for p, s in zip(prompt.tolist(), step.tolist(), strict=True)])
            scaled = logits_KV.float() / self.sampling.temperature
            chance = torch.log_softmax(scaled, dim=-1)[torch.from_numpy(row), torch.from_numpy(tokens)].exp()
            for p, s, value in zip(prompt.tolist(), step.tolist(), chance.tolist(), strict=True):
                if s:
                    ratio[p] *= value
            return tokens

        walk: Walk[int] = Walk(
            self.loaded,
            self._encoded,
            forced,
            lambda count, token: count + 1,
            lambda p, count: count >= len(answers[p] or ()),
            lambda p, numbers, text, how: None,
            0,
            self.sampling.max_new_tokens,
            [],
            self._limits,
            keep=True,
        )
        walk.share(self._walk)
        walk.again(numbers)
        self._scored += walk.positions
        return np.array([ratio[int(p)] for p in prompts])

    def _choose(self, logits_KV: torch.Tensor, row: Ints, prompt: Ints, number: Ints, step: Ints) -> Ints:
        watched = None if self._watched is None else np.hstack([table[prompt] for table in self._watched])
        uniform = uniforms(self._streams[prompt], number, step)
        token, chance = draw_tokens(logits_KV, row, uniform, self.sampling.temperature, watched)
        if self._watched is not None:
            spaced = self._watched[0].shape[1]
            both = np.stack([chance[:, :spaced].sum(axis=1), chance[:, spaced:].sum(axis=1)], axis=1)
            np.add.at(self.expected, prompt, both)
        return token

    def _took(self, prompt: int, numbers: Ints, text: bytes, how: str) -> None:
        hit = how == "over" or (self._graders is not None and self._graders[prompt].word(_shown(text)))
        self.hit[prompt, numbers] = hit
        if self.texts is not None:
            self.texts[prompt][_shown(text)] += len(numbers)

    def _holds(self, prompt: int, text: bytes) -> bool:
        """Whether the text is a hit that no more tokens can undo."""
        if self._graders is not None:
            return self._graders[prompt].word(settled(_shown(text)))
        return any(needle in text for needle in self._needles[prompt])

    def _new_walk(self) -> Walk[Any]:
        common = (self.sampling.max_new_tokens, self.loaded.stop_ids(), self._limits)
        me = weakref.proxy(self)  # a walk that held its session would keep the caches until Python looks for cycles

        def choose(logits_KV: torch.Tensor, row: Ints, prompt: Ints, number: Ints, step: Ints) -> Ints:
            token: Ints = me._choose(logits_KV, row, prompt, number, step)
            return token

        table = self.loaded.pieces
        if table is not None:
            pieces = table

            def longer(text: bytes, token: int) -> bytes:
                return text + pieces[token]

            return Walk(
                self.loaded,
                self._encoded,
                choose,
                longer,
                lambda prompt, text: me._holds(prompt, text),
                lambda prompt, numbers, text, how: me._took(prompt, numbers, text, how),
                b"",
                *common,
                keep=self._keep,
            )
        tokenizer = self.loaded.tokenizer

        def spell(ids: tuple[int, ...]) -> bytes:
            return str(tokenizer.decode(list(ids), skip_special_tokens=True)).encode()

        return Walk(
            self.loaded,
            self._encoded,
            choose,
            lambda text, token: (*text, token),
            lambda prompt, text: me._holds(prompt, spell(text)),
            lambda prompt, numbers, text, how: me._took(prompt, numbers, spell(text), how),
            (),
            *common,
            keep=self._keep,
        )


def sample(
    loaded: LoadedModel,
    prompts: Sequence[str],
    accepted: Sequence[Sequence[str]],
    sampling: Sampling,
    *,
    streams: Sequence[str],
    max_nodes: int | None = None,
    keep_texts: bool = False,
    begun: Callable[[int], None] = lambda count: None,
) -> SampledHits:
    """Independent draws from every prompt, each until its text holds an accepted answer, at EOS or at the limit.

    For what a draw depends on see :class:`TreeSession`.

    Args:
        accepted: for each prompt the answers that count as a hit.
        streams: names the random stream of each prompt, e.g. "P19.train.17/3"; equal streams draw alike.
        max_nodes: nodes computed at once; None for as many as memory bounds allow.
        keep_texts: also return the texts, up to where they were decided.
        begun: hears how many more prompts have been begun.

    Raises:
        InputError: a prompt without tokens or longer than the model's context, or an empty accepted answer.
    """
    session = TreeSession(
        loaded,
        prompts,
        accepted,
        sampling,
        streams=streams,
        max_nodes=max_nodes,
        keep=False,
        watch=False,
        keep_texts=keep_texts,
    )
    session.draw([np.arange(sampling.draws_per_prompt)] * len(prompts), begun)
    return SampledHits(session.hit == 1, session.positions, session.texts)


def greedy(
    loaded: LoadedModel, prompts: Sequence[str], *, max_new_tokens: int = 16, max_nodes: int | None = None
) -> list[str]:
    """The most likely continuation of every prompt, token by token until EOS or the limit, as text without specials.

    Equal prompts give equal texts. Of tokens with exactly equal logits the lower id is taken.
    """
    if not prompts:
        return []
    encoded = loaded.encoder.prompts(prompts, max_new_tokens)
    answers: list[tuple[int, ...]] = [()] * len(prompts)

    def choose(logits_KV: torch.Tensor, row: Ints, prompt: Ints, number: Ints, step: Ints) -> Ints:
        best: Ints = decided(logits_KV.argmax(dim=-1).cpu().numpy())[row]
        return best

    def took(prompt: int, numbers: Ints, text: tuple[int, ...], how: str) -> None:
        answers[prompt] = text

    walk: Walk[tuple[int, ...]] = Walk(
        loaded,
        encoded,
        choose,
        lambda text, token: (*text, token),
        lambda prompt, text: False,
        took,
        (),
        max_new_tokens,
        loaded.stop_ids(),
        max_nodes or nodes_that_fit(loaded, encoded, max_new_tokens),
    )
    walk.run([np.zeros(1, dtype=np.int64)] * len(prompts))
    texts: list[str] = loaded.tokenizer.batch_decode([list(ids) for ids in answers], skip_special_tokens=True)
    return texts


def nodes_that_fit(loaded: LoadedModel, encoded: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """Nodes of one level whose keys, values and logits stay within the memory bounds: 32 to :data:`MAX_NODES`."""
    length = max((len(ids) for ids in encoded), default=0) + max_new_tokens - held_once(loaded, encoded)
    # Twice: the level's own cache, and what is set aside or just being copied.
    of_cache = 2 * bytes_of_token(loaded) * length
    bound = CACHE_BYTES.get(loaded.model.device.type, CACHE_BYTES["cpu"])
    fit = min(bound // of_cache, LOGIT_BYTES // (4 * loaded.vocabulary.logits))
    return int(max(32, min(MAX_NODES, fit)))


def prompts_that_stay(loaded: LoadedModel) -> int:
    """Prompts of an ordinary length whose keys, values and logits may stay in memory between rounds."""
    each = ORDINARY * bytes_of_token(loaded) + 4 * loaded.vocabulary.logits
    return max(1, STAY_BYTES.get(loaded.model.device.type, STAY_BYTES["cpu"]) // each)


def bytes_of_token(loaded: LoadedModel) -> int:
    """Bytes that keys and values of one token take in the cache; for recurrent states a guess of their order.

    Of a model that is divided among processes those that one of them holds, where its heads are divided.
    """
    config = loaded.model.config.get_text_config()
    queries = getattr(config, "num_attention_heads", None) or 1
    heads = getattr(config, "num_key_value_heads", None) or queries
    width = getattr(config, "head_dim", None) or config.hidden_size // queries
    held = int(2 * config.num_hidden_layers * heads * width * torch.finfo(loaded.model.dtype).bits // 8)
    return held // group.size() if divides_heads(loaded.model) else held


def _needles(answers: Sequence[str], key: str) -> tuple[bytes, ...]:
    if not answers or not all(answer.strip() for answer in answers):
        raise InputError(f"{key}: an accepted answer is empty, so every text would hold it")
    return tuple(answer.encode() for answer in answers)


def _graders(accepted: Sequence[Sequence[str]], streams: Sequence[str]) -> list[Grader]:
    """One grader a prompt; prompts of one fact share theirs."""
    made: dict[tuple[str, ...], Grader] = {}
    for answers, key in zip(map(tuple, accepted), streams, strict=True):
        if answers not in made:
            made[answers] = Grader(answers, key)
    return [made[tuple(answers)] for answers in accepted]


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def _answer_ids(loaded: LoadedModel, answer: str) -> list[int] | None:
    """The tokens of the answer after a word and a space.

    None where they are not separate from the word's, or where the model can never give one of them.
    """
    ids = loaded.encoder.behind("is", f" {answer}")
    usable = loaded.vocabulary.usable
    return ids if ids is not None and all(token in usable for token in ids) else None


def _first_tokens(loaded: LoadedModel, accepted: Sequence[Sequence[str]]) -> list[Ints]:
    """The distinct first tokens of each prompt's answers, after a space and otherwise: two [prompts, most], -1 filled.

    The first row of a prompt is empty where an answer cannot be told apart from the word before it.
    """
    known: dict[tuple[str, ...], tuple[list[int], list[int]]] = {}
    for answers in map(tuple, accepted):
        if answers not in known:
            spelled = [_answer_ids(loaded, answer) for answer in answers]
            after_space = {ids[0] for ids in spelled if ids} if all(spelled) else set()
            bare = {ids[0] for ids in loaded.encoder.plain(answers) if ids and ids[0] in loaded.vocabulary.usable}
            known[answers] = (sorted(after_space), sorted(bare - after_space))
    tables = []
    for which in (0, 1):
        width = max((len(tokens[which]) for tokens in known.values()), default=1) or 1
        table = np.full((len(accepted), width), -1, dtype=np.int64)
        for row, answers in zip(table, map(tuple, accepted), strict=True):
            row[: len(known[answers][which])] = known[answers][which]
        tables.append(table)
    return tables
