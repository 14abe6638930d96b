"""Small networks for the tests of export: instant to make, and with every layer that has ever made trouble."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

LATENT = 6
CLASSES = 3
SHAPE = (8, 8, 1)


class ConditionalNorm(nn.Module):
    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.modulation = nn.Linear(condition, 2 * channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, 1)
        return self.norm(x) * (1 + scale) + shift


class Conditional(nn.Module):
    """Embedding, conditional batch norm, transposed convolution + batch norm, upsampling + convolution + batch norm."""

    def __init__(self, classes: int = CLASSES, channels: int = SHAPE[2]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, 4)
        self.project = nn.Linear(LATENT + 4, 12 * 2 * 2)
        self.first = ConditionalNorm(12, LATENT + 4)
        self.up1 = nn.ConvTranspose2d(12, 8, 4, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.up2 = nn.Conv2d(8, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.to_image = nn.Conv2d(8, channels, 3, padding=1)

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        condition = torch.cat([latent, self.embedding(label)], 1)
        x = F.relu(self.first(self.project(condition).view(-1, 12, 2, 2), condition))
        x = F.relu(self.norm1(self.up1(x)))
        x = F.relu(self.norm2(self.up2(F.interpolate(x, scale_factor=2.0, mode="nearest"))))
        return torch.tanh(2 * self.to_image(x))


class Unconditional(nn.Module):
    """Colour and not square: 6×10×3, cut from 8×10."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(LATENT, 8 * 4 * 5)
        self.up = nn.ConvTranspose2d(8, 3, 4, 2, 1)

    def forward(self, latent: Tensor) -> Tensor:
        return torch.tanh(2 * self.up(self.project(latent).view(-1, 8, 4, 5)))[:, :, :6]


class Critic(nn.Module):
    """Spectral norm, batch norm, dropout, and optionally a head for classes."""

    def __init__(self, *, classes: int = CLASSES, logits: bool = False) -> None:
        super().__init__()
        self.conv = spectral_norm(nn.Conv2d(1, 8, 4, 2, 1))
        self.norm = nn.BatchNorm2d(8)
        self.features = nn.Linear(8 * 4 * 4, 16)
        self.realism = nn.Linear(16, 1)
        self.embedding = nn.Embedding(classes, 16)
        self.classes = nn.Linear(16, classes) if logits else None

    def forward(self, image: Tensor, label: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = F.dropout(F.leaky_relu(self.norm(self.conv(image)), 0.2), 0.5, self.training)
        h = F.leaky_relu(self.features(h.flatten(1)), 0.2)
        realism = self.realism(h).squeeze(1) + (self.embedding(label) * h).sum(1)
        return realism if self.classes is None else (realism, self.classes(h))


def settle(network: nn.Module, *inputs: Tensor) -> nn.Module:
    """Give batch norms the statistics of their own inputs, as training would; returns it in eval mode."""
    network.train()
    with torch.no_grad():
        for _ in range(20):
            network(*inputs)
    return network.eval().requires_grad_(False)
