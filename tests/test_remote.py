"""A run at a URL: complete folders, two machines that write, and what lies there damaged."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from fsspec.asyn import AsyncFileSystem

from knowshift import remote
from knowshift.errors import InputError
from knowshift.remote import MARK, RemoteRun, is_url

CELL = "cells/kind/abc"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], RemoteRun]:
    """The run as a machine sees it, by the machine's name: each has a cache of its own."""

    def of(name: str) -> RemoteRun:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return RemoteRun(f"file://{tmp_path}/store/run/")

    return of


def _make(run: RemoteRun, text: str, meanwhile: Callable[[], None] = lambda: None) -> None:
    with run.folder(CELL) as folder:
        (folder / "model").mkdir()
        (folder / "record").write_text(text)
        (folder / "model" / "weights").write_text(text * 1000)
        meanwhile()


def _content(run: RemoteRun) -> dict[str, str]:
    folder = run.local / CELL
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_what_one_machine_completes_another_reads_as_far_as_it_wants(
    machine: Callable[[str], RemoteRun], tmp_path: Path
) -> None:
    here, there = machine("here"), machine("there")
    assert here.is_empty()
    (tmp_path / "store" / "run" / "folder").mkdir(parents=True)
    assert not here.is_empty()
    shutil.rmtree(tmp_path / "store")
    assert not here.fetch_file("manifest.json")
    _make(here, "one")
    assert here.complete() == {CELL}
    (here.local / "manifest.json").write_text("{}")
    (here.local / "tables").mkdir()
    (here.local / "tables" / "old.csv").touch()
    here.publish("manifest.json", "tables")
    (here.local / "tables" / "old.csv").rename(here.local / "tables" / "new.csv")
    here.publish("tables")
    assert sorted(there._find("tables")) == ["tables/new.csv"]
    assert not there.is_empty()
    assert there.fetch_file("manifest.json")
    there.follow()
    assert _content(there) == {}
    assert (there.local / CELL).is_dir()
    there.fetch([CELL], lambda file: not file.startswith("model/"))
    assert _content(there) == {"record": "one"}
    there.fetch([CELL, "cells/kind/none"])
    assert _content(there) == _content(here) == {"record": "one", "model/weights": "one" * 1000}


def test_a_folder_without_its_mark_is_not_complete(machine: Callable[[str], RemoteRun], tmp_path: Path) -> None:
    here, there = machine("here"), machine("there")
    _make(here, "one")
    there.follow()
    (tmp_path / "store" / "run" / CELL / MARK).unlink()
    for names in (None, [CELL]):
        there.follow(names)
        assert not (there.local / CELL).exists()

    def fails() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        _make(there, "half", fails)
    assert there.complete() == set()
    assert [path.name for path in (there.local / CELL).parent.iterdir()] == []
    _make(there, "two")
    assert here.complete() == {CELL}
    here.fetch([CELL])
    assert _content(here)["record"] == "two"


def test_following_takes_any_iterable_and_no_other_names(machine: Callable[[str], RemoteRun], tmp_path: Path) -> None:
    """What is gone at the URL goes here, however the names are given; a name that is none of a cell makes nothing."""
    here = machine("here")
    _make(here, "one")
    store = tmp_path / "store" / "run"
    for strange in (
        "cells/kind/abc/deeper/complete.json",
        "cells/KIND/abc/complete.json",
        "cells/kind/a.b/complete.json",
    ):
        (store / strange).parent.mkdir(parents=True, exist_ok=True)
        (store / strange).write_text("{}")
    assert here.complete() == {CELL}
    (store / CELL / MARK).unlink()
    here.follow(name for name in [CELL])
    assert not (here.local / CELL).exists()


def test_publishing_removes_what_reports_write_and_nothing_else(
    machine: Callable[[str], RemoteRun], tmp_path: Path
) -> None:
    here, tables = machine("here"), tmp_path / "store" / "run" / "tables"
    (here.local / "tables").mkdir(parents=True)
    (here.local / "tables" / "new.csv").write_text("a")
    (tables / "mine").mkdir(parents=True)
    for name in ("old.csv", "old.tex", "notes.txt", "mine/own.csv"):
        (tables / name).write_text("b")
    here.publish("tables")
    left = {path.relative_to(tables).as_posix() for path in tables.rglob("*") if path.is_file()}
    assert left == {"new.csv", "notes.txt", "mine/own.csv"}


