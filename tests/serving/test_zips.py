"""The zip writer, read back by `zipfile`."""

from __future__ import annotations

import io
import zipfile

from hypothesis import given
from hypothesis import strategies as st

from serving.zips import StoredZip

_names = st.text(st.characters(codec="utf-8", exclude_characters="\0/\\"), min_size=1, max_size=20)


@given(st.dictionaries(_names, st.binary(max_size=100), max_size=5))
def test_zipfile_reads_what_was_added(files: dict[str, bytes]) -> None:
    archive = StoredZip()
    whole = b"".join([*(archive.add(name, content) for name, content in files.items()), archive.end()])
    with zipfile.ZipFile(io.BytesIO(whole)) as found:
        assert found.testzip() is None
        assert {info.filename: found.read(info) for info in found.infolist()} == files


def test_more_entries_than_16_bits_count() -> None:
    archive = StoredZip()
    whole = b"".join([*(archive.add(str(n), b"") for n in range(65_536)), archive.end()])
    with zipfile.ZipFile(io.BytesIO(whole)) as found:
        assert len(found.namelist()) == 65_536


def test_entries_beyond_4_gib() -> None:
    archive = StoredZip()
    first = archive.add("first", b"1")
    hole = 5 * 2**30
    archive._offset += hole
    second, end = archive.add("second", b"22"), archive.end()

    class Sparse(io.RawIOBase):
        """The archive with a hole of zeros, which stands for a file of that size."""

        place = 0

        def seekable(self) -> bool:
            return True

        def seek(self, offset: int, whence: int = 0) -> int:
            size = len(first) + hole + len(second) + len(end)
            self.place = offset + {0: 0, 1: self.place, 2: size}[whence]
            return self.place

        def tell(self) -> int:
            return self.place

        def read(self, size: int = -1) -> bytes:
            tail = second + end
            begin = self.place - len(first) - hole
            data = first[self.place :] if begin < 0 else tail[begin:]
            data = data if size < 0 else data[:size]
            self.place += len(data)
            return data

    with zipfile.ZipFile(Sparse()) as found:  # type: ignore[arg-type]
        assert found.read("second") == b"22"
        assert found.read("first") == b"1"
