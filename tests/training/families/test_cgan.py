"""Mirza & Osindero's conditional GAN: the paper's networks, and what differs from its words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.families.base import Batch
from training.families.cgan import Cgan, CganOptions
from training.randomness import StepRandom

SHAPE = (1, 28, 28)


def sizes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in network.named_parameters() if weight.ndim > 1}


def test_the_defaults_are_the_papers_networks() -> None:
    """Section 4.1, on MNIST's ten classes."""
    networks = Cgan(CganOptions(), SHAPE, 10).build()
    assert sizes(networks.generator) == {
        "latent_hidden.weight": (200, 100),
        "label_hidden.weight": (10, 1000),
        "hidden.weight": (1200, 1200),
        "pixels.weight": (784, 1200),
    }
    assert sizes(networks.critic) == {
        "image.1.linear.weight": (240 * 5, 784),
        "label.linear.weight": (50 * 5, 10),
        "joint.linear.weight": (240 * 4, 240 + 50),
        "realism.weight": (1, 240),
    }


def test_the_generator_reads_its_latents_as_uniform() -> None:
    """The first layer's input is the normal distribution function of the latent: 0.5 at 0, and never outside [0, 1]."""
    generator = Cgan(CganOptions(hidden=16), SHAPE, 10).generator().eval()
    seen: list[torch.Tensor] = []
    generator.latent_hidden.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))  # type: ignore[union-attr]
    latent = torch.randn(2000, 100, generator=torch.Generator().manual_seed(0))
    latent[0], latent[1], latent[2] = 0.0, 9.0, -9.0
    generator(latent, torch.arange(2000) % 10)
    noise = seen[0]
    assert torch.equal(noise[0], torch.full((100,), 0.5))
    assert (noise[1].min(), noise[2].max()) == (1.0, 0.0)
    # Uniform: mean 1/2 and variance 1/12.
    assert float(noise[3:].mean()) == pytest.approx(0.5, abs=0.005)
    assert float(noise[3:].var()) == pytest.approx(1 / 12, abs=0.001)


def test_the_label_reaches_both_networks() -> None:
    networks = Cgan(CganOptions(hidden=32, critic_init=0.1), SHAPE, 10).build()
    generator, critic = networks.generator.eval(), networks.critic.eval()
    latent, zeros, ones = torch.randn(4, 100), torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
    image = generator(latent, zeros)
    assert not torch.allclose(image, generator(latent, ones))
    assert not torch.allclose(critic(image, zeros), critic(image, ones))


def test_dropout_is_for_training_alone() -> None:
    """Exported networks are functions: no dropout when images are made for use."""
    networks = Cgan(CganOptions(hidden=32, critic_init=0.1), SHAPE, 10).build()
    latent, label = torch.randn(4, 100), torch.arange(4)
    for network, inputs in ((networks.generator, (latent, label)), (networks.critic, (torch.rand(4, *SHAPE), label))):
        network.train()
        assert not torch.equal(network(*inputs), network(*inputs))
        network.eval()
        assert torch.equal(network(*inputs), network(*inputs))


def test_the_rate_falls_and_the_momentum_grows_as_in_the_paper() -> None:
    recipe = Cgan(CganOptions(hidden=16, maxout=4, joint_maxout=4), SHAPE, 10)
    generator, critic = recipe.optimizers(recipe.build())
    for step, rate, momentum in ((0, 0.1, 0.5), (10_000, 0.1 / 1.00004**10_000, 0.516), (400_000, 1e-6, 0.7)):
        recipe.schedule(generator, critic, step, 500_000)
        for optimizer in (generator, critic):
            assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
            assert optimizer.param_groups[0]["momentum"] == pytest.approx(momentum)


def test_one_pass_over_reals_and_fakes_is_two() -> None:
    """The critic judges each image alone, so that the loss is that of two passes."""
    recipe = Cgan(CganOptions(maxout=8, joint_maxout=8, critic_dropout=0.0, critic_init=0.1), SHAPE, 10)
    critic, draws = recipe.critic(), torch.Generator().manual_seed(0)
    real, fake = (torch.rand(6, *SHAPE, generator=draws) * 2 - 1 for _ in range(2))
    label = torch.arange(6)
    loss, _ = recipe.d_loss(critic, Batch(real=real, fake=fake, label=label, random=StepRandom(0, 0), step=0))
    alone = nn.functional.softplus(-critic(real, label)).mean() + nn.functional.softplus(critic(fake, label)).mean()
    torch.testing.assert_close(loss, alone)
