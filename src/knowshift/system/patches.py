"""Changes of private parts of other libraries, each with a fallback where a library is built otherwise.

Everything here saves time or mends a fault of theirs, and changes no result; tests/system/test_patches.py fails when a
library moves what is named.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection, context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing.process import BaseProcess


@contextmanager
def attention(model: Any, usual: str, other: str) -> Iterator[None]:
    """Within the block, layers of ``model`` that use the attention ``usual`` use ``other``.

    transformers keeps the name in each layer's configuration; its public ``set_attn_implementation`` logs a warning for
    every class that ignores it. Layers without the name are left as they are.
    """
    configs: dict[int, Any] = {id(config): config for m in model.modules() if (config := getattr(m, "config", None))}
    mine = [config for config in configs.values() if getattr(config, "_attn_implementation", None) == usual]
    for config in mine:
        config._attn_implementation = other
    try:
        yield
    finally:
        for config in mine:
            config._attn_implementation = usual


def attention_of(model: Any) -> str:
    """The attention that a transformers model was loaded with, such as "sdpa" or "eager"."""
    return str(getattr(model.config, "_attn_implementation", "unknown"))


@contextmanager
def quick_zero_grad(model: Any) -> Iterator[None]:
    """Within the block, ``model.zero_grad()`` knows the parameters; by itself it looks through all modules for them."""
    parameters = list(model.parameters())

    def zero_grad(set_to_none: bool = True) -> None:
        for parameter in parameters:
            if set_to_none or parameter.grad is None:
                parameter.grad = None
            else:
                parameter.grad.detach_().zero_()

    model.zero_grad = zero_grad
    try:
        yield
    finally:
        del model.zero_grad


def _locked(popen: Any) -> Any:
    """Let one thread at a time ask how a process ended.

    Python reads the status of a process that it has had forked from a pipe. Of two threads that ask at once, as a
    pool's own and whoever waits for its results do, the later finds the pipe empty, and the status becomes 255. Of one
    that was spawned the later is told that it has not ended.
    """
    if (poll := getattr(popen, "poll", None)) is None:
        return popen
    lock = threading.Lock()

    def locked(flag: int = os.WNOHANG) -> int | None:
        if flag != os.WNOHANG:
            connection.wait([popen.sentinel])  # not with the lock, which others ask for without waiting
        with lock:
            code: int | None = poll(flag)
            return code

    popen.poll = locked
    return popen


if sys.platform != "win32":

    class _Forked(context.ForkServerProcess):
        @staticmethod
        def _Popen(process_obj: BaseProcess) -> Any:
            return _locked(context.ForkServerProcess._Popen(process_obj))

    class _Forking(context.ForkServerContext):
        Process = _Forked

    class _Spawned(context.SpawnProcess):
        @staticmethod
        def _Popen(process_obj: BaseProcess) -> Any:
            return _locked(context.SpawnProcess._Popen(process_obj))

    class _Spawning(context.SpawnContext):
        Process = _Spawned


def processes_as(method: str) -> context.BaseContext:
    """``multiprocessing.get_context``, of processes that any number of threads may ask how they ended.

    Args:
        method: "spawn" or, where there are forks, "forkserver".
    """
    if sys.platform == "win32":
        return multiprocessing.get_context(method)
    return {"forkserver": _Forking, "spawn": _Spawning}[method]()


def processes_of(pool: ProcessPoolExecutor) -> list[BaseProcess]:
    """A pool's processes, for ending them; none where Python keeps them elsewhere, and they end with their parent."""
    return list((getattr(pool, "_processes", None) or {}).values())


def preloaded() -> list[str] | None:
    """What the process that ``multiprocessing`` forks imports first; None where Python keeps it elsewhere."""
    from multiprocessing import forkserver  # where there are forks

    found = getattr(getattr(forkserver, "_forkserver", None), "_preload_modules", None)
    return None if found is None else list(found)


def forked_process() -> int | None:
    """The number of the process that ``multiprocessing`` forks, once it has been started; None also where Python keeps
    it elsewhere.
    """
    from multiprocessing import forkserver  # where there are forks

    return getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None)


def forget_shira_layers() -> None:
    """Let go of the layers that PEFT's SHiRA has warned about hooks of: it would hold their models for ever."""
    layer = sys.modules.get("peft.tuners.shira.layer")
    clear = getattr(getattr(layer, "_warn_once_about_module_hooks", None), "cache_clear", None)
    if clear is not None:
        clear()
