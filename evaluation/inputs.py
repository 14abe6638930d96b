"""What an evaluation works on: a data set's splits and generated images beside them, as arrays of one shape.

A source is a bundle, a service, or images that somebody has already generated (a folder, CSV or npz). This module reads
them and matches their labels by name with the data set's; it measures nothing.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from augmint.bundle import MANIFEST
from augmint.data import DataSet, load_data
from augmint.errors import DataError, ShortfallError, UsageError
from augmint.generator import Generator
from augmint.images import Resize
from augmint.samples import Source
from augmint.sources import is_url, open_source
from evaluation.arrays import Labelled
from evaluation.classifier import SMALLEST

__all__ = ["Fakes", "Inputs", "SourceFacts", "open_inputs"]

Kind = Literal["bundle", "service", "run", "images"]

_CHUNK: Final = 256


@dataclass(frozen=True)
class SourceFacts:
    """Where the generated images come from.

    Attributes:
        kind: "bundle", "service", "run" or "images".
        words: what people call it: a path, a URL, a name.
        name: of the bundle or the set of images.
        digest: of the bundle; "" for images and for a bundle that is just being made.
        family: of the generator, or "".
        labelled: whether the images have classes.
        classes: those that it can make, in the data set's order.
        trained_on: "this" data set, "another" one, or "unknown".
    """

    kind: Kind
    words: str
    name: str
    digest: str
    family: str
    labelled: bool
    classes: tuple[str, ...]
    trained_on: Literal["this", "another", "unknown"]


@dataclass(frozen=True, eq=False)
class Fakes:
    """Generated images uint8 [M, H, W, C] and their labels int64 [M], indices of the data set's class names.

    `labels` are None for images without classes. `seed` is that of the request, None for images that were there.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    seed: int | None

    @property
    def labelled(self) -> Labelled:
        """Only where there are labels; `Inputs.no_verdict` says where not."""
        assert self.labels is not None
        return self.images, self.labels

    def first(self, per_class: int) -> Fakes:
        """At most so many of each class (in all, without classes), in order."""
        if self.labels is None:
            return Fakes(self.images[:per_class], None, self.seed)
        rows = [np.flatnonzero(self.labels == c)[:per_class] for c in np.unique(self.labels)]
        chosen = np.sort(np.concatenate(rows)) if rows else np.zeros(0, np.int64)
        return Fakes(self.images[chosen], self.labels[chosen], self.seed)


@dataclass(frozen=True, eq=False)
class Inputs:
    """A data set's splits at the source's size, and the source. All labels index `class_names`, the data set's."""

    data: DataSet
    source: SourceFacts
    shape: tuple[int, int, int]
    resize: Resize
    train: Labelled
    validation: Labelled
    test: Labelled
    notes: tuple[str, ...]
    _make: Callable[[Mapping[str, int] | int, Callable[[int, int], None]], Fakes] = field(repr=False)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.data.class_names

    def fakes(self, wanted: Mapping[str, int] | int, progress: Callable[[int, int], None] | None = None) -> Fakes:
        """Generated images: so many of each class where the source has classes, else a number in all.

        Images that were there already are as many as there are. `progress(done, total)` counts images.
        """
        return self._make(wanted, progress or (lambda done, total: None))

    @property
    def no_verdict(self) -> str:
        """Why classifiers cannot judge; "" where they can."""
        if len(self.class_names) < 2:
            return "the data have one class only, and it takes two to compare classifiers"
        if not self.source.labelled:
            return "the generated images have no classes, so no classifier can be trained on them"
        if min(self.shape[:2]) < SMALLEST:
            return f"the images are smaller than the {SMALLEST} pixels a side that the classifiers need"
        return "" if len(self.test[0]) else "the data have no test images"


