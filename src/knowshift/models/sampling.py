"""Sampling and greedy answering with any causal language model, on the prefix tree of :mod:`knowshift.models.tree`."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from knowshift.errors import InputError
from knowshift.models.cache import Ints
from knowshift.models.loading import LoadedModel
from knowshift.models.pieces import token_pieces
from knowshift.models.streams import stream_key, uniforms
from knowshift.models.tree import Walk

#: Nodes of one level at most, where the cache's memory does not ask for less.
MAX_NODES = 2048
#: Bytes that the keys and values of one level may take, by kind of device.
CACHE_BYTES = {"cpu": 384 << 20, "cuda": 8 << 30}
#: Bytes that the logits of one level may take.
LOGIT_BYTES = 256 << 20
#: On a CPU, bytes of logits that are turned into probabilities at once: what its own cache holds.
SLICE_BYTES = 1 << 20


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


def sample(
    loaded: LoadedModel,
    prompts: Sequence[str],
    accepted: Sequence[Sequence[str]],
    *,
    keys: Sequence[str],
    seed: int,
    draws: int = 10,
    first_draw: int = 0,
    temperature: float = 0.7,
    max_new_tokens: int = 32,
    max_nodes: int | None = None,
    keep_texts: bool = False,
    begun: Callable[[int], None] = lambda count: None,
) -> SampledHits:
    """Independent draws from every prompt, each until its text holds an accepted answer, at EOS or at the limit.

    The whole distribution is sampled at ``temperature`` (no top-p, no top-k; paper 2.3). Draw i of a prompt is a
    function of (model, prompt, its key, ``seed``, i): other prompts, other draws, order and ``max_nodes`` change it
    only where float rounding moves the boundary between two tokens across a random number (about one token in a
    million); with the same prompts, ``max_nodes`` and threads it is the same to the bit.

    Args:
        accepted: for each prompt the answers that count as a hit, by the paper's plain substring rule.
        keys: names the random stream of each prompt, e.g. "P19.train.17/3"; equal keys draw alike.
        first_draw: number of the first draw, to go on where an earlier call stopped.
        max_nodes: nodes computed at once; None for as many as memory bounds allow (1 GiB of keys and values).
        begun: hears how many more prompts have been begun.

    Raises:
        InputError: a prompt without tokens or longer than the model's context, or an empty accepted answer.
    """
    assert len(prompts) == len(accepted) == len(keys)
    needles = [_needles(answers, key) for answers, key in zip(accepted, keys, strict=True)]
    encoded = encode(loaded, prompts, max_new_tokens)
    streams = np.array([stream_key(seed, key) for key in keys], dtype=np.uint64)
    hit = np.zeros((len(prompts), draws), dtype=bool)
    texts: list[Counter[str]] | None = [Counter() for _ in prompts] if keep_texts else None
    pieces = token_pieces(loaded.tokenizer, loaded.model.config.get_text_config().vocab_size)

    def choose(logits_KV: torch.Tensor, row: Ints, prompt: Ints, number: Ints, step: Ints) -> Ints:
        return draw_tokens(logits_KV, row, uniforms(streams[prompt], number, step), temperature)

    def took(prompt: int, numbers: Ints, text: bytes, how: str) -> None:
        if how == "over":
            hit[prompt, numbers - first_draw] = True
        if texts is not None:
            texts[prompt][text.decode("utf-8", "replace")] += len(numbers)

    def holds(prompt: int, text: bytes) -> bool:
        return any(needle in text for needle in needles[prompt])

    numbers = np.arange(first_draw, first_draw + draws)
    limits = (max_new_tokens, loaded.stop_ids(), max_nodes or nodes_that_fit(loaded, encoded, max_new_tokens))
    if pieces is not None:
        table = pieces
        walk = Walk(loaded, encoded, choose, lambda text, token: text + table[token], holds, took, b"", *limits)
        walk.run([numbers] * len(prompts), begun)
        return SampledHits(hit, walk.positions, texts)
    spell = _speller(loaded)
    slow: Walk[tuple[int, ...]] = Walk(
        loaded,
        encoded,
        choose,
        lambda text, token: (*text, token),
        lambda prompt, text: holds(prompt, spell(text)),
        lambda prompt, numbers, text, how: took(prompt, numbers, spell(text), how),
        (),
        *limits,
    )
    slow.run([numbers] * len(prompts), begun)
    return SampledHits(hit, slow.positions, texts)


def greedy(
    loaded: LoadedModel, prompts: Sequence[str], *, max_new_tokens: int = 16, max_nodes: int | None = None
) -> list[str]:
    """The most likely continuation of every prompt, token by token until EOS or the limit, as text without specials.

    Equal prompts give equal texts. Of tokens with exactly equal logits the lower id is taken.
    """
    encoded = encode(loaded, prompts, max_new_tokens)
    answers: list[tuple[int, ...]] = [()] * len(prompts)

    def choose(logits_KV: torch.Tensor, row: Ints, prompt: Ints, number: Ints, step: Ints) -> Ints:
        best: Ints = logits_KV.argmax(dim=-1).cpu().numpy()[row]
        return best

    def took(prompt: int, numbers: Ints, text: tuple[int, ...], how: str) -> None:
        answers[prompt] = text

    fit = max_nodes or nodes_that_fit(loaded, encoded, max_new_tokens)
    one = np.zeros(1, dtype=np.int64)
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
        fit,
    )
    walk.run([one] * len(prompts))
    texts: list[str] = loaded.tokenizer.batch_decode([list(ids) for ids in answers], skip_special_tokens=True)
    return texts


def draw_tokens(logits_KV: torch.Tensor, row_D: Ints, uniform_D: NDArray[np.float64], temperature: float) -> Ints:
    """For every draw the token at which the cumulative distribution softmax(logits / T) passes its number in [0, 1).

    The cumulative sum is taken over blocks of about sqrt(V) tokens and then within one block, so that the cost is
    one pass over the distribution, however many draws there are. Probabilities in float32, sums of blocks in
    float64. A token of probability zero is never drawn.
    """
    token = np.empty(len(row_D), dtype=np.int64)
    order = np.argsort(row_D, kind="stable")
    size = max(1, SLICE_BYTES // (4 * logits_KV.shape[1])) if logits_KV.device.type == "cpu" else len(logits_KV)
    edges = np.searchsorted(row_D[order], np.arange(0, len(logits_KV) + size, size))
    for turn, (start, end) in enumerate(itertools.pairwise(edges)):
        if end > start:
            mine = order[start:end]
            part = logits_KV[turn * size : (turn + 1) * size]
            token[mine] = _draw_slice(part, row_D[mine] - turn * size, uniform_D[mine], temperature)
    return token


def _draw_slice(logits_KV: torch.Tensor, row_D: Ints, uniform_D: NDArray[np.float64], temperature: float) -> Ints:
    device, vocabulary = logits_KV.device, logits_KV.shape[1]
    width = max(1, math.isqrt(vocabulary))
    blocks = -(-vocabulary // width)
    logits = logits_KV.float()
    weight_KV = torch.empty((len(logits), blocks * width), dtype=torch.float32, device=device)
    weight_KV[:, vocabulary:] = 0
    torch.sub(logits, logits.amax(dim=1, keepdim=True), out=weight_KV[:, :vocabulary])
    weight_KV[:, :vocabulary].mul_(1 / temperature).exp_()
    grid_KBW = weight_KV.view(-1, blocks, width)
    passed_KB = grid_KBW.sum(dim=2).double().cumsum(dim=1)
    if not bool(torch.isfinite(passed_KB[:, -1]).all()):
        raise InputError("the model gives logits that are not finite numbers; try --dtype float32")
    row = torch.from_numpy(row_D).to(device)
    mine_DB = passed_KB[row]
    total = mine_DB[:, -1]
    goal = torch.from_numpy(uniform_D).to(device) * total
    goal = torch.minimum(goal, torch.nextafter(total, torch.zeros_like(total)))
    block = (mine_DB <= goal[:, None]).sum(dim=1)
    start = torch.where(block > 0, mine_DB.gather(1, (block - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    inner_DW = grid_KBW[row, block]
    within = (inner_DW.double().cumsum(dim=1) <= (goal - start)[:, None]).sum(dim=1)
    # Rounding may leave the goal just beyond the block; the last token that has a probability is then meant.
    last = width - 1 - (inner_DW.flip(1) > 0).int().argmax(dim=1)
    token: Ints = (block * width + torch.minimum(within, last)).cpu().numpy()
    return token


def encode(loaded: LoadedModel, prompts: Sequence[str], max_new_tokens: int) -> list[list[int]]:
    """Token ids of the prompts as the tokenizer begins a text (BOS at most once), without an EOS at the end."""
    if not prompts:
        return []
    ids: list[list[int]] = loaded.tokenizer(list(prompts), add_special_tokens=True)["input_ids"]
    end = loaded.tokenizer.eos_token_id
    context = loaded.context
    for i, prompt in enumerate(prompts):
        if len(ids[i]) > 1 and ids[i][-1] == end and not prompt.endswith(str(loaded.tokenizer.eos_token)):
            ids[i] = ids[i][:-1]
        if not ids[i]:
            raise InputError(f"prompt {i} ({prompt!r}) has no tokens")
        if context is not None and len(ids[i]) + max_new_tokens > context:
            raise InputError(
                f"prompt {i} ({prompt[:60]!r}...) has {len(ids[i])} tokens; with {max_new_tokens} new ones it does not "
                f"fit into the model's context of {context}"
            )
    return ids


def nodes_that_fit(loaded: LoadedModel, encoded: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """Nodes of one level whose keys, values and logits stay within the memory bounds: 32 to :data:`MAX_NODES`."""
    config = loaded.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    length = max((len(ids) for ids in encoded), default=0) + max_new_tokens
    bytes_each = torch.finfo(loaded.model.dtype).bits // 8
    # Twice: the level's own cache, and what is set aside or just being copied.
    of_cache = 2 * 2 * config.num_hidden_layers * heads * width * length * bytes_each
    fit = min(
        CACHE_BYTES.get(loaded.model.device.type, CACHE_BYTES["cpu"]) // of_cache,
        LOGIT_BYTES // (4 * config.vocab_size),
    )
    return int(max(32, min(MAX_NODES, fit)))


def _needles(answers: Sequence[str], key: str) -> tuple[bytes, ...]:
    if not answers or not all(answer.strip() for answer in answers):
        raise InputError(f"{key}: an accepted answer is empty, so every text would hold it")
    return tuple(answer.encode() for answer in answers)


def _speller(loaded: LoadedModel) -> Callable[[tuple[int, ...]], bytes]:
    def spell(ids: tuple[int, ...]) -> bytes:
        text: str = loaded.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.encode()

    return spell
