"""Writing restored checkpoints that transformers loads as they are.

Every file of weights keeps the header of the file it stands for, byte by byte: the same shards, names, order, dtypes
and metadata. Only the values of the region differ. Pieces are computed by several threads, written in place as they
come, and read back and compared; the SHA-256 of every file is taken from the values in memory. An interrupted or
failed run leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from knowshift.errors import InputError
from knowshift.files import check_parent
from knowshift.parameters.files.adapter import AdaptedTensors
from knowshift.parameters.files.checkpoint import STORED_DTYPES, Shard, StoredTensor
from knowshift.parameters.files.companions import BESIDE_WEIGHTS, TOKENIZER, copy_files, files_beside, tokenizer_folder
from knowshift.parameters.files.pair import CheckpointPair
from knowshift.parameters.methods import RestorationPlan
from knowshift.parameters.tensors import PIECE, Array, Runner, number_of

#: Bytes in a piece that is copied as it is.
COPIED = 1 << 22
#: Bytes of one file after which it is flushed while it is written: the final flush then has little left to do.
_FLUSHED = 1 << 26
#: Bytes that are read back at a time.
_READ_BACK = 1 << 26
PROVENANCE = "knowshift.json"


@dataclass(frozen=True)
class _Job:
    """A stretch of one file: values edited in the region, or bytes copied."""

    begin: int  # byte in the file
    end: int
    tensor: int | None  # of the region
    name: str | None  # outside the region, but changed by an adapter
    start: int = 0  # weights
    stop: int = 0
    again: bool = False  # a tied copy of a tensor that is counted where it stands first


@dataclass(frozen=True)
class Written:
    """One finished checkpoint: weights put back, and the SHA-256 and size of each of its weight files."""

    restored: int
    files: Mapping[str, Mapping[str, Any]]


def write_checkpoints(
    pair: CheckpointPair,
    plan: RestorationPlan,
    folders: Sequence[Path],
    run: Runner,
    *,
    piece: int = PIECE,
    progress: Callable[[int], None] = lambda written: None,
) -> list[Written]:
    """Write one checkpoint into each (existing, empty) folder, for the plan's fractions in order.

    ``progress`` is called with the bytes written, all folders together.
    """
    restored = [0] * len(folders)
    files: list[dict[str, dict[str, Any]]] = [{} for _ in folders]
    for shard in pair.layout.shards:
        digests, counts = _write_shard(pair, plan, shard, folders, run, piece, progress)
        restored = [total + count for total, count in zip(restored, counts, strict=True)]
        for made, digest in zip(files, digests, strict=True):
            made[shard.path.name] = {"sha256": digest, "bytes": shard.size}
    for folder in folders:
        copy_beside(pair, folder)
    return [Written(count, made) for count, made in zip(restored, files, strict=True)]


def bytes_needed(pair: CheckpointPair, checkpoints: int) -> int:
    """What the outputs will take on disk."""
    return checkpoints * (sum(shard.size for shard in pair.layout.shards) + (1 << 26))


def check_output(folder: Path, inputs: Sequence[Path]) -> None:
    """Raise :class:`InputError` when the output folder is an input, inside one, holds anything, or cannot be made."""
    try:
        _check_output(folder, inputs)
    except PermissionError as error:
        raise InputError(f"{folder}: {error.strerror}") from None


def _check_output(folder: Path, inputs: Sequence[Path]) -> None:
    target = folder.resolve()  # a link to an empty folder, or ".", is the folder that it points to
    if any(path.resolve() in (target, *target.parents) for path in inputs):
        raise InputError(f"{folder}: is (or lies in) one of the inputs; expected a new folder")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: exists and is no folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty; expected a new folder")
    if os.path.ismount(target):  # it cannot be renamed over
        raise InputError(f"{folder}: is a mount point; expected a new folder in it")
    check_parent(target)


def copy_beside(pair: CheckpointPair, folder: Path) -> None:
    """Copy configuration, generation configuration and index of the tuned model, and the tokenizer it is loaded with.

    Files that it lacks come from the base.
    """
    for source, patterns, without in _sources_beside(pair):
        copy_files(source, folder, patterns, without)
    if pair.layout.index_file is not None:
        shutil.copyfile(pair.layout.index_file, folder / pair.layout.index_file.name)


def check_beside(pair: CheckpointPair) -> None:
    """Raise :class:`InputError` for what :func:`copy_beside` would not copy, before the weights are written."""
    for source, patterns, without in _sources_beside(pair):
        files_beside(source, patterns, without)


def _sources_beside(pair: CheckpointPair) -> list[tuple[Path, Sequence[str], Sequence[str]]]:
    """(folder, patterns copied, patterns left out), in order: the first folder that has a file gives it."""
    tuned = pair.layout.folder if pair.adapter is None else pair.adapter.folder
    sources: list[tuple[Path, Sequence[str], Sequence[str]]] = [
        (tokenizer_folder(tuned, pair.base.folder), TOKENIZER, ()),
        (pair.layout.folder, BESIDE_WEIGHTS, TOKENIZER),
    ]
    if not (pair.layout.folder / "generation_config.json").is_file():
        sources.append((pair.base.folder, ("generation_config.json",), ()))
    return sources


def write_provenance(folder: Path, about: Mapping[str, Any]) -> None:
    """Write ``knowshift.json``: how the checkpoint was made."""
    text = json.dumps(about, indent=1, sort_keys=True) + "\n"
    (folder / PROVENANCE).write_text(text, encoding="utf-8")


def _write_shard(
    pair: CheckpointPair,
    plan: RestorationPlan,
    shard: Shard,
    folders: Sequence[Path],
    run: Runner,
    piece: int,
    progress: Callable[[int], None],
) -> tuple[list[str], list[int]]:
    """Write one file into every folder: (its SHA-256, weights put back in it) for each."""
    paths = [folder / shard.path.name for folder in folders]
    jobs = list(_jobs(pair, plan, shard, piece))
    hashes = [hashlib.sha256() for _ in paths]
    restored = [0] * len(paths)
    writing = threading.Lock()  # the system makes one of two threads that write to one file busy-wait
    descriptors = [os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644) for path in paths]
    try:

        def make(job: _Job) -> tuple[list[Array], list[int]]:
            values, counts = _values(pair, plan, shard, job, len(paths))
            for path, descriptor, value in zip(paths, descriptors, values, strict=True):
                with writing:
                    _write_all(descriptor, _bytes(value), job.begin)
                if not _reads_back(descriptor, value, job.begin):
                    raise OSError(f"{path}: bytes {job.begin}-{job.end} read back differ from those written")
            return values, counts

        with _EarlyFlush(descriptors) as flush:
            for job, (values, counts) in zip(jobs, run(make, ((job,) for job in jobs)), strict=True):
                for number, value in enumerate(values):
                    hashes[number].update(_bytes(value))
                    restored[number] += counts[number]
                flush.written(job.end)
                progress((job.end - job.begin) * len(paths))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return [digest.hexdigest() for digest in hashes], restored


class _EarlyFlush:
    """Flush files while they are being written, in a separate thread."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._descriptors = descriptors
        self._thread = ThreadPoolExecutor(1)
        self._under_way: Future[None] | None = None
        self._flushed = 0

    def __enter__(self) -> _EarlyFlush:
        return self

    def written(self, end: int) -> None:
        """All bytes up to ``end`` are written. A failed flush raises here too: the system reports it only once."""
        if end - self._flushed < _FLUSHED or (self._under_way is not None and not self._under_way.done()):
            return
        if self._under_way is not None:
            self._under_way.result()
        self._flushed, self._under_way = end, self._thread.submit(self._flush)

    def _flush(self) -> None:
        for descriptor in self._descriptors:
            os.fsync(descriptor)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if self._under_way is not None and kind is None:
            self._under_way.result()


