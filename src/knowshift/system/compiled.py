"""Loops in C: opening what hatch_build.py has made of a source file when knowshift was installed."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: The result and the arguments of a function.
Signature = tuple[Any, Sequence[Any]]


def open_library(source: Path, signatures: Mapping[str, Signature]) -> ctypes.CDLL | None:
    """The library ``_NAME.so`` beside a source ``NAME.c``, its functions ``knowshift_...`` declared.

    None where there is none (no C compiler at installation), where it was built from another source or for another
    machine, and with ``KNOWSHIFT_COMPILED=0``.
    """
    if os.environ.get("KNOWSHIFT_COMPILED") == "0":
        return None
    try:
        found = ctypes.CDLL(str(source.with_name(f"_{source.stem}.so")))
        built_from = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(found, "knowshift_source")))
        if built_from.decode() != hashlib.sha256(source.read_bytes()).hexdigest():
            return None
        for name, (result, arguments) in signatures.items():
            function = getattr(found, f"knowshift_{name}")
            function.restype, function.argtypes = result, list(arguments)
    except (OSError, AttributeError, ValueError):  # not built, for another machine, or something else altogether
        return None
    return found
