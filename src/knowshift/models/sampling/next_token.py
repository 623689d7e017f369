"""Choosing the next token of many draws from few distributions: one pass over each distribution."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from numpy.typing import NDArray

from knowshift.errors import InputError
from knowshift.models.sampling.cache import Ints
from knowshift.system.group import decided

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
    one pass over the distribution, however many draws there are. Probabilities in float32, sums of blocks in
    float64. A token of probability zero is never drawn.

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
    if watched_DF is None:
        return token, np.zeros((len(row_D), 0))
    watched = torch.from_numpy(watched_DF).to(device)
    parts = weight_KV[row[:, None], watched.clamp(min=0)].double().masked_fill(watched < 0, 0.0)
    chance: NDArray[np.float64] = (parts / total[:, None]).cpu().numpy()
    return token, chance
