"""A zip archive as it grows, for entries that are compressed already: the bytes depend on names and contents alone.

`zipfile` takes several times as long for an entry as encoding a small image. An entry here has its sizes and checksum
before its content, so readers of streams can read it; sizes above 4 GiB and more than 65,534 entries are written as
Zip64. Source: PKWARE APPNOTE.TXT 6.3.10, §4.3.7, §4.3.12, §4.3.14–16, §4.5.3.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

__all__ = ["StoredZip"]

_LOCAL: Final = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL: Final = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END: Final = struct.Struct("<4sHHHHIIH")
_END64: Final = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR: Final = struct.Struct("<4sIQI")
_UTF8: Final = 0x0800
_MIDNIGHT, _DAY = 0, 0x0021  # 1 January 1980: no clock
_UNIX, _MODE = 3 << 8, 0o100644 << 16  # made on Unix, a file readable by all
_MOST32, _MOST16 = 0xFFFFFFFF, 0xFFFF


class StoredZip:
    """`add` and `end` give the archive's next bytes; their concatenation is the archive."""

    def __init__(self) -> None:
        self._offset = 0
        self._directory: list[bytes] = []

    def add(self, name: str, content: bytes) -> bytes:
        """A file, not compressed.

        Args:
            name: its path in the archive, with "/".
            content: less than 4 GiB.
        """
        size = len(content)
        if size >= _MOST32:
            raise ValueError("an entry of 4 GiB or more needs another writer")
        path, check = name.encode("utf-8"), zlib.crc32(content)
        about = (_UTF8, 0, _MIDNIGHT, _DAY, check, size, size, len(path))
        far = self._offset >= _MOST32
        extra = struct.pack("<HHQ", 1, 8, self._offset) if far else b""
        version = 45 if far else 20
        self._directory.append(
            _CENTRAL.pack(
                b"PK\x01\x02", _UNIX | version, version, *about, len(extra), 0, 0, 0, _MODE,
                _MOST32 if far else self._offset,
            ) + path + extra
        )  # fmt: skip
        entry = b"".join((_LOCAL.pack(b"PK\x03\x04", 20, *about, 0), path, content))
        self._offset += len(entry)
        return entry

    def end(self, comment: bytes = b"") -> bytes:
        """The directory, and the archive's comment, of less than 64 KiB."""
        directory, n = b"".join(self._directory), len(self._directory)
        size, offset, tail = len(directory), self._offset, b""
        if n >= _MOST16 or offset >= _MOST32 or size >= _MOST32:
            tail = _END64.pack(b"PK\x06\x06", _END64.size - 12, _UNIX | 45, 45, 0, 0, n, n, size, offset)
            tail += _LOCATOR.pack(b"PK\x06\x07", 0, offset + size, 1)
        n, size, offset = min(n, _MOST16), min(size, _MOST32), min(offset, _MOST32)
        return directory + tail + _END.pack(b"PK\x05\x06", 0, 0, n, n, size, offset, len(comment)) + comment
