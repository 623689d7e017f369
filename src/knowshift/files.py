"""Files: written beside their place and renamed, refused before hours of work end at one that cannot be; digests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from knowshift.errors import InputError


def expanded(path: str | Path) -> Path:
    """The path that a user wrote, with "~" and "~name" as home folders, also where no shell has replaced them.

    A name that nobody has stays as it is, and then is no such file.
    """
    return Path(os.path.expanduser(path))


def check_output_file(path: Path) -> None:
    """Refuse a file that could not be written, before hours of work end there.

    Raises:
        InputError: it is a folder, or its folder cannot be made or written to.
    """
    check_parent(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected a file to write")


def check_parent(path: Path) -> None:
    """Refuse a file or folder whose nearest existing parent takes no new entries.

    Raises:
        InputError: that parent is a file, or is not writable.
    """
    parent = path.absolute().parent
    while not os.path.exists(parent):  # False, and no error, where a folder on the way may not be searched
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"{path}: {parent} is a file, not a folder")
    try:
        with tempfile.TemporaryFile(dir=parent):  # permissions alone do not tell: /proc, a read-only mount
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


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """A fresh folder next to ``target`` that takes its name only when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}"
    beside.mkdir()
    try:
        yield beside
        os.replace(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside ``path`` and rename; keys sorted, so equal content is equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    beside.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(beside, path)
