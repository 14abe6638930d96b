"""Random affine augmentation of a batch: the strong baseline's transform, and the classifiers' own.

Rotation, translation, anisotropic scale and shear, drawn per image from a generator that the caller gives; no flips,
which corrupt digits, letters and anything with a left and a right. Knows nothing of labels, uint8 or data sets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Affine", "random_affine"]


@dataclass(frozen=True)
class Affine:
    """Ranges of the uniform draws; the defaults are mild and were chosen on digits.

    rotation: degrees either way. shift: share of the image's side either way. scale, stretch: log of the zoom either
    way, common to both axes and of one axis against the other. shear: tangent either way.
    """

    rotation: float = 15.0
    shift: float = 0.07
    scale: float = 0.12
    stretch: float = 0.06
    shear: float = 0.15


def random_affine(images: Tensor, generator: torch.Generator, ranges: Affine | None = None) -> Tensor:
    """Each image of `images` (float [N, C, H, W], any range) through its own random affine map, bilinearly.

    Pixels from outside repeat the border, so that no value appears that the image does not have. The draws come from
    `generator` alone and number six per image whatever the ranges.
    """
    ranges = ranges or Affine()
    n, _, height, width = images.shape
    if n == 0:
        return images
    draws = torch.rand(n, 6, generator=generator) * 2 - 1
    angle = draws[:, 0] * (ranges.rotation * math.pi / 180)
    zoom_x = torch.exp(draws[:, 1] * ranges.scale + draws[:, 2] * ranges.stretch)
    zoom_y = torch.exp(draws[:, 1] * ranges.scale - draws[:, 2] * ranges.stretch)
    shear = draws[:, 3] * ranges.shear
    cos, sin = torch.cos(angle), torch.sin(angle)
    # affine_grid works in coordinates that run from -1 to 1 along each side: `aspect` keeps a rotation a rotation on
    # images that are not square, and a shift of one side is a shift of 2.
    aspect = height / width
    theta = torch.empty(n, 2, 3)
    theta[:, 0, 0] = zoom_x * cos
    theta[:, 0, 1] = (zoom_x * (shear * cos - sin)) * aspect
    theta[:, 0, 2] = draws[:, 4] * (2 * ranges.shift)
    theta[:, 1, 0] = zoom_y * sin / aspect
    theta[:, 1, 1] = zoom_y * (shear * sin + cos)
    theta[:, 1, 2] = draws[:, 5] * (2 * ranges.shift)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
