"""Random changes of what the critic sees, so that it cannot learn a small data set by heart.

`diff_augment` is DiffAugment (Zhao et al. 2020, arXiv 2006.10738, section 4): colour, translation and cutout, applied
to reals and fakes alike, in the discriminator's and in the generator's step. Gradients pass through, and the generator
still learns the unchanged images.

`warp` changes reals alone: a small turn, zoom, shear, shift and smooth elastic bend (Simard et al. 2003). It widens the
classes on purpose, and the generator learns the warped images: right where a warp keeps the label, as for digits and
most objects, and to be turned off where it does not.

What augmentation must not do is leak: a change strong and frequent enough to look like part of the data ends up in the
samples, and here in somebody's training set. `training/health.py` watches for that. No flips: they corrupt digits and
letters. Everything random comes from the generator that is passed in, drawn on the CPU in a fixed order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["AugmentPolicy", "WarpPolicy", "diff_augment", "warp"]


@dataclass(frozen=True)
class AugmentPolicy:
    """How strongly to augment. Zero turns a part off.

    translation: largest shift, as a share of the side (the paper's 0.125); what comes in is mid-grey (0).
    cutout: side of the square that is set to mid-grey, as a share of the image's side (the paper's 0.5).
    color: strength of the change of brightness, saturation and contrast (1 is the paper's); colour images only.
    """

    translation: float = 0.0
    cutout: float = 0.0
    color: float = 0.0


@dataclass(frozen=True)
class WarpPolicy:
    """How strongly to warp; each is uniform in ± its value. Zero turns a part off.

    rotation in degrees; zoom as the logarithm of the factor, and half as much again between the axes; shear as a slope;
    shift and elastic (the standard deviation of a smooth 4x4 field of displacements) in half sides.
    """

    rotation: float = 0.0
    zoom: float = 0.0
    shear: float = 0.0
    shift: float = 0.0
    elastic: float = 0.0


def diff_augment(images: Tensor, policy: AugmentPolicy, generator: torch.Generator) -> Tensor:
    """Augments float32 [N, C, H, W] in [-1, 1], each image by its own draw; gradients pass through."""
    if policy.color > 0 and images.shape[1] > 1:
        images = _color(images, policy.color, generator)
    if policy.translation > 0:
        images = _translate(images, policy.translation, generator)
    if policy.cutout > 0:
        images = _cutout(images, policy.cutout, generator)
    return images


def warp(images: Tensor, policy: WarpPolicy, generator: torch.Generator) -> Tensor:
    """Warps float32 [N, C, H, W], each image by its own draw; edge pixels are repeated outwards (bilinear)."""
    if policy == WarpPolicy():
        return images
    count, _, height, width = images.shape

    def draw(scale: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * scale

    angle = draw(math.radians(policy.rotation))
    zoom_x = torch.exp(draw(policy.zoom))
    zoom_y = zoom_x * torch.exp(draw(policy.zoom / 2))
    shear, ratio = draw(policy.shear), width / height
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = angle.cos() * zoom_x, (shear - angle.sin() * zoom_x) / ratio
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin() * zoom_y * ratio, angle.cos() * zoom_y
    theta[:, 0, 2], theta[:, 1, 2] = draw(policy.shift), draw(policy.shift)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    if policy.elastic > 0:
        field = torch.randn(count, 2, 4, 4, generator=generator) * policy.elastic
        field = F.interpolate(field, size=(height, width), mode="bicubic", align_corners=True)
        # Without the mean, which would be another shift.
        grid = grid + (field - field.mean((2, 3), keepdim=True)).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid.to(images.device), padding_mode="border", align_corners=False)


def _color(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    draws = (torch.rand(3, len(images), 1, 1, 1, generator=generator) - 0.5).to(images.device) * strength
    brightness, saturation, contrast = draws
    images = images + brightness
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (1 + 2 * saturation) + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (1 + contrast) + mean


def _translate(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    count, channels, height, width = images.shape
    far_y, far_x = max(1, round(height * share)), max(1, round(width * share))
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
    side_y, side_x = max(1, round(height * share)), max(1, round(width * share))
    # As in the paper's code the centre may lie anywhere, so the square is often cut by the edge.
    top = torch.randint(0, height + 1 - side_y % 2, (count, 1), generator=generator) - side_y // 2
    left = torch.randint(0, width + 1 - side_x % 2, (count, 1), generator=generator) - side_x // 2
    row, column = torch.arange(height), torch.arange(width)
    in_rows = (row >= top) & (row < top + side_y)
    in_columns = (column >= left) & (column < left + side_x)
    kept = ~(in_rows[:, :, None] & in_columns[:, None, :])
    return images * kept[:, None].to(images.device, images.dtype)
