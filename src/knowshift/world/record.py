"""The record of how a world was made, read back from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from knowshift.errors import InputError
from knowshift.files import read_json

RECORD = "world.json"
_DTYPES = ("float32", "bfloat16", "float16")


def read_world_record(folder: Path) -> dict[str, Any]:
    """The content of ``world.json``; ``sentences`` and ``stored_dtype`` are what :mod:`knowshift.world.build` writes.

    Raises:
        InputError: the file is missing, no JSON object, or not the record of a world.
    """
    path = folder / RECORD
    record = read_json(path, "record of a world")
    sentences, dtype = record.get("sentences"), record.get("stored_dtype")
    if type(sentences) is not int or sentences < 0:
        raise InputError(f"{path}: not the record of a world: sentences is no count")
    if dtype not in _DTYPES:
        raise InputError(f"{path}: not the record of a world: stored_dtype is none of {', '.join(_DTYPES)}")
    return record
