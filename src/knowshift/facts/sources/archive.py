"""Reading an untrusted zip: members in memory, bounded, nothing extracted."""

from __future__ import annotations

import re
import stat
import zipfile
import zlib
from pathlib import Path
from types import TracebackType

from knowshift.errors import InputError

_OUTSIDE = re.compile(r"^[/\\]|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)")


class SafeZip:
    """A zip opened for reading, refused as a whole (:class:`InputError`) when any entry is not a plain one inside.

    Refused: absolute names, names that leave the folder by ``..``, repeated names, links, and encrypted entries.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a readable zip ({error})") from None
        try:
            self._members = self._checked()
        except InputError:
            self._zip.close()
            raise

    def _checked(self) -> dict[str, zipfile.ZipInfo]:
        members: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            # orig_filename is the stored name, before zipfile cuts it at NUL and replaces separators.
            for name in (info.orig_filename, info.filename):
                if _OUTSIDE.search(name) or "\0" in name:
                    raise InputError(f"{self.path}: entry {name!r} points outside its folder; the zip is refused")
            if stat.S_ISLNK(info.external_attr >> 16):
                raise InputError(f"{self.path}: entry {info.filename!r} is a link; the zip is refused")
            if info.flag_bits & 0x1:
                raise InputError(f"{self.path}: entry {info.filename!r} is encrypted; expected a plain zip")
            if info.filename in members:
                raise InputError(f"{self.path}: entry {info.filename!r} stands twice; the zip is refused")
            members[info.filename] = info
        return members

    @property
    def names(self) -> tuple[str, ...]:
        """The entries, in the order of the zip."""
        return tuple(self._members)

    def read(self, name: str, at_most: int) -> bytes:
        """The bytes of one entry, CRC checked; refused when it declares or yields more than ``at_most`` bytes."""
        info = self._members[name]
        if info.file_size > at_most:
            raise InputError(f"{self.path}: {name} declares {info.file_size} bytes; expected at most {at_most}")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{self.path}: {name} is neither stored nor deflated; expected an ordinary zip")
        try:
            with self._zip.open(info) as member:
                # One byte more than allowed: so a bomb that declares too small a size is detected.
                data = member.read(at_most + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise InputError(f"{self.path}: {name} is damaged ({error})") from None
        if len(data) > at_most:
            raise InputError(f"{self.path}: {name} yields more than {at_most} bytes")
        if len(data) != info.file_size:
            raise InputError(f"{self.path}: {name} is damaged ({len(data)} bytes instead of {info.file_size})")
        return data

    def __enter__(self) -> SafeZip:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()
