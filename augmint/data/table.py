"""Read a CSV that names images and their classes, or a folder with such a `metadata.csv`.

Columns, by the first of these names that occurs: `file_name`, `path`, `image` or `filename`; `label`, `class` or
`category`; and, if the split is given, `split`. Other columns are not read. Paths are relative to the CSV's folder and
may not leave it. UTF-8; comma, semicolon or tab. Where no row has a label, all images are taken as one class.
"""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from pathlib import Path

from augmint.data.records import IMAGE_SUFFIXES, SPLITS, BadFile, Entry, Reading, ignored, leads_out, shown, split_index
from augmint.errors import DataError

_FILE_COLUMNS = ("file_name", "path", "image", "filename")
_LABEL_COLUMNS = ("label", "class", "category")


def has_labels(path: Path) -> bool:
    """Whether a metadata.csv has the columns that make it the list of the images (captions alone do not)."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline(65536)
        header = _columns(next(csv.reader([first], delimiter=_delimiter(first)), []))
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    return _pick(header, _FILE_COLUMNS) is not None and _pick(header, _LABEL_COLUMNS) is not None


def read_table(path: Path, *, sidecar: Path, name: str) -> Reading:
    """List the images of a CSV; none is opened yet."""
    where = shown(str(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{where} is not UTF-8 text: save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{where} cannot be read ({error.strerror}): check its permissions.") from None

    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text.split("\n", 1)[0]))
        table = [(rows.line_num, row) for row in rows if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{where} is not a readable CSV ({error}): mend or export it again.") from None
    if len(table) < 2:
        raise DataError(f"{where} is empty: it needs a header such as file_name,label and one row per image.")
    header = _columns(table[0][1])
    file_column, label_column = _pick(header, _FILE_COLUMNS), _pick(header, _LABEL_COLUMNS)
    if file_column is None or label_column is None:
        missing = " or ".join(_LABEL_COLUMNS if file_column is not None else _FILE_COLUMNS)
        raise DataError(f"{where} has no column {missing}: it has {', '.join(header)[:200]}.")
    split_column = header.get("split")

    root = os.path.realpath(path.parent)
    reading = Reading(name, [], sidecar=sidecar)
    labelled = any(label_column < len(row) and row[label_column].strip() for _, row in table[1:])
    if not labelled:
        reading.notes.append(f"no row of {shown(path.name)} has a label: all its images are taken as one class.")
    listed: set[str] = set()
    for line, row in table[1:]:
        cells = [row[i].strip() if i < len(row) else "" for i in (file_column, label_column)]
        file_name, label = cells[0], unicodedata.normalize("NFC", cells[1]) if labelled else name
        at = f"{shown(path.name)} line {line}"
        if not file_name or not label:
            reading.bad.append(BadFile(at, f"has no {'file name' if not file_name else 'label'}"))
            continue
        split = None
        if split_column is not None:
            cell = row[split_column].strip() if split_column < len(row) else ""
            split = split_index(cell)
            if split is None:
                raise DataError(
                    f"{at} has the split {cell[:40]!r}: write {', '.join(SPLITS)} in every row, or drop the column."
                )
        entry, reason = _entry(path.parent, root, file_name, label, split)
        if entry is None:
            reading.bad.append(BadFile(shown(file_name), f"({at}) {reason}"))
        else:
            reading.entries.append(entry)
            listed.add(os.path.normpath(path.parent / file_name))

    if not reading.entries:
        first = f": {reading.bad[0]}" if reading.bad else ""
        raise DataError(f"{where} names no image that is there{first}.")
    unlisted = _unlisted(path.parent, listed) if path.name == "metadata.csv" else 0
    if unlisted:
        reading.notes.append(f"{unlisted} images in the folder are not named in metadata.csv and not read.")
    return reading


def _entry(folder: Path, root: str, file_name: str, label: str, split: int | None) -> tuple[Entry | None, str]:
    file = folder / file_name
    try:
        if leads_out(file, root):
            return None, "leads out of the CSV's folder; keep the images beside it"
        if not file.exists():
            return None, "is not there"
        if not file.is_file():
            return None, "is not a regular file"
    except (OSError, ValueError):  # a name too long for the system, or with a NUL in it
        return None, "is not a usable file name"
    return Entry(shown(file_name), label, split, file), ""


def _unlisted(folder: Path, listed: set[str]) -> int:
    count = 0
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not ignored(name)]
        count += sum(
            Path(name).suffix.lower() in IMAGE_SUFFIXES
            and not ignored(name)
            and os.path.normpath(Path(place) / name) not in listed
            for name in files
        )
    return count


def _columns(header: list[str]) -> dict[str, int]:
    columns: dict[str, int] = {}
    for i, name in enumerate(header):
        columns.setdefault(name.strip().casefold(), i)
    return columns


def _pick(header: dict[str, int], names: tuple[str, ...]) -> int | None:
    return next((header[name] for name in names if name in header), None)


def _delimiter(first_line: str) -> str:
    return max(",;\t", key=first_line.count)
