"""InfoGAN: Chen et al. 2016, arXiv 1606.03657: categories and continuous codes that a generator finds by itself.

Part of the latent is a code c, and the generator must make images from which it can be read again: a network Q, on the
critic's trunk, is asked for it, and -log Q(c | G(z, c)) is added to the losses of both (section 4, and L1 in equation
5). Without any label a category so comes to mean something, such as a digit, and a continuous code a way to vary, such
as slant. Architecture and numbers are those of appendix C.1 (MNIST) and of the authors' code (openai/InfoGAN).

Which category is which class is not known in training. `training/codes.py` finds it afterwards, and `by_label` then
makes a generator that is asked by label.

Not in the paper, and off by default: `clustering`. The paper's objective asks of the categories that they be
told apart, not that they be classes: on 3,500 digits two categories often share a digit, or split one by its slant. So
Q may also learn from the real images themselves, still without labels: a real image and a warp of it belong to one
category, and all categories are alike often (Hu et al. 2017, IMSAT, arXiv 1702.08720, equations 3 to 6).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from augmint.errors import UsageError
from training.diffaugment import WarpPolicy, warp
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
from training.families.parts import adam_pair, count_doublings, logistic, normal_weights

__all__ = ["Infogan", "InfoganOptions"]

_LEAK: Final = 0.1  # C
_BARRED: Final = -100.0  # added to the score of a category: far below every other

_SMALL: Final[dict[str, Any]] = {
    # For some hundred steps at 28 to 32 pixels, with `clustering`, which the paper does not have: docs/log.md.
    # The critic learns at the generator's rate, because Q is a part of it.
    "width": 32,
    "hidden": 256,
    "critic_learning_rate": 1e-3,
    "clustering": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class InfoganOptions(FamilyOptions):
    """The defaults are the paper's for MNIST (appendix C.1), or the authors' code's (launchers/run_mnist_exp.py)."""

    latent_dim: Count = 74  # `categories` + `continuous` + 62 of noise: C.1
    categories: Count = 10  # C.1
    continuous: Count = 2  # C.1
    batch: Count = 128  # the code
    width: Count = 64  # channels of the largest maps, in both networks: C.1
    hidden: Count = 1024  # of the fully connected layer in each: C.1
    q_hidden: Count = 128  # of Q's own layer: C.1
    learning_rate: Positive = 1e-3  # of the generator: C.1
    critic_learning_rate: Positive = 2e-4  # C.1
    beta1: Share = 0.5  # the code
    beta2: Share = 0.999  # Adam's default
    information: NonNegative = 1.0  # λ of the categories: C.1
    continuous_information: NonNegative = 1.0  # λ of the continuous codes: the code has one λ for both
    clustering: NonNegative = 0.0  # weight of what Q learns from reals; not in the paper
    balance: NonNegative = 4.0  # of the entropy of the categories' shares in it: μ of IMSAT
    warp: NonNegative = 1.0  # scales the five below, which say what does not change a category
    warp_rotation: NonNegative = 15.0  # degrees
    warp_zoom: NonNegative = 0.15
    warp_shear: NonNegative = 0.2
    warp_shift: NonNegative = 0.06
    warp_elastic: NonNegative = 0.065


class Generator(nn.Module):
    """latent [N, Z] -> image [N, C, H, W] in [-1, 1].

    The paper draws a category and uniform numbers; here they are functions of a standard normal latent, by which every
    bundle is asked: the category is the place of the largest of the first numbers, and 2Φ(z) - 1 = erf(z / √2) is
    uniform in (-1, 1). The paper's sigmoid is a tanh here, for images in [-1, 1].
    """

    def __init__(self, options: InfoganOptions, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.image_shape, self.categories = image_shape, options.categories
        channels, height, width = image_shape
        doublings = count_doublings(height, width)
        widths = [options.width << i for i in reversed(range(doublings))]
        # A side that is no multiple of 2**doublings is made a little too long and cut.
        self.base = (widths[0], -(-height >> doublings), -(-width >> doublings))
        self.one_hot: Tensor
        self.register_buffer("one_hot", torch.eye(options.categories), persistent=False)
        size = math.prod(self.base)
        self.project = nn.Sequential(
            nn.Linear(options.latent_dim, options.hidden, bias=False),
            nn.BatchNorm1d(options.hidden),
            nn.ReLU(),
            nn.Linear(options.hidden, size, bias=False),
            nn.BatchNorm1d(size),
            nn.ReLU(),
        )
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1), nn.Tanh())
        self.apply(normal_weights)  # the authors' code

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        category, uniform = codes(latent, self.categories)
        x = self.project(torch.cat([self.one_hot[category], uniform], 1))
        _, height, width = self.image_shape
        image: Tensor = self.layers(x.view(-1, *self.base))[:, :, :height, :width]
        return image


