"""Auxiliary classifier GAN: Odena, Olah & Shlens 2016, arXiv 1610.09585, and its normalised form, ReACGAN.

The critic answers two questions, real or fake and which class, and the generator is paid for both (section 3). The
networks and numbers are those of the paper's CIFAR-10 version (appendix A): transposed 5x5 convolutions in the
generator, which takes the class as one-hot numbers beside the noise; six 3x3 convolutions with dropout, noise on the
activations and batch norm in the discriminator. Where the appendix names several values that were searched over, the
middle one is the default. Class logits go into the loss as they are: a softmax before the cross-entropy, as many clones
have it, weakens it.

Its known weakness: the classifier rewards images that are easy to classify, so classes lose variety, and its gradient
explodes early (Kang et al. 2021, "Rebooting ACGAN: Auxiliary Classifier GANs with Stable Training", arXiv 2111.01118).
`classifier="d2dce"` is that paper's remedy: features and class proxies on the unit sphere (section 3.2), and the
data-to-data cross-entropy (section 3.3, equation 6), which sets each image's own proxy against the batch's images of
other classes, with margins and a temperature; in the discriminator it is taken on reals alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim import Optimizer

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
from training.families.parts import LazyR1, adam_pair, count_doublings, logistic, narrowed, normal_weights

__all__ = ["Acgan", "AcganOptions", "d2d_cross_entropy"]


@dataclass(frozen=True, kw_only=True)
class AcganOptions(FamilyOptions):
    latent_dim: Count = 100  # appendix A: 110 inputs, 10 of them the class
    batch: Count = 100  # appendix A
    width: Count = 96  # channels of the generator's largest maps, doubled at each halving: 384, 192, 96; appendix A
    critic_width: Count = 16  # channels of the first convolution; the others have 2 to 32 times as many; appendix A
    dropout: Share = 0.5  # in the critic; appendix A
    noise: NonNegative = 0.1  # standard deviation, on the critic's activations; appendix A searched 0, 0.1 and 0.2
    critic_norm: Literal["batch", "spectral", "none"] = "batch"  # appendix A; ReACGAN has spectral
    conditional_norm: bool = False  # class-conditional batch norm in the generator, as ReACGAN has it
    label_init: Positive = 0.02  # standard deviation of the generator's first weights that read the class; appendix A
    classifier: Literal["softmax", "d2dce"] = "softmax"
    class_weight: NonNegative = 1.0  # of the classifier's loss; section 3. ReACGAN's CIFAR-10: 0.5
    fakes_weight: Share = 1.0  # how much of it the critic takes on fakes; section 3. ReACGAN: 0
    embedding: Count = 512  # d2dce: dimensions of the sphere; ReACGAN's CIFAR-10 configuration
    margin: Share = 0.98  # d2dce: m_p; m_n is 1 - m_p; ReACGAN's CIFAR-10 configuration
    temperature: Positive = 0.5  # d2dce; ReACGAN's CIFAR-10 configuration
    learning_rate: Positive = 2e-4  # appendix A searched 1e-4, 2e-4 and 3e-4
    beta1: Share = 0.5  # appendix A
    beta2: Share = 0.999  # appendix A
    r1: NonNegative = 0.0  # weight of |∇D|² on reals (Mescheder et al. 2018, arXiv 1801.04406); not in the paper
    r1_every: Count = 4  # lazily, as in StyleGAN2
    translation: Share = 0.0  # DiffAugment (Zhao et al. 2020, arXiv 2006.10738); not in the paper
    cutout: Share = 0.0
    color: NonNegative = 0.0


class Norm(nn.Module):
    """Batch norm whose scale and shift are one pair for all, or a pair for each class."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=num_classes == 0)
        self.modulation = nn.Embedding(num_classes, 2 * channels) if num_classes else None

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        x = self.norm(x)
        if self.modulation is None:
            return x
        assert label is not None, "a conditional norm needs labels"
        scale, shift = self.modulation(label)[:, :, None, None].chunk(2, 1)
        return torch.addcmul(shift, x, 1 + scale)


