"""`cnn`: the convolutional GAN of the Keras tutorials and Kaggle notebooks.

The generator is a dense layer, reshaped, then upsampling and convolutions to a tanh; the discriminator strided
convolutions, LeakyReLU and dropout; both learn by RMSprop. The numbers are those of Rowel Atienza's "GAN by Example
using Keras on Tensorflow Backend" (2017, Towards Data Science; roatienza/Deep-Learning-Experiments), one of the most
copied. Two things differ: its sigmoid over [0, 1] is a tanh over [-1, 1], the same function; its decay of the rates, by
6e-8 and 3e-8 a step, which is under a thousandth over its 10,000 steps, is left out.

Two habits of that literature, from elsewhere, are options:

- before the first step the discriminator learns to tell real images from the untrained generator's, and its accuracy
  is printed (Tim O'Shea's KerasGAN, 2016, osh/KerasGAN: 10,000 of each, one epoch). Here it is measured on images that
  were held back, where the notebooks measure it on those just learned
- rates fall in steps, as Keras's `LearningRateScheduler` is mostly shown (Jason Brownlee, "Using Learning Rate
  Schedules for Deep Learning Models in Python with Keras": halved every 10 of 50 epochs)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Final, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer, RMSprop

from training.families.base import Batch, Count, Family, FamilyOptions, Losses, Networks, Positive, Share
from training.families.parts import count_doublings, logistic, narrowed
from training.randomness import seed_of

__all__ = ["Cnn", "CnnOptions"]

_HELD_BACK: Final = 5  # One in so many images of the pre-training is for its accuracy.


@dataclass(frozen=True, kw_only=True)
class CnnOptions(FamilyOptions):
    """Atienza's where nothing else is said."""

    latent_dim: Count = 100
    batch: Count = 256
    width: Count = 256  # channels of the generator's smallest maps, halved at each doubling and once more at full size
    critic_width: Count = 64  # channels of the discriminator's largest maps, doubled at each layer, up to eightfold
    kernel: Literal[3, 5] = 5
    dropout: Share = 0.4  # after each convolution of the discriminator; notebooks have 0.3 to 0.6
    generator_dropout: Share = 0.4  # after the dense layer, while training alone
    learning_rate: Positive = 1e-4  # the generator's, half the discriminator's
    critic_learning_rate: Positive = 2e-4
    rho: Share = 0.9  # RMSprop's memory of squared gradients: Keras's default
    rate_drop: Share = 0.5  # what multiplies both rates … (Brownlee)
    rate_drops: Annotated[int, Field(ge=0)] = 4  # … so often, evenly over the run; 0 leaves them alone (Brownlee)
    pretrain_images: Annotated[int, Field(ge=0)] = 500  # real ones, and as many generated; 0 leaves it out
    pretrain_epochs: Count = 1  # O'Shea
    pretrain_batch: Count = 32  # `fit`'s default in Keras


