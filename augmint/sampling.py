"""Samples to disk: a folder of marked PNGs with a table, an npz, or a sheet to look at.

A folder is written as the images arrive, so memory stays flat; what was delivered before a source gave up is kept, and
said. This module does not know near sources from far ones.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from augmint.archive import pack
from augmint.data.writing import folder_names, new_folder
from augmint.errors import DataError, ServiceError, ShortfallError
from augmint.files import replacing
from augmint.images import synthetic_pngs, synthetic_sheet_png, synthetic_webp
from augmint.latent_space import check_edit, edit_text
from augmint.quality import Quality, add_rejected, check_offered
from augmint.samples import BundleInfo, Counts, Reproducibility, Samples, Source, pick_seed
from augmint.sheets import contact_sheet

__all__ = [
    "COLUMNS",
    "METADATA",
    "Form",
    "Written",
    "check_out",
    "columns",
    "form_of",
    "labelled_pngs",
    "marked_pngs",
    "marked_webp",
    "new_file",
    "write_samples",
]

Form = Literal["folder", "npz", "png", "stdout"]
Progress = Callable[[int, int], None]

_CHUNK: Final = 256
_UNCONDITIONAL: Final = "images"  # the folder of images that have no label
_SHEET_ROWS: Final = 64  # of 16 images, for each class
METADATA: Final = "metadata.csv"
COLUMNS: Final = ("file_name", "label", "synthetic", "seed", "index", "truncation", "bundle")


@dataclass(frozen=True)
class Written:
    """What was written.

    `requested` and `delivered` are images by label ("" for an unconditional bundle), and under a `quality` `rejected`
    says how many were made besides, by label and reason; `seed`, `bundle` (its digest), `reproducibility`, `offset`,
    `truncation` and `edit` are the rest of the images' addresses.
    """

    out: str
    form: Form
    requested: dict[str, int]
    delivered: dict[str, int]
    seed: int
    offset: int
    truncation: float
    bundle: str
    bundle_name: str
    reproducibility: Reproducibility
    quality: str = "none"
    rejected: dict[str, dict[str, int]] = field(default_factory=dict)
    edit: dict[str, float] = field(default_factory=dict)
    problem: str = ""

    @property
    def generated(self) -> dict[str, int]:
        """label → images that were made, those rejected included."""
        return {label: n + sum(self.rejected.get(label, {}).values()) for label, n in self.delivered.items()}

    def raise_for_shortfall(self) -> None:
        """Raises ShortfallError if fewer images were delivered than requested."""
        wanted, got = sum(self.requested.values()), sum(self.delivered.values())
        if got < wanted:
            because = f" ({self.problem.rstrip('.')})" if self.problem else ""
            if self.rejected and not because:
                because = f" (of {sum(self.generated.values()):,} made, the others were not {self.quality})"
            raise ShortfallError(
                f"{got:,} of {wanted:,} images were delivered{because}: they are in {self.out}; ask for the rest with "
                f"seed {self.seed} and a higher offset.",
                requested=wanted,
                delivered=got,
            )


def form_of(out: str) -> Form:
    """What `out` asks for, by its ending: "-" is an npz on stdout, other names without .npz or .png are a folder."""
    if out == "-":
        return "stdout"
    suffix = Path(out).suffix.lower()
    return "npz" if suffix == ".npz" else "png" if suffix == ".png" else "folder"


def check_out(out: str, form: Form) -> None:
    """Refuse a place that is taken, before any work is done.

    Raises:
        DataError: there is something.
    """
    path = Path(out)
    if form == "stdout":
        return
    taken = path.exists() or path.is_symlink()
    if form == "folder" and path.is_dir() and not path.is_symlink():
        taken = any(path.iterdir())
    if taken:
        what = "is not empty" if path.is_dir() else "is there already"
        raise DataError(f"{out} {what}: choose another --out, or remove it.", code="data.exists")


def write_samples(
    source: Source,
    counts: Counts,
    out: str,
    *,
    seed: int | None = None,
    offset: int = 0,
    truncation: float = 1.0,
    quality: str | Quality = "none",
    edit: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> Written:
    """Generate and write, whole or not at all; fewer images than asked for are written all the same.

    Args:
        source: a Generator or a Client.
        counts: {"label": n}, or n for an unconditional bundle.
        out: a new or empty folder: a folder per class of PNGs with their addresses and the IPTC mark, and metadata.csv;
            a new .npz (see `augmint.archive`); a new .png: a sheet of the images, or the image itself if it is one;
            "-": the npz on stdout.
        seed, offset, truncation, quality, edit: see `Source.generate`.
        progress: called with (images so far, images asked for).

    Raises:
        DataError: `out` is in use, or cannot be written.
        ServiceError: the service could not answer before a single image had arrived.
        Whatever `source.stream` refuses.
    """
    form = form_of(out)
    check_out(out, form)
    delivery = _Delivery(
        source,
        counts,
        seed=seed,
        offset=offset,
        truncation=truncation,
        quality=quality,
        edit=edit,
        progress=progress,
    )
    if form == "folder":
        _write_folder(delivery, Path(out))
    else:
        samples = Samples.concatenate(list(delivery))
        if form == "stdout":
            sys.stdout.buffer.write(_npz(samples))
            sys.stdout.buffer.flush()
        else:
            data = _npz(samples) if form == "npz" else _png(samples)
            with new_file(Path(out)) as file:
                file.write(data)
    return delivery.written(out, form)


class _Delivery:
    """The chunks of a request, and in the end the account of it. A source that gives up midway just ends it."""

    def __init__(
        self,
        source: Source,
        counts: Counts,
        *,
        seed: int | None,
        offset: int,
        truncation: float,
        quality: str | Quality,
        edit: Mapping[str, float] | None,
        progress: Progress | None,
    ) -> None:
        self.info: BundleInfo = source.info()
        self.requested = {"": counts} if isinstance(counts, int) else dict(counts)
        self.delivered = dict.fromkeys(self.requested, 0)
        self.rejected: dict[str, dict[str, int]] = {}
        self.offset, self.truncation, self.problem = offset, truncation, ""
        # Here, because an answer without any images would not say which seed was picked.
        self.seed = pick_seed() if seed is None else seed
        self.quality = check_offered(quality, self.info.quality)
        self.edit = dict(check_edit(edit, self.info.edits))
        self.first: Samples | None = None
        self._progress = progress
        # Now, so that a wrong request is refused before anything is made.
        self._stream = source.stream(
            counts,
            seed=self.seed,
            offset=offset,
            truncation=truncation,
            quality=self.quality,
            edit=self.edit,
            chunk=_CHUNK,
        )

    def __iter__(self) -> Iterator[Samples]:
        total = sum(self.requested.values())
        try:
            for part in self._stream:
                self.first = self.first or part
                for label, n in part.delivered.items():
                    self.delivered[label] += n
                add_rejected(self.rejected, part.rejected)
                yield part
                if self._progress is not None:
                    self._progress(sum(self.delivered.values()), total)
        except (ServiceError, ShortfallError) as error:
            if self.first is None:
                raise
            self.problem = str(error)

    def written(self, out: str, form: Form) -> Written:
        assert self.first is not None, "a stream that ends without an error has images"
        return Written(
            out=out,
            form=form,
            requested=self.requested,
            delivered=self.delivered,
            seed=self.seed,
            offset=self.offset,
            truncation=self.truncation,
            bundle=self.first.bundle,
            bundle_name=self.info.name,
            reproducibility=self.first.reproducibility,
            quality=str(self.quality),
            rejected=self.rejected,
            edit=self.edit,
            problem=self.problem,
        )


def _write_folder(delivery: _Delivery, out: Path) -> None:
    with new_folder(out) as folder:
        table = io.StringIO(newline="")
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(columns(delivery.edit))
        for part in delivery:
            for name, image, row in labelled_pngs(part):
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(image)
                rows.writerow(row)
        (folder / METADATA).write_text(table.getvalue(), encoding="utf-8", newline="")


def columns(edit: Mapping[str, float]) -> tuple[str, ...]:
    """The table's columns: edited images have one that says so."""
    return (*COLUMNS, "edit") if edit else COLUMNS


