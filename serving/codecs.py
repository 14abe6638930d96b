"""Samples as bytes: npy, npz, a zip of PNGs with a table, one PNG. The same samples always give the same bytes.

Every PNG carries the marks of synthetic origin and its address. This module knows nothing of HTTP beyond the media
types' names.
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
from augmint.data.writing import folder_names
from augmint.errors import RequestError
from augmint.images import synthetic_png
from augmint.samples import Samples

__all__ = ["CODEC_VERSION", "FORMATS", "Format", "MediaType", "encode", "encode_npy"]

Format = Literal["npz", "npy", "zip", "png"]

# Part of every ETag: to be raised whenever the bytes of any format change.
CODEC_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class MediaType:
    """How a format is named in Accept and Content-Type, and what it is, for the OpenAPI document."""

    name: str
    suffix: str
    description: str


FORMATS: Final[dict[Format, MediaType]] = {
    "npz": MediaType(
        "application/x-npz",
        ".npz",
        "npz, uncompressed: images uint8 [N, H, W, C], labels int64 [N] (index into class_names), class_names unicode "
        "[K], seeds uint64 [N], indices uint64 [N]",
    ),
    "npy": MediaType("application/x-npy", ".npy", "npy: the images alone, uint8 [N, H, W, C]"),
    "zip": MediaType(
        "application/zip",
        ".zip",
        "zip: a folder of PNGs per class and metadata.csv with file_name, label, seed, index, truncation, bundle; "
        "every PNG carries its address and IPTC's mark of synthetic origin",
    ),
    "png": MediaType("image/png", ".png", "one PNG, with its address and IPTC's mark of synthetic origin"),
}
assert set(FORMATS) == set(get_args(Format))

METADATA: Final = "metadata.csv"
_COLUMNS: Final = ("file_name", "label", "seed", "index", "truncation", "bundle")


def encode(samples: Samples, form: Format) -> bytes:
    """The body of an answer.

    Raises:
        RequestError: `form` is "png" and there is not exactly one image.
    """
    match form:
        case "npz":
            return pack(samples.images, samples.labels, samples.class_names, samples.seeds, samples.indices)
        case "npy":
            return encode_npy(samples.images)
        case "zip":
            return _zip(samples)
        case "png":
            if len(samples) != 1:
                raise RequestError("image/png holds one image: ask for one, or for another format.")
            return _png(samples, 0, samples.label_names[0])


def encode_npy(images: NDArray[np.uint8]) -> bytes:
    """The body of an npy answer, which needs nothing but the images."""
    return _npy_header(images.shape) + images.tobytes()


@lru_cache(maxsize=1024)
def _npy_header(shape: tuple[int, ...]) -> bytes:
    """What `np.save` writes before the numbers; it takes it longer than the numbers of a small image."""
    header = io.BytesIO()
    npy_format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _png(samples: Samples, row: int, label: str) -> bytes:
    return synthetic_png(
        samples.images[row],
        bundle=samples.bundle,
        label=label,
        seed=int(samples.seeds[row]),
        index=int(samples.indices[row]),
        truncation=samples.truncation,
    )


def _zip(samples: Samples) -> bytes:
    """Folder per class, as `augmint.data.load_data` and Hugging Face's imagefolder read it."""
    # An unconditional bundle has one folder, and an empty label in the table.
    folders = folder_names(samples.class_names or ("images",))
    table = io.StringIO(newline="")
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(_COLUMNS)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for row, label in enumerate(samples.label_names):
            seed, index = int(samples.seeds[row]), int(samples.indices[row])
            name = f"{folders[samples.labels[row]]}/{seed}-{index}.png"
            # PNGs are deflated already.
            archive.writestr(_entry(name), _png(samples, row, label))
            rows.writerow((name, label, seed, index, samples.truncation, samples.bundle))
        archive.writestr(_entry(METADATA), table.getvalue(), compress_type=zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    """An entry that carries no clock and no machine: 1 January 1980, made on Unix, readable by all."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system = 3
    entry.external_attr = 0o644 << 16
    return entry
