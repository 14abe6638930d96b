"""`augment`: augmint's own recipe, for 20 to 1,000 images a class within minutes on a CPU.

It joins parts of the literature that hold up on few, uneven images; `docs/log.md` has what was tried and failed:

- generator: two or three ResNet up-blocks with class-conditional batch norm driven by [z, embedding] in every block
  (Brock, Donahue & Simonyan 2018, BigGAN, arXiv 1809.11096, section 3)
- critic: strided convolutions without normalisation and a projection head (Miyato & Koyama 2018, arXiv 1802.05637)
- non-saturating loss with lazy R1 (Mescheder et al. 2018, arXiv 1801.04406; lazily as in StyleGAN2, arXiv 1912.04958)
- DiffAugment on what the critic sees (Zhao et al. 2020, arXiv 2006.10738)
- class-balanced batches for reals and fakes alike, which was worth 11 points of minority recall

Without classes it is the same network with the embedding left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from training.diffaugment import AugmentPolicy, diff_augment
from training.families.base import (
    Batch,
    Count,
    Family,
    FamilyOptions,
    Losses,
    Networks,
    NonNegative,
    Positive,
    Share,
)

__all__ = ["Augment", "AugmentOptions"]


@dataclass(frozen=True, kw_only=True)
class AugmentOptions(FamilyOptions):
    latent_dim: Count = 64
    batch: Count = 32
    share_fakes: bool = True
    embedding: Count = 32
    width: Count = 16  # channels of the largest maps; each halving doubles them
    critic_width: Count = 32
    critic_features: Count = 128
    learning_rate: Positive = 4e-4
    beta1: Share = 0.0
    beta2: Share = 0.99
    r1: NonNegative = 0.05  # weight of |∇D|² on reals, averaged over time
    r1_every: Count = 4
    translation: Share = 0.11
    cutout: Share = 0.32
    color: NonNegative = 0.0
    ema_half_life: NonNegative = 4400.0  # 0.995 a step at batch 32


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose scale and shift are linear in a condition vector [N, K]."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.modulation = nn.Linear(condition, 2 * channels)
        nn.init.normal_(self.modulation.weight, 0, 0.02)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, 1)
        return torch.addcmul(shift, self.norm(x), 1 + scale)


class UpBlock(nn.Module):
    """Doubles height and width: [N, I, H, W] -> [N, O, 2H, 2W], with a residual path."""

    def __init__(self, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        self.norm1 = ConditionalBatchNorm(inputs, condition)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = ConditionalBatchNorm(outputs, condition)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = F.interpolate(F.relu(self.norm1(x, condition)), scale_factor=2.0, mode="nearest")
        h = self.conv2(F.relu(self.norm2(self.conv1(h), condition)))
        # The 1x1 convolution commutes with nearest upsampling and costs a quarter before it.
        return h + F.interpolate(self.skip(x), scale_factor=2.0, mode="nearest")


class Generator(nn.Module):
    """latent [N, Z], label int64 [N] (None when unconditional) -> image [N, C, H, W] in [-1, 1]."""

    def __init__(self, options: AugmentOptions, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.image_shape = image_shape
        channels, height, width = image_shape
        doublings = _doublings(height, width)
        # A side that is no multiple of 2**doublings is made a little too long and cut.
        self.base = (options.width << doublings, -(-height >> doublings), -(-width >> doublings))
        self.embedding = nn.Embedding(num_classes, options.embedding) if num_classes else None
        condition = options.latent_dim + (options.embedding if num_classes else 0)
        self.project = nn.Linear(condition, self.base[0] * self.base[1] * self.base[2])
        widths = [options.width << (doublings - i) for i in range(doublings + 1)]
        self.blocks = nn.ModuleList(UpBlock(inputs, outputs, condition) for inputs, outputs in pairwise(widths))
        self.norm = ConditionalBatchNorm(options.width, condition)
        self.to_image = nn.Conv2d(options.width, channels, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.orthogonal_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        condition = latent
        if self.embedding is not None:
            assert label is not None, "a conditional generator needs labels"
            condition = torch.cat([latent, self.embedding(label)], 1)
        x = self.project(condition).view(-1, *self.base)
        for block in self.blocks:
            x = block(x, condition)
        image = torch.tanh(self.to_image(F.relu(self.norm(x, condition))))
        _, height, width = self.image_shape
        return image[:, :, :height, :width]


class Critic(nn.Module):
    """image [N, C, H, W] in [-1, 1], label int64 [N] (None when unconditional) -> realism logit [N]."""

    def __init__(self, options: AugmentOptions, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        inputs, height, width = image_shape
        layers: list[nn.Module] = []
        outputs = options.critic_width
        while max(height, width) > 4:
            # Even kernels while maps are large; 3x3 where a 4x4 would drop the last row of an odd side.
            kernel = 4 if min(height, width) > 7 else 3
            layers += [nn.Conv2d(inputs, outputs, kernel, 2, 1), nn.LeakyReLU(0.2)]
            height, width = ((side + 2 - kernel) // 2 + 1 for side in (height, width))
            inputs, outputs = outputs, min(outputs * 2, options.critic_features)
        self.layers = nn.Sequential(*layers)
        self.features = nn.Linear(inputs * height * width, options.critic_features)
        self.realism = nn.Linear(options.critic_features, 1)
        self.embedding = nn.Embedding(num_classes, options.critic_features) if num_classes else None
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, 0, options.critic_features**-0.5)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        features = F.leaky_relu(self.features(self.layers(image).flatten(1)), 0.2)
        logit: Tensor = self.realism(features).squeeze(1)
        if self.embedding is None:
            return logit
        assert label is not None, "a conditional critic needs labels"
        return logit + (self.embedding(label) * features).sum(1)


class Augment(Family[AugmentOptions]):
    name = "augment"
    summary = "the default: by class (or not), from 20 images a class, minutes on a CPU"
    paper = "augmint's own; see docs/log.md"
    conditional = True
    Options: ClassVar[type[AugmentOptions]] = AugmentOptions

    def generator(self) -> nn.Module:
        return Generator(self.options, self.image_shape, self.num_classes)

    def critic(self) -> nn.Module:
        return Critic(self.options, self.image_shape, self.num_classes)

    def optimizers(self, networks: Networks) -> tuple[Optimizer, Optimizer]:
        rate, betas = self.options.learning_rate, (self.options.beta1, self.options.beta2)
        return (
            Adam(networks.generator.parameters(), rate, betas, fused=True),
            Adam(networks.critic.parameters(), rate, betas, fused=True),
        )

    def augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        options = self.options
        return diff_augment(images, AugmentPolicy(options.translation, options.cutout, options.color), generator)

    def d_loss(self, critic: nn.Module, batch: Batch) -> Losses:
        options = self.options
        real_images = self.augment(batch.real, batch.random.generator("augment reals"))
        fake_images = self.augment(batch.fake, batch.random.generator("augment fakes"))
        lazy = options.r1 > 0 and batch.step % options.r1_every == 0
        if lazy:
            real_images.requires_grad_(True)
        # One pass over both is safe here: this critic has no batch statistics.
        labels = None if batch.label is None else batch.label.repeat(2)
        real, fake = critic(torch.cat([real_images, fake_images]), labels).chunk(2)
        loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        if lazy:
            (gradient,) = torch.autograd.grad(real.sum(), real_images, create_graph=True)
            loss = loss + options.r1 * options.r1_every * gradient.square().sum((1, 2, 3)).mean()
        return loss, {"d_real": real.detach().mean(), "d_fake": fake.detach().mean()}

    def g_loss(self, critic: nn.Module, batch: Batch) -> Losses:
        fake = critic(self.augment(batch.fake, batch.random.generator("augment for G")), batch.label)
        return F.softplus(-fake).mean(), {}


def _doublings(height: int, width: int) -> int:
    """Doublings from a base whose shorter side is 5 to 8: 28 -> 7 (2), 32 -> 8 (2), 64 -> 8 (3)."""
    count = 0
    while -(-min(height, width) >> count) > 8:
        count += 1
    return max(count, 1)
