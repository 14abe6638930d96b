"""Semi-supervised GAN: Salimans et al. 2016, "Improved Techniques for Training GANs", arXiv 1606.03498, section 5.

The critic tells K classes apart, and fakes from all of them: it has K logits, that of "fake" is fixed at 0, and so
log Σ exp of the K is the realism logit. It learns classes from labelled images, and what images look like from all
images and the fakes; that is worth most where few images have a label. The generator matches the mean of the critic's
last hidden layer on reals (feature matching, section 3.1): its pictures are poor, because a good classifier comes out
of a generator that misses the data (section 6.1 has the one or the other, never both). What is exported for use is the
critic.

Which labels the critic may learn: all there are, or the first `labels_per_class` of each class; images of a class
called "unlabelled" have none. Networks and numbers are those of the authors' MNIST code
(openai/improved-gan, mnist_svhn_cifar10/train_mnist_feature_matching.py): fully connected, Gaussian noise before every
layer of the critic, weight normalisation (Salimans & Kingma 2016, arXiv 1602.07868) with scales from the data. Their
moving average of the critic's weights is left out: it takes ten thousand steps to forget; a falling rate stands in.

Without classes the critic has one logit, and what remains is a GAN trained by feature matching.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from training.families.base import Batch, Count, Family, FamilyOptions, Losses, Networks, NonNegative, Positive, Share
from training.families.parts import adam_pair, check_fully_connected, logistic

__all__ = ["Sgan", "SganOptions"]


@dataclass(frozen=True, kw_only=True)
class SganOptions(FamilyOptions):
    """Numbers without a source are those of the authors' MNIST code."""

    labels_per_class: Annotated[int, Field(ge=0)] = 0  # labelled images of each class; 0: all that have a label
    latent_dim: Count = 100  # uniform in [0, 1]: see `Generator`
    batch: Count = 100  # reals, fakes and labelled images each
    hidden: Count = 500  # generator, both layers
    critic_hidden: tuple[Count, ...] = (1000, 500, 250, 250, 250)
    input_noise: NonNegative = 0.3  # standard deviation, for pixels in [0, 1]
    noise: NonNegative = 0.5  # before all other layers
    unlabelled_weight: NonNegative = 1.0  # of the loss that knows no classes
    learning_rate: Positive = 0.003
    decay_share: Share = 1 / 3  # last share of the steps, over which the rate falls to 0; the authors' CIFAR-10 code
    beta1: Share = 0.5
    beta2: Share = 0.999


class _UnitRows(nn.Module):
    """Weight normalisation: rows of length 1, times a scale for each, which is learned only where that is asked."""

    scale: Tensor

    def __init__(self, rows: int, *, learned: bool) -> None:
        super().__init__()
        if learned:
            self.scale = nn.Parameter(torch.ones(rows))
        else:
            self.register_buffer("scale", torch.ones(rows))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (self.scale / torch.linalg.vector_norm(weight, dim=1))[:, None]


def _normalised(inputs: int, outputs: int, *, learned: bool = False) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, 0, 0.1)
    nn.init.zeros_(layer.bias)
    parametrize.register_parametrization(layer, "weight", _UnitRows(outputs, learned=learned))
    return layer


