"""What is particular to Goodfellow's GAN: its two losses, the probabilities it logs, where it starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from training.config import options_from
from training.families.base import Batch, Networks
from training.families.gan import Gan, GanOptions
from training.randomness import StepRandom

OPTIONS = GanOptions(hidden=16, maxout=8, dropout=0.0, input_dropout=0.0)
SHAPE = (1, 8, 8)


def batch_of(family: Gan, networks: Networks) -> Batch:
    random = StepRandom(seed=0, step=0)
    real = torch.rand(6, *SHAPE, generator=random.generator("real")) * 2 - 1
    fake = networks.generator(family.latent(6, random, "fake"))
    return Batch(real=real, fake=fake, label=None, random=random, step=0)


def judged(networks: Networks, images: Tensor) -> Tensor:
    """D, as the paper writes it: a probability."""
    return torch.sigmoid(networks.critic(images).double())


@pytest.mark.parametrize("loss", ["minimax", "non_saturating"])
def test_the_losses_are_the_papers_formulas(loss: Any) -> None:
    torch.manual_seed(0)
    family = Gan(replace(OPTIONS, loss=loss, critic_init=0.3), SHAPE, 0)
    networks = family.build()
    batch = batch_of(family, networks)
    d_real, d_fake = judged(networks, batch.real), judged(networks, batch.fake)
    d_loss, numbers = family.d_loss(networks.critic, batch)
    # Algorithm 1: D ascends log D(x) + log(1 - D(G(z))).
    torch.testing.assert_close(d_loss.double(), -(d_real.log() + (1 - d_fake).log()).mean())
    assert float(numbers["p_real"]) == pytest.approx(d_real.mean().item(), rel=1e-4)
    assert float(numbers["p_fake"]) == pytest.approx(d_fake.mean().item(), rel=1e-4)
    g_loss, _ = family.g_loss(networks, batch)
    expected = (1 - d_fake).log().mean() if loss == "minimax" else -d_fake.log().mean()
    torch.testing.assert_close(g_loss.double(), expected)


def test_the_minimax_gradient_vanishes_where_d_is_sure() -> None:
    """Both gradients point the same way at one image; they differ by D / (1 - D), the smaller the surer D is."""
    torch.manual_seed(0)
    networks = Gan(OPTIONS, SHAPE, 0).build()
    networks.critic.layers[-1].bias.data.fill_(-5.0)  # type: ignore[index, union-attr]
    latent = torch.randn(1, OPTIONS.latent_dim)
    gradients = []
    for loss in ("minimax", "non_saturating"):
        family = Gan(replace(OPTIONS, loss=loss), SHAPE, 0)  # type: ignore[arg-type]
        fake = networks.generator(latent)
        value, _ = family.g_loss(networks, Batch(fake, fake, None, StepRandom(0, 0), 0))
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, networks.generator.parameters())]))  # type: ignore[arg-type]
    d = judged(networks, networks.generator(latent)).item()
    assert d < 0.01
    torch.testing.assert_close(gradients[0], gradients[1] * d / (1 - d), rtol=1e-3, atol=1e-10)


def test_the_first_samples_are_the_images_mean() -> None:
    """mnist.yaml's `init_sigmoid_bias_from_marginals`."""
    images = torch.randint(0, 256, (50, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[:, :, 0] = 0  # always black: as near as a sigmoid should be brought
    torch.manual_seed(0)
    # Hidden layers that are nearly nothing leave the bias alone to speak.
    family = Gan(replace(OPTIONS, generator_init=1e-6), SHAPE, 0)
    networks = family.build()
    assert family.prepare(networks, images, torch.zeros(50, dtype=torch.long), 0) == {}
    made = (networks.generator(torch.randn(3, OPTIONS.latent_dim)) + 1) * 127.5
    torch.testing.assert_close(made, images.float().mean(0).clamp(0.25, 254.75).expand(3, -1, -1, -1), rtol=0, atol=0.1)
    assert not made[:, :, 0].round().any(), "a half would be rounded up here and down there"

    plain = Gan(replace(OPTIONS, marginal_bias=False), SHAPE, 0)
    networks = plain.build()
    plain.prepare(networks, images, torch.zeros(50, dtype=torch.long), 0)
    assert not networks.generator.output.bias.any()  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_rates_fall_and_the_momentum_rises(optimizer: Any) -> None:
    options = replace(OPTIONS, optimizer=optimizer, momentum_steps=100)
    family = Gan(options, SHAPE, 0)
    pair = family.optimizers(family.build())

    def at(step: int) -> list[tuple[float, float]]:
        family.schedule(*pair, step, 1000)
        groups = [group for optimizer in pair for group in optimizer.param_groups]
        return [(group["lr"], group["momentum"] if optimizer == "sgd" else group["betas"][0]) for group in groups]

    assert at(0) == [(0.1, 0.5), (0.05, 0.5)]
    assert at(50) == [pytest.approx((rate / 1.000004**50, 0.6)) for rate in (0.1, 0.05)]
    assert at(500) == [pytest.approx((rate / 1.000004**500, 0.7)) for rate in (0.1, 0.05)]
    assert at(10**8) == [pytest.approx((1e-6, 0.7))] * 2


def test_a_small_budget_chooses_the_presets() -> None:
    small, cpu = (options_from("gan", {}, preset=name) for name in ("small", "cpu"))
    assert Gan.narrower(GanOptions()) == (small, cpu)
    assert Gan.narrower(GanOptions(hidden=512, batch=16)) == (replace(cpu, batch=16),)
