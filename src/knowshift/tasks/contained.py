"""lm-eval inside a process of ours: it is imported here, and leaves no trace in the process."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from knowshift.errors import InputError

#: Their warnings are for people who run them by themselves.
_LOUD = ("lm_eval", "datasets", "huggingface_hub", "transformers")


@contextmanager
def contained(seed: int, device: str = "cpu", quiet: bool = False, *, asked: str) -> Iterator[None]:
    """A block in which lm-eval may run, with every global random number generator at ``seed``.

    What it prints goes to standard error; with ``quiet`` nowhere, progress bars too. Generators, levels of loggers and
    the environment are afterwards as they were, and no code of a metric is fetched from the hub. ``asked`` names the
    option that asks for a task.

    Raises:
        InputError: lm-eval is not installed.
    """
    environment = set(os.environ)
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    states: tuple[Any, Any] = random.getstate(), np.random.get_state()
    out = io.StringIO() if quiet else sys.stderr
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng([torch.device(device)] if device.startswith("cuda") else []))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(out))
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            stack.enter_context(_without_remote_metrics(asked))
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name in set(os.environ) - environment:
            del os.environ[name]


@contextmanager
def _without_remote_metrics(asked: str) -> Iterator[None]:
    """Import lm-eval; the metrics of the library `evaluate` are scripts on the hub, and none is fetched."""
    try:
        import evaluate
        import lm_eval.api.task
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise InputError(f"{asked}: lm-eval is not installed ({error}); pip install 'knowshift[lm-eval]'") from None
    before = evaluate.config.HF_EVALUATE_OFFLINE
    evaluate.config.HF_EVALUATE_OFFLINE = True
    try:
        yield
    finally:
        evaluate.config.HF_EVALUATE_OFFLINE = before