class Generator(nn.Module):
    """latent [N, Z], label int64 [N] (None when unconditional) -> image [N, C, H, W] in [-1, 1]."""

    def __init__(self, options: AcganOptions, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.image_shape = image_shape
        channels, height, width = image_shape
        doublings = count_doublings(height, width, base=7)  # 28 -> 7 (2), 32 -> 4 (3), 64 -> 4 (4)
        # A side that is no multiple of 2**doublings is made a little too long and cut.
        inputs = options.width << (doublings - 1)
        self.base = (inputs, -(-height >> doublings), -(-width >> doublings))
        # One linear layer of the noise and the one-hot class: of the latter it picks a row.
        self.project = nn.Linear(options.latent_dim, inputs * self.base[1] * self.base[2])
        self.label = nn.Embedding(num_classes, self.project.out_features) if num_classes else None
        norm_classes = num_classes if options.conditional_norm else 0
        self.grow, self.norms = nn.ModuleList(), nn.ModuleList()
        for _ in range(doublings - 1):
            self.grow.append(nn.ConvTranspose2d(inputs, inputs // 2, 5, 2, 2, output_padding=1))
            self.norms.append(Norm(inputs // 2, norm_classes))
            inputs //= 2
        self.to_image = nn.ConvTranspose2d(inputs, channels, 5, 2, 2, output_padding=1)
        self.apply(normal_weights)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, 0.0, options.label_init)

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        hidden = self.project(latent)
        if self.label is not None:
            assert label is not None, "a conditional generator needs labels"
            hidden = hidden + self.label(label)
        x = F.relu(hidden).view(-1, *self.base)
        for grow, norm in zip(self.grow, self.norms, strict=True):
            x = F.relu(norm(grow(x), label))
        _, height, width = self.image_shape
        return torch.tanh(self.to_image(x))[:, :, :height, :width]


class Critic(nn.Module):
    """image [N, C, H, W] in [-1, 1] -> realism logit [N], and class logits [N, K] where there are classes.

    It is never told the class. With "d2dce" class logits are cosines over the temperature, and `forward(…,
    features=True)` also returns the features [N, E] on the unit sphere.
    """

    def __init__(self, options: AcganOptions, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.temperature = options.temperature
        inputs, height, width = image_shape
        layers: list[nn.Module] = []
        for i in range(6):
            outputs, stride = options.critic_width << i, 2 - i % 2
            batch_norm = options.critic_norm == "batch" and i > 0
            layers.append(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=not batch_norm))
            layers += [nn.BatchNorm2d(outputs)] if batch_norm else []
            layers += [Noise(options.noise)] if options.noise > 0 else []
            layers += [nn.LeakyReLU(0.2)]  # appendix A
            layers += [nn.Dropout(options.dropout)] if options.dropout > 0 else []
            inputs, height, width = outputs, -(-height // stride), -(-width // stride)
        self.layers = nn.Sequential(*layers)
        flat = inputs * height * width
        self.realism = nn.Linear(flat, 1)
        on_sphere = options.classifier == "d2dce" and num_classes > 0
        self.features = nn.Linear(flat, options.embedding) if on_sphere else None
        self.classes = (
            nn.Linear(options.embedding if on_sphere else flat, num_classes, bias=not on_sphere)
            if num_classes
            else None
        )
        if options.critic_norm == "batch":  # without it, signals that weights so small let through vanish
            self.apply(normal_weights)
        if options.critic_norm == "spectral":
            for layer in list(self.modules()):
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    spectral_norm(layer)

    def forward(
        self, image: Tensor, label: Tensor | None = None, features: bool = False
    ) -> Tensor | tuple[Tensor, ...]:
        hidden = self.layers(image).flatten(1)
        realism = self.realism(hidden).squeeze(1)
        if self.classes is None:
            return realism
        if self.features is None:
            return realism, self.classes(hidden)
        embedded = F.normalize(self.features(hidden))
        logits = F.linear(embedded, F.normalize(self.classes.weight)) / self.temperature
        return (realism, logits, embedded) if features else (realism, logits)


class Noise(nn.Module):
    """Normal noise on maps [N, C, H, W] while training, from torch's global generator as dropout's."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        count, channels, height, width = x.shape
        # In the order in which the maps lie in memory (channels last): `randn_like` takes several times as long.
        noise = torch.randn(count, height, width, channels, device=x.device, dtype=x.dtype).permute(0, 3, 1, 2)
        return x + self.deviation * noise


def d2d_cross_entropy(cosines: Tensor, features: Tensor, label: Tensor, *, margin: float, temperature: float) -> Tensor:
    """The data-to-data cross-entropy: Kang et al. 2021, equation 6; the mean over the batch.

    Args:
        cosines: of each image's features and its own class's proxy, [N].
        features: on the unit sphere, [N, E].
        label: int64 [N].
        margin: m_p; an image nearer to its proxy than that is no longer drawn to it, and images of other classes whose
            cosine is under m_n = 1 - m_p no longer repel it.
        temperature: divides both.
    """
    pull = (cosines - margin).clamp(max=0) / temperature
    push = (features @ features.T - (1 - margin)).clamp(min=0) / temperature
    other = label[:, None] != label[None, :]
    push = push.masked_fill(~other, -torch.inf)
    # -log(e^pull / (e^pull + Σ e^push)); the pull is among the terms, so a batch of one class gives 0.
    return (torch.logsumexp(torch.cat([pull[:, None], push], 1), 1) - pull).mean()


_SMALL: Final[dict[str, Any]] = {
    "batch": 32,
    "share_fakes": True,
    "width": 32,
    "critic_width": 8,
    "dropout": 0.0,
    "noise": 0.0,
    "critic_norm": "none",
    "conditional_norm": True,
    "label_init": 0.1,  # 0.3 had the labels sooner and no variety, 0.02 variety and the labels late
    "classifier": "d2dce",
    "embedding": 128,
    "fakes_weight": 0.0,
    "learning_rate": 1e-3,
    "beta1": 0.0,
    "beta2": 0.99,
    "r1": 0.005,
    "ema_half_life": 20_000.0,
    "ema_ramp": 0.25,
    "translation": 0.04,
}
"""For minutes on a CPU and some thousand images of 28 to 64 pixels: ReACGAN's classifier on narrow networks, and the
numbers with which `augment` was found to work; docs/log.md has the trials."""


class Acgan(Family[AcganOptions]):
    name = "acgan"
    summary = "auxiliary classifier GAN: the critic also names the class; ReACGAN's form as an option"
    when = "where labels must be right: truer to them than most, with less variety than augment"
    paper = "Odena, Olah & Shlens 2016, arXiv 1610.09585; Kang et al. 2021, arXiv 2111.01118"
    conditional = True
    Options: ClassVar[type[AcganOptions]] = AcganOptions
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {"small": _SMALL}
    enough_steps = 10_000  # for the paper's networks, which took 50,000 (appendix A); with fewer the preset's do better

    @classmethod
    def narrower(cls, options: AcganOptions) -> tuple[AcganOptions, ...]:
        if options.width <= _SMALL["width"]:
            return ()
        return (narrowed(options, _SMALL),)

    def generator(self) -> nn.Module:
        return Generator(self.options, self.image_shape, self.num_classes)

    def critic(self) -> nn.Module:
        return Critic(self.options, self.image_shape, self.num_classes)

    def optimizers(self, networks: Networks) -> tuple[Optimizer, Optimizer]:
        options = self.options
        return adam_pair(networks, options.learning_rate, (options.beta1, options.beta2))

    def augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        options = self.options
        return diff_augment(images, AugmentPolicy(options.translation, options.cutout, options.color), generator)

    def d_loss(self, critic: nn.Module, batch: Batch) -> Losses:
        """Logistic: -log D(x) - log(1 - D(G(z))), and the classifier's loss on reals and, by `fakes_weight`, on fakes
        (sections 3 and 4); with `r1`, lazily |∇D(x)|² on reals."""
        options = self.options
        real_images = self.augment(batch.real, batch.random.generator("augment reals"))
        fake_images = self.augment(batch.fake, batch.random.generator("augment fakes"))
        r1 = LazyR1(real_images, weight=options.r1, every=options.r1_every, step=batch.step)
        # Two passes: reals and fakes in one batch would share batch norm's statistics and give themselves away.
        real, real_class, accuracy = self._judge(critic, r1.images, batch.label)
        fake, fake_class, _ = self._judge(critic, fake_images, batch.label)
        loss, numbers = logistic(real, fake)
        if real_class is not None and fake_class is not None:
            loss = loss + options.class_weight * (real_class + options.fakes_weight * fake_class)
            numbers |= {"class_real": real_class.detach(), "class_fake": fake_class.detach(), "accuracy": accuracy}
        return r1.added_to(loss, real), numbers

    def g_loss(self, networks: Networks, batch: Batch) -> Losses:
        """Non-saturating: -log D(G(z)), and the classifier's loss on the fakes."""
        images = self.augment(batch.fake, batch.random.generator("augment for G"))
        fake, fake_class, _ = self._judge(networks.critic, images, batch.label)
        loss = F.softplus(-fake).mean()
        return (loss if fake_class is None else loss + self.options.class_weight * fake_class), {}

    def _judge(self, critic: nn.Module, images: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """Realism logits [N], the classifier's loss (None without classes) and its accuracy."""
        options = self.options
        if label is None:
            return critic(images), None, torch.zeros(())
        if options.classifier == "softmax":
            realism, logits = critic(images)
            loss = F.cross_entropy(logits, label)
        else:
            realism, logits, features = critic(images, features=True)
            cosines = logits.gather(1, label[:, None]).squeeze(1) * options.temperature
            loss = d2d_cross_entropy(cosines, features, label, margin=options.margin, temperature=options.temperature)
        return realism, loss, (logits.argmax(1) == label).float().mean()