class Generator(nn.Module):
    """latent [N, Z] -> image [N, C, H, W] in [-1, 1]."""

    def __init__(self, options: CnnOptions, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.image_shape = image_shape
        channels, height, width = image_shape
        doublings = count_doublings(height, width)
        widths = [max(8, options.width >> i) for i in range(doublings + 2)]
        # A side that is no multiple of 2**doublings is made a little too long and cut.
        self.base = (widths[0], -(-height >> doublings), -(-width >> doublings))
        flat = math.prod(self.base)
        self.project = nn.Sequential(
            nn.Linear(options.latent_dim, flat),
            _norm(nn.BatchNorm1d, flat),
            nn.ReLU(),
            nn.Dropout(options.generator_dropout),
        )
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            if i < doublings:
                layers.append(nn.Upsample(scale_factor=2))
            layers += [_conv(inputs, outputs, options.kernel), _norm(nn.BatchNorm2d, outputs), nn.ReLU()]
        layers += [_conv(widths[-1], channels, options.kernel), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.apply(_glorot)

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        # The tutorials draw from the uniform law on [-1, 1]: 2Φ(z) - 1 of a standard normal z.
        uniform = torch.erf(latent / math.sqrt(2))
        _, height, width = self.image_shape
        image: Tensor = self.layers(self.project(uniform).view(-1, *self.base))
        return image[:, :, :height, :width]


class Critic(nn.Module):
    """image [N, C, H, W] in [-1, 1] -> realism logit [N]."""

    def __init__(self, options: CnnOptions, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        inputs, height, width = image_shape
        outputs = options.critic_width
        layers: list[nn.Module] = []
        last = False
        while not last:
            last = min(height, width) <= 4  # The last convolution leaves the size as it is.
            stride = 1 if last else 2
            layers += [_conv(inputs, outputs, options.kernel, stride), nn.LeakyReLU(0.2), nn.Dropout(options.dropout)]
            height, width = -(-height // stride), -(-width // stride)
            inputs, outputs = outputs, min(outputs * 2, options.critic_width * 8)
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(inputs * height * width, 1)
        self.apply(_glorot)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        logit: Tensor = self.head(self.layers(image).flatten(1))
        return logit.squeeze(1)


# For minutes on a CPU (docs/log.md): 3x3 kernels, small batches at higher rates, which fall later.
_SMALL: Final[Mapping[str, Any]] = {
    "width": 64,
    "critic_width": 32,
    "kernel": 3,
    "batch": 32,
    "learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "rate_drops": 2,
}
# The narrow generator has no channels to drop, and the narrow discriminator fewer.
_CPU: Final[Mapping[str, Any]] = {**_SMALL, "width": 32, "critic_width": 16, "generator_dropout": 0.0, "dropout": 0.3}


class Cnn(Family[CnnOptions]):
    name = "cnn"
    summary = "the Keras tutorials' GAN: upsampling, dropout, RMSprop, pre-trained critic; unconditional"
    when = "to see what the tutorials' recipe does, upsampling and dropout instead of batch norm in D"
    paper = "R. Atienza 2017, GAN by Example using Keras on Tensorflow Backend, Towards Data Science"
    conditional = False
    Options: ClassVar[type[CnnOptions]] = CnnOptions
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {"small": _SMALL, "cpu": _CPU}

    @classmethod
    def narrower(cls, options: CnnOptions) -> tuple[CnnOptions, ...]:
        return tuple(narrowed(options, preset) for preset in (_SMALL, _CPU) if preset["width"] < options.width)

    def generator(self) -> nn.Module:
        return Generator(self.options, self.image_shape)

    def critic(self) -> nn.Module:
        return Critic(self.options, self.image_shape)

    def optimizers(self, networks: Networks) -> tuple[Optimizer, Optimizer]:
        options = self.options
        return (
            RMSprop(networks.generator.parameters(), options.learning_rate, options.rho, eps=1e-7),
            RMSprop(networks.critic.parameters(), options.critic_learning_rate, options.rho, eps=1e-7),
        )

    def schedule(self, generator: Optimizer, critic: Optimizer, step: int, steps: int) -> None:
        options = self.options
        factor = options.rate_drop ** min(options.rate_drops, step * (options.rate_drops + 1) // steps)
        for optimizer, rate in ((generator, options.learning_rate), (critic, options.critic_learning_rate)):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor

    def prepare(self, networks: Networks, images: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
        """Pre-trains the critic on reals and the untrained generator's images; its accuracy on a held-back fifth."""
        options = self.options
        count = min(options.pretrain_images, len(images))
        held = count // _HELD_BACK
        if not held:
            return {}
        draws = torch.Generator().manual_seed(seed_of(seed, "pre-training"))
        torch.manual_seed(seed_of(seed, "pre-training's dropout"))
        device = images.device
        chosen = torch.randperm(len(images), generator=draws)[:count]
        real = images[chosen.to(device)].float().div(127.5).sub(1)
        latent = torch.randn(count, options.latent_dim, generator=draws).to(device)
        networks.generator.eval()  # as Keras's `predict`
        with torch.no_grad():
            fake = torch.cat([networks.generator(part) for part in latent.split(options.batch)])

        critic = networks.critic
        optimizer = RMSprop(critic.parameters(), options.critic_learning_rate, options.rho, eps=1e-7)
        before = _accuracy(critic, real[:held], fake[:held])
        # One set of both kinds, shuffled in each epoch: batches hold some of each.
        x = torch.cat([real[held:], fake[held:]])
        y = torch.cat([torch.ones(count - held), torch.zeros(count - held)]).to(device)
        critic.train()
        for _ in range(options.pretrain_epochs):
            for rows in torch.randperm(len(x), generator=draws).to(device).split(options.pretrain_batch):
                loss = F.binary_cross_entropy_with_logits(critic(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        optimizer.zero_grad()
        return {
            "accuracy before pre-training": before,
            "pre-training accuracy": _accuracy(critic, real[:held], fake[:held]),
        }

    def d_loss(self, critic: nn.Module, batch: Batch) -> Losses:
        """Logistic: -log D(x) - log(1 - D(G(z)))."""
        # One pass over both, as in the tutorials: this critic has no batch statistics.
        real, fake = critic(torch.cat([batch.real, batch.fake])).chunk(2)
        return logistic(real, fake)

    def g_loss(self, networks: Networks, batch: Batch) -> Losses:
        """Non-saturating: -log D(G(z))."""
        return F.softplus(-networks.critic(batch.fake)).mean(), {}


@torch.no_grad()
def _accuracy(critic: nn.Module, real: Tensor, fake: Tensor) -> float:
    """Share of images that are on the right side of one half."""
    critic.eval()
    right = (critic(real) > 0).sum() + (critic(fake) <= 0).sum()
    return float(right) / (len(real) + len(fake))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)


def _norm(kind: type[nn.BatchNorm1d] | type[nn.BatchNorm2d], features: int) -> nn.Module:
    """Batch norm with Atienza's momentum of 0.9, which torch calls 0.1, and Keras's epsilon."""
    return kind(features, eps=1e-3, momentum=0.1)


def _glorot(module: nn.Module) -> None:
    """Keras's defaults: Glorot's uniform weights, no biases."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
