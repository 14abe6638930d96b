"""Contact sheets: every class its rows, any alphabet, any shape."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageFont

from augmint import sheets
from augmint.sheets import contact_sheet
from tests.augmint.data.makers import noise


def _images(count: int, shape: tuple[int, int, int] = (8, 8, 1)) -> np.ndarray:
    return np.stack([noise(i, shape) for i in range(count)])


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 3), (5, 30, 3), (120, 40, 1)])
def test_images_are_drawn_pixel_by_pixel(shape: tuple[int, int, int]) -> None:
    images = _images(4, shape)
    sheet = np.array(contact_sheet(images, np.array([0, 0, 1, 1]), ("a", "b"), scale=2))
    big = images[0].repeat(2, axis=0).repeat(2, axis=1)
    if shape[2] == 1:
        big = big.repeat(3, axis=2)
    corner = [
        (y, x)
        for y, x in np.argwhere((sheet == big[0, 0]).all(axis=2))
        if np.array_equal(sheet[y : y + big.shape[0], x : x + big.shape[1]], big)
    ]
    assert len(corner) == 1


def test_rows_wrap_and_empty_classes_keep_theirs() -> None:
    images = _images(50)
    labels = np.repeat([0, 2], 25)
    one = contact_sheet(images, labels, ("a", "b", "c"), per_class=8, scale=4)
    two = contact_sheet(images, labels, ("a", "b", "c"), per_class=24, columns=8, scale=4)
    assert one.width == two.width
    assert two.height > 2 * one.height - 60


def test_an_unconditional_set_is_a_grid() -> None:
    sheet = contact_sheet(_images(10), np.zeros(10, dtype=np.int64), (), per_class=10, columns=5, scale=1)
    assert sheet.size == (5 * 10 + 16, 2 * 10 + 16)
    assert contact_sheet(_images(1)[:0], np.zeros(0, dtype=np.int64), ()).mode == "RGB"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat", "cat"),
        ("crème brûlée", "creme brulee"),
        ("猫", "#1 ?"),
        ("what?", "what?"),
        ("a\nb", "#1 a?b"),
        ("\udcff", "#1 ?"),
        ("x" * 100, "x" * 25 + "..."),
        ("", ""),
    ],
)
def test_any_name_can_be_drawn(name: str, shown: str) -> None:
    assert sheets._printable(name, 1) == shown
    contact_sheet(_images(2), np.array([0, 1]), ("a", name))


def test_without_freetype(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ImageFont.load_default_imagefont

    def load(size: float | None = None) -> object:
        if size is not None:
            raise ImportError("The _imagingft C module is not installed")
        return real()

    monkeypatch.setattr(sheets.ImageFont, "load_default", load)
    contact_sheet(_images(2), np.array([0, 1]), ("a", "猫"))
