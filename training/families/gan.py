"""The first GAN: Goodfellow et al. 2014, "Generative Adversarial Networks", arXiv 1406.2661.

Fully connected throughout: a ReLU generator with a sigmoid output, and a discriminator of maxout units with dropout
(Goodfellow et al. 2013, arXiv 1302.4389), trained by stochastic gradient descent with momentum. The numbers are those
of the authors' `mnist.yaml` (github.com/goodfeli/adversarial), whose latents are standard normal and whose generator
starts from the images' mean. It is the smallest honest family: it shows the idea and is a baseline, no more.

Two losses for the generator. In the paper's minimax game it minimises log(1 - D(G(z))), whose gradient vanishes while D
rejects its samples with confidence; section 3 advises to maximise log D(G(z)) instead, the non-saturating loss, as the
authors' code does. Both have the same fixed point, where D is 1/2 everywhere: `p_real` and `p_fake` log D's means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from training.families.base import Batch, Count, Family, FamilyOptions, Losses, Networks, Positive, Share
from training.families.parts import Maxout, adam_pair, check_fully_connected, logistic, narrowed, uniform_weights

__all__ = ["Gan", "GanOptions"]


@dataclass(frozen=True, kw_only=True)
class GanOptions(FamilyOptions):
    latent_dim: Count = 100  # mnist.yaml
    batch: Count = 100  # mnist.yaml
    critic_steps: Count = 1  # k; "we used k = 1, the least expensive option": algorithm 1
    loss: Literal["non_saturating", "minimax"] = "non_saturating"  # section 3's advice and the authors' code
    hidden: Count = 1200  # generator, both layers; mnist.yaml
    maxout: Count = 240  # discriminator, both layers; mnist.yaml
    pieces: Count = 5  # linear pieces a maxout unit; mnist.yaml
    input_dropout: Share = 0.2  # mnist.yaml keeps 0.8 of the pixels …
    dropout: Share = 0.5  # … and half of the hidden units
    optimizer: Literal["sgd", "adam"] = "sgd"  # mnist.yaml; with "adam" the momenta are its beta1
    learning_rate: Positive = 0.1  # mnist.yaml
    critic_learning_rate: Positive = 0.05  # mnist.yaml has 0.1 and its cost halves the discriminator's loss: the same
    learning_rate_decay: Positive = 1.000004  # divides the rate after each step, down to 1e-6; mnist.yaml
    momentum: Share = 0.5  # at the start; mnist.yaml
    final_momentum: Share = 0.7  # reached after `momentum_steps`; mnist.yaml has 250 epochs of 500 steps
    momentum_steps: Count = 125_000
    generator_init: Positive = 0.05  # weights uniform in ±0.05; mnist.yaml
    critic_init: Positive = 0.005  # mnist.yaml
    marginal_bias: bool = True  # the first sample is the images' mean; mnist.yaml's init_sigmoid_bias_from_marginals


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
        )
        self.output = nn.Linear(options.hidden, channels * height * width)
        uniform_weights(self, options.generator_init)

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        # The paper's images lie in [0, 1]; here, as for every family, in [-1, 1].
        pixels = torch.sigmoid(self.output(self.layers(latent))) * 2 - 1
        return pixels.view(-1, *self.image_shape)


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
        uniform_weights(self, options.critic_init)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        logit: Tensor = self.layers((image.flatten(1) + 1) / 2)
        return logit.squeeze(1)


# For minutes on a CPU and some thousand images (docs/log.md): the paper's rule wants some ten thousand steps, and Adam
# at 1e-3 got further in 2,000; a slower discriminator let the generator collapse, more of its dropout did not help.
_SMALL: Final[Mapping[str, Any]] = {
    "hidden": 512,
    "maxout": 128,
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "momentum": 0.5,
    "final_momentum": 0.5,
    "critic_init": 0.03,
}
_CPU: Final[Mapping[str, Any]] = {**_SMALL, "hidden": 256, "maxout": 64, "batch": 64}


class Gan(Family[GanOptions]):
    name = "gan"
    summary = "Goodfellow's first GAN: fully connected, unconditional, small images"
    when = "to see the idea, on small images"
    paper = "Goodfellow et al. 2014, arXiv 1406.2661"
    conditional = False
    Options: ClassVar[type[GanOptions]] = GanOptions
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {"small": _SMALL, "cpu": _CPU}
    enough_steps = 4000

    @classmethod
    def narrower(cls, options: GanOptions) -> tuple[GanOptions, ...]:
        return tuple(narrowed(options, preset) for preset in (_SMALL, _CPU) if preset["hidden"] < options.hidden)

    @classmethod
    def check_shape(cls, image_shape: tuple[int, int, int]) -> None:
        super().check_shape(image_shape)
        check_fully_connected(cls.name, image_shape, ", or --family dcgan")

    def generator(self) -> nn.Module:
        return Generator(self.options, self.image_shape)

    def critic(self) -> nn.Module:
        return Critic(self.options, self.image_shape)

    def optimizers(self, networks: Networks) -> tuple[Optimizer, Optimizer]:
        options = self.options
        if options.optimizer == "adam":
            return adam_pair(networks, options.learning_rate, (options.momentum, 0.999), options.critic_learning_rate)
        return (
            SGD(networks.generator.parameters(), options.learning_rate, options.momentum),
            SGD(networks.critic.parameters(), options.critic_learning_rate, options.momentum),
        )

    def schedule(self, generator: Optimizer, critic: Optimizer, step: int, steps: int) -> None:
        options = self.options
        decay = options.learning_rate_decay**step
        progress = min(1.0, step / options.momentum_steps)
        momentum = options.momentum + progress * (options.final_momentum - options.momentum)
        for optimizer, rate in ((generator, options.learning_rate), (critic, options.critic_learning_rate)):
            for group in optimizer.param_groups:
                group["lr"] = max(rate / decay, 1e-6)
                if options.optimizer == "adam":
                    group["betas"] = (momentum, group["betas"][1])
                else:
                    group["momentum"] = momentum

    @torch.no_grad()
    def prepare(self, networks: Networks, images: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
        """Sets the generator's output biases so that the sigmoid of them is the images' mean."""
        if self.options.marginal_bias:
            assert isinstance(networks.generator, Generator)
            # In chunks: a whole data set as float32 would be four times its bytes.
            mean = torch.stack([chunk.float().sum(0) for chunk in images.split(1024)]).sum(0).div(255 * len(images))
            # A quarter of a grey level from black and white, which it rounds to: the sigmoid has a gradient there.
            networks.generator.output.bias.copy_(mean.clamp(0.25 / 255, 1 - 0.25 / 255).logit().flatten())
        return {}

    def d_loss(self, critic: nn.Module, batch: Batch) -> Losses:
        """Logistic: -log D(x) - log(1 - D(G(z))) (equation 1)."""
        real, fake = critic(batch.real, batch.label), critic(batch.fake, batch.label)
        loss, numbers = logistic(real, fake)
        chances = {"p_real": real.detach().sigmoid().mean(), "p_fake": fake.detach().sigmoid().mean()}
        return loss, numbers | chances

    def g_loss(self, networks: Networks, batch: Batch) -> Losses:
        """Non-saturating: -log D(G(z)); with `loss` "minimax", log(1 - D(G(z))), whose gradient is weak at first
        (section 3)."""
        fake = networks.critic(batch.fake, batch.label)
        # With D the sigmoid of the logit, log(1 - D) is -softplus(logit), and log D is -softplus(-logit).
        return (-F.softplus(fake) if self.options.loss == "minimax" else F.softplus(-fake)).mean(), {}
