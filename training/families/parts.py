"""What several families are built of, each with one home: layers, first weights, sizes, optimisers and losses.

A family's own file says which of these it takes, with which numbers. This module knows no family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from augmint.errors import UsageError
from training.families.base import FamilyOptions, Losses, Networks

__all__ = [
    "LazyR1",
    "Maxout",
    "adam_pair",
    "check_fully_connected",
    "count_doublings",
    "logistic",
    "narrowed",
    "normal_weights",
    "uniform_weights",
]

OptionsT = TypeVar("OptionsT", bound=FamilyOptions)


class Maxout(nn.Module):
    """max over `pieces` linear maps: [N, I] -> [N, O] (Goodfellow et al. 2013, arXiv 1302.4389)."""

    def __init__(self, inputs: int, outputs: int, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces
        self.linear = nn.Linear(inputs, outputs * pieces)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(1, (-1, self.pieces)).amax(2)


def uniform_weights(module: nn.Module, limit: float) -> None:
    """Uniform in ± limit for the weights of dense layers and tables, 0 for biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Embedding):
            nn.init.uniform_(layer.weight, -limit, limit)
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)


def normal_weights(module: nn.Module) -> None:
    """N(0, 0.02) for the weights of one convolution, dense layer or table, 0 for its biases; for `Module.apply`."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, 0.0, 0.02)
        bias = getattr(module, "bias", None)
        if bias is not None:
            nn.init.zeros_(bias)


def count_doublings(height: int, width: int, base: int = 8) -> int:
    """Doublings, at least one, from maps whose shorter side is at most `base`: 28 -> 7 (2), 32 -> 8 (2), 64 -> 8 (3).

    A side that is no multiple of 2 to that power is made a little too long, and cut.
    """
    count = 1
    while -(-min(height, width) >> count) > base:
        count += 1
    return count


def check_fully_connected(name: str, image_shape: tuple[int, int, int], instead: str = "") -> None:
    """Raises UsageError for images (C, H, W) that dense layers would be too large for; `instead` ends the mend."""
    channels, height, width = image_shape
    if channels * height * width > 64 * 64 * 3:
        raise UsageError(
            f"family {name!r} is fully connected and too large for {height}x{width} pixels with {channels} "
            f"channels: choose --resolution 32{instead}."
        )


def narrowed(options: OptionsT, preset: Mapping[str, Any]) -> OptionsT:
    """`options` with a preset's numbers, for a small time budget; a smaller batch than the preset's is kept."""
    return replace(options, **{**preset, "batch": min(options.batch, preset.get("batch", options.batch))})


def adam_pair(
    networks: Networks, rate: float, betas: tuple[float, float], critic_rate: float | None = None
) -> tuple[Optimizer, Optimizer]:
    """The generator's Adam and the critic's, at the same rate unless the critic has its own."""
    return (
        Adam(networks.generator.parameters(), rate, betas, fused=True),
        Adam(networks.critic.parameters(), rate if critic_rate is None else critic_rate, betas, fused=True),
    )


def logistic(real: Tensor, fake: Tensor) -> Losses:
    """-log D(x) - log(1 - D(G(z))) of realism logits [N] (Goodfellow et al. 2014, equation 1), and what is logged."""
    loss = F.softplus(-real).mean() + F.softplus(fake).mean()
    return loss, {"d_real": real.detach().mean(), "d_fake": fake.detach().mean()}


class LazyR1:
    """R1, |∇D|² on reals (Mescheder et al. 2018, arXiv 1801.04406), at every `every`-th step with `every` times its
    `weight` (StyleGAN2, arXiv 1912.04958): the same on average, for a part of the time.

    `images` are the reals to judge: at those steps a leaf of their own, so that the gradient ends there.
    """

    def __init__(self, images: Tensor, *, weight: float, every: int, step: int) -> None:
        self.due = weight > 0 and step % every == 0
        self.images = images.detach().requires_grad_(True) if self.due else images
        self.factor = weight * every

    def added_to(self, loss: Tensor, real: Tensor) -> Tensor:
        """The loss with the penalty, where it is due; `real` are the logits of `images`."""
        if not self.due:
            return loss
        (gradient,) = torch.autograd.grad(real.sum(), self.images, create_graph=True)
        return loss + self.factor * gradient.square().sum((1, 2, 3)).mean()
