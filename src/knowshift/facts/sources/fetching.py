"""The official EntityQuestions zip, fetched once into the user's cache: resumable, checked, with a progress bar."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from filelock import FileLock
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from knowshift.errors import InputError
from knowshift.facts.sources.entity_questions import check_archive
from knowshift.files import take_name
from knowshift.system.terminal import Terminal

#: Published by the authors of the data set.
URL = "https://nlp.cs.princeton.edu/projects/entity-questions/dataset.zip"

#: Seconds without a byte after which a connection counts as broken.
TIMEOUT = 30.0
#: Connections tried before giving up; what has arrived is kept for the next run.
ATTEMPTS = 4
#: Refuse a body larger than this, in bytes; the real one has a few MB.
LARGEST_BODY = 256 * 2**20

_PIECE = 64 * 1024


class _Interrupted(Exception):
    """The transfer stopped before its end; another attempt goes on from what has arrived."""


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/knowshift``, by default ``~/.cache/knowshift``."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if home else Path.home() / ".cache") / "knowshift"


def offline() -> bool:
    """Whether the user has asked the Hugging Face libraries, and so us, to keep off the network."""
    asked = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value.strip().upper() in {"1", "ON", "YES", "TRUE"} for value in asked)


def fetch_entity_questions(url: str | None = None, folder: Path | None = None, pause: float = 1.0) -> Path:
    """The path of the checked zip in the cache, fetched from ``url`` (default :data:`URL`) if it is not there yet.

    A transfer that breaks is taken up again where it stopped, at once (after ``pause`` seconds, doubling) and in later
    runs; the server's validator makes sure that both halves are of one file. Nothing takes the final name before the
    size, the CRC of every needed member and the presence of all 48 files have been checked. Raises :class:`InputError`
    when offline, when the server does not answer or says no, and when what arrives is not the data set.
    """
    url = url or URL
    folder = folder or cache_folder()
    target = folder / "entity-questions.zip"
    if target.is_file():
        return target
    advice = f"download {url} yourself and pass entity-questions:PATH"
    if offline():
        raise InputError(f"entity-questions: not in the cache ({target}) and offline (HF_HUB_OFFLINE); {advice}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "entity-questions.zip.lock"):
            if not target.is_file():  # another process may have brought it while we waited
                part = folder / "entity-questions.zip.part"
                _transfer(url, part, pause, advice)
                _check(url, part, advice)
                take_name(part, target)
                _validator(part).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot keep the data set there ({error.strerror or error}); {advice}") from None
    return target


def _transfer(url: str, part: Path, pause: float, advice: str) -> None:
    with _progress() as progress:
        task = progress.add_task("EntityQuestions", total=None)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _attempt(url, part, progress, task)
                return
            except urllib.error.HTTPError as error:
                if error.code < 500 or attempt == ATTEMPTS:
                    raise InputError(f"{url}: the server answered {error.code} {error.reason}; {advice}") from None
            except (_Interrupted, HTTPException, urllib.error.URLError, TimeoutError) as error:
                if attempt == ATTEMPTS:
                    have = part.stat().st_size if part.exists() else 0
                    reason = getattr(error, "reason", None) or str(error) or type(error).__name__
                    raise InputError(
                        f"{url}: transfer failed ({reason}) with {have} bytes kept; run again to go on, or {advice}"
                    ) from None
            time.sleep(pause * 2 ** (attempt - 1))


def _attempt(url: str, part: Path, progress: Progress, task: TaskID) -> None:
    """One connection: appends to ``part`` where the server agrees, else begins anew."""
    validator = _validator(part)
    have = part.stat().st_size if part.exists() else 0
    same = validator.read_text(encoding="utf-8") if have and validator.exists() else ""
    request = urllib.request.Request(url, headers={"User-Agent": "knowshift", "Accept-Encoding": "identity"})
    if same:
        # With If-Range a server that has another file by now sends all of it, with status 200.
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", same)
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and same:
            # Nothing is left to send: either all is here, or what is here is wrong. The check after us tells.
            if error.headers.get("Content-Range", "") == f"bytes */{have}":
                return
            part.unlink(missing_ok=True)
            raise _Interrupted("the part kept from before does not fit") from None
        raise
    with response:
        resumed = response.status == 206 and _first_byte(response) == have
        if response.status == 206 and not resumed:
            part.unlink(missing_ok=True)
            raise _Interrupted("the server sent another range than asked for")
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None and length.isdecimal() else None
        if total is not None and total > LARGEST_BODY:
            raise InputError(f"{url}: {total} bytes; expected at most {LARGEST_BODY}")
        if not resumed:
            _remember(validator, response)
        progress.update(task, total=total, completed=start)
        with part.open("ab" if resumed else "wb") as file:
            while piece := _receive(response):
                start += len(piece)
                if start > LARGEST_BODY:
                    raise InputError(f"{url}: more than {LARGEST_BODY} bytes; expected at most that")
                file.write(piece)
                progress.update(task, completed=start)
        if total is not None and start < total:
            raise _Interrupted(f"connection closed after {start} of {total} bytes")


def _receive(response: HTTPResponse) -> bytes:
    try:
        return response.read(_PIECE)
    except OSError as error:  # of the connection, to be told from one of the disk
        raise _Interrupted(str(error)) from None


def _check(url: str, part: Path, advice: str) -> None:
    """A whole zip with all that is needed in it; what is not is removed, so that the next run begins anew."""
    try:
        check_archive(part)
    except InputError as error:
        size = part.stat().st_size
        part.unlink(missing_ok=True)
        _validator(part).unlink(missing_ok=True)
        raise InputError(f"{url}: the {size} bytes that arrived are not the data set ({error}); {advice}") from None


def _validator(part: Path) -> Path:
    """Beside the part: the entity tag or date that the server gave for the file it is a part of."""
    return part.with_name(part.name + ".validator")


def _remember(validator: Path, response: HTTPResponse) -> None:
    """Only a strong validator may join two halves (RFC 9110, 13.1.5); without one the next attempt begins anew."""
    tag = response.headers.get("ETag", "")
    value = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")
    if value and response.headers.get("Accept-Ranges", "").lower() != "none":
        validator.write_text(value, encoding="utf-8")
    else:
        validator.unlink(missing_ok=True)


def _first_byte(response: HTTPResponse) -> int | None:
    """The first byte of a 206 answer: "bytes 500-999/1000" gives 500."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    first = rest.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdecimal() else None


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Terminal(stderr=True)) as progress:
        yield progress