def open_inputs(
    source: str | Path | Source,
    data: str | Path | DataSet,
    *,
    bundle: str | None = None,
    device: str = "auto",
    token: str | None = None,
    seed: int = 0,
    resize: Resize | None = None,
    skip_bad: bool = False,
    words: str | None = None,
    quality: str = "none",
) -> Inputs:
    """Open both sides.

    Args:
        source: a bundle's directory, a service's http(s) URL, a folder, CSV or npz of generated images, or a `Source`.
        data: as `load_data` takes it.
        bundle, device, token: see `augmint.sources.open_source`.
        seed: of the images that are generated.
        resize: how real images of another shape are brought to the source's; None does as the bundle's training did.
        skip_bad: leave out images that cannot be read.
        words: what people call the source, where that is not `source` itself, such as the run that a bundle is of.
        quality: which generated images to keep, see `augmint.quality`; for generators.

    Raises:
        AugmintError: one of them cannot be used; the sentence says which.
    """
    real = load_data(data, skip_bad=skip_bad)
    real.require_images("train")
    notes = [*real.notes, *(f"left out: {bad}" for bad in real.bad)]
    if not isinstance(source, str | Path) or is_url(source) or (Path(source) / MANIFEST).exists():
        opened = open_source(source, bundle=bundle, device=device, token=token)
        place = str(source) if isinstance(source, str | Path) else ""
        facts, shape, own = _generator_facts(opened, place, words, real)
        make = _from_source(opened, real, seed, quality)
        resize = resize or own
    else:
        if bundle is not None:
            raise UsageError(
                f"{source} is no service, so there is no bundle to choose: leave {bundle!r} away.", code="usage.bundle"
            )
        if quality != "none":
            raise UsageError(
                f"{source} is no generator, so none of its images can be rejected: leave --quality away.",
                code="usage.quality",
            )
        shape = real.native_shape()
        resize = resize or "fit"
        facts, make, said = _ready_made(str(source), words, real, shape, resize, seed, skip_bad)
        notes += said
    parts = [real.images(split, shape=shape, resize=resize) for split in ("train", "validation", "test")]
    return Inputs(real, facts, shape, resize, parts[0], parts[1], parts[2], tuple(notes), make)


# ------------------------------------------------------------------------------------------------- generators


def _generator_facts(
    source: Source, place: str, words: str | None, data: DataSet
) -> tuple[SourceFacts, tuple[int, int, int], Resize]:
    info = source.info()
    classes = tuple(name for name in data.class_names if name in info.class_names)
    if info.conditional and not classes:
        raise DataError(
            f"{info.name} makes none of the data's classes ({_some(data.class_names)}), but {_some(info.class_names)}: "
            "evaluate it with data of its own classes.",
            code="data.other-classes",
        )
    trained_on: Literal["this", "another", "unknown"] = "unknown"
    resize: Resize = "fit"
    if isinstance(source, Generator):
        manifest = source.manifest
        trained_on = "this" if manifest.data.fingerprint == data.fingerprint else "another"
        if manifest.data.resize in ("fit", "crop", "stretch"):
            resize = manifest.data.resize  # type: ignore[assignment]  # just checked
    kind: Kind = "service" if is_url(place) else "bundle"
    if words is not None and (Path(words) / "checkpoints").is_dir():
        kind = "run"
    facts = SourceFacts(
        kind=kind,
        words=words or place or info.name,
        name=info.name,
        digest=info.digest,
        family=info.family,
        labelled=info.conditional,
        classes=classes,
        trained_on=trained_on,
    )
    return facts, info.image_shape, resize


