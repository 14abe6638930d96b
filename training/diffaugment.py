"""Differentiable augmentation of what the critic sees: DiffAugment (Zhao et al. 2020, arXiv 2006.10738).

The same kind of random change is applied to reals and fakes, in the discriminator's and in the generator's step, so a
discriminator cannot learn a small data set by heart while the generator still learns the unchanged images. Colour,
translation and cutout are the paper's three policies (section 4); an affine change is added as an option for reals.

What it must not do is leak: a change strong and frequent enough to look like part of the data ends up in the samples,
and here in somebody's training set. `training/health.py` watches for that. No flips: they corrupt digits and letters.

Everything random comes from the generator that is passed in, drawn on the CPU in a fixed order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["AffinePolicy", "AugmentPolicy", "affine", "diff_augment"]


@dataclass(frozen=True)
class AugmentPolicy:
    """How strongly to augment. Zero turns a part off.

    translation: largest shift, as a share of the side (the paper's 0.125); what comes in is mid-grey (0).
    cutout: side of the square that is set to mid-grey, as a share of the image's side (the paper's 0.5).
    color: strength of the change of brightness, saturation and contrast (1 is the paper's).
    """

    translation: float = 0.0
    cutout: float = 0.0
    color: float = 0.0


@dataclass(frozen=True)
class AffinePolicy:
    """A small turn, zoom, shear and shift; rotation in degrees, the others as shares. Zero turns a part off."""

    rotation: float = 0.0
    zoom: float = 0.0
    shear: float = 0.0
    shift: float = 0.0


def diff_augment(images: Tensor, policy: AugmentPolicy, generator: torch.Generator) -> Tensor:
    """Augments float32 [N, C, H, W] in [-1, 1], each image by its own draw; gradients pass through."""
    if policy.color > 0:
        images = _color(images, policy.color, generator)
    if policy.translation > 0:
        images = _translate(images, policy.translation, generator)
    if policy.cutout > 0:
        images = _cutout(images, policy.cutout, generator)
    return images


def affine(images: Tensor, policy: AffinePolicy, generator: torch.Generator) -> Tensor:
    """Turns, zooms, shears and shifts float32 [N, C, H, W]; edge pixels are repeated outwards (bilinear)."""
    count, _, height, width = images.shape

    def draw(scale: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * scale

    angle = draw(math.radians(policy.rotation))
    zoom = torch.exp(draw(math.log1p(policy.zoom)))
    stretch = torch.exp(draw(math.log1p(policy.zoom) / 2))
    shear, shift_x, shift_y = draw(policy.shear), draw(2 * policy.shift), draw(2 * policy.shift)
    ratio = width / height
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = angle.cos() * zoom
    theta[:, 0, 1] = (-angle.sin() * zoom + shear) / ratio
    theta[:, 1, 0] = angle.sin() * zoom * stretch * ratio
    theta[:, 1, 1] = angle.cos() * zoom * stretch
    theta[:, 0, 2], theta[:, 1, 2] = shift_x, shift_y
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _color(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    count, channels = images.shape[:2]
    draws = (torch.rand(3, count, 1, 1, 1, generator=generator) - 0.5).to(images.device) * strength
    brightness, saturation, contrast = draws
    images = images + brightness
    if channels > 1:
        grey = images.mean(1, keepdim=True)
        images = (images - grey) * (1 + 2 * saturation) + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (1 + contrast) + mean


def _translate(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    count, channels, height, width = images.shape
    far_y, far_x = round(height * share), round(width * share)
    if far_y == 0 and far_x == 0:
        return images
    down = torch.randint(0, 2 * far_y + 1, (count, 1), generator=generator)
    right = torch.randint(0, 2 * far_x + 1, (count, 1), generator=generator)
    # Whole pixels: one gather from the padded image is exact and costs a quarter of grid_sample.
    rows = (torch.arange(height) + down)[:, :, None] * (width + 2 * far_x)
    columns = (torch.arange(width) + right)[:, None, :]
    index = (rows + columns).view(count, 1, -1).expand(count, channels, -1).to(images.device)
    padded = F.pad(images, (far_x, far_x, far_y, far_y)).reshape(count, channels, -1)
    return padded.gather(2, index).view(count, channels, height, width)


def _cutout(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    side_y, side_x = round(height * share), round(width * share)
    if side_y == 0 or side_x == 0:
        return images
    # As in the paper's code the centre may lie anywhere, so the square is often cut by the edge.
    top = torch.randint(0, height + 1 - side_y % 2, (count, 1), generator=generator) - side_y // 2
    left = torch.randint(0, width + 1 - side_x % 2, (count, 1), generator=generator) - side_x // 2
    row, column = torch.arange(height), torch.arange(width)
    in_rows = (row >= top) & (row < top + side_y)
    in_columns = (column >= left) & (column < left + side_x)
    kept = ~(in_rows[:, :, None] & in_columns[:, None, :])
    return images * kept[:, None].to(images.device, images.dtype)