class Critic(nn.Module):
    """image [N, C, H, W] -> realism logit [N]; with `read_codes`, also Q's answer.

    Q's answer is a pair: category logits [N, K], and means [N, c] of Gaussians of unit variance, as the authors' code
    fixes it.
    """

    def __init__(self, options: InfoganOptions, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = image_shape
        halvings = count_doublings(height, width)
        layers: list[nn.Module] = [nn.Conv2d(channels, options.width, 4, 2, 1), nn.LeakyReLU(_LEAK)]
        outputs = options.width
        for _ in range(halvings - 1):
            layers += [nn.Conv2d(outputs, 2 * outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * outputs)]
            layers += [nn.LeakyReLU(_LEAK)]
            outputs *= 2
        flat = outputs * (height >> halvings) * (width >> halvings)
        layers += [nn.Flatten(), nn.Linear(flat, options.hidden, bias=False), nn.BatchNorm1d(options.hidden)]
        self.trunk = nn.Sequential(*layers, nn.LeakyReLU(_LEAK))
        self.realism = nn.Linear(options.hidden, 1)
        self.q = nn.Sequential(
            nn.Linear(options.hidden, options.q_hidden, bias=False),
            nn.BatchNorm1d(options.q_hidden),
            nn.LeakyReLU(_LEAK),
            nn.Linear(options.q_hidden, options.categories + options.continuous),
        )
        self.sizes = (options.categories, options.continuous)
        self.apply(normal_weights)  # the authors' code

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, read_codes: bool = False
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        features = self.trunk(image)
        logit: Tensor = self.realism(features).squeeze(1)
        if not read_codes:
            return logit
        category, means = self.q(features).float().split(self.sizes, 1)
        return logit, (category, means)


class GeneratorByLabel(nn.Module):
    """latent [N, Z], label int64 [N] -> image [N, C, H, W]: the category is the label's; where it has several, the one
    among them that the latent says, so that each comes alike often."""

    def __init__(self, generator: nn.Module, members: Tensor) -> None:
        super().__init__()
        self.generator = generator
        self.barred: Tensor
        self.register_buffer("barred", torch.where(members, 0.0, _BARRED))

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        scores, rest = latent.split([self.barred.shape[1], latent.shape[1] - self.barred.shape[1]], 1)
        image: Tensor = self.generator(torch.cat([scores + self.barred[label], rest], 1))
        return image


class CriticByLabel(nn.Module):
    """image [N, C, H, W], label int64 [N] -> realism as an image of that label, a logit [N].

    log p(x|y)/q(x|y) = log p(x)/q(x) + log p(y|x), up to a constant where all labels are alike often; the second term
    is Q's (compare Miyato & Koyama 2018, arXiv 1802.05637, equation 3).
    """

    def __init__(self, critic: nn.Module, members: Tensor) -> None:
        super().__init__()
        self.critic = critic
        self.barred: Tensor
        self.register_buffer("barred", torch.where(members, 0.0, _BARRED))

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        logit, (category, _) = self.critic(image, read_codes=True)
        own: Tensor = torch.logsumexp(category.log_softmax(1) + self.barred[label], 1)
        return logit + own


class Infogan(Family[InfoganOptions]):
    name = "infogan"
    summary = "InfoGAN: finds categories and ways to vary without labels; sides from 8 to 256 pixels"
    when = "to find classes and ways to vary in images without labels"
    paper = "Chen et al. 2016, arXiv 1606.03657"
    conditional = False
    finds_categories = True
    logistic = False  # its loss holds what Q missed, too
    Options: ClassVar[type[InfoganOptions]] = InfoganOptions
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {"small": _SMALL}
    enough_steps = 3000  # of the paper's form, whose authors take 5,000: with fewer, `narrower` finds classes sooner

    def __init__(self, options: InfoganOptions, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(options, image_shape, num_classes)
        needed = options.categories + options.continuous
        if options.latent_dim < needed:
            raise UsageError(
                f"family 'infogan': --set latent_dim={options.latent_dim} does not hold {options.categories} "
                f"categories and {options.continuous} continuous codes: give at least {needed}."
            )

    @classmethod
    def narrower(cls, options: InfoganOptions) -> tuple[InfoganOptions, ...]:
        if options.width <= 32:
            return ()
        return (replace(options, **_SMALL),)

    def generator(self) -> nn.Module:
        return Generator(self.options, self.image_shape)

    def critic(self) -> nn.Module:
        return Critic(self.options, self.image_shape)

    def optimizers(self, networks: Networks) -> tuple[Optimizer, Optimizer]:
        options = self.options
        return adam_pair(networks, options.learning_rate, (options.beta1, options.beta2), options.critic_learning_rate)

    def d_loss(self, critic: nn.Module, batch: Batch) -> Losses:
        """Logistic: -log D(x) - log(1 - D(G(z))), and -λ log Q(c | G(z)) of the codes c (equation 5). With
        `clustering`, Q is also to put a real and its warp into one category, and as many reals into each."""
        # Reals and fakes in passes of their own: in one batch they would share batch norm's statistics.
        real, (category, _) = critic(batch.real, read_codes=True)
        fake, answer = critic(batch.fake, read_codes=True)
        missed, numbers = self._missed(answer, batch)
        loss, judged = logistic(real, fake)
        loss = loss + missed
        if self.options.clustering > 0:
            warped = warp(batch.real, self._policy(), batch.random.generator("warp for Q"))
            _, (other, _) = critic(warped, read_codes=True)
            clustering = clustering_loss(category, other, self.options.balance)
            loss = loss + self.options.clustering * clustering
            numbers["clustering"] = clustering.detach()
        return loss, judged | numbers

    def g_loss(self, networks: Networks, batch: Batch) -> Losses:
        """Non-saturating: -log D(G(z)), and -λ log Q(c | G(z)) of the codes c (equation 5)."""
        fake, answer = networks.critic(batch.fake, read_codes=True)
        missed, numbers = self._missed(answer, batch)
        return F.softplus(-fake).mean() + missed, numbers

    def _missed(self, answer: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """-λ log Q(c | x), up to a constant, of the fakes: equation 5 without the entropy of c, which is fixed."""
        assert batch.latent is not None
        options, (logits, means) = self.options, answer
        category, uniform = codes(batch.latent, options.categories)
        wrong = F.cross_entropy(logits, category)
        off = 0.5 * (means - uniform[:, : options.continuous]).square().sum(1).mean()
        return options.information * wrong + options.continuous_information * off, {
            "missed category": wrong.detach(),
            "missed continuous": off.detach(),
        }

    def _policy(self) -> WarpPolicy:
        options = self.options
        return WarpPolicy(
            rotation=options.warp * options.warp_rotation,
            zoom=options.warp * options.warp_zoom,
            shear=options.warp * options.warp_shear,
            shift=options.warp * options.warp_shift,
            elastic=options.warp * options.warp_elastic,
        )

    @property
    def categories(self) -> int:
        return self.options.categories

    def categories_of(self, critic: nn.Module, images: Tensor) -> Tensor:
        _, (logits, _) = critic(images, read_codes=True)
        found: Tensor = logits.argmax(1)
        return found

    def generator_by_label(self, generator: nn.Module, members: Tensor) -> nn.Module:
        return GeneratorByLabel(generator, members)

    def critic_by_label(self, critic: nn.Module, members: Tensor) -> nn.Module:
        return CriticByLabel(critic, members)


def codes(latent: Tensor, categories: int) -> tuple[Tensor, Tensor]:
    """latent [N, Z] -> category int64 [N], and numbers in (-1, 1), [N, Z - K]: the continuous codes, then noise."""
    scores, rest = latent[:, :categories], latent[:, categories:]
    return scores.argmax(1), torch.erf(rest * 0.5**0.5)


def clustering_loss(logits: Tensor, warped: Tensor, balance: float) -> Tensor:
    """Hu et al. 2017: cross-entropy between an image's categories and its warp's, less the entropy of the shares.

    Both are category logits [N, K]. The cross-entropy is their H(Y|X) + R_SAT. A constant makes 0 the least.
    """
    log_p, log_q = logits.log_softmax(1), warped.log_softmax(1)
    p = log_p.exp()
    shares = (p.mean(0) + log_q.exp().mean(0)) / 2
    entropy = -(shares * shares.clamp_min(1e-8).log()).sum()
    return -(p * log_q).sum(1).mean() + balance * (math.log(logits.shape[1]) - entropy)