def _from_source(
    source: Source, data: DataSet, seed: int, quality: str
) -> Callable[[Mapping[str, int] | int, Callable[[int, int], None]], Fakes]:
    info = source.info()

    def make(wanted: Mapping[str, int] | int, progress: Callable[[int, int], None]) -> Fakes:
        if info.conditional:
            assert not isinstance(wanted, int), "a conditional source is asked by class"
            counts: Mapping[str, int] | int = {n: c for n, c in wanted.items() if c and n in info.class_names}
            total = sum(counts.values())  # type: ignore[union-attr]
        else:
            counts = total = wanted if isinstance(wanted, int) else sum(wanted.values())
        images, labels, done = [], [], 0
        for part in source.stream(counts, seed=seed, chunk=_CHUNK, quality=quality):
            images.append(part.images)
            if info.conditional:
                number = np.array([_index(data.class_names, name) for name in part.class_names], dtype=np.int64)
                labels.append(number[part.labels])
            done += len(part)
            progress(done, total)
        if not done:
            raise ShortfallError(
                f"No image of {info.name} was good enough: ask for a lower --quality.", requested=total, delivered=0
            )
        return Fakes(np.concatenate(images), np.concatenate(labels) if info.conditional else None, seed)

    return make


def _index(names: tuple[str, ...], name: str) -> int:
    return names.index(name) if name in names else -1


# ------------------------------------------------------------------------------------------------- images


def _ready_made(
    place: str, words: str | None, data: DataSet, shape: tuple[int, int, int], resize: Resize, seed: int, skip_bad: bool
) -> tuple[SourceFacts, Callable[[Mapping[str, int] | int, Callable[[int, int], None]], Fakes], list[str]]:
    found = load_data(place, skip_bad=skip_bad, store_split=False)
    said = [f"left out: {bad}" for bad in found.bad]
    keep = _synthetic_rows(Path(place), found)
    if keep is not None:
        if not keep.any():
            raise DataError(
                f"{place} has no generated images: its metadata.csv calls none of them synthetic.", code="data.no-fakes"
            )
        said.append(f"{int((~keep).sum()):,} real images of {place} were left out: its metadata.csv tells them apart.")
        found = found.select(keep)
    unknown = [name for name in found.class_names if name not in data.class_names]
    nameless = (len(found.class_names) == 1 and bool(unknown)) or _has_no_names(Path(place))
    if unknown and not nameless:
        raise DataError(
            f"{place} has images of {_some(tuple(unknown))}, which the data do not have: there is "
            f"{_some(data.class_names)}.",
            code="data.other-classes",
        )
    images, own = found.images(None, shape=shape, resize=resize)
    # In an order that no name decides, so that the first of them are a fair draw.
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(images))
    images = images[order]
    labels = None
    if not nameless:
        number = np.array([data.class_names.index(name) for name in found.class_names], dtype=np.int64)
        labels = number[own[order]]
    facts = SourceFacts(
        kind="images",
        words=words or place,
        name=found.name,
        digest="",
        family="",
        labelled=labels is not None,
        classes=() if labels is None else tuple(data.class_names[c] for c in np.unique(labels)),
        trained_on="unknown",
    )

    def make(wanted: Mapping[str, int] | int, progress: Callable[[int, int], None]) -> Fakes:
        progress(len(images), len(images))
        return Fakes(images, labels, None)

    return facts, make, said


def _synthetic_rows(folder: Path, found: DataSet) -> NDArray[np.bool_] | None:
    """bool [N] where a metadata.csv, such as `augmint balance` writes, has a column "synthetic"; else None."""
    table = folder if folder.suffix.lower() == ".csv" else folder / "metadata.csv"
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    if not rows or "synthetic" not in rows[0] or "file_name" not in rows[0]:
        return None
    synthetic = {row["file_name"] for row in rows if (row["synthetic"] or "").strip().lower() in ("true", "1", "yes")}
    return np.array([name in synthetic for name in found.names], dtype=np.bool_)


def _has_no_names(path: Path) -> bool:
    """Whether an npz says of itself that its images have no classes, as the samples of unconditional bundles do."""
    if path.suffix.lower() != ".npz":
        return False
    with np.load(path, allow_pickle=False) as arrays:
        return "class_names" in arrays.files and arrays["class_names"].size == 0


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names[:10])) + (", …" if len(names) > 10 else "")