def _jobs(pair: CheckpointPair, plan: RestorationPlan, shard: Shard, piece: int) -> Iterator[_Job]:
    """The whole file in order: header, then every tensor."""
    yield from _copies(0, shard.data_begin)
    numbers = {where.name: number for number, where in enumerate(pair.places)}
    touched = pair.tuned.touched if isinstance(pair.tuned, AdaptedTensors) else set()
    for name, stored in sorted(shard.tensors.items(), key=lambda item: item[1].begin):
        counted = pair.copies.get(name, name)
        if counted in numbers or counted in touched:
            width = STORED_DTYPES[stored.dtype].itemsize
            size = number_of(stored.shape)
            step = size if plan.whole and counted in numbers else piece
            for start in range(0, size, max(1, step)):
                stop = min(start + step, size)
                yield _Job(
                    stored.begin + start * width,
                    stored.begin + stop * width,
                    numbers.get(counted),
                    counted,
                    start,
                    stop,
                    again=counted != name,
                )
        else:
            yield from _copies(stored.begin, stored.end)


def _copies(begin: int, end: int) -> Iterator[_Job]:
    for start in range(begin, end, COPIED):
        yield _Job(start, min(start + COPIED, end), None, None)


def _values(
    pair: CheckpointPair, plan: RestorationPlan, shard: Shard, job: _Job, outputs: int
) -> tuple[list[Array], list[int]]:
    """What a job writes into each output, and how many weights it puts back."""
    if job.tensor is not None:
        assert job.name is not None
        values, counts = plan.edit(job.tensor, job.start, job.stop)
        stored = pair.layout.tensors[job.name]
        if pair.weights.strict:
            _check_range(pair, plan, job, values)
        return [_as_stored(value, stored) for value in values], [0] * outputs if job.again else counts
    if job.name is not None:
        tuned = _as_stored(pair.tuned.read(job.name, job.start, job.stop), pair.layout.tensors[job.name])
        return [tuned] * outputs, [0] * outputs
    copied = np.empty(job.end - job.begin, np.uint8)
    pair.layout.read_bytes(shard.path, job.begin, copied)
    return [copied] * outputs, [0] * outputs


