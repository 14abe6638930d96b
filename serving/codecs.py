"""Samples as bytes: npy, npz, a zip of PNGs with a table, one PNG or WebP. The same samples always give the same bytes.

Every PNG and WebP carries the marks of synthetic origin and its address. This module knows nothing of HTTP beyond the
media types' names.
"""

from __future__ import annotations

import csv
import io
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, get_args

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from augmint.archive import pack
from augmint.errors import RequestError
from augmint.samples import Samples
from augmint.sampling import METADATA, columns, labelled_pngs, marked_png, marked_webp

__all__ = [
    "CODEC_VERSION",
    "FORMATS",
    "ONE_IMAGE",
    "Format",
    "MediaType",
    "encode",
    "encode_npy",
    "npy_header",
    "zip_entry",
]

Format = Literal["npz", "npy", "zip", "png", "webp"]

# Part of every ETag: to be raised whenever the bytes of any format change.
CODEC_VERSION: Final = 3


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
            return marked_png(samples, 0)
        case "webp":
            return marked_webp(samples, 0)


def encode_npy(images: NDArray[np.uint8]) -> bytes:
    """The body of an npy answer, which needs nothing but the images."""
    return npy_header(images.shape) + images.tobytes()


@lru_cache(maxsize=1024)
def npy_header(shape: tuple[int, ...]) -> bytes:
    """What `np.save` writes before the numbers; it takes it longer than the numbers of a small image."""
    header = io.BytesIO()
    npy_format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _zip(samples: Samples) -> bytes:
    """What `augmint sample` writes, which `augmint.data.load_data` and Hugging Face's imagefolder read."""
    table = io.StringIO(newline="")
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(columns(samples.edit))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, image, row in labelled_pngs(samples):
            archive.writestr(zip_entry(name), image)  # not deflated: PNGs are already
            rows.writerow(row)
        archive.writestr(zip_entry(METADATA), table.getvalue(), compress_type=zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def zip_entry(name: str) -> zipfile.ZipInfo:
    """An entry that carries no clock and no machine: 1 January 1980, made on Unix, readable by all."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system = 3
    entry.external_attr = 0o644 << 16
    return entry
