"""What can be measured of a picture without knowing what it shows: slant, size, width of strokes, brightness.

Each is one number an image, computed from that image alone, with numpy only. What is drawn is told as that which
differs from the ground, the median of the image's border: light on dark or dark on light, grey or colour. So all but
brightness say little where there is no ground, as in most photographs; which of them can be steered in a bundle is
measured at export (`export/directions.py`). This module knows neither latents nor bundles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["ATTRIBUTES", "Attribute", "measure"]

_Measure = Callable[[NDArray[np.uint8], NDArray[np.float64]], NDArray[np.float64]]

# Below this share of an image's largest difference from its ground lies what compression and ripples leave.
_NOISE: Final = 0.15
_LEAST: Final = 1e-6


@dataclass(frozen=True)
class Attribute:
    """A measure: what it says, in words and in which unit, and (images, what is drawn) -> float64 [N]."""

    what: str
    unit: str
    measure: _Measure


def measure(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """All `ATTRIBUTES` of images.

    Args:
        images: uint8 [N, H, W, C], C 1 or 3.

    Returns:
        name -> float64 [N], finite also for blank images.

    >>> bar = np.zeros((1, 12, 12, 1), np.uint8)
    >>> bar[:, 2:10, 5:7] = 255
    >>> {name: round(float(value[0]), 1) for name, value in measure(bar).items()}
    {'slant': -0.0, 'size': 3.3, 'stroke': 1.6, 'brightness': 28.3}
    """
    drawn = _drawn(images)
    return {name: attribute.measure(images, drawn) for name, attribute in ATTRIBUTES.items()}


def _drawn(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """How much each pixel differs from the ground, float64 [N, H, W]: 1 where it does most, all 0 in a blank image."""
    border = np.concatenate([images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1]], axis=1)
    ground = np.median(border, axis=1)
    difference = np.abs(images - ground[:, None, None]).max(axis=3)
    share = difference / np.maximum(difference.max(axis=(1, 2), keepdims=True), 1.0)
    return np.asarray(np.clip((share - _NOISE) / (1 - _NOISE), 0.0, 1.0))


def _moments(drawn: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Variance in x and in y and their covariance of what is drawn, each float64 [N], in pixels squared; y is down."""
    total = np.maximum(drawn.sum(axis=(1, 2)), _LEAST)
    columns, rows = drawn.sum(axis=1), drawn.sum(axis=2)
    x, y = np.arange(drawn.shape[2], dtype=np.float64), np.arange(drawn.shape[1], dtype=np.float64)
    dx = x - ((columns * x).sum(axis=1) / total)[:, None]
    dy = y - ((rows * y).sum(axis=1) / total)[:, None]
    xx, yy = (columns * dx * dx).sum(axis=1) / total, (rows * dy * dy).sum(axis=1) / total
    xy = (drawn * dy[:, :, None] * dx[:, None, :]).sum(axis=(1, 2)) / total
    return xx, yy, xy


def _slant(images: NDArray[np.uint8], drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """Covariance over vertical variance: the shear that the deskewing of digits undoes (LeCun et al. 1998, §III.B).

    Blind to what has no height, and led astray by strokes that lie on one side only: a 7 is slanted by its bar.
    """
    _, yy, xy = _moments(drawn)
    return -xy / np.maximum(yy, _LEAST)


def _size(images: NDArray[np.uint8], drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """From second moments: whether it is drawn thick or thin makes little difference, where it ends some."""
    xx, yy, _ = _moments(drawn)
    return np.asarray(np.sqrt(2 * (xx + yy)))


def _stroke(images: NDArray[np.uint8], drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twice area over perimeter, the perimeter as total variation (by the coarea formula that of all level sets).

    Of a line of width w, wide or blurred, that is w. Blind spots: the ends count as perimeter, so short strokes come
    out thinner; of a filled disc it is the radius; texture inside a shape makes it thinner.
    """
    padded = np.pad(drawn, ((0, 0), (1, 1), (1, 1)))
    dx = padded[:, :-1, 1:] - padded[:, :-1, :-1]
    dy = padded[:, 1:, :-1] - padded[:, :-1, :-1]
    perimeter = np.sqrt(dx * dx + dy * dy).sum(axis=(1, 2))
    return np.asarray(2 * drawn.sum(axis=(1, 2)) / np.maximum(perimeter, _LEAST))


def _brightness(images: NDArray[np.uint8], drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of everything, ground included: where thin strokes are drawn on black, it is above all how thick they are."""
    return np.asarray(images.mean(axis=(1, 2, 3), dtype=np.float64))


ATTRIBUTES: Final[dict[str, Attribute]] = {
    "slant": Attribute("how far it leans to the right: shift per height", "pixels per pixel", _slant),
    "size": Attribute("how far it spreads: the radius of the disc that spreads as far", "pixels", _size),
    "stroke": Attribute("how wide its strokes are", "pixels", _stroke),
    "brightness": Attribute("mean level of the whole image", "grey levels", _brightness),
}
