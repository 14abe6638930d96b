"""Contact sheets: many small images on one picture, a block of rows per class, named and counted.

Used for data sets, training samples and bundles alike. Drawn with Pillow's own font, so that a sheet looks the same on
every machine; that font knows ASCII only, so accents are dropped and other scripts shown as "?" after the class's
number.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["contact_sheet"]

_TEXT: Final = 13
_GAP: Final = 2
_MARGIN: Final = 8
_GROUND: Final = (250, 250, 250)
_INK: Final = (25, 25, 25)
_PALE: Final = (120, 120, 120)
_COLUMNS: Final = 16
_WIDEST_NAME: Final = 28  # characters


def contact_sheet(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    per_class: int = _COLUMNS,
    columns: int | None = None,
    scale: int | None = None,
    counts: Sequence[int] | None = None,
    notes: Sequence[str] | None = None,
) -> Image.Image:
    """Draw the first images of each class.

    Args:
        images: uint8 [N, H, W, C], C 1 or 3.
        labels: int64 [N], index into `class_names`; not looked at when there are none.
        class_names: in order; empty for an unconditional set, which becomes a plain grid.
        per_class: at most so many images of each class.
        columns: images in a row; by default min(per_class, 16).
        scale: each pixel becomes scale×scale; by default images come to about 48 pixels' height. Never blurred.
        counts: a number to show under each name, such as the class's size; by default the images of it in `labels`.
        notes: what to show there instead, in ASCII.

    Returns:
        A picture of mode "RGB". A class without images keeps its row.
    """
    height, width = images.shape[1:3]
    scale = scale or max(1, round(48 / max(height, 1)))
    columns = max(1, min(columns or _COLUMNS, per_class))
    cell_h, cell_w = height * scale + _GAP, width * scale + _GAP

    named = bool(class_names)
    own = [np.flatnonzero(labels == k) for k in range(len(class_names))] if named else [np.arange(len(images))]
    totals = [f"{n:,}" for n in (map(len, own) if counts is None else counts)] if notes is None else list(notes)
    columns = min(columns, max(1, *(len(members) for members in own), 1))  # no wider than the fullest row
    rows = [max(1, math.ceil(min(len(members), per_class) / columns)) for members in own]

    font, small = _font(_TEXT), _font(_TEXT - 2)
    texts = [_printable(name, k) for k, name in enumerate(class_names)]
    text_w = max((math.ceil(font.getlength(text)) for text in texts), default=0)
    text_w = max([text_w, *(math.ceil(small.getlength(total)) for total in totals)]) if named else 0
    left = _MARGIN + (text_w + _MARGIN if named else 0)
    # A class's block is high enough for its name and its count.
    blocks = [max(row_count * cell_h, 2 * _TEXT + 4 if named else 0) + (_GAP if named else 0) for row_count in rows]

    sheet = Image.new("RGB", (left + columns * cell_w + _MARGIN, sum(blocks) + 2 * _MARGIN), _GROUND)
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for k, members in enumerate(own):
        if named:
            draw.text((_MARGIN, top), texts[k], fill=_INK, font=font)
            draw.text((_MARGIN, top + _TEXT + 2), totals[k], fill=_PALE, font=small)
        for position, i in enumerate(members[:per_class].tolist()):
            row, column = divmod(position, columns)
            big = images[i].repeat(scale, axis=0).repeat(scale, axis=1)
            tile = Image.fromarray(big[:, :, 0] if big.shape[2] == 1 else big)
            sheet.paste(tile, (left + column * cell_w, top + row * cell_h))
        top += blocks[k]
    return sheet


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    # Pillow built without FreeType has one bitmap font of one size.
    try:
        return ImageFont.load_default(size=size)
    except ImportError:
        return ImageFont.load_default()


def _printable(name: str, number: int) -> str:
    """The name in the characters that Pillow's font has, with the class's number where some are missing."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    text = "".join(c if c.isascii() and c.isprintable() else "?" for c in plain)
    if "?" in text and "?" not in name:
        text = f"#{number} {text}"
    return text if len(text) <= _WIDEST_NAME else text[: _WIDEST_NAME - 3] + "..."
