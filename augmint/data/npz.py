"""Read an npz: `images`, `labels`, and if you like `class_names` and `split`. Never unpickles anything.

images       uint8 [N, H, W] or [N, H, W, C], C 1, 3 or 4 (alpha, composited on white)
labels       integers [N] (index into class_names, where there are any) or strings [N]
class_names  strings [K], in the order of the integers
split        strings [N] ("train" …) or integers [N] (index into train, validation, test)
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from augmint.data.records import SPLITS, Entry, Reading, shown, split_index
from augmint.errors import DataError

# Deflate shrinks zeros a thousandfold: what a small file claims to unpack to is checked before it is unpacked.
_MOST_BYTES: Final = 16 * 2**30


def read_npz(path: Path, *, sidecar: Path) -> Reading:
    """Read the arrays of an npz and check them against each other."""
    where = shown(str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
        if sum(members.values()) > _MOST_BYTES:
            raise DataError(f"{where} claims to unpack to more than {_MOST_BYTES >> 30} GiB: split it up.")
        missing = [name for name in ("images", "labels") if name not in members]
        if missing:
            raise DataError(
                f"{where} has no {missing[0]!r} but {', '.join(sorted(members))[:200] or 'nothing'}: "
                "save it with numpy.savez_compressed(path, images=…, labels=…, class_names=…)."
            )
        with np.load(path, allow_pickle=False) as arrays:
            wanted = ("images", "labels", "class_names", "split")
            data: dict[str, NDArray[Any]] = {name: arrays[name] for name in wanted if name in members}
    except DataError:
        raise
    except zipfile.BadZipFile:
        raise DataError(f"{where} is not an npz, or is damaged: save it again with numpy.savez_compressed.") from None
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise DataError(
                f"{where} has an array of Python objects, which augmint never unpickles: save images as uint8 and "
                "labels as integers or strings."
            ) from None
        raise DataError(f"{where} has a damaged array ({str(error)[:100]}): save it again.") from None
    # A damaged zip or npy header raises nearly anything: EOFError, zlib.error, SyntaxError, struct.error, …
    except Exception as error:
        raise DataError(f"{where} cannot be read ({str(error)[:100]}): check or save it again.") from None

    images = _images(data["images"], where)
    # The samples of an unconditional bundle have an empty list of names.
    names = (_strings(data["class_names"], "class_names", where) or None) if "class_names" in data else None
    if names is not None and len(set(names)) < len(names):
        raise DataError(f"{where}: class_names names a class twice: make them different.")
    labels = _labels(data["labels"], names, where)
    if len(labels) != len(images):
        raise DataError(f"{where} has {len(images)} images but {len(labels)} labels: make them as many.")
    splits: list[int] | list[None] = [None] * len(images)
    if "split" in data:
        splits = _splits(data["split"], len(images), where)

    width = len(str(max(len(images) - 1, 0)))
    entries = [
        Entry(f"{i:0{width}}", label, split, image)
        for i, (label, split, image) in enumerate(zip(labels, splits, images, strict=True))
    ]
    if not entries:
        raise DataError(f"{where} has no images: save at least one.")
    return Reading(shown(path.stem), entries, tuple(names) if names is not None else None, sidecar=sidecar)


def _images(images: NDArray[Any], where: str) -> NDArray[np.uint8]:
    if images.dtype != np.uint8:
        mend = "save them as uint8"
        if images.dtype.kind == "f":
            if not np.isfinite(images).all():
                raise DataError(f"{where}: images hold NaN or infinity: clean them and save them as uint8, 0 … 255.")
            mend = "if they lie in 0 … 1, save (images * 255).round().astype(numpy.uint8)"
        elif images.dtype == np.uint16:
            mend = "save (images / 257).round().astype(numpy.uint8)"
        raise DataError(f"{where}: images are {images.dtype}, not uint8: {mend}.")
    shape = list(images.shape)
    if images.ndim not in (3, 4) or (images.ndim == 4 and shape[3] not in (1, 3, 4)):
        mend = "they must be [N, H, W] or [N, H, W, C] with C 1, 3 or 4"
        if images.ndim == 4 and shape[1] in (1, 3, 4):
            mend = "channels come last: save images.transpose(0, 2, 3, 1)"
        raise DataError(f"{where}: images have the shape {shape}: {mend}.")
    if shape[0] and 0 in shape[1:]:
        raise DataError(f"{where}: images have the shape {shape}, which has no pixels: save them again.")
    return images


def _labels(labels: NDArray[Any], names: list[str] | None, where: str) -> list[str]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(
            f"{where}: labels have the shape {list(labels.shape)}, not [N]: for one-hot labels save labels.argmax(1)."
        )
    if labels.dtype.kind in "iu":
        if names is None:
            return [str(int(label)) for label in labels]
        outside = labels[(labels < 0) | (labels >= len(names))]
        if len(outside):
            raise DataError(
                f"{where}: label {int(outside[0])} is out of range: there are {len(names)} class_names, so labels are "
                f"0 … {len(names) - 1}."
            )
        return [names[int(label)] for label in labels]
    if labels.dtype.kind not in "US":
        raise DataError(f"{where}: labels are {labels.dtype}: save them as integers or strings.")
    texts = _strings(labels, "labels", where)
    unknown = sorted(set(texts) - set(names)) if names else []
    if unknown:
        raise DataError(f"{where}: label {unknown[0][:80]!r} is not among class_names: add it there.")
    return texts


def _strings(array: NDArray[Any], what: str, where: str) -> list[str]:
    if array.ndim != 1 or (array.dtype.kind not in "US" and len(array)):
        raise DataError(f"{where}: {what} must be a list of strings, not {array.dtype} {list(array.shape)}.")
    try:
        texts = [item.decode("utf-8") if isinstance(item, bytes) else str(item) for item in array.tolist()]
    except UnicodeDecodeError:
        raise DataError(f"{where}: {what} has bytes that are not UTF-8: save strings.") from None
    texts = [shown(text.strip()) for text in texts]
    if "" in texts:
        raise DataError(f"{where}: {what} has an empty name: give every class one.")
    return texts


def _splits(split: NDArray[Any], count: int, where: str) -> list[int]:
    if split.shape != (count,):
        raise DataError(f"{where}: split has the shape {list(split.shape)}, not [{count}]: give one per image.")
    if split.dtype.kind in "US":
        found = [split_index(text) for text in _strings(split, "split", where)]
        unknown = next((text for text, index in zip(split.tolist(), found, strict=True) if index is None), None)
    elif split.dtype.kind in "iu":
        found = [int(i) if 0 <= i < len(SPLITS) else None for i in split]
        unknown = next((text for text, index in zip(split.tolist(), found, strict=True) if index is None), None)
    else:
        found, unknown = [], split.dtype
    if unknown is not None:
        raise DataError(f"{where}: split has {str(unknown)[:40]!r}: use {', '.join(SPLITS)} or 0, 1, 2.")
    return [index for index in found if index is not None]
