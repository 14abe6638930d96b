"""What `augmint inspect DATA` says about a data set: classes, sizes, what cannot be read, and what to beware of.

Knows nothing of the command line: it returns a `DataReport`, as a dict for programs or as text for people.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from augmint.data.dataset import DataSet, load_data
from augmint.data.records import SPLITS, BadFile, leads_out, shown
from augmint.data.split import DEFAULT_FRACTIONS
from augmint.errors import DataError
from augmint.files import replacing
from augmint.sheets import contact_sheet

_FEW: Final = 50  # train images of a class, below which a generator is likely to copy
_FEW_TEST: Final = 10  # test images of a class, below which one image is worth more than ten points
_LISTED: Final = 10
_SHEET_CLASSES: Final = 100


@dataclass(frozen=True, slots=True)
class DataReport:
    """Facts about a data set.

    Attributes:
        name, spec, fingerprint: as in `DataSet`.
        images: how many could be read.
        classes: class → split → images, in class order.
        split_given: whether the source states the split itself.
        imbalance: the largest class's train images by the smallest's; None if one class has none.
        shape: (height, width, channels) that training takes by default.
        sizes: (height, width, mode, images), most frequent first.
        bad: what cannot be used.
        duplicates: groups of names with the same pixels.
        near_duplicates: groups of names that look the same, exact duplicates among them left out.
        conflicts: groups of names with the same pixels and different classes, as "class: name".
        straddling: groups of names that are (nearly) the same and in several splits, as "split: name".
        warnings: sentences.
        sheet: path of the contact sheet, or None.
    """

    name: str
    spec: str
    fingerprint: str
    images: int
    classes: dict[str, dict[str, int]]
    split_given: bool
    imbalance: float | None
    shape: tuple[int, int, int]
    sizes: tuple[tuple[int, int, str, int], ...]
    bad: tuple[BadFile, ...]
    duplicates: tuple[tuple[str, ...], ...]
    near_duplicates: tuple[tuple[str, ...], ...]
    conflicts: tuple[tuple[str, ...], ...]
    straddling: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...]
    sheet: str | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = asdict(self)
        plain["sizes"] = [
            {"height": height, "width": width, "mode": mode, "images": count}
            for height, width, mode, count in self.sizes
        ]
        return plain

    def text(self) -> str:
        """The report for people: plain text without markup, so print it with markup off."""
        totals = {split: sum(row[split] for row in self.classes.values()) for split in SPLITS}
        height, width, channels = self.shape
        lines = [
            f"{self.name}: {self.images:,} images, {len(self.classes)} class{'es' if len(self.classes) != 1 else ''}",
            "",
        ]
        rows: list[tuple[str, ...]] = [("class", *SPLITS, "all")]
        rows += [
            (name, *(f"{row[s]:,}" for s in SPLITS), f"{sum(row.values()):,}") for name, row in self.classes.items()
        ]
        rows.append(("all", *(f"{totals[s]:,}" for s in SPLITS), f"{self.images:,}"))
        lines += _table(rows)
        lines += [
            "",
            f"split        {'as given' if self.split_given else 'made by augmint and kept'}",
            f"imbalance    {'a class has no train images' if self.imbalance is None else f'{self.imbalance:.1f} : 1'}",
            f"training at  {height}×{width}, {'grey' if channels == 1 else 'colour'}",
            f"sizes        {_sizes(self.sizes)}",
            f"fingerprint  {self.fingerprint[:16]}",
        ]
        if self.sheet:
            lines.append(f"sheet        {self.sheet}")
        listings: tuple[tuple[str, list[str]], ...] = (
            ("cannot be used", [str(item) for item in self.bad]),
            ("same pixels", [" = ".join(names) for names in self.duplicates]),
            ("nearly the same", [" ~ ".join(names) for names in self.near_duplicates]),
            ("same pixels, different classes", [" = ".join(names) for names in self.conflicts]),
            ("(nearly) the same in several splits", [" = ".join(names) for names in self.straddling]),
        )
        for title, items in listings:
            if items:
                lines += ["", f"{title}: {len(items)}", *(f"  {item}" for item in items[:_LISTED])]
                if len(items) > _LISTED:
                    lines.append(f"  … and {len(items) - _LISTED} more")
        if self.warnings:
            lines += ["", "beware", *(f"  - {warning}" for warning in self.warnings)]
        return "\n".join(lines)


def inspect_data(
    spec: str | Path | DataSet,
    *,
    sheet: str | Path | None = None,
    split_seed: int = 0,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
) -> DataReport:
    """Look at a data set; like loading, this makes and stores the split if there is none.

    Args:
        spec: as for `load_data`. Unreadable files are reported, never an error here, unless nothing else is left.
        sheet: where to write a contact sheet (.png); None writes none.
        split_seed, fractions: as for `load_data`.

    Raises:
        DataError: there is nothing to load, or the sheet cannot be written.
    """
    data = load_data(spec, skip_bad=True, split_seed=split_seed, fractions=fractions)
    if sheet is not None and Path(data.spec).is_dir() and not leads_out(Path(sheet), os.path.realpath(data.spec)):
        raise DataError(
            f"{shown(str(sheet))} lies in the data set, whose images it would be counted among: write it elsewhere.",
            code="data.sheet",
        )
    per_split = {split: data.counts(split) for split in SPLITS}
    classes = {name: {split: per_split[split][name] for split in SPLITS} for name in data.class_names}
    train = list(per_split["train"].values())
    duplicates, near, conflicts, straddling = _repeats(data)
    return DataReport(
        name=data.name,
        spec=data.spec,
        fingerprint=data.fingerprint,
        images=len(data),
        classes=classes,
        split_given=data.split_given,
        imbalance=max(train) / min(train) if min(train) else None,
        shape=data.native_shape(),
        sizes=tuple((*size, count) for size, count in data.sizes().most_common()),
        bad=data.bad,
        duplicates=duplicates,
        near_duplicates=near,
        conflicts=conflicts,
        straddling=straddling,
        warnings=tuple(_warnings(data, classes, len(conflicts), len(straddling))),
        sheet=str(_write_sheet(data, Path(sheet))) if sheet is not None else None,
    )


_Groups = tuple[tuple[str, ...], ...]


def _repeats(data: DataSet) -> tuple[_Groups, _Groups, _Groups, _Groups]:
    same: dict[str, list[int]] = {}
    alike: dict[int, list[int]] = {}
    for i, digest in enumerate(data.digests):
        same.setdefault(digest, []).append(i)
    for members in same.values():
        alike.setdefault(int(data.groups[members[0]]), []).append(members[0])
    together: dict[int, list[int]] = {}
    for i, group in enumerate(data.groups.tolist()):
        together.setdefault(group, []).append(i)
    straddling = [members for members in together.values() if len(set(data.split[members].tolist())) > 1]
    names = data.names

    def named(groups: list[list[int]]) -> _Groups:
        return tuple(tuple(names[i] for i in members) for members in groups)

    repeated = [members for members in same.values() if len(members) > 1]
    conflicts = [members for members in repeated if len(set(data.labels[members].tolist())) > 1]
    return (
        named(repeated),
        named([members for members in alike.values() if len(members) > 1]),
        tuple(tuple(f"{data.class_names[data.labels[i]]}: {names[i]}" for i in members) for members in conflicts),
        tuple(tuple(f"{SPLITS[data.split[i]]}: {names[i]}" for i in members) for members in straddling),
    )


def _warnings(data: DataSet, classes: dict[str, dict[str, int]], conflicts: int, straddling: int) -> list[str]:
    said = list(data.notes)
    size = {name: sum(row.values()) for name, row in classes.items()}
    if data.bad:
        many = f"{len(data.bad)} files cannot" if len(data.bad) > 1 else "1 file cannot"
        said.append(f"{many} be used: training refuses the set until they are mended or removed, or takes --skip-bad.")
    if len(classes) == 1:
        said.append("there is one class only: a generator of it is unconditional, and there is nothing to balance.")

    none = [name for name in classes if not size[name]]
    if none:
        said.append(f"no images at all of {_listed(none)}.")
    few = [name for name, row in classes.items() if 0 < row["train"] < _FEW]
    if few:
        said.append(f"fewer than {_FEW} train images, so that a generator may copy rather than invent: {_listed(few)}.")
    if not any(row["validation"] for row in classes.values()):
        said.append("there are no validation images, by which the best checkpoint is chosen.")
    if not any(row["test"] for row in classes.values()):
        said.append("there are no test images, so that nothing can tell whether generated images help.")
    else:
        missing = [name for name, row in classes.items() if row["train"] and not row["test"]]
        if missing:
            why = "" if data.split_given else " (fewer than 3 different images: all go to train)"
            said.append(f"no test images of {_listed(missing)}{why}.")
        short = [name for name, row in classes.items() if 0 < row["test"] < _FEW_TEST]
        if short:
            said.append(f"fewer than {_FEW_TEST} test images, so that their scores are coarse: {_listed(short)}.")
    if conflicts:
        said.append(f"{conflicts} images occur in more than one class: decide on one.")
    if straddling:
        said.append(f"{straddling} images occur in more than one split: scores will flatter.")

    ratios = np.array([picture.width / picture.height for picture in data.pictures])
    odd = int(np.sum(np.abs(np.log(ratios / np.median(ratios))) > 0.1))
    if odd:
        said.append(f"{odd} images have another width-to-height ratio than most: choose --resize fit, crop or stretch.")
    grey = sum(picture.channels == 1 for picture in data.pictures)
    if 0 < grey < len(data):
        said.append(f"{grey} of {len(data)} images are grey among coloured ones: all are taken as colour.")
    wide = [picture.peak for picture in data.pictures if picture.mode.startswith("I")]
    if wide and max(wide) < 64:
        said.append(
            f"16-bit images reach level {max(wide)} of 255 only, nearly black: spread their values over 0 … 65,535."
        )
    return said


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(repr(name) for name in names[:_LISTED]) + more


def _sizes(sizes: tuple[tuple[int, int, str, int], ...]) -> str:
    several = len(sizes) > 1
    parts = [f"{h}×{w} {mode}" + (f" ({count:,})" if several else "") for h, w, mode, count in sizes[:4]]
    return ", ".join(parts) + (f" and {len(sizes) - 4} others" if len(sizes) > 4 else "")


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells))
    return lines


def _write_sheet(data: DataSet, path: Path) -> Path:
    """A sheet of train images first; classes beyond the hundredth are left out."""
    shape = data.native_shape()
    many = 16
    order = np.argsort(data.split, kind="stable")
    seen: Counter[int] = Counter()
    chosen = []
    for i in order.tolist():
        label = int(data.labels[i])
        if label < _SHEET_CLASSES and seen[label] < many:
            seen[label] += 1
            chosen.append(i)
    keep = np.zeros(len(data), dtype=np.bool_)
    keep[chosen] = True
    part = data.select(keep)
    images, labels = part.images(None, shape=shape)
    first = np.argsort(part.split, kind="stable")
    counts = list(data.counts().values())[:_SHEET_CLASSES]
    picture = contact_sheet(
        images[first], labels[first], data.class_names[:_SHEET_CLASSES], per_class=many, counts=counts
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            picture.save(file, format="PNG")
    except OSError as error:
        raise DataError(f"{shown(str(path))} cannot be written ({error.strerror}): choose another place.") from None
    return path
