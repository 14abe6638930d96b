"""A labelled set of images with its split and its fingerprint: what training, evaluation and balancing read.

`load_data` is the one door: a folder, a CSV, an npz or a built-in name goes in, a `DataSet` comes out, in which every
image has been decoded once in full, so that nothing is found damaged hours later. Pixels stay in memory up to half a
GiB; beyond that a picture is decoded again when it is asked for, and refused if it has changed meanwhile.

This module knows nothing of tensors, batches or augmentation.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from augmint.data import duplicates
from augmint.data.builtin import BUILTIN, read_builtin
from augmint.data.folder import SIDECAR, read_folder
from augmint.data.idx import has_idx, idx_name, read_idx
from augmint.data.npz import read_npz
from augmint.data.records import SPLITS, TRAIN, VALIDATION, BadFile, Entry, Reading, natural_key, shown
from augmint.data.split import DEFAULT_FRACTIONS, Stored, assign, check_fractions, read_split, write_split
from augmint.data.table import has_labels, read_table
from augmint.errors import DataError
from augmint.images import RESIZE_POLICIES, Resize, canonical, decode_image, quiet_pillow, resize_image

_KEEP_BYTES: Final = 512 * 2**20
_DEFAULT_LONGEST: Final = 64
# Limits of the manifest of `augmint.bundle`.
_MOST_CLASSES: Final = 10_000
_LONGEST_NAME: Final = 256  # characters
_SHAPED_KEPT: Final = 2  # image arrays kept per data set: one for training, one for an extractor

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Picture:
    """One decoded image of a data set.

    Attributes:
        name: path within the data set, or its number in an npz.
        digest: sha256 hex of shape and canonical pixels.
        height, width: as displayed, EXIF orientation applied.
        mode: of the file ("L", "RGB", "P", "I;16", …).
        channels: 1 if all its pixels are grey, else 3.
        peak: its highest level.
        hash: 64-bit difference hash.
        source: file or array it came from.
        pixels: canonical uint8 [H, W, channels], or None where it did not fit in memory.
    """

    name: str
    digest: str
    height: int
    width: int
    mode: str
    channels: int
    peak: int
    hash: int
    source: Path | NDArray[np.uint8]
    pixels: NDArray[np.uint8] | None


@dataclass(frozen=True, eq=False)
class DataSet:
    """Labelled images, split and fingerprinted. Made by `load_data`; order is that of the source.

    Attributes:
        name: for people.
        spec: what `load_data` was given, absolute where it is a path. A set that was `cut` keeps its origin's.
        class_names: in natural order ("2" before "10") unless the source states one.
        labels: int64 [N], index into `class_names`.
        split: uint8 [N], index into SPLITS (train, validation, test).
        groups: int64 [N]; images of one number are (nearly) the same and share a split, unless the split was given.
        pictures: what is known of each image.
        split_given: whether the source states the split itself.
        fingerprint: sha256 hex over the class names in order and each image's digest, label and split, sorted: the same
            whatever the files are called and however they are ordered.
        bad: what could not be used and was skipped.
        notes: sentences that are worth telling though nothing is wrong.
    """

    name: str
    spec: str
    class_names: tuple[str, ...]
    labels: NDArray[np.int64]
    split: NDArray[np.uint8]
    groups: NDArray[np.int64]
    pictures: tuple[Picture, ...] = field(repr=False)
    split_given: bool = False
    fingerprint: str = ""
    bad: tuple[BadFile, ...] = ()
    notes: tuple[str, ...] = ()
    _shaped: dict[tuple[tuple[int, int, int], str], NDArray[np.uint8]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not self.fingerprint:
            found = _fingerprint(self.class_names, self.digests, self.labels, self.split)
            object.__setattr__(self, "fingerprint", found)

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def digests(self) -> tuple[str, ...]:
        """sha256 hex of each image's shape and canonical pixels."""
        return tuple(picture.digest for picture in self.pictures)

    @property
    def names(self) -> tuple[str, ...]:
        """Each image's name in its source."""
        return tuple(picture.name for picture in self.pictures)

    @property
    def channels(self) -> int:
        """1 if all images are grey, else 3."""
        return max(picture.channels for picture in self.pictures)

    def where(self, split: str | None) -> NDArray[np.bool_]:
        """bool [N]: the images of a split; of all for None."""
        if split is None:
            return np.ones(len(self), dtype=np.bool_)
        if split not in SPLITS:
            raise DataError(f"there is no split {split!r}: use {', '.join(SPLITS)}.", code="data.unknown-split")
        return np.equal(self.split, SPLITS.index(split))

    def counts(self, split: str | None = None) -> dict[str, int]:
        """Images per class, in the order of `class_names`; classes without any count 0."""
        found = np.bincount(self.labels[self.where(split)], minlength=len(self.class_names))
        return dict(zip(self.class_names, found.tolist(), strict=True))

    def sizes(self) -> Counter[tuple[int, int, str]]:
        """(height, width, the file's mode) → images."""
        return Counter((picture.height, picture.width, picture.mode) for picture in self.pictures)

    def require_images(self, split: str = "train") -> None:
        """Raises DataError naming the classes that have no image in a split."""
        empty = [name for name, count in self.counts(split).items() if not count]
        if empty:
            more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
            raise DataError(
                f"{self.name} has no {split} images of {', '.join(map(repr, empty[:5]))}{more}: add some or remove "
                "the class.",
                code="data.empty-class",
            )

    def native_shape(self, resolution: int | tuple[int, int] | None = None) -> tuple[int, int, int]:
        """(height, width, channels) to train at.

        Args:
            resolution: a side for squares, or (height, width): both taken as they are. None: the median height and
                width, made smaller in proportion if the longer one is above 64, each rounded to a multiple of 4
                (28 stays 28), at least 8.
        """
        if resolution is not None:
            height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
            if not (1 <= height <= 4096 and 1 <= width <= 4096):
                raise DataError(f"the resolution {height}×{width} is out of range: choose 8 … 256.")
            return height, width, self.channels
        height_ = float(np.median([picture.height for picture in self.pictures]))
        width_ = float(np.median([picture.width for picture in self.pictures]))
        scale = min(1.0, _DEFAULT_LONGEST / max(height_, width_))
        height, width = (max(8, 4 * math.floor(side * scale / 4 + 0.5)) for side in (height_, width_))
        return height, width, self.channels

    def images(
        self, split: str | None, *, shape: tuple[int, int, int], resize: Resize = "fit"
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Pixels and labels of a split (None: of all), in the set's order.

        Args:
            split: "train", "validation", "test" or None.
            shape: (height, width, channels), channels 1 or 3.
            resize: "fit", "crop" or "stretch", see `augmint.images.resize_image`.

        Returns:
            images uint8 [N, H, W, C] and labels int64 [N], both the caller's own copies.

        Raises:
            DataError: a file that did not fit in memory has changed or gone since the set was loaded.
        """
        if resize not in RESIZE_POLICIES:
            raise DataError(f"there is no resize policy {resize!r}: use {', '.join(RESIZE_POLICIES)}.")
        if shape[2] not in (1, 3):
            raise DataError(f"images have 1 or 3 channels, not {shape[2]}.")
        chosen = self.where(split)
        key = (shape, resize)
        if key not in self._shaped:
            made = np.empty((len(self), *shape), dtype=np.uint8)

            def place(i: int) -> None:
                made[i] = resize_image(pixels_of(self.pictures[i]), shape, resize)

            with quiet_pillow():
                for _ in _threaded(place, range(len(self))):
                    pass
            while len(self._shaped) >= _SHAPED_KEPT:
                self._shaped.pop(next(iter(self._shaped)))
            self._shaped[key] = made
        return self._shaped[key][chosen], self.labels[chosen]

    def cut(self, counts: Mapping[str, int], *, seed: int = 0) -> DataSet:
        """Make classes rarer: keep so many train images of each class named, and validation images in proportion.

        Test images and other classes are untouched. Which images stay is decided by sha256(seed, digest), so that a
        cut to 10 is part of the cut to 20.

        Raises:
            DataError: a class that is not there, or more images than it has, or fewer than 1.

        >>> load_data("digits").cut({"3": 20}).counts("train")["3"]
        20
        """
        keep = np.ones(len(self), dtype=np.bool_)
        have = self.counts("train")
        for name, wanted in counts.items():
            if name not in have:
                raise DataError(
                    f"{self.name} has no class {name!r} to cut: it has {', '.join(self.class_names[:20])}.",
                    code="data.unknown-class",
                )
            if not 1 <= wanted <= have[name]:
                raise DataError(
                    f"class {name!r} of {self.name} has {have[name]} train images: cut it to 1 … {have[name]}, "
                    f"not {wanted}.",
                    code="data.cut",
                )
            own = self.labels == self.class_names.index(name)
            for side in (TRAIN, VALIDATION):
                members = np.flatnonzero(own & (self.split == side)).tolist()
                many = wanted if side == TRAIN else math.ceil(len(members) * wanted / have[name])

                def rank(i: int) -> tuple[bytes, str]:
                    return hashlib.sha256(f"{seed}:{self.pictures[i].digest}".encode()).digest(), self.pictures[i].name

                keep[sorted(members, key=rank)[many:]] = False
        return self.select(keep)

    def select(self, keep: NDArray[np.bool_]) -> DataSet:
        """The images for which `keep`, bool [N], is true; classes and splits stay as they are."""
        pictures = tuple(picture for picture, kept in zip(self.pictures, keep, strict=True) if kept)
        return replace(
            self,
            labels=self.labels[keep],
            split=self.split[keep],
            groups=self.groups[keep],
            pictures=pictures,
            fingerprint="",
            _shaped={},
        )

    def write(self, out: str | Path) -> Path:
        """Write the set as PNGs in train/ validation/ test/ folders of class folders, so that the split is kept.

        Loading `out` gives the same pixels, labels and split; also the same fingerprint, if the classes stand in
        natural order. See `augmint.data.writing` for what is refused.
        """
        from augmint.data.writing import write_split_folders

        return write_split_folders(self, Path(out))


def load_data(
    spec: str | Path | DataSet,
    *,
    skip_bad: bool = False,
    split_seed: int = 0,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    store_split: bool = True,
) -> DataSet:
    """Load labelled images.

    Args:
        spec: a folder (of class folders; of train/ validation/ test/ folders with class folders in them; with a
            metadata.csv; of IDX files as MNIST's; or of images of one class), a .csv, a .npz, or the built-in "digits"
            or "mnist5k" (a folder of that name is ./digits). A DataSet is returned as it is.
        skip_bad: leave out what cannot be read (listed in `bad`) instead of raising.
        split_seed, fractions: how to split images where neither the source nor a stored split says. See
            `augmint.data.split`.
        store_split: keep a split that was made beside the images; False for a set whose split nobody needs.

    Raises:
        DataError: nothing to load, or something cannot be read; the sentence names it and the mend.
    """
    if isinstance(spec, DataSet):
        return spec
    fractions = check_fractions(fractions)
    reading, resolved = _read(spec)
    if not store_split:
        reading = replace(reading, sidecar=None)
    with quiet_pillow():
        entries, pictures = _decode_all(reading)
    _refuse_bad(reading, skip_bad=skip_bad)
    if not entries:
        raise DataError(f"{shown(str(spec))} has no image that can be read: {reading.bad[0]}.", code="data.no-images")

    names = reading.class_names
    _check_names({entry.label for entry in entries} if names is None else names, reading.name)
    if names is None:
        names = tuple(sorted({entry.label for entry in entries}, key=natural_key))
    number = {name: i for i, name in enumerate(names)}
    labels = np.array([number[entry.label] for entry in entries], dtype=np.int64)
    digests = [picture.digest for picture in pictures]

    with quiet_pillow():
        groups, given_up = duplicates.group(
            digests,
            np.array([picture.hash for picture in pictures], dtype=np.uint64),
            labels,
            np.array([picture.width / picture.height for picture in pictures]),
            lambda i: pixels_of(pictures[i]),
        )
    notes = list(reading.notes)
    notes += [
        f"class {names[label]!r}: {count} images look nearly alike, too many to keep on one side of the split."
        for label, count in sorted(given_up.items())
    ]

    given = [entry.split for entry in entries]
    if all(side is not None for side in given):
        split = np.array(given, dtype=np.uint8)
        split_given = True
    else:
        split = _split(reading, digests, labels, groups, fractions, split_seed, notes)
        split_given = False
    return DataSet(
        name=reading.name,
        spec=resolved,
        class_names=names,
        labels=labels,
        split=split,
        groups=groups,
        pictures=tuple(pictures),
        split_given=split_given,
        bad=tuple(reading.bad),
        notes=tuple(notes),
    )


def _read(spec: str | Path) -> tuple[Reading, str]:
    """Choose the reader. Returns what it found, and the spec made absolute."""
    if isinstance(spec, str) and spec in BUILTIN:
        return read_builtin(spec), spec
    if not str(spec).strip() or "\0" in str(spec):
        raise DataError(f"name a folder, a .csv, a .npz, or a built-in set: {', '.join(BUILTIN)}.")
    path = Path(spec)
    where = shown(str(path))
    try:
        there, folder = path.exists(), path.is_dir()
    except OSError as error:
        raise DataError(f"{where} cannot be opened ({error.strerror}): check the path.") from None
    if not there:
        close = difflib.get_close_matches(str(spec), BUILTIN, n=1)
        mend = (
            f"did you mean the built-in set {close[0]}?"
            if close
            else f"check the path (built-in: {', '.join(BUILTIN)})."
        )
        raise DataError(f"there is no file or folder {where}: {mend}", code="data.not-found")
    absolute = path.absolute()
    if folder:
        table = path / "metadata.csv"
        if has_labels(table):
            return read_table(table, sidecar=path / SIDECAR, name=shown(absolute.resolve().name) or "data"), str(
                absolute
            )
        if has_idx(path):
            return read_idx(path, sidecar=path / SIDECAR), str(absolute)
        return read_folder(path), str(absolute)
    sidecar = path.with_name(f"{path.name}.{SIDECAR}")
    suffix = path.suffix.lower()
    if path.is_file() and suffix in (".csv", ".tsv"):
        return read_table(path, sidecar=sidecar, name=shown(path.stem)), str(absolute)
    if path.is_file() and suffix == ".npz":
        return read_npz(path, sidecar=sidecar), str(absolute)
    if idx_name(path.name):
        raise DataError(f"{where} is one of a set's IDX files: name the folder it lies in.", code="data.unknown-kind")
    kind = f"a {suffix} file" if suffix else "a file of unknown kind"
    raise DataError(f"{where} is {kind}: augmint reads a folder, a .csv or a .npz.", code="data.unknown-kind")


def _decode_all(reading: Reading) -> tuple[list[Entry], list[Picture]]:
    """Decode every entry; those that fail are added to `reading.bad`."""
    kept = _Budget(_KEEP_BYTES)

    def decode(entry: Entry) -> Picture | str:
        try:
            if isinstance(entry.source, Path):
                decoded = decode_image(entry.source)
                pixels, mode = decoded.pixels, decoded.mode
            else:
                pixels = canonical(entry.source)
                channels = 1 if entry.source.ndim == 2 else entry.source.shape[2]
                mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        except DataError as error:
            return str(error)
        height, width, channels = pixels.shape
        return Picture(
            name=entry.name,
            digest=digest_of(pixels),
            height=height,
            width=width,
            mode=mode,
            channels=channels,
            peak=int(pixels.max()),
            hash=duplicates.difference_hash(pixels),
            source=entry.source,
            pixels=pixels if kept.take(pixels.nbytes) else None,
        )

    entries: list[Entry] = []
    pictures: list[Picture] = []
    for entry, result in zip(reading.entries, _threaded(decode, reading.entries), strict=True):
        if isinstance(result, str):
            reading.bad.append(BadFile(entry.name, result))
        else:
            entries.append(entry)
            pictures.append(result)
    # A class whose images are all unreadable is gone; where the source states the classes, it stays with none.
    return entries, pictures


def _check_names(names: Collection[str], where: str) -> None:
    """Refuse what no bundle could hold, before anybody trains on it."""
    if len(names) > _MOST_CLASSES:
        raise DataError(
            f"{where} has {len(names):,} classes, more than {_MOST_CLASSES:,}: is the label really a class?",
            code="data.classes",
        )
    if long := next((name for name in names if len(name) > _LONGEST_NAME), None):
        raise DataError(
            f"{where} has a class name of {len(long):,} characters ({long[:40]!r}…): use {_LONGEST_NAME} at most.",
            code="data.class-name",
        )


class _Budget:
    """Bytes that may still be kept. Threads may overdraw it by one picture each, which is harmless."""

    def __init__(self, size: int) -> None:
        self.left = size

    def take(self, size: int) -> bool:
        if size > self.left:
            return False
        self.left -= size
        return True


def _refuse_bad(reading: Reading, *, skip_bad: bool) -> None:
    bad = reading.bad
    if not bad or skip_bad:
        return
    listed = "; ".join(str(item) for item in bad[:3])
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    count = "1 file" if len(bad) == 1 else f"{len(bad)} files"
    them = "it" if len(bad) == 1 else "them"
    raise DataError(
        f"{reading.name} has {count} that cannot be used ({listed}{more}): mend or remove {them}, or pass --skip-bad "
        f"(skip_bad=True) to leave {them} out.",
        code="data.bad-files",
    )


def _split(
    reading: Reading,
    digests: Sequence[str],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    fractions: tuple[float, float, float],
    seed: int,
    notes: list[str],
) -> NDArray[np.uint8]:
    stored = read_split(reading.sidecar) if reading.sidecar is not None else None
    if stored is None:
        stored = Stored(seed, fractions, {})
    elif (stored.seed, stored.fractions) != (seed, fractions):
        notes.append(
            f"the stored split holds (made with seed {stored.seed} and fractions "
            f"{'/'.join(f'{share:g}' for share in stored.fractions)}); delete {SIDECAR} to make another."
        )
    split = assign(digests, labels, groups, assigned=stored.assigned, fractions=stored.fractions, seed=stored.seed)
    assigned = {**stored.assigned, **dict(zip(digests, split.tolist(), strict=True))}
    if reading.sidecar is not None and assigned != stored.assigned:
        place = write_split(reading.sidecar, Stored(stored.seed, stored.fractions, assigned))
        if place is None:
            notes.append("the split could not be stored (read-only): it is made again each time, from the images.")
        elif place != reading.sidecar:
            notes.append(f"the data's place is read-only: the split is kept in {shown(str(place))}.")
    return split


def pixels_of(picture: Picture) -> NDArray[np.uint8]:
    """Canonical pixels of a picture, decoded again if they are not in memory. Raises DataError if they have changed."""
    if picture.pixels is not None:
        return picture.pixels
    if isinstance(picture.source, Path):
        try:
            pixels = decode_image(picture.source).pixels
        except DataError as error:
            raise DataError(f"{shown(str(picture.source))} {error}: it was readable when the set was loaded.") from None
    else:
        pixels = canonical(picture.source)
    if digest_of(pixels) != picture.digest:
        raise DataError(f"{picture.name} has changed since the set was loaded: load it again.", code="data.changed")
    return pixels


def digest_of(pixels: NDArray[np.uint8]) -> str:
    """sha256 hex of "HxWxC:" and the pixels in row-major order, of a canonical picture."""
    height, width, channels = pixels.shape
    found = hashlib.sha256(f"{height}x{width}x{channels}:".encode())
    found.update(np.ascontiguousarray(pixels).data)
    return found.hexdigest()


def _fingerprint(
    class_names: Iterable[str], digests: Iterable[str], labels: NDArray[np.int64], split: NDArray[np.uint8]
) -> str:
    rows = sorted(
        f"{digest} {label} {SPLITS[side]}"
        for digest, label, side in zip(digests, labels.tolist(), split.tolist(), strict=True)
    )
    content: Any = {"class_names": list(class_names), "images": rows}
    return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode("ascii")).hexdigest()


def _threaded(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterator[_Result]:
    """`map` in order, on as many threads as there are cores: Pillow decodes and resizes without Python's lock."""
    threads = min(8, os.cpu_count() or 1)
    if threads == 1 or len(items) < 64:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        # In portions, because submitting a future per small image costs more than decoding it.
        size = 32
        portions = [items[i : i + size] for i in range(0, len(items), size)]
        for portion in pool.map(lambda some: [function(item) for item in some], portions):
            yield from portion
