"""Samples as bytes: npy, npz, a zip of PNGs with a table, one PNG or WebP. The same samples always give the same bytes.

Every PNG and WebP carries the marks of synthetic origin and its address. This module knows nothing of HTTP beyond the
media types' names.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from augmint.archive import npy_header, pack
from augmint.errors import RequestError
from augmint.samples import Samples
from augmint.sampling import METADATA, columns, labelled_pngs, marked_pngs, marked_webp
from serving.zips import StoredZip

__all__ = [
    "CODEC_VERSION",
    "FORMATS",
    "ONE_IMAGE",
    "Format",
    "MediaType",
    "PngZip",
    "encode",
    "encode_npy",
]

Format = Literal["npz", "npy", "zip", "png", "webp"]

# Part of every ETag: to be raised whenever the bytes of any format change.
CODEC_VERSION: Final = 4


@dataclass(frozen=True, slots=True)
class MediaType:
    """How a format is named in Accept and Content-Type, and what it is, for the OpenAPI document."""

    name: str
    description: str


FORMATS: Final[dict[Format, MediaType]] = {
    "npz": MediaType(
        "application/x-npz",
        "npz, uncompressed: images uint8 [N, H, W, C], labels int64 [N] (index into class_names), class_names unicode "
        "[K], seeds uint64 [N], indices uint64 [N]; under a quality also account int64 [L, 6]: for each label asked "
        "for its index in class_names, then how many images were requested, generated, and rejected for their label, "
        "for their realism, and as copies",
    ),
    "npy": MediaType("application/x-npy", "npy: the images alone, uint8 [N, H, W, C]"),
    "zip": MediaType(
        "application/zip",
        "zip: a folder of PNGs per class and metadata.csv with file_name, label, synthetic, seed, index, truncation, "
        "bundle, and edit where there is one; every PNG carries its address and IPTC's mark of synthetic origin",
    ),
    "png": MediaType("image/png", "one PNG, with its address and IPTC's mark of synthetic origin"),
    "webp": MediaType(
        "image/webp", "one lossless WebP, RGB also where the image is grey, with the marks of a PNG as XMP"
    ),
}
ONE_IMAGE: Final[frozenset[Format]] = frozenset({"png", "webp"})
"""Formats that hold exactly one image."""
assert set(FORMATS) == set(get_args(Format))


def encode(samples: Samples, form: Format) -> bytes:
    """The body of an answer.

    Raises:
        RequestError: `form` is one of `ONE_IMAGE` and there is not exactly one image.
    """
    if form in ONE_IMAGE and len(samples) != 1:
        raise RequestError(f"{FORMATS[form].name} holds one image: ask for one, or for another format.")
    match form:
        case "npz":
            return pack(samples)
        case "npy":
            return encode_npy(samples.images)
        case "zip":
            return _zip(samples)
        case "png":
            return next(marked_pngs(samples))
        case "webp":
            return marked_webp(samples, 0)


def encode_npy(images: NDArray[np.uint8]) -> bytes:
    """The body of an npy answer, which needs nothing but the images."""
    # Joined, because `tobytes` would copy the images once more.
    return b"".join((npy_header(images.shape), np.ascontiguousarray(images).data))


def _zip(samples: Samples) -> bytes:
    archive = PngZip()
    return archive.add(samples) + archive.end()


class PngZip:
    """A zip as it grows, of what `augmint sample` writes: a folder of PNGs per class and metadata.csv, which
    `augmint.data.load_data` and Hugging Face's imagefolder read. For at least one batch of samples."""

    def __init__(self) -> None:
        self._archive = StoredZip()
        self._table = io.StringIO(newline="")
        self._rows = csv.writer(self._table, lineterminator="\n")

    def add(self, samples: Samples) -> bytes:
        """The archive's next bytes, with these images."""
        if not self._table.tell():
            self._rows.writerow(columns(samples.edit))
        pieces = []
        for name, image, row in labelled_pngs(samples):
            pieces.append(self._archive.add(name, image))
            self._rows.writerow(row)
        return b"".join(pieces)

    def end(self, comment: bytes = b"") -> bytes:
        """Its last bytes: the table and the directory."""
        return self._archive.add(METADATA, self._table.getvalue().encode()) + self._archive.end(comment)
