"""A sheet of generated images is marked as synthetic, and is nobody's single image."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from augmint.images import SYNTHETIC, read_marks, synthetic_sheet_png
from augmint.sheets import contact_sheet


def test_a_sheet_is_marked_as_a_whole() -> None:
    sheet = contact_sheet(np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 0, 1, 1]), ("a", "b"))
    data = synthetic_sheet_png(sheet)
    with Image.open(io.BytesIO(data)) as picture:
        assert SYNTHETIC in picture.info["XML:com.adobe.xmp"]
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(sheet))
    assert read_marks(data) is None
