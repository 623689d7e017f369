"""How many threads torch and numpy compute with, in a worker and beside threads of our own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from knowshift.parameters.tensors import workers
from knowshift.system.threads import set_threads
from knowshift.system.workers import process_pool


def counts(*_: Any) -> set[int]:
    """Threads of torch and of every library of linear algebra that numpy has."""
    np.linalg.svd(np.eye(3))
    found = [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]
    assert found
    return {torch.get_num_threads(), *found}


def counts_after(number: int) -> set[int]:
    set_threads(number)
    return counts()


def test_a_worker_computes_with_its_share_of_threads() -> None:
    with process_pool(1) as pool:
        assert pool.submit(counts_after, 2).result() == {2}
        assert pool.submit(counts_after, 1).result() == {1}


def test_calls_in_threads_of_our_own_take_one_each_and_the_number_is_as_before_afterwards() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threadpool_limits(2, user_api="blas"):
            for threads in (1, 2):
                with workers(threads) as run:
                    assert list(run(counts, [(), ()])) == [{1}, {1}]
                assert counts() == {2}
    finally:
        torch.set_num_threads(before)
