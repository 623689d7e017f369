"""Compiles the loops in C when knowshift is installed: of every source NAME.c, the library _NAME.so beside it.

Where there is no C compiler, or it fails, knowshift is installed without: the same results (of a training up to
rounding), but weights are compared and restored more slowly (docs/weights.md), and models read more slowly on a CPU
(docs/mastery.md). ``CC`` names another compiler.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

SOURCES = [
    Path("src", "knowshift", "parameters", "kernels", "kernels.c"),
    Path("src", "knowshift", "models", "layers", "one_token.c"),
    Path("src", "knowshift", "models", "layers", "loops.c"),
]
#: No contraction: a fused multiply-add rounds differently. The others change no value, only what may be vectorised.
FLAGS = ["-O3", "-shared", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
#: Tried first: loops for several generations of x86-64 processors in one library, chosen as it is loaded.
CLONES = ["-DKNOWSHIFT_CLONES"]


class CompileKernels(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the compiled library to the wheel (and leaves it beside its source, for editable installs)."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        try:
            built = [source for source in SOURCES if _compile(Path(self.root) / source)]
        except (OSError, ValueError):  # a tree that cannot be written to, a CC that cannot be read
            built = []
        if not built:
            print("knowshift: no C compiler that works; installed without compiled loops", file=sys.stderr)
            return
        platform = next(tag for tag in platform_tags() if not tag.startswith(("manylinux", "musllinux")))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"] += [str(_library(source)) for source in built]


def _library(source: Path) -> Path:
    return source.with_name(f"_{source.stem}.so")


def _compile(source: Path) -> bool:
    """Build the library beside its source and put it in place at once; whether that was possible."""
    library, beside = _library(source), source.with_name(f"_{source.stem}.new.so")
    library.unlink(missing_ok=True)
    digest = f'-DKNOWSHIFT_SOURCE="{hashlib.sha256(source.read_bytes()).hexdigest()}"'
    compiler = shlex.split(os.environ.get("CC", "cc"))
    for extra in (CLONES, []):
        command = [*compiler, *FLAGS, digest, *extra, "-o", str(beside), str(source), "-lm"]
        if subprocess.run(command, capture_output=True).returncode == 0:
            beside.replace(library)
            return True
    return False
