"""Small pictures for a report: rows of images, and pairs side by side, as PNG bytes.

Pixels are not enlarged here: the page does that, so that a picture costs no more bytes than its images. Whatever shows
a generated image carries the mark of synthetic origin. Knows nothing of pages.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from augmint.images import encode_png, synthetic_sheet_png

__all__ = ["pair", "tiles"]

_GAP = 1
_LONGEST = 96  # pixels of an image's longer side, above which it is made smaller


def tiles(images: NDArray[np.uint8], *, columns: int, synthetic: bool) -> bytes:
    """PNG of images uint8 [N, H, W, C] in rows of `columns`, with grey lines between."""
    small = [_small(image) for image in images]
    height, width = small[0].height, small[0].width
    rows = math.ceil(len(small) / columns)
    across = min(columns, len(small))
    size = (across * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP)
    # Grey, which stands out from most pictures on a light page and on a dark one.
    sheet = Image.new(small[0].mode, size, 128 if small[0].mode == "L" else (128, 128, 128))
    for i, image in enumerate(small):
        row, column = divmod(i, columns)
        sheet.paste(image, (column * (width + _GAP), row * (height + _GAP)))
    return synthetic_sheet_png(sheet) if synthetic else encode_png(np.asarray(sheet))


def pair(fake: NDArray[np.uint8], real: NDArray[np.uint8]) -> bytes:
    """PNG of a generated image, left, and a real one of the same shape [H, W, C]."""
    return tiles(np.stack([fake, real]), columns=2, synthetic=True)


def _small(image: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    factor = math.ceil(max(picture.size) / _LONGEST)
    return picture.reduce(factor) if factor > 1 else picture