def _check_range(pair: CheckpointPair, plan: RestorationPlan, job: _Job, values: Sequence[Array]) -> None:
    """Refuse finite weights that became infinite in the tuned dtype: base values of a wider one, or computed ones."""
    assert job.name is not None
    if plan.cuts and values[0].dtype == pair.weights.base.read(job.name, 0, 0).dtype:
        return  # a selection between values of one dtype makes no new ones
    for value in values:
        if not np.isfinite(value).all():
            raise InputError(
                f"tensor {job.name!r}: a restored weight is beyond {value.dtype.name}, in which the tuned checkpoint "
                "stores it; expected a tuned checkpoint of a wider dtype, or --allow-nonfinite"
            )


def _as_stored(value: Array, stored: StoredTensor) -> Array:
    assert value.dtype == STORED_DTYPES[stored.dtype]
    return np.ascontiguousarray(value)


def _bytes(value: Array) -> memoryview:
    return memoryview(value.view(np.uint8).data)


def _reads_back(descriptor: int, value: Array, begin: int) -> bool:
    """Whether the file holds these bytes there."""
    wanted = value.view(np.uint8)
    held = np.empty(min(len(wanted), _READ_BACK), np.uint8)
    for start in range(0, len(wanted), _READ_BACK):
        there = wanted[start : start + _READ_BACK]
        here = held[: len(there)]
        if os.preadv(descriptor, [here.data], begin + start) != len(there):
            return False
        # Words of eight bytes where the size allows it: comparing byte by byte takes half as long again.
        words = np.uint64 if len(there) % 8 == 0 else np.uint8
        if not np.array_equal(here.view(words), there.view(words)):
            return False
    return True


def _write_all(descriptor: int, view: memoryview, begin: int) -> None:
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], begin + done)
