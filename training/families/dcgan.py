"""DCGAN: Radford, Metz & Chintala 2015, arXiv 1511.06434.

Convolutional throughout, no pooling, batch norm except at the generator's output and the critic's input, ReLU and tanh
in the generator, LeakyReLU 0.2 in the critic (section 3). Two choices in which the paper's many clones differ are
options: the critic's head (one logit, or two logits and a softmax) and how the generator grows its maps (a transposed
convolution, or nearest-neighbour upsampling and a convolution, which leaves no checkerboard).

Kernels are 4x4 (3x3 after upsampling) where the paper has 5x5: with stride 2 every output pixel then sees equally many
inputs (Odena, Dumoulin & Olah 2016, "Deconvolution and Checkerboard Artifacts"). The paper's Z is uniform, so the
standard normal latents of all families here are mapped to the uniform law first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim import Optimizer

from augmint.errors import UsageError
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
from training.families.parts import adam_pair, logistic, narrowed, normal_weights

__all__ = ["Dcgan", "DcganOptions"]


@dataclass(frozen=True, kw_only=True)
class DcganOptions(FamilyOptions):
    latent_dim: Count = 100  # figure 1
    latent_law: Literal["uniform", "normal"] = "uniform"  # figure 1; on [-1, 1], as in the authors' code
    batch: Count = 128  # section 4
    width: Count = 64  # channels of the largest maps; the paper's code has 64 (its figure 1 shows 128)
    head: Literal["one_logit", "two_logits"] = "one_logit"
    upsampling: Literal["transposed", "upsample_conv"] = "transposed"
    spectral_norm: bool = False  # on the critic, instead of its batch norm (Miyato et al. 2018): no late collapse
    learning_rate: Positive = 2e-4  # section 4
    beta1: Share = 0.5  # section 4
    beta2: Share = 0.999  # Adam's default
    translation: Share = 0.0  # DiffAugment, not in the paper: 0.125 helps under a thousand images
    cutout: Share = 0.0
    color: NonNegative = 0.0


class Generator(nn.Module):
    """latent [N, Z] -> image [N, C, H, W] in [-1, 1]."""

    def __init__(self, options: DcganOptions, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.uniform = options.latent_law == "uniform"
        channels, height, width = image_shape
        doublings = _halvings(height, width)
        self.base = (options.width << (doublings - 1), height >> doublings, width >> doublings)
        self.project = nn.Linear(options.latent_dim, self.base[0] * self.base[1] * self.base[2], bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(self.base[0]), nn.ReLU()]
        inputs = self.base[0]
        for _ in range(doublings - 1):
            layers += [_grow(options, inputs, inputs // 2, bias=False), nn.BatchNorm2d(inputs // 2), nn.ReLU()]
            inputs //= 2
        layers += [_grow(options, inputs, channels, bias=True), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.apply(_normal)

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        if self.uniform:
            latent = torch.erf(latent / math.sqrt(2))  # 2Φ(z) - 1
        image: Tensor = self.layers(self.project(latent).view(-1, *self.base))
        return image


class Critic(nn.Module):
    """image [N, C, H, W] in [-1, 1] -> realism logit [N].

    With two logits the difference l1 - l0 is returned: softmax cross-entropy over the pair is exactly the logistic loss
    of the difference.
    """

    def __init__(self, options: DcganOptions, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = image_shape
        halvings = _halvings(height, width)
        layers: list[nn.Module] = [nn.Conv2d(channels, options.width, 4, 2, 1), nn.LeakyReLU(0.2)]
        outputs = options.width
        for _ in range(halvings - 1):
            layers.append(nn.Conv2d(outputs, outputs * 2, 4, 2, 1, bias=options.spectral_norm))
            outputs *= 2
            if not options.spectral_norm:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers)
        logits = 2 if options.head == "two_logits" else 1
        self.head = nn.Linear(outputs * (height >> halvings) * (width >> halvings), logits)
        self.apply(_normal)
        if options.spectral_norm:  # of weights that have their values: it hides them and begins to estimate their norms
            for layer in list(self.modules()):
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    spectral_norm(layer)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self.layers(image).flatten(1))
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0]


# Where only some thousand steps fit, small batches, a high rate and upsampling go further than the paper's numbers
# (docs/log.md).
_SMALL: Final[Mapping[str, Any]] = {"width": 32, "batch": 64, "learning_rate": 1e-3, "upsampling": "upsample_conv"}
_CPU: Final[Mapping[str, Any]] = {**_SMALL, "width": 16, "learning_rate": 2e-3}


class Dcgan(Family[DcganOptions]):
    name = "dcgan"
    summary = "DCGAN: convolutional, unconditional; sides that are multiples of 4"
    when = "without labels, as the plain baseline, or for its critic's features"
    paper = "Radford, Metz & Chintala 2015, arXiv 1511.06434"
    conditional = False
    Options: ClassVar[type[DcganOptions]] = DcganOptions
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {"small": _SMALL, "cpu": _CPU}

    @classmethod
    def check_shape(cls, image_shape: tuple[int, int, int]) -> None:
        super().check_shape(image_shape)
        _, height, width = image_shape
        if height % 4 or width % 4:
            raise UsageError(
                f"family 'dcgan' doubles its maps, so sides must be multiples of 4, not {height}x{width}: "
                f"use --resolution {max(8, round(height / 4) * 4)}x{max(8, round(width / 4) * 4)}."
            )

    @classmethod
    def narrower(cls, options: DcganOptions) -> tuple[DcganOptions, ...]:
        # The paper's numbers are kept where there is time for them.
        return tuple(narrowed(options, preset) for preset in (_SMALL, _CPU) if preset["width"] < options.width)

    def generator(self) -> nn.Module:
        return Generator(self.options, self.image_shape)

    def critic(self) -> nn.Module:
        return Critic(self.options, self.image_shape)

    def optimizers(self, networks: Networks) -> tuple[Optimizer, Optimizer]:
        options = self.options
        return adam_pair(networks, options.learning_rate, (options.beta1, options.beta2))

    def augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        options = self.options
        return diff_augment(images, AugmentPolicy(options.translation, options.cutout, options.color), generator)

    def d_loss(self, critic: nn.Module, batch: Batch) -> Losses:
        """Logistic: -log D(x) - log(1 - D(G(z)))."""
        # Two passes: reals and fakes in one batch would share batch norm's statistics and give themselves away.
        real = critic(self.augment(batch.real, batch.random.generator("augment reals")), batch.label)
        fake = critic(self.augment(batch.fake, batch.random.generator("augment fakes")), batch.label)
        return logistic(real, fake)

    def g_loss(self, networks: Networks, batch: Batch) -> Losses:
        """Non-saturating: -log D(G(z))."""
        fake = networks.critic(self.augment(batch.fake, batch.random.generator("augment for G")), batch.label)
        return F.softplus(-fake).mean(), {}


def _halvings(height: int, width: int) -> int:
    """How often both sides halve before one is odd or under 4: 28 -> 7 (2), 32 -> 4 (3), 64 -> 4 (4)."""
    count = 0
    while height % 2 == 0 and width % 2 == 0 and min(height, width) >= 8:
        height, width, count = height // 2, width // 2, count + 1
    return count


def _grow(options: DcganOptions, inputs: int, outputs: int, *, bias: bool) -> nn.Module:
    if options.upsampling == "transposed":
        return nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=bias)
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(inputs, outputs, 3, 1, 1, bias=bias))


def _normal(module: nn.Module) -> None:
    """N(0, 0.02) for weights (section 4); batch norm's scale around 1, as in the authors' code."""
    if isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
    else:
        normal_weights(module)
