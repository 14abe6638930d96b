"""`augment`: augmint's own recipe, for 20 to 1,000 images a class within minutes on a CPU.

It joins parts of the literature that hold up on few, uneven images; `docs/log.md` has what was tried and failed:

- generator: class-conditional batch norm driven by [z, embedding] in every block (Brock, Donahue & Simonyan 2018,
  BigGAN, arXiv 1809.11096, section 3); two convolutions on the coarse grid and a bilinear doubling, which costs half
  a ResNet up-block, and one residual convolution at full resolution
- critic: strided convolutions without normalisation, a projection head (Miyato & Koyama 2018, arXiv 1802.05637), and
  same-class pairs, which it compares: that doubled recall
- non-saturating loss with lazy R1 (Mescheder et al. 2018, arXiv 1801.04406; lazily as in StyleGAN2, arXiv 1912.04958)
- mild warps of the reals, which widen the classes, and DiffAugment (Zhao et al. 2020, arXiv 2006.10738) on all that the
  critic sees
- an encoder, in training alone (Larsen et al. 2016, VAE-GAN, arXiv 1512.09300; with labels CVAE-GAN, Bao et al. 2017,
  arXiv 1703.10155): real images of all classes are encoded to one and the same law of latents and rebuilt, so that a
  latent comes to mean a style which large classes lend to small ones; that was worth more to a classifier than anything
  else tried
- class-balanced batches for reals and fakes alike, which was worth 11 points of minority recall

Without classes it is the same network with the embedding left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from training.diffaugment import AugmentPolicy, WarpPolicy, diff_augment, warp
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
from training.families.parts import LazyR1, count_doublings, logistic

__all__ = ["Augment", "AugmentOptions"]


@dataclass(frozen=True, kw_only=True)
class AugmentOptions(FamilyOptions):
    """Numbers without a source were chosen by the trials in docs/log.md."""

    latent_dim: Count = 64
    batch: Count = 20  # many small steps beat few large ones at a fixed budget
    share_fakes: bool = True
    embedding: Count = 32  # of the class, in the generator
    width: Count = 64  # channels of the generator's smallest maps, halved at each doubling
    critic_width: Count = 128  # channels of the critic's smallest maps, halved towards the image
    critic_features: Count = 128  # the hidden layer that the projection reads
    encoder_width: Count = 64  # channels of the encoder's smallest maps at most
    encoder_features: Count = 192  # its hidden layer
    reconstruction: NonNegative = 20.0  # weight of the mean squared error of rebuilt reals; 0 trains without encoder
    divergence: NonNegative = 0.005  # weight of the encoder's KL divergence from N(0, I), in nats
    encoder_fade: Share = 0.7  # last share of the steps, over which both weights fall to 0: the labels come out truer
    learning_rate: Positive = 1e-3
    decay_share: Share = 0.0  # last share of the steps, over which the rate falls to a twentieth; 0.3 ended lower
    beta1: Share = 0.0
    beta2: Share = 0.99
    r1: NonNegative = 0.005  # weight of |∇D|² on reals, averaged over time; 0.05 and 0.001 both lost diversity
    r1_every: Count = 4
    ema_half_life: NonNegative = 20_000.0
    ema_ramp: Positive = 0.25  # beat 0.05 and 0.125: over a short run the average is nearly as long as the run
    warp: NonNegative = 1.0  # scales the five below; 0 where a warp changes the label
    warp_rotation: NonNegative = 10.0  # degrees
    warp_zoom: NonNegative = 0.1
    warp_shear: NonNegative = 0.12
    warp_shift: NonNegative = 0.02
    warp_elastic: NonNegative = 0.065
    translation: Share = 0.04  # 0.11 leaked: samples off centre
    cutout: Share = 0.0
    color: NonNegative = 0.0


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose scale and shift are linear in a condition vector [N, K]."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.modulation = nn.Linear(condition, 2 * channels)
        nn.init.normal_(self.modulation.weight, 0, 0.05)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, 1)
        return torch.addcmul(shift, self.norm(x), 1 + scale)


class UpBlock(nn.Module):
    """A residual 3x3 convolution, another to O channels, then a bilinear doubling: [N, I, H, W] -> [N, O, 2H, 2W].

    A transposed convolution here left a checker texture in colour images.
    """

    def __init__(self, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        self.norm1 = ConditionalBatchNorm(inputs, condition)
        self.conv = nn.Conv2d(inputs, inputs, 3, padding=1)
        self.norm2 = ConditionalBatchNorm(inputs, condition)
        self.up = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = x + self.conv(F.relu(self.norm1(x, condition)))
        x = self.up(F.relu(self.norm2(x, condition)))
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class Generator(nn.Module):
    """latent [N, Z], label int64 [N] (None when unconditional) -> image [N, C, H, W] in [-1, 1]."""

    def __init__(self, options: AugmentOptions, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.image_shape = image_shape
        channels, height, width = image_shape
        doublings = count_doublings(height, width)
        widths = [max(8, options.width >> i) for i in range(doublings + 1)]
        # A side that is no multiple of 2**doublings is made a little too long and cut.
        self.base = (widths[0], -(-height >> doublings), -(-width >> doublings))
        self.embedding = nn.Embedding(num_classes, options.embedding) if num_classes else None
        condition = options.latent_dim + (options.embedding if num_classes else 0)
        self.project = nn.Linear(condition, self.base[0] * self.base[1] * self.base[2])
        self.blocks = nn.ModuleList(UpBlock(inputs, outputs, condition) for inputs, outputs in pairwise(widths))
        self.sharpen_norm = ConditionalBatchNorm(widths[-1], condition)
        self.sharpen = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.norm = ConditionalBatchNorm(widths[-1], condition)
        self.to_image = nn.Conv2d(widths[-1], channels, 3, padding=1)
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
        x = x + self.sharpen(F.relu(self.sharpen_norm(x, condition)))
        image = torch.tanh(self.to_image(F.relu(self.norm(x, condition))))
        _, height, width = self.image_shape
        return image[:, :, :height, :width]


class Critic(nn.Module):
    """image [N, C, H, W] in [-1, 1], label int64 [N] (None when unconditional) -> realism logit [N].

    While training, images 2i and 2i + 1 are of one class, and the hidden layer also sees how far apart the two lie: the
    mean absolute difference of their feature maps, channel by channel. A class whose fakes all look alike is then told
    at once (compare minibatch discrimination, Salimans et al. 2016, and PacGAN, Lin et al. 2018). In eval mode each
    image is judged alone, as if its distance to another were that of typical reals.
    """

    def __init__(self, options: AugmentOptions, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.layers, flat, last = _halving(channels, height, width, options.critic_width)
        self.features = nn.Linear(flat + last, options.critic_features)
        self.realism = nn.Linear(options.critic_features, 1)
        self.embedding = nn.Embedding(num_classes, options.critic_features) if num_classes else None
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, 0, options.critic_features**-0.5)
        self.typical: Tensor
        self.register_buffer("typical", torch.zeros(last))

    def forward(self, image: Tensor, label: Tensor | None = None, reals: int = 0) -> Tensor:
        """The first `reals` images are real: while training, the typical distance is learned from them."""
        maps = self.layers(image)
        if self.training:
            distance = (maps[::2] - maps[1::2]).abs().mean((2, 3)).repeat_interleave(2, 0)
            if reals:
                with torch.no_grad():
                    self.typical.lerp_(distance[:reals].float().mean(0), 0.01)
        else:
            distance = self.typical.to(maps.dtype).expand(image.shape[0], -1)
        features = F.leaky_relu(self.features(torch.cat([maps.flatten(1), distance], 1)), 0.2)
        logit: Tensor = self.realism(features).squeeze(1)
        if self.embedding is None:
            return logit
        assert label is not None, "a conditional critic needs labels"
        return logit + (self.embedding(label) * features).sum(1)


class Encoder(nn.Module):
    """image [N, C, H, W], label int64 [N] (None when unconditional) -> mean and log variance of the latent, [N, Z]."""

    def __init__(self, options: AugmentOptions, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.layers, outputs, _ = _halving(channels, height, width, options.encoder_width)
        self.embedding = nn.Embedding(num_classes, options.embedding) if num_classes else None
        self.features = nn.Linear(outputs + (options.embedding if num_classes else 0), options.encoder_features)
        self.moments = nn.Linear(options.encoder_features, 2 * options.latent_dim)

    def forward(self, image: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        maps = self.layers(image).flatten(1)
        if self.embedding is not None:
            assert label is not None, "a conditional encoder needs labels"
            maps = torch.cat([maps, self.embedding(label)], 1)
        mean, log_variance = self.moments(F.leaky_relu(self.features(maps), 0.2)).chunk(2, 1)
        return mean, log_variance.clamp(-8, 2)  # e^2 cannot overflow, and neither end is ever wanted


class Augment(Family[AugmentOptions]):
    name = "augment"
    summary = "the default: by class (or not), from 20 images a class, minutes on a CPU"
    when = "to fill up small classes: the only one made for few, uneven images"
    paper = "augmint's own; see docs/log.md"
    conditional = True
    pairs = True
    Options: ClassVar[type[AugmentOptions]] = AugmentOptions
    enough_steps = 2500  # for the encoder: with fewer the images are further from their labels than without it

    @classmethod
    def narrower(cls, options: AugmentOptions) -> tuple[AugmentOptions, ...]:
        return (replace(options, reconstruction=0.0),) if options.reconstruction > 0 else ()

    _encoder_weight = 1.0  # set by `schedule` for each step

    def generator(self) -> nn.Module:
        return Generator(self.options, self.image_shape, self.num_classes)

    def critic(self) -> nn.Module:
        return Critic(self.options, self.image_shape, self.num_classes)

    def build(self) -> Networks:
        networks = super().build()
        if self.options.reconstruction > 0:
            networks.encoder = Encoder(self.options, self.image_shape, self.num_classes)
        return networks

    def optimizers(self, networks: Networks) -> tuple[Optimizer, Optimizer]:
        rate, betas = self.options.learning_rate, (self.options.beta1, self.options.beta2)
        encoder = networks.encoder.parameters() if networks.encoder is not None else ()
        return (
            Adam([*networks.generator.parameters(), *encoder], rate, betas, fused=True),
            Adam(networks.critic.parameters(), rate, betas, fused=True),
        )

    def schedule(self, generator: Optimizer, critic: Optimizer, step: int, steps: int) -> None:
        left = 1 - step / steps
        share = self.options.decay_share
        factor = max(0.05, min(1.0, left / share)) if share > 0 else 1.0
        for group in (*generator.param_groups, *critic.param_groups):
            group["lr"] = self.options.learning_rate * factor
        fade = self.options.encoder_fade
        self._encoder_weight = min(1.0, left / fade) if fade > 0 else 1.0

    def widen(self, reals: Tensor, generator: torch.Generator) -> Tensor:
        options = self.options
        policy = WarpPolicy(
            rotation=options.warp * options.warp_rotation,
            zoom=options.warp * options.warp_zoom,
            shear=options.warp * options.warp_shear,
            shift=options.warp * options.warp_shift,
            elastic=options.warp * options.warp_elastic,
        )
        return warp(reals, policy, generator)

    def augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        options = self.options
        return diff_augment(images, AugmentPolicy(options.translation, options.cutout, options.color), generator)

    def d_loss(self, critic: nn.Module, batch: Batch) -> Losses:
        """Logistic: -log D(x) - log(1 - D(G(z))), and lazily R1, |∇D(x)|² on reals."""
        options = self.options
        real_images = self.augment(batch.real, batch.random.generator("augment reals"))
        fake_images = self.augment(batch.fake, batch.random.generator("augment fakes"))
        r1 = LazyR1(real_images, weight=options.r1, every=options.r1_every, step=batch.step)
        # One pass over both is safe here: this critic has no batch statistics.
        labels = None if batch.label is None else batch.label.repeat(2)
        logits = critic(torch.cat([r1.images, fake_images]), labels, len(r1.images))
        real, fake = logits.chunk(2)
        loss, numbers = logistic(real, fake)
        return r1.added_to(loss, real), numbers

    def g_loss(self, networks: Networks, batch: Batch) -> Losses:
        """Non-saturating: -log D(G(z)); and, fading, the squared error of reals that the encoder and the generator
        rebuild, with the KL divergence of their latents from N(0, I)."""
        options, random = self.options, batch.random
        fake = networks.critic(self.augment(batch.fake, random.generator("augment for G")), batch.label)
        loss = F.softplus(-fake).mean()
        if networks.encoder is None:
            return loss, {}
        mean, log_variance = networks.encoder(batch.real, batch.label)
        noise = torch.randn(mean.shape, generator=random.generator("posterior")).to(mean.device)
        rebuilt = networks.generator(mean + torch.exp(log_variance / 2) * noise, batch.label)
        error = (rebuilt - batch.real).square().mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        loss = loss + self._encoder_weight * (options.reconstruction * error + options.divergence * divergence)
        return loss, {"error": error.detach(), "divergence": divergence.detach()}


def _halving(channels: int, height: int, width: int, widest: int) -> tuple[nn.Sequential, int, int]:
    """Strided convolutions down to sides of 4 or less; how many numbers come out in all, and in how many channels."""
    kernels = []
    while min(height, width) > 4:
        # 3x3 where a 4x4 would drop the last row of a small odd side, such as 7.
        kernels.append(4 if min(height, width) > 7 else 3)
        height, width = ((side + 2 - kernels[-1]) // 2 + 1 for side in (height, width))
    widths = [max(16, widest >> (len(kernels) - 1 - i)) for i in range(len(kernels))]
    layers: list[nn.Module] = []
    for kernel, (inputs, outputs) in zip(kernels, pairwise([channels, *widths]), strict=True):
        layers += [nn.Conv2d(inputs, outputs, kernel, 2, 1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers), widths[-1] * height * width, widths[-1]
