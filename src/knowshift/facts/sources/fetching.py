"""The official EntityQuestions zip, fetched once into the user's cache by pooch, and checked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

from knowshift.errors import InputError, border
from knowshift.facts.sources.entity_questions import check_archive
from knowshift.files import cache_folder
from knowshift.system.progress import is_watched

#: Published by the authors of the data set.
URL = "https://nlp.cs.princeton.edu/projects/entity-questions/dataset.zip"
#: Refuse a body larger than this, in bytes; the real one has a few MB.
LARGEST_BODY = 256 * 2**20

#: Seconds without a byte after which a connection counts as broken.
TIMEOUT = 30.0

_NAME = "entity-questions.zip"
_ADVICE = "download {url} yourself and pass entity-questions:PATH"
_PIECE = 64 * 1024


def offline() -> bool:
    """Whether the user has forbidden network access to the Hugging Face libraries, which we respect too."""
    asked = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value.strip().upper() in {"1", "ON", "YES", "TRUE"} for value in asked)


def cached_entity_questions(folder: Path | None = None) -> Path | None:
    """The zip in the cache, or None; the network is not asked."""
    target = (folder or cache_folder()) / _NAME
    return target if target.is_file() else None


def fetch_entity_questions(url: str | None = None, folder: Path | None = None) -> Path:
    """The path of the checked zip in the cache, fetched from ``url`` (default :data:`URL`) if it is not there yet.

    The file gets its final name after its size, the CRC of every needed member and the presence of all 48 files have
    been checked; processes that fetch at the same time rename a temporary file each.

    Raises:
        InputError: offline; the server does not answer, refuses or breaks off; what arrives is not the data set; the
            folder cannot be written to.
    """
    url = url or URL
    target = (folder or cache_folder()) / _NAME
    if (cached := cached_entity_questions(folder)) is not None:
        return cached
    advice = _ADVICE.format(url=url)
    if offline():
        raise InputError(f"entity-questions: not in the cache ({target}) and offline (HF_HUB_OFFLINE); {advice}")
    import pooch  # takes a tenth of a second

    pooch.get_logger().setLevel("WARNING")  # else it logs the download and asks for a hash of the zip
    with border(f"{target}: cannot be fetched ({advice})"):
        pooch.retrieve(url, known_hash=None, fname=_NAME, path=target.parent, downloader=_download)
    return target


def _download(url: str, output_file: str, pooch: Any) -> None:
    """The downloader that pooch calls: writes a body of bounded size to ``output_file`` and checks its content."""
    from pooch import HTTPDownloader

    path = Path(output_file)
    with path.open("wb") as file:
        downloader = HTTPDownloader(progressbar=is_watched(), chunk_size=_PIECE, timeout=TIMEOUT)
        downloader(url, _Bounded(file, url), pooch)
    try:
        check_archive(path)
    except InputError as error:
        raise InputError(
            f"{url}: the {path.stat().st_size} bytes that arrived are not the data set ({error}); "
            f"{_ADVICE.format(url=url)}"
        ) from None


class _Bounded:
    """A file that accepts at most :data:`LARGEST_BODY` bytes."""

    def __init__(self, file: BinaryIO, url: str) -> None:
        self._file, self._url, self._size = file, url, 0

    def write(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > LARGEST_BODY:
            raise InputError(f"{self._url}: more than {LARGEST_BODY} bytes; expected at most that")
        self._file.write(piece)

    def flush(self) -> None:
        self._file.flush()