def test_of_two_that_write_one_folder_one_counts_whole(machine: Callable[[str], RemoteRun]) -> None:
    here, there, third = machine("here"), machine("there"), machine("third")
    _make(here, "late", lambda: _make(there, "first"))
    third.fetch([CELL])
    assert _content(third) == {"record": "first", "model/weights": "first" * 1000}
    # Both find no mark, and so both write: the mark that is written last counts, with all of its files.
    there._mark = lambda name: None  # type: ignore[method-assign]
    (there.local / CELL).rename(there.local / "away")
    _make(there, "last")
    third.fetch([CELL])
    assert _content(third) == {"record": "last", "model/weights": "last" * 1000}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda mark: mark["files"].update({"../../record": mark["files"].pop("record")}), "expected the files of a"),
        (lambda mark: mark.update(part=".."), "expected the files of a folder"),
        (lambda mark: mark.pop("files"), "expected the files of a folder"),
        (
            lambda mark: mark["files"]["record"].update(bytes=4),
            r"record: expected \{'bytes': 4, .*, found \{'bytes': 3",
        ),
        (lambda mark: mark["files"].update(more={"bytes": 1}), "more: cannot be read"),
    ],
)
def test_a_damaged_folder_is_one_line(
    machine: Callable[[str], RemoteRun], tmp_path: Path, damage: Callable[[dict[str, object]], None], said: str
) -> None:
    here, there = machine("here"), machine("there")
    _make(here, "one")
    path = tmp_path / "store" / "run" / CELL / MARK
    mark = json.loads(path.read_text())
    damage(mark)
    path.write_text(json.dumps(mark))
    with pytest.raises(InputError, match=said) as failure:
        there.fetch([CELL])
    assert str(failure.value).startswith(f"file://{tmp_path}/store/run/{CELL}/")
    assert "more" not in _content(there)
    assert ("record" in _content(there)) == said.startswith("more")


def test_a_cell_that_is_completed_while_others_are_listed_stays(
    machine: Callable[[str], RemoteRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes of one machine share the copy: what one has completed since another's listing is no leftover."""
    here, beside = machine("here"), machine("here")
    listed = beside.complete

    def complete() -> set[str]:
        found = listed()
        _make(here, "one")
        return found

    monkeypatch.setattr(beside, "complete", complete)
    beside.follow()
    assert _content(here)["record"] == "one"


def test_the_same_content_of_another_writer_is_not_fetched_again(
    machine: Callable[[str], RemoteRun], tmp_path: Path
) -> None:
    here, there = machine("here"), machine("there")
    _make(here, "same")
    there.fetch([CELL])
    record = there.local / CELL / "record"
    fetched = record.stat().st_mtime_ns
    shutil.rmtree(here.local)
    (tmp_path / "store" / "run" / CELL / MARK).unlink()
    _make(here, "same")
    there.fetch([CELL])
    assert record.stat().st_mtime_ns == fetched
    (tmp_path / "store" / "run" / CELL / MARK).unlink()
    shutil.rmtree(here.local)
    _make(here, "other")
    there.fetch([CELL])
    assert _content(there) == _content(here) == {"record": "other", "model/weights": "other" * 1000}


def test_the_placeholder_of_an_empty_folder_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Consoles of object stores make a "folder" as an empty object whose name ends with "/"."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run, folder = RemoteRun("memory://bucket/run"), RemoteRun("memory://bucket")
    monkeypatch.setattr(run._store, "ls", lambda path, detail: [f"{path}/"])
    assert run.is_empty()
    monkeypatch.setattr(run._store, "ls", lambda path, detail: [f"{path}/", f"{path}/run"])
    assert not folder.is_empty()


def test_what_cannot_open_a_url_is_one_line(tmp_path: Path) -> None:
    fsspec.register_implementation("nowhere", "not_there.Store", clobber=True, errtxt="Install not_there")
    with pytest.raises(InputError, match=r"^nowhere://bucket/run: cannot be opened: Install not_there"):
        RemoteRun("nowhere://bucket/run")
    with pytest.raises(InputError, match=r"^s4://bucket/run: cannot be opened: .*s4"):
        RemoteRun("s4://bucket/run")
    for nowhere in ("s3://", "file:///"):
        with pytest.raises(InputError, match=rf"^{nowhere}: expected a place, such as s3://BUCKET/runs/NAME$"):
            RemoteRun(nowhere)
    assert is_url("s3://bucket/run")
    assert not any(map(is_url, (Path("s3://bucket/run"), "runs/a", "C:\\run")))


class Silent(AsyncFileSystem):
    """A store that holds nothing and takes files without ever saying so."""

    async def _cat_file(self, path: str, **more: object) -> bytes:
        raise FileNotFoundError(path)

    async def _put_file(self, here: str, path: str, **more: object) -> None:
        await asyncio.sleep(10)


def test_a_store_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(remote, "_PATIENCE", 0.1)
    fsspec.register_implementation("silent", Silent, clobber=True)
    run = RemoteRun("silent://bucket/run")
    with pytest.raises(InputError, match=r"^silent://bucket/run: cannot be written to: no answer in 0 s"):
        _make(run, "one")
    assert _content(run) == {}


def test_a_store_that_cannot_be_written_to_is_one_line(machine: Callable[[str], RemoteRun], tmp_path: Path) -> None:
    here = machine("here")
    (tmp_path / "store").write_text("a file")
    with pytest.raises(InputError, match=rf"^{here.url}/{CELL}/{MARK}: cannot be read: .*Not a directory"):
        _make(here, "one")
    assert _content(here) == {}
    (here.local / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=rf"^{here.url}/manifest.json: cannot be written: .*(Not a dir|File exists)"):
        here.publish("manifest.json")
