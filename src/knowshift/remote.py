"""A run at a URL of fsspec, such as s3://BUCKET/runs/NAME, and the local copy that processes work in.

An object store cannot rename, so a folder there is complete when its mark is: ``FOLDER/complete.json``, written last,
names the files with their sizes and digests. Files lie in a part that each writer has of its own,
``FOLDER/PART/NAME``, and the mark says which: of two that write the same folder, the one that writes its mark last
counts, whole.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from knowshift.errors import InputError, border
from knowshift.files import (
    cache_folder,
    check_parent,
    digest,
    file_beside,
    folder_beside,
    parse_json,
    read_json,
    write_json,
)

MARK = "complete.json"
#: In the local copy: the marks of folders whose files are there, or some of them.
_MARKS = "marks"
#: The name of a folder that can be complete; a store may hold any other name.
_FOLDER = re.compile(r"cells/[a-z_]{1,64}/[0-9a-zA-Z_-]{1,64}")
#: Ends of the names of files that a report writes, and so may remove.
_OURS = (".csv", ".tex", ".svg")
#: A store has so many seconds to take a file, and one more for so many bytes of it, before it counts as gone.
_PATIENCE, _SLOWEST = 600.0, 100_000


def is_url(place: str | Path) -> bool:
    """Whether a run lies at a URL; a path of this machine is none, and neither is ``C:\\RUN``."""
    return isinstance(place, str) and "://" in place


class RemoteRun:
    """A run folder at a URL. What is said to be complete in it has a folder in the local copy, perhaps without files.

    Attributes:
        url: where it lies.
        local: the copy, in the user's cache; it may be deleted while nothing works in it.

    Raises:
        InputError: the URL names no place, or nothing that is installed can open it.
    """

    def __init__(self, url: str) -> None:
        if not url.partition("://")[2].strip("/"):
            raise InputError(f"{url}: expected a place, such as s3://BUCKET/runs/NAME")
        self.url = url.rstrip("/")
        with border(f"{self.url}: cannot be opened"):
            import fsspec

            self._store, self._root = fsspec.core.url_to_fs(self.url)
        self.local = cache_folder() / "runs" / digest(self.url)
        check_parent(self.local / "manifest.json")

    def fetch_file(self, name: str) -> bool:
        """Bring the local copy of one file up to date; False where there is none, and the local one stays as it is."""
        content = self._read(name)
        if content is None:
            return False
        with file_beside(self.local / name) as beside:
            beside.write_bytes(content)
        return True

    def publish(self, *names: str) -> None:
        """Copy files and folders of the local copy to the URL; other tables and figures in one there are removed."""
        for name in names:
            place = self.local / name
            if place.is_file():
                self._write(place, name)
                continue
            with border(f"{self.url}/{name}: cannot be read"):
                below = {its.removeprefix(f"{name}/") for its in self._find(name)}
                there = {its for its in below if "/" not in its and its.endswith(_OURS)}
            for file in sorted(place.iterdir()):
                self._write(file, f"{name}/{file.name}")
                there.discard(file.name)
            with border(f"{self.url}/{name}: cannot be written to"):
                for left in there:
                    self._store.rm_file(self._path(f"{name}/{left}"))

    def is_empty(self) -> bool:
        """Whether there is nothing at the URL; a console keeps an empty folder as an object, by its name and a "/"."""
        with border(f"{self.url}: cannot be read"):
            self._store.invalidate_cache()
            try:
                return {*self._store.ls(self._root, detail=False)} <= {self._root.rstrip("/") + "/"}
            except FileNotFoundError:
                return True

    def complete(self) -> set[str]:
        """The complete folders of the run: ``cells/KIND/DIGEST``."""
        with border(f"{self.url}: cannot be read"):
            found = self._find("cells")
        folders = (name.removesuffix(f"/{MARK}") for name in found if name.endswith(f"/{MARK}"))
        return {folder for folder in folders if _FOLDER.fullmatch(folder)}

    def follow(self, names: Iterable[str] | None = None) -> None:
        """Make local folders of those that are complete, of ``names`` or of all, and remove the others."""
        names = None if names is None else set(names)
        # What is here is listed first: a cell that another process of this machine completes meanwhile is in both.
        here = {str(path.relative_to(self.local).as_posix()) for path in self.local.glob("cells/*/[!.]*")}
        complete = self.complete() if names is None else {name for name in names if self._mark(name) is not None}
        for name in (here if names is None else here & names) - complete:
            shutil.rmtree(self.local / name)
        for name in complete - here:
            (self.local / name).mkdir(parents=True, exist_ok=True)

    def fetch(self, names: Iterable[str], wanted: Callable[[str], bool] = lambda file: True) -> None:
        """Bring files of complete folders into the local copy, those that are ``wanted`` by their paths in the folder.

        Raises:
            InputError: a file is not there, or is not what the mark says.
        """
        for name in names:
            mark = self._mark(name)
            if mark is None:
                continue
            kept, folder = self.local / _MARKS / f"{name}.json", self.local / name
            if kept.exists() and read_json(kept).get("files") != mark["files"]:  # of another, and not the same
                shutil.rmtree(folder, ignore_errors=True)
            write_json(kept, mark)
            for file, told in mark["files"].items():
                if wanted(file) and not (folder / file).exists():
                    with file_beside(folder / file) as beside:
                        self._get(f"{name}/{mark['part']}/{file}", beside, told)

    @contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """A fresh local folder, which is complete at the URL and here if the block ends without an error.

        Where another process has completed it meanwhile, that one counts.
        """
        with folder_beside(self.local / name, same_content=True) as folder:
            yield folder
            if self._mark(name) is not None:
                return
            part, files = uuid.uuid4().hex[:8], {}
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                file = path.relative_to(folder).as_posix()
                self._write(path, f"{name}/{part}/{file}")
                files[file] = _told(path)
            mark = {"part": part, "files": files}
            with border(f"{self.url}/{name}/{MARK}: cannot be written"):
                content = json.dumps(mark, indent=1, sort_keys=True).encode()
                self._put("pipe_file", self._path(f"{name}/{MARK}"), content, size=len(content))
            write_json(self.local / _MARKS / f"{name}.json", mark)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _find(self, name: str) -> list[str]:
        """Files below a folder, by their paths in the run."""
        self._store.invalidate_cache()
        root = self._root.rstrip("/") + "/"
        found = self._store.find(self._path(name))
        return [its.removeprefix(root) for its in found if its.startswith(root)]

    def _read(self, name: str) -> bytes | None:
        with border(f"{self.url}/{name}: cannot be read"):
            self._store.invalidate_cache()
            try:
                return bytes(self._store.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

    def _mark(self, name: str) -> dict[str, Any] | None:
        content = self._read(f"{name}/{MARK}")
        if content is None:
            return None
        origin = f"{self.url}/{name}/{MARK}"
        mark = parse_json(content, origin)
        part, files = mark.get("part"), mark.get("files")
        if not isinstance(part, str) or not isinstance(files, dict) or not all(map(_is_inside, (part, *files))):
            raise InputError(f"{origin}: expected the files of a folder and the part that they lie in")
        return mark

    def _get(self, name: str, target: Path, told: Any) -> None:
        with border(f"{self.url}/{name}: cannot be read"):
            self._store.get_file(self._path(name), str(target))
        if (found := _told(target)) != told:
            raise InputError(f"{self.url}/{name}: expected {told}, found {found}; delete its folder to make it again")

    def _write(self, file: Path, name: str) -> None:
        with border(f"{self.url}/{name}: cannot be written"):
            path, size = self._path(name), file.stat().st_size
            try:
                self._put("put_file", str(file), path, size=size)
            except FileNotFoundError:  # where there are folders; an object store has none, but for its buckets
                bucket = path.split("/")[0]
                if bucket and not self._store.exists(bucket):
                    raise
                self._store.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._put("put_file", str(file), path, size=size)

    def _put(self, method: str, *given: Any, size: int) -> None:
        """Write by a method of the store, in bounded time.

        Libraries set limits for reading only. s3fs asks the store whether it may send a file, and waits without end for
        the answer of one that has taken the connection and says nothing.
        """
        from fsspec.asyn import AsyncFileSystem, sync
        from fsspec.exceptions import FSTimeoutError

        if not isinstance(self._store, AsyncFileSystem):
            getattr(self._store, method)(*given)
            return
        seconds = _PATIENCE + size / _SLOWEST
        try:
            sync(self._store.loop, getattr(self._store, f"_{method}"), *given, timeout=seconds)
        except FSTimeoutError:
            raise InputError(f"{self.url}: cannot be written to: no answer in {seconds:.0f} s") from None


def _is_inside(file: str) -> bool:
    """Whether a path that a mark tells stays in its folder."""
    parts = file.split("/")
    return not any(part in ("", ".", "..") or "\\" in part or ":" in part for part in parts)


def _told(file: Path) -> dict[str, Any]:
    """What a mark says of a file."""
    with file.open("rb") as stream:
        told = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": told}
