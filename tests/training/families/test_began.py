"""BEGAN's equilibrium, its measure of convergence and its maps' shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from training import train
from training.families.base import Batch, Networks
from training.families.began import Began, BeganOptions, Critic
from training.randomness import StepRandom


def recipe(shape: tuple[int, int, int] = (1, 8, 8), **changes: Any) -> Began:
    return Began(BeganOptions(**{"width": 4, "hidden": 8, "latent_dim": 8} | changes), shape, 0)


def batch(shape: tuple[int, int, int] = (1, 8, 8)) -> Batch:
    draws = torch.Generator().manual_seed(0)
    real, fake = (torch.rand(6, *shape, generator=draws) * 2 - 1 for _ in range(2))
    return Batch(real=real, fake=fake, label=None, random=StepRandom(0, 0), step=0)


def critic_of(family: Began) -> Critic:
    torch.manual_seed(0)
    critic = family.critic()
    assert isinstance(critic, Critic)
    return critic


def test_the_critic_loses_what_it_cannot_rebuild() -> None:
    critic = critic_of(recipe())
    image = batch().real
    rebuilt = critic.decoder(critic.encoder(image))
    expected = torch.stack([(image[i] - rebuilt[i]).abs().mean() for i in range(len(image))])
    torch.testing.assert_close(critic(image), -expected)


@pytest.mark.parametrize("k", [0.0, 0.4])
def test_losses_and_k_follow_the_paper(k: float) -> None:
    family = recipe(gamma=0.7, lambda_k=0.01)
    critic, some = critic_of(family), batch()
    critic.k.fill_(k)
    real, fake = -critic(some.real).mean(), -critic(some.fake).mean()
    loss, numbers = family.d_loss(critic, some)
    torch.testing.assert_close(loss, real - k * fake)
    real, fake = real.detach(), fake.detach()
    surplus = float(0.7 * real - fake)
    assert float(critic.k) == pytest.approx(max(0.0, k + 0.01 * surplus), abs=1e-6)
    assert float(numbers["m_global"]) == pytest.approx(float(real) + abs(surplus), abs=1e-6)
    generated, _ = family.g_loss(Networks(family.generator(), critic), some)
    torch.testing.assert_close(generated, fake)


def test_k_stays_between_0_and_1() -> None:
    critic = critic_of(recipe())
    for real, fake, expected in ((1.0, 0.0, 1.0), (0.0, 1.0, 0.0)):
        for _ in range(3):
            critic.balance(torch.tensor(real), torch.tensor(fake), 0.5, 5.0)
        assert float(critic.k) == expected


def test_convergence_is_the_mean_of_m_and_lies_in_the_state() -> None:
    family = recipe()
    critic = critic_of(family)
    assert family.convergence(critic) is None, "nothing was measured yet"
    measures = [float(critic.balance(torch.tensor(real), torch.tensor(0.1), 0.5, 0.001)) for real in (0.4, 0.3, 0.1)]
    assert family.convergence(critic) == pytest.approx(sum(measures) / 3)
    other = critic_of(family)
    other.load_state_dict(critic.state_dict())
    assert family.convergence(other) == family.convergence(critic)
    assert {"k", "convergence", "seen"} <= critic.state_dict().keys()


def test_the_lowest_m_is_the_best_checkpoint(request_of: Any) -> None:
    settings = {"width": 4, "hidden": 8, "learning_rate": 0.003}
    run = train(request_of(family="began", batch=8, steps=12, evaluate_every=3, settings=settings), progress=False)
    scores = [record for record in run.metrics() if record["kind"] == "score"]
    assert len(scores) == 4
    assert all(record["score"] == -record["convergence"] for record in scores)
    least = min(scores, key=lambda record: record["convergence"])
    best = run.status().best
    assert best is not None
    assert (best.step, best.details["convergence"]) == (least["step"], least["convergence"])
    assert not [alarm for alarm in run.status().alarms if alarm.kind == "saturated"], "an L1 loss is no logistic one"
    kept = run.load_checkpoint("best")["critic"]
    assert float(kept["convergence"]) == least["convergence"]


@pytest.mark.parametrize("skips", [False, True])
def test_odd_sides_come_back(skips: bool) -> None:
    family = recipe((3, 27, 31), skips=skips, repeats=1)
    networks = family.build()
    assert networks.generator(torch.randn(2, 8)).shape == (2, 3, 27, 31)
    assert networks.critic(torch.zeros(2, 3, 27, 31)).shape == (2,)


def test_latents_become_uniform() -> None:
    """What the decoder is given by standard normal latents: the paper's law."""
    generator = recipe(latent_dim=50).generator()
    seen: list[torch.Tensor] = []
    generator.decoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))  # type: ignore[union-attr]
    generator(torch.randn(400, 50, generator=torch.Generator().manual_seed(0)))
    shares = torch.histc(seen[0], 10, -1, 1) / seen[0].numel()
    assert float((shares - 0.1).abs().max()) < 0.01


def test_the_rate_is_halved_at_its_shares() -> None:
    family = recipe(learning_rate=0.008, halvings=(0.5, 0.75))
    pair = family.optimizers(family.build())
    rates = []
    for step in (0, 49, 50, 75, 99):
        family.schedule(*pair, step, 100)
        rates.append(pair[0].param_groups[0]["lr"])
    assert rates == [0.008, 0.008, 0.004, 0.002, 0.002]
