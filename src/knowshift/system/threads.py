"""Threads of this process: torch's, and those that numpy's linear algebra starts, which torch does not know of.

Several processes or threads that each factorise a matrix with a thread for every core spin while they wait for one
another: of the pocket model's matrices two workers on two busy cores took 17 s, and with a thread each 0.7 s.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


def set_threads(number: int) -> None:
    """Compute with so many threads from now on, a worker's share of the machine; torch where it is loaded."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(number)
    threadpool_limits(number, user_api="blas")


@contextmanager
def single_threaded() -> Iterator[None]:
    """One thread for each call of torch and numpy in the block, which has threads of its own that make the calls."""
    torch = sys.modules.get("torch")  # where it is loaded, OpenMP's idle threads would spin and take the cores
    before = torch.get_num_threads() if torch else 1
    with threadpool_limits(1, user_api="blas"):
        if torch:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(before)
