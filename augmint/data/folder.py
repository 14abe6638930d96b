"""Read a folder of class folders, or train/ validation/ test/ folders of class folders.

    DATA/cat/*.png  DATA/dog/*.png               split by augmint, once (see split.py)
    DATA/train/cat/*.png  DATA/test/cat/*.png    split as given (Hugging Face's layout)
    DATA/*.png                                   one class, named after the folder

One level deep, and never out of the folder: a symbolic link is followed only to a place inside it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from augmint.data.records import (
    IMAGE_SUFFIXES,
    SPLITS,
    TRAIN,
    BadFile,
    Entry,
    Reading,
    ignored,
    leads_out,
    natural_key,
    shown,
    split_index,
)
from augmint.errors import DataError

SIDECAR = "augmint-split.json"


def read_folder(root: Path) -> Reading:
    """List the images of a folder; nothing is opened yet."""
    name = shown(root.resolve().name) or "data"
    bad: list[BadFile] = []
    real = os.path.realpath(root)
    folders, files = _scan(root, "", real, bad)

    if not folders:
        if not files:
            raise DataError(f"{shown(str(root))} has no images: put each class in a folder of its own inside it.")
        notes = ["the folder has no class folders: all its images are taken as one class."]
        entries = [Entry(shown(file.name), name, None, file) for file in files if file.name not in _OWN]
        return Reading(name, entries, None, bad, notes, root / SIDECAR)

    # Loose pictures belong to no class; anything else beside the class folders (a README, a licence) is no concern.
    bad += [
        BadFile(shown(file.name), "lies outside of every class folder; move it into one")
        for file in files
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]

    places: list[tuple[Path, str, int | None]] = [(folder, "", None) for folder in folders]
    inner = _split_layout(folders)
    notes = []
    if inner:
        places = []
        given = len({split for split, _ in inner}) > 1
        for split, folder in inner:
            prefix = f"{shown(folder.name)}/"
            classes, loose = _scan(folder, prefix, real, bad)
            bad += [
                BadFile(prefix + shown(file.name), "lies outside of every class folder; move it into one")
                for file in loose
                if file.suffix.lower() in IMAGE_SUFFIXES
            ]
            places += [(found, prefix, split if given else None) for found in classes]
        if not given:
            notes.append(f"there is a {SPLITS[TRAIN]}/ folder only: augmint makes the split.")

    entries = []
    empty: dict[str, str] = {}
    for folder, prefix, given_split in places:
        label = shown(folder.name)
        where = f"{prefix}{label}/"
        deeper, files = _scan(folder, where, real, bad)
        bad += [
            BadFile(f"{where}{shown(sub.name)}/", "is a folder inside a class folder; move its images up")
            for sub in deeper
        ]
        entries += [Entry(where + shown(file.name), label, given_split, file) for file in files]
        if not files:
            empty.setdefault(label, where)
    filled = {entry.label for entry in entries}
    bad += [BadFile(where, "is a class folder without images") for label, where in empty.items() if label not in filled]

    if not entries:
        deep = [folder for folder in folders if _has_folders(folder)]
        mend = (
            f"did you mean {shown(str(deep[0]))}?"
            if len(deep) == 1
            else "put each class in a folder of its own inside it."
        )
        raise DataError(f"{shown(str(root))} has no images in its class folders: {mend}")
    return Reading(name, entries, None, bad, notes, root / SIDECAR)


# Files that augmint itself keeps beside images.
_OWN = frozenset({SIDECAR, "metadata.csv"})


def _split_layout(folders: list[Path]) -> list[tuple[int, Path]]:
    """(split, folder) if the folders are splits with class folders in them, otherwise empty.

    Classes may be called "train" and "test" (vehicles …): with pictures directly in them they are classes.
    """
    found = [(split_index(folder.name), folder) for folder in folders]
    layout = [(split, folder) for split, folder in found if split is not None]
    if len(layout) < len(folders) or all(split != TRAIN for split, _ in layout):
        return []
    return layout if all(_has_folders(folder) for _, folder in layout) else []


def _has_folders(folder: Path) -> bool:
    try:
        return any(sub.is_dir() and not ignored(sub.name) for sub in folder.iterdir())
    except OSError:
        return False


def _scan(folder: Path, prefix: str, root: str, bad: list[BadFile]) -> tuple[list[Path], list[Path]]:
    """Sub-folders and regular files of a folder in natural order; what is neither, or leads out, goes to `bad`."""
    folders: list[Path] = []
    files: list[Path] = []
    try:
        found = sorted(os.scandir(folder), key=lambda item: natural_key(item.name))
    except OSError as error:
        raise DataError(f"{shown(str(folder))} cannot be read ({error.strerror}): check its permissions.") from None
    for item in found:
        if ignored(item.name):
            continue
        path = folder / item.name
        name = prefix + shown(item.name)
        if item.is_symlink() and leads_out(path, root):
            bad.append(BadFile(name, "is a symbolic link that leads out of the folder; copy the file instead"))
            continue
        try:
            mode = path.stat().st_mode
        except OSError:
            bad.append(BadFile(name, "is a symbolic link that leads nowhere"))
            continue
        if stat.S_ISDIR(mode):
            folders.append(path)
        elif stat.S_ISREG(mode):
            files.append(path)
        else:
            bad.append(BadFile(name, "is not a regular file"))
    return folders, files
