"""Memory: what is free, and the C library's heap, kept steady where large tensors come and go all the time."""

from __future__ import annotations

import contextlib
import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h


def steady_heap() -> None:
    """Let the C library keep freed memory for the next tensors, and map only the largest ones by themselves.

    By itself it asks the system for every large tensor anew, whose pages then cost more than the work on them (a fifth
    of the time of sampling), and it moves that limit as it goes.
    """
    with contextlib.suppress(OSError, AttributeError):  # another libc has no such call, and needs none
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_TRIM_THRESHOLD, 128 << 20)


def give_back() -> None:
    """Return what is no longer used to the system, now: one stage of a long work has ended, and another comes.

    The C library by itself keeps most of what large tensors have left: hundreds of MB of a model's caches.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def free_bytes(device: torch.device) -> int:
    """Bytes that this process may still take on a device: a GPU's, or the machine's memory."""
    import torch

    if device.type != "cuda":
        import psutil  # slow to import

        available: int = psutil.virtual_memory().available
        return available
    free, _ = torch.cuda.mem_get_info(device)
    # What torch keeps for later, of models that are gone, is free for this process.
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
