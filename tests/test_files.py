"""Files that take their names at the end: flushed before they are renamed, whole or absent; a full disk is reported."""

from __future__ import annotations

import ast
import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

import knowshift
from knowshift.errors import InputError, disk_full
from knowshift.files import file_beside, folder_beside, remove_abandoned, take_name, write_json, write_text
from knowshift.parameters.files import writing
from knowshift.parameters.files.restored import restore_checkpoints
from knowshift.records import FACTS, write_table
from weights_pairs import save_pair

SOURCE = Path(knowshift.__file__).parent


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every flush and rename, in order, by the name of what was flushed or the name taken."""
    made: list[tuple[str, str]] = []
    flush, rename = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        made.append(("flush", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        flush(descriptor)

    def replace(beside: Any, target: Any) -> None:
        made.append(("rename", Path(target).name))
        rename(beside, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return made


def test_a_file_is_flushed_then_renamed_then_its_folder_flushed(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    (kind, first), *rest = calls
    assert kind == "flush"
    assert first.startswith(".a.json.")
    assert rest == [("rename", "a.json"), ("flush", tmp_path.name)]
    assert os.listdir(tmp_path) == ["a.json"]


def test_bytes_that_are_lost_while_a_checkpoint_is_written_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells of a failed write to the disk once: of the early flushes, too, none may pass unseen."""
    base, tuned = save_pair(tmp_path)
    flush, early = os.fsync, []

    def fsync(descriptor: int) -> None:
        if threading.current_thread() is not threading.main_thread() and not early:
            early.append(descriptor)
            raise OSError(errno.EIO, "Input/output error")
        flush(descriptor)

    monkeypatch.setattr(writing, "_FLUSHED", 1)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        restore_checkpoints(base, tuned, tmp_path / "out", {"0.5": 0.5})
    assert early
    assert not (tmp_path / "out").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from knowshift.files import file_beside, folder_beside
with file_beside(Path(sys.argv[1], "a[1].csv")) as file, folder_beside(Path(sys.argv[1], "tuned")) as folder:
    file.write_text("half")
    (folder / "model.safetensors").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_goes_when_its_target_is_written_again(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)]).returncode == -9
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 2
    elsewhere = tmp_path / ".a[1].csv.ffffff-1-00000000.csv"  # of a process on another machine
    elsewhere.write_text("half")
    with file_beside(tmp_path / "a[1].csv") as alive:
        alive.write_text("first")
        with file_beside(tmp_path / "a[1].csv") as second:
            second.write_text("second")
        assert alive.exists()
    with folder_beside(tmp_path / "tuned"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"a[1].csv", "tuned", elsewhere.name}
    assert (tmp_path / "a[1].csv").read_text() == "first"


def test_what_is_abandoned_is_removed_and_what_may_be_written_is_not(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)]).returncode == -9
    old = tmp_path / ".cell.ffffff-1-00000000"  # of processes of another machine
    fresh = tmp_path / ".cell.ffffff-2-00000000"
    for folder in (old, fresh, tmp_path / ".cache"):
        folder.mkdir()
    for path in (old, tmp_path / ".cache"):
        os.utime(path, (0, 0))
    with folder_beside(tmp_path / "cell") as mine:
        remove_abandoned(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {mine.name, fresh.name, ".cache"}


def test_the_first_of_two_that_make_the_same_folder_stands(tmp_path: Path) -> None:
    def make(text: str, **how: bool) -> None:
        with folder_beside(tmp_path / "cell", **how) as folder:
            (folder / "record").write_text(text)
            if text == "second":
                make("first")

    make("second", same_content=True)
    assert (tmp_path / "cell" / "record").read_text() == "first"
    with pytest.raises(InputError, match="cell: was filled by another process meanwhile"):
        make("third")
    assert [path.name for path in tmp_path.iterdir()] == ["cell"]


def test_every_file_of_a_folder_is_flushed_once_before_the_rename(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    with folder_beside(tmp_path / "cell") as folder:
        (folder / "one").write_text("1")
        (folder / "inner").mkdir()
        (folder / "inner" / "two").write_text("2")
    renamed = calls.index(("rename", "cell"))
    before = [name for _, name in calls[:renamed]]
    assert sorted(name for name in before if not name.startswith(".")) == ["inner", "one", "two"]
    assert calls[renamed + 1 :] == [("flush", tmp_path.name)]


def test_a_restored_checkpoint_flushes_each_file_once(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    base, tuned = save_pair(tmp_path, shard="12KB")
    calls.clear()
    restore_checkpoints(base, tuned, tmp_path / "out", {"0.5": 0.5})
    renamed = calls.index(("rename", "out"))
    flushed = [name for kind, name in calls[:renamed] if kind == "flush" and not name.startswith(".")]
    assert sorted(flushed) == sorted(path.name for path in (tmp_path / "out").iterdir())


def test_what_fails_leaves_what_stood_there(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old\r\n")

    def fails() -> None:
        with file_beside(target) as beside:
            beside.write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert target.read_bytes() == b"old\r\n"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_only_one_module_renames() -> None:
    """A rename of one's own would be one without a flush: ``os.replace``, ``Path.rename``, ``shutil.move`` and kin."""
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            name = node.func.attr
            one_path = name == "replace" and len(node.args) == 1 and not node.keywords  # a text's takes two
            of_system = owner == "os" and name in ("replace", "rename", "renames", "link")
            if of_system or one_path or name == "rename" or (owner, name) == ("shutil", "move"):
                found.append(path.relative_to(SOURCE).as_posix())
    assert found == ["files.py"]


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("what", [os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT)])
def test_a_full_disk_is_known_whoever_tells(what: str) -> None:
    assert disk_full(FULL) == os.strerror(errno.ENOSPC)
    assert disk_full(SafetensorError(f"Error while serializing: I/O error: {what} (os error 28)")) == what
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = FULL
    assert disk_full(wrapped)
    assert disk_full(OSError(errno.ENOENT, "no such file")) is None
    assert disk_full(ValueError("a")) is None


@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
@pytest.mark.parametrize("form", ["json", "table", "folder"])
def test_a_disk_that_fills_at_any_step_is_one_line(
    call: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **more: Any) -> None:
        raise FULL

    target = tmp_path / "new" / "x"

    def write() -> None:
        if form == "json":
            write_json(target, {})
        elif form == "table":
            write_table(target, FACTS, {name: [] for name in FACTS.names}, {})
        else:
            with folder_beside(target) as folder:
                (folder / "a").write_text("a")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(InputError, match="No space left on device") as told:
            write()
    assert str(target) in str(told.value)
    assert not target.exists()
    assert not list(tmp_path.glob("new/*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_command_whose_output_takes_no_more_ends_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "knowshift", "facts", "world:tiny", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.stderr.splitlines()[-1].endswith("No space left on device")


def test_taking_a_name_keeps_the_content(tmp_path: Path) -> None:
    (tmp_path / "part").write_text(json.dumps([1]))
    take_name(tmp_path / "part", tmp_path / "whole")
    assert (tmp_path / "whole").read_text() == "[1]"
    assert not (tmp_path / "part").exists()
