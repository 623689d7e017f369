"""Choosing the next token of many draws from few distributions: one pass over each distribution."""

from __future__ import annotations

import ctypes
import itertools
import math

import numpy as np
import torch
from numpy.typing import NDArray

from knowshift.errors import InputError
from knowshift.models.layers.attention import LANES, library
from knowshift.models.sampling.cache import Ints
from knowshift.system.group import decided

_NOT_FINITE = "the model gives logits that are not finite numbers; try --dtype float32"
#: On a CPU, bytes of logits that are turned into probabilities at once: what its own cache holds.
SLICE_BYTES = 1 << 20


def draw_tokens(
    logits_KV: torch.Tensor,
    row_D: Ints,
    uniform_D: NDArray[np.float64],
    temperature: float,
    watched_DF: Ints | None = None,
) -> tuple[Ints, NDArray[np.float64]]:
    """For every draw the token at which the cumulative distribution softmax(logits / T) passes its number in [0, 1).

    The cumulative sum is taken over blocks of about sqrt(V) tokens and then within one block, so that the cost is
    one pass over the distribution, however many draws there are: by a loop in C (layers/one_token.c), or, where it was
    not compiled, on a GPU and with several threads, by PyTorch. Probabilities in float32, sums of blocks in float64.
    A token of probability zero is never drawn.

    Also returns the probability [D, F] of each of the tokens ``watched_DF`` (-1: none) in each draw's distribution.
    Both are those of the first process in all of a group: sums on a GPU may differ from run to run.
    """
    token = np.empty(len(row_D), dtype=np.int64)
    chance = np.zeros((len(row_D), 0 if watched_DF is None else watched_DF.shape[1]))
    order = np.argsort(row_D, kind="stable")
    size = max(1, SLICE_BYTES // (4 * logits_KV.shape[1])) if logits_KV.device.type == "cpu" else len(logits_KV)
    edges = np.searchsorted(row_D[order], np.arange(0, len(logits_KV) + size, size))
    for turn, (start, end) in enumerate(itertools.pairwise(edges)):
        if end > start:
            mine = order[start:end]
            part = logits_KV[turn * size : (turn + 1) * size]
            watched = None if watched_DF is None else watched_DF[mine]
            token[mine], chance[mine] = _draw_slice(
                part, row_D[mine] - turn * size, uniform_D[mine], temperature, watched
            )
    return decided((token, chance))


def _draw_slice(
    logits_KV: torch.Tensor,
    row_D: Ints,
    uniform_D: NDArray[np.float64],
    temperature: float,
    watched_DF: Ints | None,
) -> tuple[Ints, NDArray[np.float64]]:
    device, vocabulary = logits_KV.device, logits_KV.shape[1]
    loop = library()
    if loop is not None and device.type == "cpu" and torch.get_num_threads() == 1:
        return _by_loop(loop, logits_KV, row_D, uniform_D, temperature, watched_DF)
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
        raise InputError(_NOT_FINITE)
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
    if watched_DF is None:
        return token, np.zeros((len(row_D), 0))
    watched = torch.from_numpy(watched_DF).to(device)
    parts = weight_KV[row[:, None], watched.clamp(min=0)].double().masked_fill(watched < 0, 0.0)
    chance: NDArray[np.float64] = (parts / total[:, None]).cpu().numpy()
    return token, chance


def _by_loop(
    loop: ctypes.CDLL,
    logits_KV: torch.Tensor,
    row_D: Ints,
    uniform_D: NDArray[np.float64],
    temperature: float,
    watched_DF: Ints | None,
) -> tuple[Ints, NDArray[np.float64]]:
    """The same by the loop in C, for draws in the order of their rows."""
    logits = logits_KV.float()
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    vocabulary = logits.shape[1]
    block = max(1, round(math.sqrt(vocabulary) / LANES)) * LANES
    blocks = -(-vocabulary // block)
    row, uniform = np.ascontiguousarray(row_D, dtype=np.int64), np.ascontiguousarray(uniform_D, dtype=np.float64)
    watched = np.empty((len(row), 0)) if watched_DF is None else watched_DF
    watched = np.ascontiguousarray(watched, dtype=np.int64)
    assert watched.max(initial=-1) < vocabulary
    weights, passed = np.empty(blocks * block, dtype=np.float32), np.empty(blocks)
    token, chance = np.empty(len(row), dtype=np.int64), np.empty(watched.shape)
    finite = loop.knowshift_choose(
        vocabulary,
        block,
        logits.data_ptr(),
        logits.stride(0),
        1 / temperature,
        len(row),
        row.ctypes.data,
        uniform.ctypes.data,
        watched.shape[1],
        *(array.ctypes.data for array in (watched, weights, passed, token, chance)),
    )
    if not finite:
        raise InputError(_NOT_FINITE)
    return token, chance
