"""Which compiled library is used, and which is not."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest

from knowshift.parameters.kernels import compiled
from knowshift.system.compiled import open_library


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A source with its library beside it."""
    if compiled.library() is None:
        pytest.skip("not compiled")
    for name in ("_kernels.so", "kernels.c"):
        shutil.copy(Path(compiled.__file__).with_name(name), tmp_path / name)
    return tmp_path / "kernels.c"


def test_a_library_is_used_with_its_functions_declared(copied: Path) -> None:
    found = open_library(copied, {"count": (None, [ctypes.c_void_p])})
    assert found is not None
    assert found.knowshift_count.argtypes == [ctypes.c_void_p]
    assert open_library(copied, {"no_such": (None, [])}) is None


def test_a_library_of_another_source_is_not_used(copied: Path) -> None:
    copied.write_text("/* edited since */\n")
    assert open_library(copied, {}) is None


def test_what_is_no_library_is_not_used(copied: Path) -> None:
    library = copied.with_name("_kernels.so")
    library.unlink()
    assert open_library(copied, {}) is None
    library.write_bytes(b"no library")
    assert open_library(copied, {}) is None


def test_compiled_loops_can_be_switched_off(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWSHIFT_COMPILED", "0")
    assert open_library(copied, {}) is None
