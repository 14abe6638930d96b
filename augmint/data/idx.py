"""Read a folder of IDX files, the format that MNIST came in and that its many successors keep.

    DATA/train-images-idx3-ubyte.gz  DATA/train-labels-idx1-ubyte.gz     training images
    DATA/t10k-images-idx3-ubyte.gz   DATA/t10k-labels-idx1-ubyte.gz      test images (also "test", "validation")

Unpacked files will do too (`train-images-idx3-ubyte`, `train-images.idx3-ubyte`), and so will names with the set's own
before them (`emnist-digits-train-images-idx3-ubyte`). Where only one of the pairs is there, augmint makes the split.
A class is called by its number. EMNIST stores its letters transposed, and here they stay so.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from augmint.data.records import TEST, TRAIN, Entry, Reading, leads_out, shown, split_index
from augmint.errors import DataError

_NAME: Final = re.compile(
    r"(?P<set>.*?)(?P<split>train|t10k|test|validation|valid|val)-(?P<what>images|labels)[-.]idx(?P<rank>\d)-ubyte"
    r"(?:\.gz)?",
    re.IGNORECASE,
)
_RANK: Final = {"images": 3, "labels": 1}
# What a file claims to hold is checked before it is read: deflate shrinks zeros a thousandfold.
_MOST_BYTES: Final = 16 * 2**30


def has_idx(root: Path) -> bool:
    """Whether a folder has IDX files of images in it."""
    return any(match["what"].lower() == "images" for _, match in _found(root))


def idx_name(name: str) -> bool:
    """Whether a file is called like one of these."""
    return _NAME.fullmatch(name) is not None


def read_idx(root: Path, *, sidecar: Path) -> Reading:
    """Read the pairs of files in a folder and check them against each other."""
    where = shown(str(root))
    real = os.path.realpath(root)
    pairs: dict[tuple[str, str], dict[str, Path]] = {}
    for file, match in _found(root):
        if leads_out(file, real):
            raise DataError(f"{shown(str(file))} is a symbolic link that leads out of the folder: copy the file there.")
        pair = pairs.setdefault((match["set"], match["split"].lower()), {})
        # Beside `x.gz` its unpacked `x` may lie, which sorts before it and holds the same.
        pair.setdefault(match["what"].lower(), file)
    sets = sorted({name for name, _ in pairs})
    if len(sets) > 1:
        raise DataError(
            f"{where} has {len(sets)} sets of IDX files ({', '.join(repr(shown(name)) for name in sets[:4])}): put the "
            "one to read in a folder of its own."
        )

    parts: list[tuple[int, NDArray[np.uint8], NDArray[np.uint8], str]] = []
    for (_, name), pair in pairs.items():
        for what, other in (("images", "labels"), ("labels", "images")):
            if what not in pair:
                there = shown(pair[other].name)
                lacking = there.replace(other, what).replace(f"idx{_RANK[other]}", f"idx{_RANK[what]}")
                raise DataError(f"{where} has {there} but no {lacking}: put it there.")
        images, labels = _array(pair["images"], "images"), _array(pair["labels"], "labels")
        if len(images) != len(labels):
            raise DataError(
                f"{where}: {shown(pair['images'].name)} has {len(images):,} images but {shown(pair['labels'].name)} "
                f"{len(labels):,} labels: the two do not belong together."
            )
        split = TEST if name == "t10k" else split_index(name)
        assert split is not None, "every name in the pattern is a split's"
        parts.append((split, images, labels, name))
    parts.sort(key=lambda part: part[0])

    given = len({part[0] for part in parts}) > 1 and parts[0][0] == TRAIN
    entries = []
    for split, images, labels, name in parts:
        width = len(str(max(len(images) - 1, 0)))
        entries += [
            Entry(f"{name}/{i:0{width}}", str(label), split if given else None, image)
            for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True))
        ]
    if not entries:
        raise DataError(f"{where} has no images in its IDX files: check them.")
    notes = [] if given else [f"there are {parts[0][3]} images only: augmint makes the split."]
    return Reading(shown(root.resolve().name) or "data", entries, None, [], notes, sidecar)


def _found(root: Path) -> list[tuple[Path, re.Match[str]]]:
    """The folder's files with such names, in a stable order."""
    try:
        names = sorted(os.listdir(root))
    except OSError as error:
        raise DataError(f"{shown(str(root))} cannot be read ({error.strerror}): check its permissions.") from None
    matches = ((root / name, _NAME.fullmatch(name)) for name in names if not name.startswith("."))
    return [(path, match) for path, match in matches if match is not None and path.is_file()]


def _array(file: Path, what: str) -> NDArray[np.uint8]:
    """The array of one file: two zero bytes, the type (8: bytes), the rank, a big-endian uint32 a dimension, the data.

    That is the whole format (LeCun, Cortes & Burges, "The MNIST database of handwritten digits").
    """
    where = shown(str(file))
    try:
        with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as stream:
            head = stream.read(4)
            if len(head) < 4 or head[:2] != b"\0\0":
                raise DataError(f"{where} is not an IDX file, or is damaged: fetch it again.")
            rank = _RANK[what]
            if head[2] != 8 or head[3] != rank:
                raise DataError(
                    f"{where} holds {head[3]} dimensions of type 0x{head[2]:02x}, but {what} are {rank} of unsigned "
                    "bytes (0x08): save it as an npz instead."
                )
            sizes = stream.read(4 * rank)
            shape = [int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4)]
            wanted = math.prod(shape)
            if wanted > _MOST_BYTES:
                raise DataError(f"{where} claims to hold more than {_MOST_BYTES >> 30} GiB: split it up.")
            data = stream.read(wanted + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{where} cannot be read ({str(error)[:100]}): fetch it again.") from None
    if len(sizes) < 4 * rank or len(data) != wanted:
        held = "less" if len(sizes) < 4 * rank or len(data) < wanted else "more"
        raise DataError(f"{where} has {held} in it than its header says: fetch it again.")
    if shape[0] and 0 in shape:
        raise DataError(f"{where} has images of {shape[1]}x{shape[2]}, which have no pixels: save them again.")
    return np.frombuffer(data, np.uint8).reshape(shape)
