"""Random augmentation of a batch: what a generator has to beat, and the classifiers' own.

"affine": rotation, translation, anisotropic scale and shear. "light", "medium" and "strong" scale these and let each of
brightness, contrast, noise and a small cut-out square befall every second image: after RandAugment (Cubuk et al. 2020),
one strength for all operations. No flips, which corrupt digits, letters and anything with a left and a right. All draws
are per image and come from a generator that the caller gives. Knows nothing of labels, uint8 or data sets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Affine", "Augment", "augmented", "random_affine", "random_levels"]

Augment = Literal["affine", "light", "medium", "strong"]

STRENGTHS: Final[dict[Augment, float]] = {"light": 0.5, "medium": 1.0, "strong": 1.5}


@dataclass(frozen=True)
class Affine:
    """Ranges of the uniform draws; the defaults were chosen on digits that nothing else used (docs/log.md).

    rotation: degrees either way. shift: share of the image's side either way. scale, stretch: log of the zoom either
    way, common to both axes and of one axis against the other. shear: tangent either way.
    """

    rotation: float = 20.0
    shift: float = 0.07
    scale: float = 0.15
    stretch: float = 0.25
    shear: float = 0.25

    def scaled(self, by: float) -> Affine:
        """All ranges times `by`."""
        return replace(self, **{field.name: getattr(self, field.name) * by for field in fields(self)})


def augmented(images: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
    """`images` (float [N, C, H, W] in [0, 1]), each through its own draw of `augment`; the values stay in [0, 1]."""
    if augment == "affine":
        return random_affine(images, generator)
    strength = STRENGTHS[augment]
    return random_levels(random_affine(images, generator, Affine().scaled(strength)), generator, strength)


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


def random_levels(images: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Contrast, brightness, a cut-out square and noise, each on about half of `images` (float [N, C, H, W] in [0, 1]).

    At strength 1: contrast about the image's mean and brightness about black change by up to 0.3 either way, the square
    has up to a quarter of the shorter side and the image's mean colour, the noise a deviation of up to 0.08.
    """
    n, _, height, width = images.shape
    chosen = torch.rand(4, n, generator=generator) < 0.5
    sizes = torch.rand(6, n, generator=generator)

    def each(values: Tensor) -> Tensor:
        return values.view(n, 1, 1, 1)

    mean = images.mean((2, 3), keepdim=True)
    contrast = 1 + each((sizes[0] * 2 - 1) * chosen[0]) * (0.3 * strength)
    bright = 1 + each((sizes[1] * 2 - 1) * chosen[1]) * (0.3 * strength)
    images = ((images - mean) * contrast + mean) * bright

    half = sizes[2] * chosen[2] * (0.125 * strength * min(height, width))
    rows = torch.arange(height).view(1, -1) + 0.5 - (sizes[3] * height).view(-1, 1)
    columns = torch.arange(width).view(1, -1) + 0.5 - (sizes[4] * width).view(-1, 1)
    inside = (rows.abs() < half.view(-1, 1)).view(n, 1, height, 1) & (columns.abs() < half.view(-1, 1)).view(
        n, 1, 1, width
    )
    images = torch.where(inside, mean * bright, images)

    noise = torch.randn(images.shape, generator=generator) * each(sizes[5] * chosen[3]) * (0.08 * strength)
    return (images + noise).clamp_(0, 1)
