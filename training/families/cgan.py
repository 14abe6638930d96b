"""Conditional GAN: Mirza & Osindero 2014, "Conditional Generative Adversarial Nets", arXiv 1411.1784.

The first GAN with the class joined to both networks' inputs (section 3.2), fully connected as in section 4.1: in the
generator noise and class each have a hidden layer before one that joins them, in the discriminator image and class
each have a layer of maxout units (Goodfellow et al. 2013, arXiv 1302.4389) before one that joins them. What the paper
leaves open, the first weights and how long momentum grows, is as in `gan.py`, from Goodfellow et al.'s `mnist.yaml`.

Two things differ from the paper's words and change no number of it. The bundle's latents are normal, so the generator
first maps them to the uniform law on the unit cube, by the normal distribution function. Dropout is in both networks
while training, as in the paper, and never when images are made for use: the exported generator is a function.

On few images the fully connected networks lose the game: the discriminator learns the images by heart. `images=
"convolutional"` keeps the paper's way of joining the class, hidden layers of their own and one that joins them, and
puts convolutions between that and the pixels, in both networks, and leaves the latents normal; it is not in the paper,
and preset `small` has it.

Nothing in the loss asks for the class: a pair of image and class is judged as a whole, and the condition can be
ignored. So the labels are to be measured, which `training/health.py` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

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
from training.families.parts import (
    LazyR1,
    Maxout,
    adam_pair,
    check_fully_connected,
    count_doublings,
    logistic,
    narrowed,
    uniform_weights,
)

__all__ = ["Cgan", "CganOptions"]


@dataclass(frozen=True, kw_only=True)
class CganOptions(FamilyOptions):
    latent_dim: Count = 100  # section 4.1
    batch: Count = 100  # section 4.1
    latent_hidden: Count = 200  # of the noise, in the generator; section 4.1
    label_hidden: Count = 1000  # of the class, in the generator; section 4.1
    hidden: Count = 1200  # that joins both; section 4.1
    maxout: Count = 240  # of the image, in the discriminator; section 4.1
    label_maxout: Count = 50  # of the class, in the discriminator; section 4.1
    joint_maxout: Count = 240  # section 4.1
    pieces: Count = 5  # linear pieces a maxout unit; section 4.1
    joint_pieces: Count = 4  # section 4.1
    generator_dropout: Share = 0.5  # section 4.1: 0.5 in both networks
    critic_dropout: Share = 0.5
    optimizer: Literal["sgd", "adam"] = "sgd"  # section 4.1; adam is not in the paper
    learning_rate: Positive = 0.1  # section 4.1
    learning_rate_decay: Positive = 1.00004  # divides the rate after each step, down to 1e-6; section 4.1
    momentum: Share = 0.5  # at the start; section 4.1
    final_momentum: Share = 0.7  # section 4.1; reached after `momentum_steps`, which mnist.yaml has
    momentum_steps: Count = 125_000
    generator_init: Positive = 0.05  # weights uniform in ±0.05; mnist.yaml
    critic_init: Positive = 0.005  # mnist.yaml
    # None of what follows is in the paper.
    images: Literal["maxout", "convolutional"] = "maxout"  # what lies between the joint layer and the pixels
    width: Count = 64  # convolutional: channels of the generator's smallest maps, halved at each doubling
    critic_width: Count = 64  # convolutional: channels of the critic's smallest maps, halved towards the image
    beta1: Share = 0.0  # adam
    beta2: Share = 0.99
    r1: NonNegative = 0.0  # weight of |∇D|² on reals (Mescheder et al. 2018, arXiv 1801.04406), averaged over time
    r1_every: Count = 4  # lazily, as in StyleGAN2
    translation: Share = 0.0  # DiffAugment (Zhao et al. 2020, arXiv 2006.10738)
    cutout: Share = 0.0
    color: NonNegative = 0.0


class Generator(nn.Module):
    """latent [N, Z], label int64 [N] (None when unconditional) -> image [N, C, H, W] in [-1, 1]."""

    def __init__(self, options: CganOptions, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.latent_hidden = nn.Linear(options.latent_dim, options.latent_hidden)
        # A linear layer of a one-hot class is its row of a table; the bias is one of the row.
        self.label_hidden = nn.Embedding(num_classes, options.label_hidden) if num_classes else None
        joined = options.latent_hidden + (options.label_hidden if num_classes else 0)
        self.dropout = nn.Dropout(options.generator_dropout)
        self.growing: Growing | None = None
        if options.images == "convolutional":
            if self.label_hidden is not None:
                nn.init.normal_(self.label_hidden.weight, 0, 0.25)  # larger, and the class drowns the noise
            self.growing = Growing(joined, options.width, image_shape)
        else:
            self.hidden = nn.Linear(joined, options.hidden)
            self.pixels = nn.Linear(options.hidden, math.prod(image_shape))
            uniform_weights(self, options.generator_init)

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        if self.growing is None:
            latent = (1 + torch.erf(latent / math.sqrt(2))) / 2  # standard normal -> uniform in [0, 1]
        joined = self.latent_hidden(latent)
        if self.label_hidden is not None:
            assert label is not None, "a conditional generator needs labels"
            joined = torch.cat([joined, self.label_hidden(label)], 1)
        joined = self.dropout(F.relu(joined))
        if self.growing is not None:
            image: Tensor = self.growing(joined)
            return image
        hidden = self.dropout(F.relu(self.hidden(joined)))
        # The paper's images lie in [0, 1]; here, as for every family, in [-1, 1].
        return (torch.sigmoid(self.pixels(hidden)) * 2 - 1).view(-1, *self.image_shape)


class Growing(nn.Module):
    """Convolutions and bilinear doublings, from what is joined of noise and class to an image: [N, J] -> [N, C, H, W].

    What is joined also sets scale and shift of each batch norm; without that all samples looked alike.
    """

    def __init__(self, joined: int, width: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, self.height, self.width = image_shape
        self.doublings = count_doublings(self.height, self.width)
        # A side that is no multiple of 2**doublings is made a little too long and cut.
        self.base = (width, -(-self.height >> self.doublings), -(-self.width >> self.doublings))
        self.hidden = nn.Linear(joined, math.prod(self.base))
        widths = [max(8, width >> i) for i in range(self.doublings + 1)]
        self.convolutions, self.norms, self.modulations = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for inputs, outputs in zip([*widths, widths[-1]], [*widths[1:], widths[-1], channels], strict=True):
            self.norms.append(nn.BatchNorm2d(inputs, affine=False))
            self.modulations.append(nn.Linear(joined, 2 * inputs))
            self.convolutions.append(nn.Conv2d(inputs, outputs, 3, padding=1))

    def forward(self, joined: Tensor) -> Tensor:
        x = self.hidden(joined).view(-1, *self.base)
        layers = zip(self.norms, self.modulations, self.convolutions, strict=True)
        for i, (norm, modulation, convolution) in enumerate(layers):
            scale, shift = modulation(joined)[:, :, None, None].chunk(2, 1)
            x = convolution(F.relu(torch.addcmul(shift, norm(x), 1 + scale)))
            if i < self.doublings:
                x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return torch.tanh(x[:, :, : self.height, : self.width])


class Critic(nn.Module):
    """image [N, C, H, W] in [-1, 1], label int64 [N] (None when unconditional) -> realism logit [N]."""

    def __init__(self, options: CganOptions, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.convolutional = options.images == "convolutional"
        self.image: nn.Module
        if not self.convolutional:
            self.image = nn.Sequential(nn.Flatten(), Maxout(math.prod(image_shape), options.maxout, options.pieces))
            outputs = options.maxout
        else:
            self.image, outputs = _shrinking(options.critic_width, image_shape)
        self.label = Maxout(num_classes, options.label_maxout, options.pieces) if num_classes else None
        joined = outputs + (options.label_maxout if num_classes else 0)
        self.joint = Maxout(joined, options.joint_maxout, options.joint_pieces)
        self.realism = nn.Linear(options.joint_maxout, 1)
        self.dropout = nn.Dropout(options.critic_dropout)
        if not self.convolutional:
            uniform_weights(self, options.critic_init)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        hidden = self.image(image if self.convolutional else (image + 1) / 2)
        if self.label is not None:
            assert label is not None, "a conditional critic needs labels"
            hidden = torch.cat([hidden, self.label(F.one_hot(label, self.num_classes).to(hidden.dtype))], 1)
        logit: Tensor = self.realism(self.dropout(self.joint(self.dropout(hidden))))
        return logit.squeeze(1)


def _shrinking(widest: int, image_shape: tuple[int, int, int]) -> tuple[nn.Module, int]:
    """Strided convolutions down to sides of 4 or less, flat, and how many numbers come out."""
    inputs, height, width = image_shape
    halvings = 1
    while -(-min(height, width) >> halvings) > 4:
        halvings += 1
    layers: list[nn.Module] = []
    for left in reversed(range(halvings)):
        # 3x3 where a 4x4 would drop the last row of an odd side.
        kernel = 4 if height % 2 == 0 and width % 2 == 0 else 3
        layers += [nn.Conv2d(inputs, max(8, widest >> left), kernel, 2, 1), nn.LeakyReLU(0.2)]
        inputs, height, width = max(8, widest >> left), -(-height // 2), -(-width // 2)
    return nn.Sequential(*layers, nn.Flatten()), inputs * height * width


_SMALL: Final[dict[str, Any]] = {
    "images": "convolutional",
    "batch": 32,
    "share_fakes": True,
    "latent_dim": 64,
    "latent_hidden": 64,
    "label_hidden": 64,
    "joint_maxout": 128,
    "generator_dropout": 0.0,
    "critic_dropout": 0.0,
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "learning_rate_decay": 1.0,
    "r1": 0.005,
    "ema_half_life": 20_000.0,
    "ema_ramp": 0.25,
    "translation": 0.04,
}
"""For minutes on a CPU and some thousand images of 28 to 64 pixels. Where it leaves the paper it has the numbers with
which `augment` was found to work; docs/log.md has the trials."""


class Cgan(Family[CganOptions]):
    name = "cgan"
    summary = "conditional GAN: the class joined to the inputs, fully connected, small images"
    when = "to see what the class joined to the inputs does, and no more: little variety"
    paper = "Mirza & Osindero 2014, arXiv 1411.1784"
    conditional = True
    Options: ClassVar[type[CganOptions]] = CganOptions
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {"small": _SMALL}
    enough_steps = 20_000  # for the paper's networks; less time is better spent on the preset's

    @classmethod
    def check_shape(cls, image_shape: tuple[int, int, int]) -> None:
        super().check_shape(image_shape)
        check_fully_connected(cls.name, image_shape, ", or --family augment")

    @classmethod
    def narrower(cls, options: CganOptions) -> tuple[CganOptions, ...]:
        if options.images == "convolutional":
            return ()
        return (narrowed(options, _SMALL),)

    def generator(self) -> nn.Module:
        return Generator(self.options, self.image_shape, self.num_classes)

    def critic(self) -> nn.Module:
        return Critic(self.options, self.image_shape, self.num_classes)

    def optimizers(self, networks: Networks) -> tuple[Optimizer, Optimizer]:
        options = self.options
        if options.optimizer == "adam":
            return adam_pair(networks, options.learning_rate, (options.beta1, options.beta2))
        return (
            SGD(networks.generator.parameters(), options.learning_rate, options.momentum),
            SGD(networks.critic.parameters(), options.learning_rate, options.momentum),
        )

    def schedule(self, generator: Optimizer, critic: Optimizer, step: int, steps: int) -> None:
        options = self.options
        rate = max(options.learning_rate / options.learning_rate_decay**step, 1e-6)
        progress = min(1.0, step / options.momentum_steps)
        momentum = options.momentum + progress * (options.final_momentum - options.momentum)
        for group in (*generator.param_groups, *critic.param_groups):
            group["lr"] = rate
            if "momentum" in group:
                group["momentum"] = momentum

    def augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        options = self.options
        return diff_augment(images, AugmentPolicy(options.translation, options.cutout, options.color), generator)

    def d_loss(self, critic: nn.Module, batch: Batch) -> Losses:
        """Logistic, given the class: -log D(x|y) - log(1 - D(G(z|y)|y)) (equation 2); with `r1`, lazily |∇D(x)|²."""
        options = self.options
        real_images = self.augment(batch.real, batch.random.generator("augment reals"))
        fake_images = self.augment(batch.fake, batch.random.generator("augment fakes"))
        r1 = LazyR1(real_images, weight=options.r1, every=options.r1_every, step=batch.step)
        # One pass over both is safe: this critic has no batch statistics.
        labels = None if batch.label is None else batch.label.repeat(2)
        real, fake = critic(torch.cat([r1.images, fake_images]), labels).chunk(2)
        loss, numbers = logistic(real, fake)
        return r1.added_to(loss, real), numbers

    def g_loss(self, networks: Networks, batch: Batch) -> Losses:
        """Non-saturating: -log D(G(z|y)|y)."""
        fake = self.augment(batch.fake, batch.random.generator("augment for G"))
        return F.softplus(-networks.critic(fake, batch.label)).mean(), {}
