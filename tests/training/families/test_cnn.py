"""What is particular to the Keras tutorials' GAN: pre-training, rates that fall in steps, dropout, uniform latents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.conftest import draw
from training import train
from training.config import options_from
from training.families.base import Networks
from training.families.cnn import Cnn, CnnOptions
from training.run import weights_digest

SHAPE = (1, 8, 8)
OPTIONS = CnnOptions(width=16, critic_width=16, pretrain_images=120, pretrain_batch=8)


def images() -> tuple[Tensor, Tensor]:
    drawn, labels = draw(60)
    return torch.from_numpy(drawn).permute(0, 3, 1, 2), torch.from_numpy(labels)


def prepared(options: CnnOptions, seed: int) -> tuple[Networks, dict[str, float]]:
    torch.manual_seed(3)
    family = Cnn(options, SHAPE, 0)
    networks = family.build()
    torch.manual_seed(seed + 100)  # what stands in the global generator must not matter
    return networks, family.prepare(networks, *images(), seed)


def test_pretraining_raises_the_accuracy_and_is_deterministic() -> None:
    networks, said = prepared(OPTIONS, 0)
    assert said["pre-training accuracy"] >= 0.9
    assert said["pre-training accuracy"] > said["accuracy before pre-training"] + 0.2
    torch.manual_seed(3)
    fresh = Cnn(OPTIONS, SHAPE, 0).build()
    assert weights_digest(networks.generator.state_dict()) == weights_digest(fresh.generator.state_dict())
    assert weights_digest(networks.critic.state_dict()) != weights_digest(fresh.critic.state_dict())
    assert all(weight.grad is None for weight in networks.critic.parameters())

    torch.rand(7)
    again, said_again = prepared(OPTIONS, 0)
    assert said_again == said
    assert weights_digest(again.critic.state_dict()) == weights_digest(networks.critic.state_dict())
    other, _ = prepared(OPTIONS, 1)
    assert weights_digest(other.critic.state_dict()) != weights_digest(networks.critic.state_dict())


def test_the_accuracy_is_of_images_held_back() -> None:
    """A critic that learns nothing is right on a half of them; and none is held back of too few."""
    _, said = prepared(replace(OPTIONS, critic_learning_rate=1e-30), 0)
    assert said["pre-training accuracy"] == said["accuracy before pre-training"]
    for count in (0, 4):
        _, said = prepared(replace(OPTIONS, pretrain_images=count), 0)
        assert said == {}


def test_the_accuracy_is_in_the_runs_metrics(request_of: Any) -> None:
    settings = {"width": 16, "critic_width": 16, "pretrain_images": 50}
    run = train(request_of(family="cnn", batch=8, settings=settings), progress=False)
    (record,) = (record for record in run.metrics() if record["kind"] == "prepared")
    assert 0 <= record["pre-training accuracy"] <= 1


def test_rates_fall_in_steps() -> None:
    family = Cnn(OPTIONS, SHAPE, 0)
    pair = family.optimizers(family.build())

    def rates(step: int) -> tuple[float, float]:
        family.schedule(*pair, step, 50)
        g, d = (optimizer.param_groups[0]["lr"] for optimizer in pair)
        return g, d

    # Brownlee's example: halved every 10 of 50.
    for step in range(50):
        assert rates(step) == pytest.approx((1e-4 / 2 ** (step // 10), 2e-4 / 2 ** (step // 10)))
    level = Cnn(replace(OPTIONS, rate_drops=0), SHAPE, 0)
    level.schedule(*pair, 49, 50)
    assert pair[0].param_groups[0]["lr"] == 1e-4


def test_28_pixels_are_atienzas_networks() -> None:
    networks = Cnn(CnnOptions(), (1, 28, 28), 0).build()
    shapes: list[tuple[int, ...]] = []
    for network in (networks.generator, networks.critic):
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d):
                assert layer.kernel_size == (5, 5)
                layer.register_forward_hook(lambda _, x, y: shapes.append(tuple(y.shape[1:])))
    networks.critic(networks.generator(torch.randn(2, 100)))
    assert shapes[:4] == [(128, 14, 14), (64, 28, 28), (32, 28, 28), (1, 28, 28)]
    assert shapes[4:] == [(64, 14, 14), (128, 7, 7), (256, 4, 4), (512, 4, 4)]


def test_latents_are_made_uniform_and_dropout_is_for_training_alone() -> None:
    torch.manual_seed(0)
    generator = Cnn(OPTIONS, SHAPE, 0).generator()
    seen: list[Tensor] = []
    generator.project[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))  # type: ignore[index, union-attr]
    latent = torch.randn(200, 100)
    assert not torch.equal(generator(latent), generator(latent))
    generator.eval()
    assert torch.equal(generator(latent), generator(latent))
    levels = torch.linspace(0.1, 0.9, 9)
    torch.testing.assert_close(torch.quantile(seen[0].flatten(), levels), 2 * levels - 1, rtol=0, atol=0.02)


def test_a_small_budget_chooses_the_presets() -> None:
    small, cpu = (options_from("cnn", {}, preset=name) for name in ("small", "cpu"))
    assert Cnn.narrower(CnnOptions()) == (small, cpu)
    assert Cnn.narrower(CnnOptions(width=64, batch=16)) == (replace(cpu, batch=16),)
