"""Odena's auxiliary classifier GAN: the paper's networks, the two losses, and ReACGAN's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from training.families.acgan import Acgan, AcganOptions, Critic, Noise, d2d_cross_entropy
from training.families.base import Batch, Networks
from training.randomness import StepRandom

SMALL: dict[str, Any] = {"width": 16, "critic_width": 2, "dropout": 0.0, "noise": 0.0, "embedding": 8}
SHAPE = (3, 16, 16)


def batch_of(size: int = 6, classes: int = 3) -> Batch:
    draws = torch.Generator().manual_seed(0)
    real, fake = (torch.rand(size, *SHAPE, generator=draws) * 2 - 1 for _ in range(2))
    return Batch(real=real, fake=fake, label=torch.arange(size) % classes, random=StepRandom(0, 0), step=0)


def test_the_defaults_are_the_papers_networks() -> None:
    """Appendix A, CIFAR-10: 110 inputs -> 4x4x384 -> 192 -> 96 -> 3; convolutions of 16 … 512 channels, 11 outputs."""
    networks = Acgan(AcganOptions(), (3, 32, 32), 10).build()
    generator = [tuple(w.shape) for w in networks.generator.parameters() if w.ndim > 1]
    assert generator == [
        (384 * 4 * 4, 100),
        (10, 384 * 4 * 4),
        (384, 192, 5, 5),
        (192, 96, 5, 5),
        (96, 3, 5, 5),
    ]
    convolutions = [m for m in networks.critic.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [16, 32, 64, 128, 256, 512]
    assert [m.stride for m in convolutions] == [(2, 2), (1, 1)] * 3
    assert [m.p for m in networks.critic.modules() if isinstance(m, nn.Dropout)] == [0.5] * 6
    assert isinstance(networks.critic, Critic)
    assert networks.critic.realism.in_features == 512 * 4 * 4
    for weight in (convolutions[3].weight, networks.generator.get_parameter("project.weight")):
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.05)


def test_the_losses_are_the_papers() -> None:
    """Section 3: D and G both maximise the log-likelihood of the class, on reals and fakes; raw logits."""
    recipe = Acgan(AcganOptions(**SMALL, critic_norm="none"), SHAPE, 3)
    networks, batch = recipe.build(), batch_of()
    assert batch.label is not None
    (real, real_class), (fake, fake_class) = networks.critic(batch.real), networks.critic(batch.fake)
    of_fakes = F.cross_entropy(fake_class, batch.label)
    source = F.softplus(-real).mean() + F.softplus(fake).mean()
    loss, numbers = recipe.d_loss(networks.critic, batch)
    torch.testing.assert_close(loss, source + F.cross_entropy(real_class, batch.label) + of_fakes)
    assert 0 <= float(numbers["accuracy"]) <= 1
    loss, _ = recipe.g_loss(networks, batch)
    torch.testing.assert_close(loss, F.softplus(-fake).mean() + of_fakes)


def test_fakes_need_not_teach_the_classifier() -> None:
    batch = batch_of()
    losses = {}
    for weight in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        recipe = Acgan(AcganOptions(**SMALL, critic_norm="none", fakes_weight=weight), SHAPE, 3)
        losses[weight] = recipe.d_loss(recipe.critic(), batch)[0].item()
    assert losses[0.0] < losses[0.5] < losses[1.0]


def test_the_critic_is_not_told_the_class() -> None:
    critic = Acgan(AcganOptions(**SMALL), SHAPE, 3).critic().eval()
    batch = batch_of()
    assert batch.label is not None
    for one, two in zip(critic(batch.real, batch.label), critic(batch.real, None), strict=True):
        assert torch.equal(one, two)


def test_without_classes_it_is_a_plain_gan() -> None:
    recipe = Acgan(AcganOptions(**SMALL, critic_norm="none"), SHAPE, 0)
    networks, batch = recipe.build(), batch_of()
    batch.label = None
    real, fake = networks.critic(batch.real), networks.critic(batch.fake)
    loss, numbers = recipe.d_loss(networks.critic, batch)
    torch.testing.assert_close(loss, F.softplus(-real).mean() + F.softplus(fake).mean())
    assert numbers.keys() == {"d_real", "d_fake"}


def test_data_to_data_cross_entropy_by_hand() -> None:
    """Equation 6 of Kang et al. 2021, term by term."""
    draws = torch.Generator().manual_seed(1)
    features = F.normalize(torch.randn(5, 4, generator=draws, dtype=torch.float64))
    proxies = F.normalize(torch.randn(3, 4, generator=draws, dtype=torch.float64))
    label, margin, temperature = torch.tensor([0, 1, 2, 0, 1]), 0.9, 0.25
    cosines = (features * proxies[label]).sum(1)
    expected = 0.0
    for i in range(5):
        pull = math.exp(min(0.0, float(cosines[i]) - margin) / temperature)
        push = sum(
            math.exp(max(0.0, float(features[i] @ features[j]) - (1 - margin)) / temperature)
            for j in range(5)
            if label[j] != label[i]
        )
        expected -= math.log(pull / (pull + push)) / 5
    loss = d2d_cross_entropy(cosines, features, label, margin=margin, temperature=temperature)
    assert float(loss) == pytest.approx(expected)


def test_easy_images_have_no_gradient() -> None:
    """Within both margins nothing pulls and nothing pushes: the easy positives and negatives of section 3.3."""
    features = torch.eye(3, requires_grad=True)
    d2d_cross_entropy(torch.ones(3), features, torch.arange(3), margin=0.98, temperature=0.5).backward()
    assert features.grad is not None
    assert torch.equal(features.grad, torch.zeros(3, 3))
    one_class = d2d_cross_entropy(torch.zeros(3), features, torch.zeros(3), margin=0.98, temperature=0.5)
    assert one_class.item() == 0.0


def test_reacgan_lives_on_the_sphere() -> None:
    """Class logits are cosines over the temperature, and the loss reaches features and proxies."""
    options = AcganOptions(**SMALL, critic_norm="spectral", classifier="d2dce", conditional_norm=True, fakes_weight=0.0)
    recipe = Acgan(options, SHAPE, 3)
    networks, batch = recipe.build(), batch_of()
    _, logits, features = networks.critic(batch.real, features=True)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(6))
    assert logits.abs().max().item() <= 1 / options.temperature + 1e-5
    loss, _ = recipe.d_loss(networks.critic, batch)
    loss.backward()
    assert all(weight.grad is not None for weight in networks.critic.parameters())
    batch.fake = networks.generator(torch.randn(6, 100), batch.label)
    loss, _ = recipe.g_loss(Networks(networks.generator, networks.critic), batch)
    loss.backward()
    modulation = networks.generator.get_parameter("norms.0.modulation.weight").grad
    assert modulation is not None
    assert modulation.abs().sum().item() > 0


def test_noise_is_for_training_alone() -> None:
    recipe = Acgan(AcganOptions(**(SMALL | {"noise": 0.5})), SHAPE, 3)
    critic, batch = recipe.critic(), batch_of()
    noisy, again = critic(batch.real)[0], critic(batch.real)[0]
    assert not torch.equal(noisy, again)
    critic.eval()
    assert torch.equal(critic(batch.real)[0], critic(batch.real)[0])
    layer = Noise(0.5)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        maps = torch.zeros(20, 8, 9, 7).contiguous(memory_format=memory_format)
        assert float(layer(maps).std()) == pytest.approx(0.5, rel=0.05)
        assert layer(maps).shape == maps.shape


def test_r1_adds_the_gradient_penalty_lazily() -> None:
    batch, losses = batch_of(), []
    for step, r1 in ((0, 0.0), (0, 1.0), (1, 1.0)):
        torch.manual_seed(0)
        recipe = Acgan(AcganOptions(**SMALL, critic_norm="none", r1=r1), SHAPE, 3)
        batch.step = step
        losses.append(recipe.d_loss(recipe.critic(), batch)[0].item())
    assert losses[0] == losses[2] < losses[1]