def labelled_pngs(samples: Samples) -> Iterator[tuple[str, bytes, tuple[object, ...]]]:
    """For each image its file's name, in a folder per class; the marked PNG; and its row of the table, as `columns`."""
    more = (edit_text(samples.edit.items()),) if samples.edit else ()
    folders, labels = _folders(samples.class_names), samples.labels.tolist()
    addresses = zip(labels, samples.label_names, samples.seeds.tolist(), samples.indices.tolist(), strict=True)
    pngs = marked_pngs(samples)
    for image, (number, label, seed, index) in zip(pngs, addresses, strict=True):
        name = f"{folders[number]}/{seed}-{index}.png"
        yield name, image, (name, label, "true", seed, index, samples.truncation, samples.bundle, *more)


@lru_cache(maxsize=8)
def _folders(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """The folder of each class; images without labels have one, and an empty label in the table."""
    return tuple(folder_names(class_names or (_UNCONDITIONAL,)))


def marked_webp(samples: Samples, i: int) -> bytes:
    """One of the images as a lossless WebP, with its address and the mark of synthetic origin."""
    return synthetic_webp(
        samples.images[i],
        bundle=samples.bundle,
        label=samples.label_names[i],
        seed=int(samples.seeds[i]),
        index=int(samples.indices[i]),
        truncation=samples.truncation,
        edit=edit_text(samples.edit.items()),
    )


def marked_pngs(samples: Samples) -> Iterator[bytes]:
    """The images as PNGs, with their addresses and the mark of synthetic origin."""
    return synthetic_pngs(
        samples.images,
        bundle=samples.bundle,
        labels=samples.label_names,
        seeds=samples.seeds.tolist(),
        indices=samples.indices.tolist(),
        truncation=samples.truncation,
        edit=edit_text(samples.edit.items()),
    )


def _npz(samples: Samples) -> bytes:
    return pack(samples, compress=True)


def _png(samples: Samples) -> bytes:
    if not len(samples):
        raise ShortfallError("No image was good enough, so there is nothing to draw: ask for a lower quality.")
    if len(samples) == 1:
        return next(marked_pngs(samples))
    # Only the classes that are in it; `contact_sheet` would keep a row for each.
    shown = sorted(set(samples.labels.tolist()))
    names = [samples.class_names[label] for label in shown] if samples.class_names else []
    labels = np.searchsorted(shown, samples.labels)
    sheet = contact_sheet(samples.images, labels, names, per_class=16 * _SHEET_ROWS, columns=16)
    return synthetic_sheet_png(sheet)


@contextmanager
def new_file(out: Path) -> Iterator[Any]:
    """A temporary file beside `out` that becomes `out` if the block ends well, and vanishes otherwise."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as file:
            yield file
    except OSError as error:
        raise DataError(
            f"{out} cannot be written ({error.strerror or error}): choose another place.", code="data.unwritable"
        ) from None
