"""The first GAN: Goodfellow et al. 2014, "Generative Adversarial Networks", arXiv 1406.2661.

Fully connected throughout: a ReLU generator with a sigmoid output, and a discriminator of maxout units with dropout
(Goodfellow et al. 2013, arXiv 1302.4389), trained by stochastic gradient descent with momentum. The numbers are those
of the authors' `mnist.yaml`. It is the smallest honest family: it shows the idea and is a baseline, no more.

The generator uses the non-saturating loss of section 3: it maximises log D(G(z)).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from augmint.errors import UsageError
from training.families.base import Batch, Count, Family, FamilyOptions, Losses, Networks, Positive, Share

__all__ = ["Gan", "GanOptions"]


@dataclass(frozen=True, kw_only=True)
class GanOptions(FamilyOptions):
    latent_dim: Count = 100  # mnist.yaml
    batch: Count = 100  # mnist.yaml
    hidden: Count = 1200  # generator, both layers; mnist.yaml
    maxout: Count = 240  # discriminator, both layers; mnist.yaml
    pieces: Count = 5  # linear pieces a maxout unit; mnist.yaml
    input_dropout: Share = 0.2  # mnist.yaml keeps 0.8 of the pixels …
    dropout: Share = 0.5  # … and half of the hidden units
    learning_rate: Positive = 0.1  # mnist.yaml
    learning_rate_decay: Positive = 1.000004  # divides the rate after each step, down to 1e-6; mnist.yaml
    momentum: Share = 0.5  # at the start; mnist.yaml
    final_momentum: Share = 0.7  # reached after `momentum_steps`; mnist.yaml has 250 epochs of 500 steps
    momentum_steps: Count = 125_000
    generator_init: Positive = 0.05  # weights uniform in ±0.05; mnist.yaml
    critic_init: Positive = 0.005  # mnist.yaml


class Generator(nn.Module):
    """latent [N, Z] -> image [N, C, H, W] in [-1, 1]."""

    def __init__(self, options: GanOptions, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.image_shape = image_shape
        channels, height, width = image_shape
        self.layers = nn.Sequential(
            nn.Linear(options.latent_dim, options.hidden),
            nn.ReLU(),
            nn.Linear(options.hidden, options.hidden),
            nn.ReLU(),
            nn.Linear(options.hidden, channels * height * width),
        )
        _uniform(self, options.generator_init)

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        # The paper's images lie in [0, 1]; here, as for every family, in [-1, 1].
        pixels = torch.sigmoid(self.layers(latent)) * 2 - 1
        return pixels.view(-1, *self.image_shape)


class Maxout(nn.Module):
    """max over `pieces` linear maps: [N, I] -> [N, O]."""

    def __init__(self, inputs: int, outputs: int, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces
        self.linear = nn.Linear(inputs, outputs * pieces)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(1, (-1, self.pieces)).amax(2)


class Critic(nn.Module):
    """image [N, C, H, W] in [-1, 1] -> realism logit [N]."""

    def __init__(self, options: GanOptions, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.layers = nn.Sequential(
            nn.Dropout(options.input_dropout),
            Maxout(channels * height * width, options.maxout, options.pieces),
            nn.Dropout(options.dropout),
            Maxout(options.maxout, options.maxout, options.pieces),
            nn.Dropout(options.dropout),
            nn.Linear(options.maxout, 1),
        )
        _uniform(self, options.critic_init)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        logit: Tensor = self.layers((image.flatten(1) + 1) / 2)
        return logit.squeeze(1)


class Gan(Family[GanOptions]):
    name = "gan"
    summary = "Goodfellow's first GAN: fully connected, unconditional, small images"
    paper = "Goodfellow et al. 2014, arXiv 1406.2661"
    conditional = False
    Options: ClassVar[type[GanOptions]] = GanOptions

    @classmethod
    def check_shape(cls, image_shape: tuple[int, int, int]) -> None:
        super().check_shape(image_shape)
        channels, height, width = image_shape
        if channels * height * width > 64 * 64 * 3:
            raise UsageError(
                f"family 'gan' is fully connected and too large for {height}x{width} pixels with {channels} "
                "channels: choose --resolution 32, or --family dcgan."
            )

    def generator(self) -> nn.Module:
        return Generator(self.options, self.image_shape)

    def critic(self) -> nn.Module:
        return Critic(self.options, self.image_shape)

    def optimizers(self, networks: Networks) -> tuple[Optimizer, Optimizer]:
        rate, momentum = self.options.learning_rate, self.options.momentum
        return (
            SGD(networks.generator.parameters(), rate, momentum),
            SGD(networks.critic.parameters(), rate, momentum),
        )

    def schedule(self, generator: Optimizer, critic: Optimizer, step: int, steps: int) -> None:
        options = self.options
        rate = max(options.learning_rate / options.learning_rate_decay**step, 1e-6)
        progress = min(1.0, step / options.momentum_steps)
        momentum = options.momentum + progress * (options.final_momentum - options.momentum)
        for group in (*generator.param_groups, *critic.param_groups):
            group["lr"], group["momentum"] = rate, momentum

    def d_loss(self, critic: nn.Module, batch: Batch) -> Losses:
        real, fake = critic(batch.real, batch.label), critic(batch.fake, batch.label)
        loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        return loss, {"d_real": real.detach().mean(), "d_fake": fake.detach().mean()}

    def g_loss(self, networks: Networks, batch: Batch) -> Losses:
        return F.softplus(-networks.critic(batch.fake, batch.label)).mean(), {}


def _uniform(module: nn.Module, limit: float) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.uniform_(layer.weight, -limit, limit)
            nn.init.zeros_(layer.bias)
