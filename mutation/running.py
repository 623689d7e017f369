"""Run tests in children of a process that has imported the slow libraries once, in a copy of the working tree.

A child is forked for each mutant before any module of this package is imported, so that it imports the mutated one.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coverage
import pytest

LIBRARIES = (
    "numpy torch pyarrow pyarrow.parquet scipy.stats safetensors.torch transformers tokenizers peft trl datasets "
    "pydantic typer rich yaml hypothesis matplotlib psutil"
).split()


def copy_tree(root: Path, copy: Path) -> None:
    """Copy what git knows of the working tree, the compiled loops, and a link to what stands beside it."""
    shutil.rmtree(copy, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (root / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy / name)
    for library in (root / "src").rglob("*.so"):
        shutil.copy2(library, copy / library.relative_to(root))
    beside = copy.parent / "shared"
    if (root.parent / "shared").exists() and not beside.is_symlink():
        beside.symlink_to((root.parent / "shared").resolve())


def warm_up() -> None:
    """Import what every test imports, and nothing of this package."""
    for name in LIBRARIES:
        importlib.import_module(name)
    assert not any(name.split(".")[0] == "knowshift" for name in sys.modules)


def end_with_parent() -> None:
    """Have the system end this process when its parent ends, however that does (Linux)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


#: Begins the name of a context that belongs to all tests of a file.
SHARED = "shared:"


@dataclass(frozen=True)
class Ended:
    """How a child ended: pytest's status (None: killed when its time was up), seconds, what it printed."""

    status: int | None
    seconds: float
    output: str

    @property
    def first_failure(self) -> str:
        found = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - |$)", self.output, re.MULTILINE)
        return found.group(1) if found else ""


class _Contexts:
    """A pytest plugin: coverage by test, seconds by test, and which tests fail without any mutation."""

    def __init__(self, measured: coverage.Coverage, file: str) -> None:
        self.measured, self.file, self.now = measured, file, ""
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self.now = item.nodeid
        self.measured.switch_context(item.nodeid)
        began = time.monotonic()
        result = yield
        self.seconds[item.nodeid] = time.monotonic() - began
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: pytest.FixtureRequest) -> Any:
        """Lines that a shared fixture runs count as run by all tests of its file."""
        if fixturedef.scope == "function":
            return (yield)
        self.measured.switch_context(SHARED + self.file)
        try:
            return (yield)
        finally:
            self.measured.switch_context(self.now)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def in_child(work: Callable[[], int], log: Path, limit: float) -> Ended:
    """Fork, run ``work`` with its output in ``log``, end it and all that it started when its time is up."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            end_with_parent()
            os.setsid()
            with log.open("wb") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            status = work()
        finally:
            sys.stdout.flush()
            os._exit(status)
    ended: int | None = None
    while ended is None and time.monotonic() - began < limit:
        done, state = os.waitpid(child, os.WNOHANG)
        if done:
            ended = os.waitstatus_to_exitcode(state)
        else:
            time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if ended is None:
        os.waitpid(child, 0)
    return Ended(ended, time.monotonic() - began, log.read_text(errors="replace")[-20_000:])


def run_pytest(copy: Path, arguments: Sequence[str], plugins: Sequence[object] = ()) -> int:
    """pytest in this process, on a copy of the tree, without the parts of a failure report that are slow."""
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy / "src")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ["TMPDIR"] = str(copy.parent / f"{copy.name}-tmp")
    shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
    os.makedirs(os.environ["TMPDIR"])
    sys.path.insert(0, str(copy / "src"))
    from hypothesis import Phase, settings

    settings.register_profile("mutants", phases=(Phase.explicit, Phase.generate), database=None)
    settings.load_profile("mutants")
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "--tb=line", "-rfE", f"--rootdir={copy}"]
    return int(pytest.main([*options, *arguments], plugins=list(plugins)))


def state_of(root: Path, test_file: str) -> str:
    """A digest of what the coverage of a file of tests depends on: the package's source, and the file."""
    state = hashlib.sha256()
    for file in [*sorted((root / "src").rglob("*.py")), root / test_file]:
        state.update(file.read_bytes())
    return state.hexdigest()


def measure(copy: Path, test_file: str, data: Path, root_log: Path) -> tuple[Ended, Path]:
    """One file of tests without a mutation: its coverage by test in ``data``, seconds and failures beside it."""
    told = data.with_suffix(".json")

    def work() -> int:
        import json

        watched = coverage.Coverage(data_file=str(data), source=[str(copy / "src" / "knowshift")], config_file=False)
        watched.start()
        plugin = _Contexts(watched, test_file)
        status = run_pytest(copy, [test_file], [plugin])
        watched.stop()
        watched.save()
        about = {"state": state_of(copy, test_file), "seconds": plugin.seconds, "failed": sorted(set(plugin.failed))}
        told.write_text(json.dumps(about))
        return status

    return in_child(work, root_log, 1800), told
