"""What is changed inside other libraries is there, does what it is for, and is taken back."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.process import BaseProcess

import pytest
import torch

from knowshift.models.layers import attention
from knowshift.models.loading import LoadedModel
from knowshift.models.sampling.session import greedy
from knowshift.system import patches


def test_sampling_goes_through_the_attention_for_one_token(
    small_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    plain = attention.one_token_attention

    def watched(module: torch.nn.Module, query: torch.Tensor, *given: object, **more: object) -> object:
        lengths.append(query.shape[2])
        return plain(module, query, *given, **more)  # type: ignore[arg-type]

    attention.AttentionInterface.register(attention.NAME, watched)
    try:
        greedy(small_model, ["Who is it?", "Ann"], max_new_tokens=4)
    finally:
        attention.AttentionInterface.register(attention.NAME, plain)
    assert lengths.count(1) >= 2 * 3  # two layers, a step for each token: the two prompts begin differently
    assert patches.attention_of(small_model.model) == attention.USUAL


def test_attention_is_taken_back_after_an_error(small_model: LoadedModel) -> None:
    block = patches.attention(small_model.model, attention.USUAL, attention.NAME)
    block.__enter__()
    assert patches.attention_of(small_model.model) == attention.NAME
    assert not block.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert patches.attention_of(small_model.model) == attention.USUAL
    with patches.attention(small_model.model, "eager", attention.NAME):
        assert patches.attention_of(small_model.model) == attention.USUAL
    with patches.attention(torch.nn.Linear(1, 1), attention.USUAL, attention.NAME):
        pass


def test_a_pool_names_its_processes() -> None:
    pool = ProcessPoolExecutor(1)
    pool.submit(int).result()
    assert [process.is_alive() for process in patches.processes_of(pool)] == [True]
    pool.shutdown()
    assert patches.processes_of(object()) == []  # type: ignore[arg-type]


def _die() -> None:
    time.sleep(0.1)  # until all ask
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "win32", reason="one thread asks the system, and not a pipe")
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_all_threads_that_ask_at_once_are_told_how_a_process_ended(method: str) -> None:
    context = patches.processes_as(method)
    for _ in range(5):
        process = context.Process(target=_die)  # type: ignore[attr-defined]
        process.start()
        told: list[int | None] = []

        def ask(process: BaseProcess = process, told: list[int | None] = told) -> None:
            process.join()
            told.append(process.exitcode)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert told == [-signal.SIGKILL] * 8


def test_gradients_are_cleared_without_looking_for_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Linear(1, 1))
    block = patches.quick_zero_grad(model)
    block.__enter__()
    monkeypatch.setattr(model, "parameters", lambda: pytest.fail("looked for"))
    for set_to_none in (False, True):
        model(torch.ones(1, 2)).sum().backward()
        assert all(layer.weight.grad is not None for layer in model)
        model.zero_grad(set_to_none=set_to_none)
        left = [gradient for layer in model for gradient in (layer.weight.grad, layer.bias.grad)]
        assert (
            all(gradient is None for gradient in left) if set_to_none else not any(gradient.any() for gradient in left)
        )
    assert not block.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert "zero_grad" not in vars(model)
