"""Images as a stream of bytes of any length: tar as the webdataset library reads it, npy, zip.

A writer turns chunks of samples, in order, into the pieces of one file, and ends it with a mark (`augmint.endmark`).
The file is a function of the samples alone, however they are cut into chunks. Memory does not grow with its length,
but for the zip's directory, so a zip has at most `MOST_IN_ZIP` images. Knows nothing of HTTP or how images are made.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Final

from augmint import tars
from augmint.archive import npy_header
from augmint.endmark import LENGTH, StreamForm, mark, tail, tail_length
from augmint.samples import Samples
from augmint.sampling import columns, labelled_pngs
from serving.codecs import PngZip

__all__ = ["MEDIA_TYPES", "MOST_IN_ZIP", "StreamWriter", "writer_of"]

# A zip's directory stays in memory until its end, about 600 bytes an image; readers before zip64 stop here, too.
MOST_IN_ZIP: Final = 65_000
MEDIA_TYPES: Final[dict[StreamForm, str]] = {
    "tar": "application/x-tar",
    "npy": "application/x-npy",
    "zip": "application/zip",
}


class StreamWriter(ABC):
    """One stream on its way; for one thread at a time.

    Args:
        images: it will have.
        first: row of its first image in the whole stream that it is a part of.

    Attributes:
        form: of its bytes.
        written: images so far.
        length: bytes of the whole, where that is known before.
    """

    form: ClassVar[StreamForm]
    length: int | None = None

    def __init__(self, images: int, first: int) -> None:
        self.images = images
        self.first = first
        self.written = 0
        self._hashed = hashlib.sha256()

    def write(self, samples: Samples) -> bytes:
        """The next images as bytes; with the last ones comes the end."""
        data = self._encode(samples)
        self._hashed.update(data)
        self.written += len(samples)
        assert self.written <= self.images, "a stream has the images that it was made for"
        if self.written < self.images:
            return data
        end = self._end()
        self._hashed.update(end[-tail_length(self.form) :])
        return data + end

    def go_on(self, images: int, before: Iterable[bytes]) -> None:
        """Begin after the first `images`, whose bytes another writer of the same stream made. Not for a zip."""
        assert self.form != "zip"
        assert not self.written
        self.written = images
        for piece in before:
            self._hashed.update(piece)

    @property
    def sha256(self) -> bytes:
        """Of all bytes so far, the end's among them."""
        return self._hashed.digest()

    @abstractmethod
    def _encode(self, samples: Samples) -> bytes: ...

    @abstractmethod
    def _end(self) -> bytes: ...


def writer_of(form: StreamForm, *, images: int, first: int, image_shape: tuple[int, int, int]) -> StreamWriter:
    match form:
        case "npy":
            return _Npy(images, first, image_shape)
        case "tar":
            return _Tar(images, first)
        case "zip":
            return _Zip(images, first)


class _Npy(StreamWriter):
    """uint8 [images, H, W, C]."""

    form = "npy"

    def __init__(self, images: int, first: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__(images, first)
        self._header = npy_header((images, *image_shape))
        self.length = len(self._header) + images * math.prod(image_shape) + tail_length("npy")

    def _encode(self, samples: Samples) -> bytes:
        pixels = samples.images.tobytes()
        return pixels if self.written else self._header + pixels

    def _end(self) -> bytes:
        return tail("npy", self.images, self._hashed.hexdigest())


class _Tar(StreamWriter):
    """For each image key.png, with its address and mark; key.cls, the number of its label; key.json, its address."""

    form = "tar"

    def _encode(self, samples: Samples) -> bytes:
        members: list[bytes] = []
        names, key = columns(samples.edit), self.first + self.written
        for label, (_, png, row) in zip(samples.labels.tolist(), labelled_pngs(samples), strict=True):
            address = _address(dict(zip(names, row, strict=True)))
            for extension, content in (("png", png), ("cls", b"%d" % label), ("json", address)):
                members.append(tars.member(f"{key:012d}.{extension}", content))
            key += 1
        return b"".join(members)

    def _end(self) -> bytes:
        return tail("tar", self.images, self._hashed.hexdigest())


def _address(row: dict[str, Any]) -> bytes:
    """An image's row of the table as JSON; 64-bit numbers as text, because most readers lose digits above 2^53."""
    del row["file_name"]
    return json.dumps({**row, "synthetic": True, "seed": str(row["seed"]), "index": str(row["index"])}).encode()


class _Zip(StreamWriter):
    """A folder of PNGs per class and metadata.csv, as /v1/generate makes it."""

    form = "zip"

    def __init__(self, images: int, first: int) -> None:
        super().__init__(images, first)
        self._archive = PngZip()

    def _encode(self, samples: Samples) -> bytes:
        return self._archive.add(samples)

    def _end(self) -> bytes:
        data = self._archive.end(mark(self.images, ""))
        self._hashed.update(data[: -tail_length("zip")])
        return data[:-LENGTH] + mark(self.images, self._hashed.hexdigest())
