"""BEGAN: Berthelot, Schumm & Metz 2017, "Boundary Equilibrium Generative Adversarial Networks", arXiv 1703.10717.

The critic is an auto-encoder that learns to rebuild reals and not to rebuild fakes; the generator learns to make what
it rebuilds. L(v) is the mean absolute error of rebuilding v (section 3.1), and k_t keeps E[L(G(z))] = γ E[L(x)]
(sections 3.3 and 3.4):

    L_D = L(x) - k_t L(G(z))        L_G = L(G(z))        k_{t+1} = clip(k_t + λ (γ L(x) - L(G(z))), 0, 1)

The lower γ, the more the critic cares for rebuilding reals, and the less varied the samples. M = L(x) + |γ L(x) -
L(G(z))| measures convergence (section 3.4.1): its running mean chooses the checkpoint, the lowest. k_t and that mean
are buffers of the critic, so that they lie in every checkpoint.

Networks as in section 3.5: 3x3 convolutions in twos with ELU, no batch norm; strided convolutions on the way down,
where the filters grow linearly, nearest-neighbour upsampling on the way up; fully connected layers without a
non-linearity to and from the code h; the decoder's first maps h0 are joined again after every upsampling (section
3.5.1). The generator has the architecture of the decoder. Differences: its output passes through a tanh, since images
here lie in [-1, 1]; the optional "vanishing residuals" are left out; and the rate, which the paper halves when M
stalls, is halved at fixed shares of the training, because a schedule must depend on the step alone for a resume to be
exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from training.families.base import Batch, Count, Family, FamilyOptions, Losses, Networks, NonNegative, Positive, Share
from training.families.parts import adam_pair

__all__ = ["Began", "BeganOptions"]


@dataclass(frozen=True, kw_only=True)
class BeganOptions(FamilyOptions):
    latent_dim: Count = 64  # N_z, section 4.1; uniform in [-1, 1]: see `Generator`
    batch: Count = 16  # facts/training.md; the paper does not say
    share_fakes: bool = True  # section 3.4 draws z_D and z_G from one law; one draw for both costs less
    hidden: Count = 64  # N_h, the length of the code h, section 4.1
    width: Count = 128  # filters n, section 4.1: of the largest model
    repeats: Count = 2  # convolutions at each resolution, section 3.5
    gamma: Share = 0.5  # γ, the diversity ratio: sections 3.3 and 4.2, which shows 0.3, 0.5 and 0.7
    lambda_k: Positive = 0.001  # λ_k, section 3.4
    skips: bool = True  # h0 again after each upsampling, section 3.5.1
    learning_rate: Positive = 1e-4  # section 4.1: 5e-5 to 1e-4 at first
    halvings: tuple[Share, ...] = (0.5, 0.75, 0.875)  # shares of the steps; the paper: whenever M stalls
    beta1: Share = 0.9  # Adam's defaults: the paper does not say
    beta2: Share = 0.999
    ema_half_life: NonNegative = 5000.0  # not in the paper


class Decoder(nn.Module):
    """code [N, h] -> image [N, C, H, W], without bounds."""

    def __init__(self, code: int, options: BeganOptions, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        width, self.skips = options.width, options.skips
        self.sizes, self.width = _sizes(*image_shape[1:]), width
        height, breadth = self.sizes[-1]
        self.project = nn.Linear(code, width * height * breadth)
        joined = 2 * width if self.skips else width
        self.levels = nn.ModuleList(
            _convolutions(joined if level else width, width, options.repeats) for level in range(len(self.sizes))
        )
        self.out = nn.Conv2d(width, image_shape[0], 3, 1, 1)

    def forward(self, code: Tensor) -> Tensor:
        height, breadth = self.sizes[-1]
        first = skip = self.project(code).view(-1, self.width, height, breadth)
        x: Tensor = self.levels[0](first)
        for level, (height, breadth) in zip(list(self.levels)[1:], self.sizes[-2::-1], strict=True):
            x = _upsampled(x, height, breadth)
            if self.skips:
                skip = _upsampled(skip, height, breadth)
                x = torch.cat([x, skip], 1)
            x = level(x)
        image: Tensor = self.out(x)
        return image


class Generator(nn.Module):
    """latent [N, Z] -> image [N, C, H, W] in [-1, 1].

    The paper's latents are uniform in [-1, 1]: erf(z / √2) makes them so of standard normal ones.
    """

    def __init__(self, options: BeganOptions, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.decoder = Decoder(options.latent_dim, options, image_shape)

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.tanh(self.decoder(torch.erf(latent / math.sqrt(2))))


class Critic(nn.Module):
    """image [N, C, H, W] in [-1, 1] -> realism [N]: minus L(v), the mean absolute error of rebuilding it."""

    k: Tensor
    convergence: Tensor
    seen: Tensor

    def __init__(self, options: BeganOptions, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        n, sizes = options.width, _sizes(*image_shape[1:])
        layers: list[nn.Module] = [nn.Conv2d(image_shape[0], n, 3, 1, 1), nn.ELU()]
        for level in range(1, len(sizes) + 1):
            layers.append(_convolutions(level * n, level * n, options.repeats))
            if level < len(sizes):
                layers += [nn.Conv2d(level * n, (level + 1) * n, 3, 2, 1), nn.ELU()]
        height, breadth = sizes[-1]
        layers += [nn.Flatten(), nn.Linear(len(sizes) * n * height * breadth, options.hidden)]
        self.encoder = nn.Sequential(*layers)
        self.decoder = Decoder(options.hidden, options, image_shape)
        self.register_buffer("k", torch.zeros(()))  # k_0 = 0, section 3.4
        self.register_buffer("convergence", torch.zeros(()))  # the running mean of M
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # the steps in it

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        return -(image - self.decoder(self.encoder(image))).abs().mean((1, 2, 3))

    @torch.no_grad()
    def balance(self, real: Tensor, fake: Tensor, gamma: float, lambda_k: float) -> Tensor:
        """Moves k_t and the mean of M by one step's L(x) and L(G(z)), scalars; returns the step's M."""
        surplus = gamma * real - fake
        measure = real + surplus.abs()
        self.seen += 1
        self.convergence.lerp_(measure, 1 / self.seen.clamp(max=_HORIZON).float())
        self.k.add_(lambda_k * surplus).clamp_(0, 1)
        return measure


_HORIZON = 200
"""Steps in the running mean of M: that of one batch of 16 jumps about."""


class Began(Family[BeganOptions]):
    name = "began"
    summary = "BEGAN: an auto-encoder judges; unconditional, smooth; gamma trades variety for quality"
    when = "for smooth images without classes, and a measure that says when training is done"
    paper = "Berthelot, Schumm & Metz 2017, arXiv 1703.10717"
    conditional = False
    logistic = False
    Options: ClassVar[type[BeganOptions]] = BeganOptions
    # For 28 to 32 px in CPU minutes: a few filters, one convolution a resolution, a higher rate, and a k_t that arrives
    # within hundreds of steps. γ is 1 because digits are not alike hard to rebuild: with less, the generator keeps to
    # the digit 1, whose error is half the mean (docs/log.md).
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "small": {
            "width": 16,
            "repeats": 1,
            "skips": False,
            "gamma": 1.0,
            "lambda_k": 0.02,
            "learning_rate": 1e-3,
        }
    }

    @classmethod
    def narrower(cls, options: BeganOptions) -> tuple[BeganOptions, ...]:
        small = replace(options, **cls.presets["small"])  # type: ignore[arg-type]
        return tuple(replace(small, width=width) for width in (32, 16) if width < options.width)

    def generator(self) -> nn.Module:
        return Generator(self.options, self.image_shape)

    def critic(self) -> nn.Module:
        return Critic(self.options, self.image_shape)

    def optimizers(self, networks: Networks) -> tuple[Optimizer, Optimizer]:
        options = self.options
        return adam_pair(networks, options.learning_rate, (options.beta1, options.beta2))

    def schedule(self, generator: Optimizer, critic: Optimizer, step: int, steps: int) -> None:
        halved = sum(step >= share * steps for share in self.options.halvings)
        for group in (*generator.param_groups, *critic.param_groups):
            group["lr"] = self.options.learning_rate / 2**halved

    def convergence(self, critic: nn.Module) -> float | None:
        assert isinstance(critic, Critic)
        return float(critic.convergence) if critic.seen else None

    def d_loss(self, critic: nn.Module, batch: Batch) -> Losses:
        """L(x) - k L(G(z)), where L is the mean absolute error of what the auto-encoder rebuilds and k moves so that
        L(G(z)) stays γ L(x) (section 3.4)."""
        network = getattr(critic, "module", critic)  # Fabric wraps it
        assert isinstance(network, Critic)
        # One pass over both is safe here: this critic has no batch statistics.
        real, fake = (-part.mean() for part in critic(torch.cat([batch.real, batch.fake])).chunk(2))
        loss = real - network.k.clone() * fake
        measure = network.balance(real.detach(), fake.detach(), self.options.gamma, self.options.lambda_k)
        return loss, {
            "d_real": -real.detach(),
            "d_fake": -fake.detach(),
            "k": network.k.clone(),
            "m_global": measure,
        }

    def g_loss(self, networks: Networks, batch: Batch) -> Losses:
        """L(G(z)): the fakes are to be rebuilt as well as reals."""
        return -networks.critic(batch.fake).mean(), {}


def _sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Of the maps, from the image's down to a shorter side of 5 to 8 (the paper's are always 8x8, section 4.1)."""
    sizes = [(height, width)]
    while min(sizes[-1]) > 8:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def _convolutions(inputs: int, outputs: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(count):
        layers += [nn.Conv2d(outputs if i else inputs, outputs, 3, 1, 1), nn.ELU()]
    return nn.Sequential(*layers)


def _upsampled(x: Tensor, height: int, width: int) -> Tensor:
    """Nearest-neighbour doubling, less the last row or column where a side is odd."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")[:, :, :height, :width]
