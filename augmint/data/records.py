"""What the readers hand over: entries not yet decoded, files that cannot be used, and where the split is kept.

Readers know the shape of a source on disk and nothing of pixels; `dataset.py` decodes and knows nothing of layouts.
"""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

SPLITS: Final = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)

_SPLIT_NAMES: Final = {
    "train": TRAIN,
    "training": TRAIN,
    "validation": VALIDATION,
    "valid": VALIDATION,
    "val": VALIDATION,
    "dev": VALIDATION,
    "test": TEST,
    "testing": TEST,
}
_LITTER: Final = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
IMAGE_SUFFIXES: Final = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pbm", ".jp2", ".avif"}
)


@dataclass(frozen=True, slots=True)
class BadFile:
    """A file, folder or row that cannot be used. `reason` is a clause: "is empty (0 bytes)"."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} {self.reason}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One image before decoding: its name for people, its class, its split if given, a file or uint8 [H, W(, C)]."""

    name: str
    label: str
    split: int | None
    source: Path | NDArray[np.uint8]


@dataclass(slots=True)
class Reading:
    """What a reader found.

    Attributes:
        name: of the data set.
        entries: in a stable order.
        class_names: in the order the source states, or None for natural order of the labels that occur.
        bad: what cannot be used.
        notes: what the user should know though it is no error.
        sidecar: the file that keeps the split; None where the split is a pure function of the content.
    """

    name: str
    entries: list[Entry]
    class_names: tuple[str, ...] | None = None
    bad: list[BadFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sidecar: Path | None = None


def natural_key(text: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sort key that puts "2" before "10" and ignores case, total over all strings.

    >>> sorted(["10", "2", "b", "A", "a10", "a9"], key=natural_key)
    ['2', '10', 'A', 'a9', 'a10', 'b']
    """
    parts = re.split("([0-9]+)", text.casefold())
    key = tuple((0, int(part), "") if i % 2 else (1, 0, part) for i, part in enumerate(parts) if part)
    return key, text


def split_index(name: str) -> int | None:
    """Index into SPLITS of a folder's or cell's name, by any of its usual spellings; None for others."""
    return _SPLIT_NAMES.get(name.strip().casefold())


def ignored(name: str) -> bool:
    """Hidden files and what operating systems leave behind."""
    return name.startswith(".") or name.casefold() in _LITTER


def shown(name: str) -> str:
    """A file name that can be printed and stored: composed Unicode, undecodable bytes as \\udcXX."""
    return unicodedata.normalize("NFC", name).encode("utf-8", "backslashreplace").decode("utf-8")


def leads_out(path: Path, root: str) -> bool:
    """Whether a path, its symbolic links followed, ends outside `root` (itself a real path)."""
    real = os.path.realpath(path)
    return real != root and not real.startswith(root.rstrip(os.sep) + os.sep)
