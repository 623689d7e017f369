"""Engines that mastery is measured on: how a worker opens one, and on which devices and in how many processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from knowshift.models.dtypes import fitting_dtype
from knowshift.models.finding import ModelFiles, find_model
from knowshift.models.loading import LoadedModel, load_found, load_model, prepared, torch_device
from knowshift.models.sampling.session import CACHE_BYTES
from knowshift.probing.measure import Engine
from knowshift.system.threads import set_threads
from knowshift.system.workers import cores

#: Models of fewer bytes of weights are loaded once a core.
SMALL = 1 << 30
#: Facts in a part of a run: what a kill may lose, and what fills a few batches.
PART = 256
#: The same for a model of more bytes of weights than ``LIGHT``, which takes seconds for a fact.
PART_OF_HEAVY, LIGHT = 32, 64 << 20
#: Caches that a process holds at once: that of its batch, grown while prompts branch, and of texts that wait.
BATCHES = 3


def is_server(name: str) -> bool:
    """Whether a model's name is the URL of a completions server."""
    return name.startswith(("http://", "https://"))


@dataclass(frozen=True)
class EngineSpec:
    """How a worker opens its engine; ``devices`` are dealt out to the workers in turn."""

    name: str
    revision: str | None = None
    dtype: str | None = "float32"  # None: what fits model and device
    devices: tuple[str, ...] = ("cpu",)
    threads: int | None = None  # of each worker; None leaves PyTorch's choice
    base: str | None = None  # the model an adapter is put on, where it is not what it says
    base_revision: str | None = None
    found: ModelFiles | None = None  # where it lies; looked for by name where None
    loaded: LoadedModel | None = None  # a model that is in this process already; no worker can open it
    heavy: bool = False  # whether a fact takes seconds
    facts_of_part: int | None = None  # None: by the model's size
    servers: tuple[str, ...] = ()  # where ``name`` is a server's URL, those of others with the same model

    @property
    def part(self) -> int:
        """Facts in a part of a run."""
        return self.facts_of_part or (PART_OF_HEAVY if self.heavy else PART)

    @property
    def is_server(self) -> bool:
        return is_server(self.name)

    def open(self, worker: int = 0) -> LoadedModel | Engine:
        """Load the model, or connect to the server if the name is a URL."""
        if self.loaded is not None:
            return self.loaded
        if self.is_server:
            from knowshift.models.server.engine import CompletionsServer, SeveralServers

            return SeveralServers((self.name, *self.servers)) if self.servers else CompletionsServer(self.name)
        if self.threads is not None:
            set_threads(self.threads)
        device = self.devices[worker % len(self.devices)]
        if self.found is not None:
            return load_found(self.found, dtype=self.dtype, device=device)
        return load_model(
            self.name,
            revision=self.revision,
            dtype=self.dtype,
            device=device,
            base=self.base,
            base_revision=self.base_revision,
        )

    @contextmanager
    def shared(self) -> Iterator[EngineSpec]:
        """The same engine for several processes: an adapter is merged, where it must be, before they open it."""
        if self.is_server:
            yield self
            return
        files = find_model(self.name, revision=self.revision, base=self.base, base_revision=self.base_revision)
        with prepared(files) as found:
            yield self if files.adapter is None else replace(self, found=found)

    def placed(self, device: str, workers: int | None, facts: int) -> tuple[EngineSpec, int]:
        """The same engine on its devices, for so many facts, its dtype told, and in how many processes.

        That is one a GPU, and of small models one a core, as far as memory goes. ``cuda`` and ``auto`` take every GPU,
        ``cuda:N`` that one. A given number of ``workers`` overrides it; where none is given, there are never more than
        parts to share out.
        """
        if self.is_server:
            return self, 1
        if self.loaded is not None:
            return replace(self, heavy=self.loaded.weight_bytes > LIGHT), 1
        files = find_model(self.name, revision=self.revision, base=self.base, base_revision=self.base_revision)
        # Said here: where workers sit on GPUs, the model is checked on the CPU.
        dtype = fitting_dtype(files, torch_device(device)) if self.dtype is None else self.dtype
        spec = replace(self, heavy=files.bytes > LIGHT, dtype=dtype)
        parts = -(-facts // spec.part)
        if device in ("auto", "cuda") and torch.cuda.is_available():
            devices = tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
            return replace(spec, devices=devices), workers or min(len(devices), parts)
        if device not in ("auto", "cpu"):
            return replace(spec, devices=(device,)), workers or 1
        small = files.bytes < SMALL
        processes = workers or (min(cores(), parts, _that_fit(files)) if small else 1)
        # One thread a process computes the same bits whatever the number of processes; a large model needs them all.
        return replace(spec, devices=("cpu",), threads=1 if small else None), processes


def _that_fit(files: ModelFiles) -> int:
    """Processes with a copy of the model each that free memory has room for, at least one."""
    if files.bytes <= LIGHT:
        return cores()
    import psutil  # slow to import

    # Weights may be widened from two bytes to four.
    each = 2 * files.bytes + BATCHES * CACHE_BYTES["cpu"]
    return max(1, int(psutil.virtual_memory().available // each))