class Noise(nn.Module):
    """Adds normal noise while training."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, x: Tensor) -> Tensor:
        return x + self.deviation * torch.randn_like(x) if self.training else x


class Generator(nn.Module):
    """latent [N, Z] -> image [N, C, H, W] in [-1, 1].

    The authors' latents are uniform in [0, 1]: Φ(z) makes them so of standard normal ones.
    """

    def __init__(self, options: SganOptions, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.image_shape = image_shape
        layers: list[nn.Module] = []
        inputs = options.latent_dim
        for _ in range(2):
            layers += [nn.Linear(inputs, options.hidden, bias=False), nn.BatchNorm1d(options.hidden), nn.Softplus()]
            nn.init.normal_(layers[-3].weight, 0, 0.05)  # type: ignore[arg-type]
            inputs = options.hidden
        layers.append(_normalised(inputs, math.prod(image_shape), learned=True))
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        uniform = (1 + torch.erf(latent / math.sqrt(2))) / 2
        return (torch.sigmoid(self.layers(uniform)) * 2 - 1).view(-1, *self.image_shape)


class Critic(nn.Module):
    """image [N, C, H, W] in [-1, 1] -> realism logit [N] and class logits [N, K]; realism alone without classes."""

    def __init__(self, options: SganOptions, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.classes = classes
        layers: list[nn.Module] = []
        inputs = math.prod(image_shape)
        for outputs in options.critic_hidden:
            layers += [Noise(options.noise if layers else options.input_noise), _normalised(inputs, outputs), nn.ReLU()]
            inputs = outputs
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(Noise(options.noise), _normalised(inputs, max(classes, 1), learned=True))

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        logits: Tensor = self.head(self.features(image))
        realism = torch.logsumexp(logits, 1)
        return (realism, logits) if self.classes else realism

    def features(self, image: Tensor) -> Tensor:
        """The last hidden layer, [N, D]: what the generator matches."""
        features: Tensor = self.body((image.flatten(1) + 1) / 2)  # the authors' pixels lie in [0, 1]
        return features

    @torch.no_grad()
    def scale_to(self, images: Tensor) -> None:
        """Sets scales and biases so that each unit has mean 0 and variance 1 on some images, before its non-linearity
        (Salimans & Kingma 2016, section 3)."""
        x = (images.flatten(1) + 1) / 2
        for layer in (*self.body, *self.head):
            if isinstance(layer, nn.Linear):
                found = F.linear(x, layer.weight)
                deviation, mean = torch.std_mean(found, 0, correction=0)
                deviation = deviation.clamp(min=1e-6)
                layer.parametrizations.weight[0].scale.div_(deviation)  # type: ignore[index, union-attr]
                layer.bias.copy_(-mean / deviation)
            x = layer(x)


class Sgan(Family[SganOptions]):
    name = "sgan"
    summary = (
        "semi-supervised GAN: its critic is a classifier that learns from few labels; unconditional, poor pictures"
    )
    when = "with few labels and many unlabelled images, for the classifier and not for pictures"
    paper = "Salimans et al. 2016, arXiv 1606.03498"
    conditional = False
    supervised = True
    Options: ClassVar[type[SganOptions]] = SganOptions
    # For 28 to 32 px in CPU minutes: half of each layer.
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "small": {"hidden": 250, "critic_hidden": (500, 250, 125, 125, 125)}
    }

    @classmethod
    def check_shape(cls, image_shape: tuple[int, int, int]) -> None:
        super().check_shape(image_shape)
        check_fully_connected(cls.name, image_shape)

    @classmethod
    def narrower(cls, options: SganOptions) -> tuple[SganOptions, ...]:
        return (replace(options, **cls.presets["small"]),) if options.hidden > 250 else ()  # type: ignore[arg-type]

    def generator(self) -> nn.Module:
        return Generator(self.options, self.image_shape)

    def critic(self) -> nn.Module:
        return Critic(self.options, self.image_shape, self.critic_classes)

    def optimizers(self, networks: Networks) -> tuple[Optimizer, Optimizer]:
        options = self.options
        return adam_pair(networks, options.learning_rate, (options.beta1, options.beta2))

    def schedule(self, generator: Optimizer, critic: Optimizer, step: int, steps: int) -> None:
        decay = max(self.options.decay_share * steps, 1.0)
        for group in (*generator.param_groups, *critic.param_groups):
            group["lr"] = self.options.learning_rate * min(1.0, (steps - step) / decay)

    def prepare(self, networks: Networks, images: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
        """Scales from the data, of 500 images, as the authors have it."""
        draws = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:500]
        critic = networks.critic
        assert isinstance(critic, Critic)
        critic.scale_to(images[draws.to(images.device)].float().div(127.5).sub(1))
        return {}

    def labelled(self, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        """The first of each class in an order by content and seed, so that 5 a class are among 10 a class."""
        if not self.options.labels_per_class:
            return labels
        kept = torch.full_like(labels, -1)
        for number in range(self.critic_classes):
            members = (labels == number).nonzero()[:, 0].tolist()
            rank = {
                i: hashlib.sha256(f"{seed}:".encode() + images[i].cpu().numpy().tobytes()).digest() for i in members
            }
            kept[sorted(members, key=rank.__getitem__)[: self.options.labels_per_class]] = number
        return kept

    def d_loss(self, critic: nn.Module, batch: Batch) -> Losses:
        """Of labelled reals the cross-entropy of K class logits; of the others, with Z the sum of their exponentials
        and D = Z / (Z + 1), -log D(x) - log(1 - D(G(z))) (section 5)."""
        # One pass over all is safe: this critic has no batch statistics.
        parts = [batch.real, batch.fake] + ([batch.labelled[0]] if batch.labelled is not None else [])
        judged = critic(torch.cat(parts))
        realism = judged[0] if isinstance(judged, tuple) else judged
        real, fake = realism[: len(batch.real)], realism[len(batch.real) :][: len(batch.fake)]
        # With D = Z / (Z + 1), Z = Σ exp(logit): -log D(x) = softplus(-log Z), -log(1 - D(G(z))) = softplus(log Z).
        loss, numbers = logistic(real, fake)
        loss = self.options.unlabelled_weight * loss / 2
        if batch.labelled is not None:
            labels = batch.labelled[1]
            classes = F.cross_entropy(judged[1][-len(labels) :], labels)
            loss = loss + classes
            numbers["class_loss"] = classes.detach()
        return loss, numbers

    def g_loss(self, networks: Networks, batch: Batch) -> Losses:
        """Feature matching: the squared distance between the mean features of reals and of fakes (section 3.1)."""
        critic = getattr(networks.critic, "module", networks.critic)  # Fabric wraps it
        assert isinstance(critic, Critic)
        real, fake = (critic.features(images).mean(0) for images in (batch.real, batch.fake))
        return (real.detach() - fake).square().mean(), {}
