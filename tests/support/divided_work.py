"""What the processes of a group do in tests: a module that they can import."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from knowshift.models.loading import LoadedModel, load_model
from knowshift.models.logits import next_logits
from knowshift.models.sampling.session import greedy, sample
from knowshift.models.sampling.settings import Sampling
from knowshift.models.stored import stored_weights
from knowshift.parameters.loaded import parameters_of
from knowshift.parameters.restore import RestorationSweep
from knowshift.parameters.slices import slices_of
from knowshift.system import group

PROMPTS = ("hello there", "what is this", "a", "what is that thing then", "what is")
FRACTIONS = (0.1, 0.6)


def asked(loaded: LoadedModel) -> dict[str, Any]:
    """Logits, greedy answers and draws of one model."""
    logits = torch.zeros(len(PROMPTS), loaded.vocabulary.usable.size)
    for batch, found in next_logits(loaded, PROMPTS):
        logits[batch] = found
    sampling = Sampling(draws_per_prompt=20, temperature=0.7, max_new_tokens=5, seed=3)
    drawn = sample(loaded, PROMPTS, [["e"]] * len(PROMPTS), sampling, streams=PROMPTS)
    return {"logits": logits.tolist(), "greedy": greedy(loaded, PROMPTS), "hits": drawn.hit.tolist()}


def restored(base: LoadedModel, tuned: LoadedModel, criteria: Sequence[str]) -> dict[str, Any]:
    """Whole weights after each step of each sweep, and after undoing it, as bytes; and numbers of weights."""
    found: dict[str, Any] = {}
    whole = None if slices_of(tuned.model) is None else stored_weights(tuned)
    for criterion in criteria:
        sweep = RestorationSweep(tuned.model, stored_weights(base), criterion=criterion, seed=5, tuned=whole, piece=100)
        steps = [(count, gathered(tuned)) for _, count in sweep.run(FRACTIONS)]
        sweep.undo()
        found[criterion] = [*steps, (0, gathered(tuned))]
    return found


def gathered(loaded: LoadedModel) -> dict[str, bytes]:
    """Whole weights, put together from the slices of all processes."""
    slices, found = slices_of(loaded.model) or {}, {}
    for name, held in parameters_of(loaded.model).items():
        parts = [torch.empty_like(held) for _ in range(group.size())] if name in slices else [held]
        if name in slices:
            dist.all_gather(parts, held.contiguous())
        found[name] = torch.cat(parts, dim=slices[name].dim if name in slices else 0).numpy().tobytes()
    return found


def together(base: str, tuned: str, criteria: Sequence[str]) -> dict[str, Any]:
    """Two checkpoints, divided among the processes."""
    torch.set_num_threads(1)
    before, after = (load_model(name, divided=True) for name in (base, tuned))
    held = sum(weight.numel() for weight in after.model.parameters())
    return {**asked(after), "restored": restored(before, after, criteria), "held": held}


def one_dies() -> None:
    """The second process of a group is killed while the first waits for it."""
    if group.number() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    group.decided(None)
