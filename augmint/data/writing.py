"""Write images so that augmint, torchvision's ImageFolder and Hugging Face's imagefolder all read them back.

Everything is written to a temporary folder beside the target and renamed at the end: a folder that is there is whole.
Knows nothing of where images come from; marks are passed through to `augmint.images.synthetic_png`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from augmint.data.records import SPLITS, TEST, TRAIN, ignored, shown
from augmint.errors import DataError
from augmint.images import Marks, encode_png, quiet_pillow, synthetic_png

if TYPE_CHECKING:
    from augmint.data.dataset import DataSet

_RESERVED: Final = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def write_folder(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    out: str | Path,
    *,
    names: Sequence[str] | None = None,
    marks: Sequence[Marks | None] | None = None,
    columns: Mapping[str, Sequence[object]] | None = None,
) -> Path:
    """Write a folder per class of PNGs, and a metadata.csv with file_name, label and further columns.

    Args:
        images: uint8 [N, H, W, C], C 1 or 3.
        labels: int64 [N], index into `class_names`.
        class_names: non-empty strings. One that no file system takes as it is ("a/b", "CON") gets a tamer folder; its
            true name stands in metadata.csv, which `load_data` believes.
        out: a folder that is not there yet, or is empty.
        names: file names without suffix, unique within a class; by default the image's number within its class.
        marks: for each image its address if it is synthetic, else None.
        columns: further columns of metadata.csv, N values each (None: an empty cell).

    Returns:
        `out`.

    Raises:
        DataError: `out` is in use or cannot be written to; names collide.
    """
    _check(images, labels, class_names)
    folders = folder_names(class_names)
    columns = dict(columns or {})
    for what, values in (("names", names), ("marks", marks), *columns.items()):
        if values is not None and len(values) != len(images):
            raise ValueError(f"{what} has {len(values)} values for {len(images)} images")
    stems = _numbers(labels) if names is None else [_tame(name) for name in names]

    table = io.StringIO(newline="")
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["file_name", "label", *columns])
    with new_folder(Path(out)) as folder:
        for label in sorted(set(labels.tolist())):
            (folder / folders[label]).mkdir()
        taken: set[tuple[int, str]] = set()
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            # Case-folded, because "A.png" and "a.png" are one file on many machines.
            if (label, stems[i].casefold()) in taken:
                raise DataError(f"two images of class {class_names[label]!r} would be named {stems[i]!r}: rename one.")
            taken.add((label, stems[i].casefold()))
            mark = marks[i] if marks is not None else None
            data = encode_png(image) if mark is None else synthetic_png(image, **mark)
            relative = f"{folders[label]}/{stems[i]}.png"
            (folder / relative).write_bytes(data)
            further = ["" if values[i] is None else values[i] for values in columns.values()]
            rows.writerow([relative, class_names[label], *further])
        (folder / "metadata.csv").write_text(table.getvalue(), encoding="utf-8", newline="")
    return Path(out)


def write_npz(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    out: str | Path,
    *,
    arrays: Mapping[str, NDArray[Any]] | None = None,
) -> Path:
    """Write an npz that `load_data` reads: images, labels, class_names, and further arrays (`split`, `seeds`, …).

    Raises:
        DataError: `out` is there already, has another suffix, or cannot be written to.
    """
    _check(images, labels, class_names)
    out = Path(out)
    if out.suffix.lower() != ".npz":
        raise DataError(f"{shown(str(out))} does not end in .npz: name it so.")
    if out.exists():
        raise DataError(f"{shown(str(out))} is there already: choose another name or remove it.", code="data.exists")
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(6)}")
    try:
        with temporary.open("xb") as file:
            # savez's stubs do not know that further arrays may come as keywords.
            save: Any = np.savez_compressed
            save(
                file,
                images=images,
                labels=labels,
                class_names=np.array(list(class_names), dtype=np.str_),
                **(arrays or {}),
            )
        temporary.replace(out)
    except OSError as error:
        raise DataError(f"{shown(str(out))} cannot be written ({error.strerror}): choose another place.") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return out


def write_split_folders(data: DataSet, out: Path) -> Path:
    """`DataSet.write`: split folders of class folders of PNGs at their own sizes.

    Raises:
        DataError: a class name cannot be a folder's name; `out` is in use or cannot be written to.
    """
    from augmint.data.dataset import pixels_of

    for name, folder_name in zip(data.class_names, folder_names(data.class_names), strict=True):
        if name != folder_name:
            raise DataError(
                f"class {name!r} cannot be a folder's name on every machine: rename it, or use write_npz.",
                code="data.class-name",
            )
    taken: set[tuple[int, int, str]] = set()
    with new_folder(out) as folder, quiet_pillow():
        for picture, label, side in zip(data.pictures, data.labels.tolist(), data.split.tolist(), strict=True):
            place = folder / SPLITS[side] / data.class_names[label]
            place.mkdir(parents=True, exist_ok=True)
            first = _tame(Path(picture.name).stem)
            stem, number = first, 1
            while (side, label, stem.casefold()) in taken:
                number += 1
                stem = f"{first}-{number}"
            taken.add((side, label, stem.casefold()))
            (place / f"{stem}.png").write_bytes(encode_png(pixels_of(picture)))
        if not (data.split != TRAIN).any():
            # A train/ folder alone reads as "not split yet".
            for name in data.class_names:
                (folder / SPLITS[TEST] / name).mkdir(parents=True)
    return out


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` if the block ends well, and vanishes otherwise.

    Raises:
        DataError: `out` is a file or a folder with something in it, or its place cannot be written to.
    """
    where = shown(str(out))
    out = out.absolute()
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(6)}.partial")
    try:
        if out.is_symlink() or (out.exists() and not out.is_dir()):
            raise DataError(f"{where} is there already and is no folder: choose another name.", code="data.exists")
        if out.is_dir() and any(out.iterdir()):
            raise DataError(f"{where} is there already and not empty: choose another name.", code="data.exists")
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        if out.is_dir():
            out.rmdir()
        os.rename(temporary, out)
    except OSError as error:
        raise DataError(f"{where} cannot be written ({error.strerror or error}): choose another place.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def folder_names(class_names: Sequence[str]) -> list[str]:
    """A folder name for each class that every usual file system takes: the class name itself wherever it can be."""
    found: list[str] = []
    taken: set[str] = set()
    for name in class_names:
        first = _tame(name)
        tame, number = first, 1
        while tame.casefold() in taken:
            number += 1
            tame = f"{first}-{number}"
        taken.add(tame.casefold())
        found.append(tame)
    return found


def _tame(name: str) -> str:
    text = unicodedata.normalize("NFC", name)
    text = "".join("_" if c in '<>:"/\\|?*' or not c.isprintable() else c for c in text)
    text = text.encode("utf-8")[:120].decode("utf-8", "ignore").strip().rstrip(". ")
    if not text or ignored(text) or _RESERVED.fullmatch(text):
        text = f"_{text}"
    return text


def _numbers(labels: NDArray[np.int64]) -> list[str]:
    seen: dict[int, int] = {}
    numbers = []
    for label in labels.tolist():
        numbers.append(f"{seen.setdefault(label, 0):06}")
        seen[label] += 1
    return numbers


def _check(images: NDArray[np.uint8], labels: NDArray[np.int64], class_names: Sequence[str]) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(f"images must be uint8 [N, H, W, 1 or 3], not {images.dtype} {list(images.shape)}")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers [{len(images)}], not {labels.dtype} {list(labels.shape)}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise ValueError(f"labels must lie in 0 … {len(class_names) - 1}")
