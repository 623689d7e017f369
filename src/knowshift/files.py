"""Files: written under a temporary name and renamed, checked beforehand to be writable; JSON; digests.

A file with its final name is on the disk: its bytes are flushed before it is renamed, and the folder that holds the
name afterwards. Without that, a power loss may leave an empty file under the final name.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from knowshift.errors import InputError, border, cause_of, disk_full

#: Largest JSON file that is read, in bytes, and its deepest nesting: recursive code must not exhaust the stack.
_LARGEST_JSON, _DEEPEST_JSON = 100_000_000, 64


def expanded(path: str | Path) -> Path:
    """The path that a user wrote, with "~" and "~name" as home folders, also where no shell has replaced them.

    The name of an unknown user stays as it is, and the path is then refused as a missing file.
    """
    return Path(os.path.expanduser(path))


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/knowshift``, by default ``~/.cache/knowshift``."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if home else Path.home() / ".cache") / "knowshift"


def check_output_file(path: Path) -> None:
    """Refuse a file that could not be written, before hours of work are spent on it.

    Raises:
        InputError: it is a folder, or its folder cannot be made or written to.
    """
    check_parent(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected a file to write")


def check_parent(path: Path) -> None:
    """Refuse a file or folder in whose nearest existing parent nothing can be created.

    Raises:
        InputError: that parent is a file, or is not writable.
    """
    parent = path.absolute().parent
    while not os.path.exists(parent):  # False, and no error, where a folder on the way may not be searched
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"{path}: {parent} is a file, not a folder")
    try:
        with tempfile.TemporaryFile(dir=parent):  # permissions are not enough: /proc, a read-only mount
            pass
    except OSError as error:
        raise InputError(f"{path}: the folder {parent} cannot be written to ({error.strerror})") from None


def check_space(folder: Path, needed: int) -> None:
    """Raise :class:`InputError` when the disk of ``folder`` (which may not exist yet) has less than ``needed``."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise InputError(f"{folder}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed")


def digest(value: Any) -> str:
    """Sixteen hex digits of SHA-256 over canonical JSON: the name of a cell, the identity of a fact list."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def read_json(path: Path, what: str = "JSON object") -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: there is no such file; it is no JSON (as Python's: model configurations hold Infinity), no object,
            nested deeper than 64, larger than 100 MB.
    """
    with border(f"{path}: not readable as JSON"):
        try:
            with path.open("rb") as file:
                text = file.read(_LARGEST_JSON + 1)
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file") from error
    if len(text) > _LARGEST_JSON:
        raise InputError(f"{path}: larger than {_LARGEST_JSON} bytes; expected a {what}")
    return parse_json(text, str(path), what)


def parse_json(text: bytes, origin: str, what: str = "JSON object") -> dict[str, Any]:
    """The same from bytes; ``origin`` names them in errors."""
    with border(f"{origin}: not readable as JSON"):
        try:
            content = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{origin}: not readable as JSON: {cause_of(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{origin}: expected a {what}, found {type(content).__name__}")
    level: list[Any] = [content]
    for _ in range(_DEEPEST_JSON):
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
        level = [inner for inner in level if isinstance(inner, (dict, list))]
        if not level:
            return content
    raise InputError(f"{origin}: nested deeper than {_DEEPEST_JSON}; expected a {what}")


@contextmanager
def folder_beside(target: Path, *, same_content: bool = False) -> Iterator[Path]:
    """A fresh folder next to ``target``, which is renamed to it whole, and only if the block ends without an error.

    Args:
        same_content: whoever else makes ``target`` writes the same into it, so the first one stands and the others are
            dropped.

    Raises:
        InputError: the disk is full, whichever library reports it; another process has made ``target`` meanwhile,
            unless with ``same_content``. Nothing is left behind.
    """
    with _refuse_if_full(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = _beside(target)
        beside.mkdir()
        try:
            yield beside
            take_name(beside, target, or_leave=same_content)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def file_beside(target: Path) -> Iterator[Path]:
    """A name next to ``target`` for a file, which is renamed to it only if the block ends without an error.

    Raises:
        InputError: the disk is full; what stood at ``target`` is still there.
    """
    with _refuse_if_full(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = _beside(target)
        try:
            yield beside
            take_name(beside, target)
        finally:
            beside.unlink(missing_ok=True)


def take_name(beside: Path, target: Path, *, or_leave: bool = False) -> None:
    """Rename a finished file or folder to ``target``, durably: every file is flushed once, then the folders.

    Raises:
        InputError: ``target`` is a folder that holds something, unless with ``or_leave``: then it stays as it is.
    """
    if beside.is_dir():
        for folder, _, files in os.walk(beside, topdown=False):
            for name in files:
                _flush(Path(folder, name))
            _flush_folder(Path(folder))
    else:
        _flush(beside)
    try:
        os.replace(beside, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if or_leave:
            return
        raise InputError(f"{target}: was filled by another process meanwhile; nothing was written") from None
    _flush_folder(target.parent)


#: Age, in seconds, from which what another machine has left is not being written: no cell takes so long.
_ABANDONED = 7 * 24 * 3600


def remove_abandoned(folder: Path) -> None:
    """Remove half-written files and folders below ``folder`` whose writers are gone.

    Of this machine these are processes that have ended. Whether one of another machine has ended cannot be seen from
    here, so what it left must be old.
    """
    for left in folder.glob(".*"):
        told = re.fullmatch(r"\..+\.([0-9a-f]{6})-([0-9]+)-[0-9a-f]{8}(?:\..*)?", left.name)
        if told is None:
            continue
        if told[1] == _HOST:
            import psutil  # slow to import, and needed only where something was left

            gone = not psutil.pid_exists(int(told[2]))
        else:
            try:
                gone = time.time() - left.stat().st_mtime > _ABANDONED
            except OSError:  # renamed meanwhile
                continue
        if gone:
            _remove(left)


def _remove(left: Path) -> None:
    if left.is_dir():
        shutil.rmtree(left, ignore_errors=True)
    else:
        left.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text beside ``path`` and rename; line ends as they are."""
    with file_beside(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside ``path`` and rename; keys sorted, so equal content is equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


#: Names this machine: in a folder that several share, a process number alone would not say whose it is.
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def _beside(target: Path) -> Path:
    """An unused name beside ``target`` with the same ending, by which some libraries choose the format.

    What a killed process left of the same target is removed: half a checkpoint may take gigabytes.
    """
    for left in target.parent.glob(f".{glob.escape(target.name)}.{_HOST}-*"):
        import psutil  # slow to import, and needed only where something was left

        writer = left.name.removeprefix(f".{target.name}.{_HOST}-").split("-")[0]
        if writer.isdecimal() and not psutil.pid_exists(int(writer)):
            _remove(left)
    return target.with_name(f".{target.name}.{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}{target.suffix}")


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # it cannot open folders, and keeps their entries in a journal
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot flush a folder say so
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _refuse_if_full(target: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if (full := disk_full(error)) is None:
            raise
        raise InputError(f"{target}: {full}; nothing was written") from error
