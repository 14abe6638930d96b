"""Checks that every family inherits by being listed in `training.families.FAMILIES`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from augmint.errors import UsageError
from training import FAMILIES, TrainRequest, family, load_critic, load_generator, train
from training.config import options_from
from training.families.base import Batch, Family
from training.families.dcgan import Dcgan
from training.randomness import StepRandom

SHAPES = [(1, 8, 8), (3, 16, 12), (1, 28, 28), (3, 32, 32), (3, 64, 64)]
every_family = pytest.mark.parametrize("kind", FAMILIES, ids=lambda kind: kind.name)


def narrow(kind: type[Family[Any]]) -> dict[str, str]:
    """Settings for narrow networks, so that they stay cheap."""
    widths = {"width": "16", "critic_width": "16", "hidden": "32", "critic_hidden": "[32, 32]", "maxout": "8"}
    return {name: value for name, value in widths.items() if name in kind.Options.__dataclass_fields__}


def small(kind: type[Family[Any]], shape: tuple[int, int, int], classes: int) -> Family[Any]:
    return kind(options_from(kind.name, narrow(kind)), shape, classes)


def batch_for(recipe: Family[Any], shape: tuple[int, int, int], size: int = 4) -> Batch:
    random = StepRandom(seed=1, step=0)
    draws = torch.Generator().manual_seed(0)
    label = torch.arange(size) % recipe.num_classes if recipe.num_classes else None
    real, fake = (torch.rand(size, *shape, generator=draws) * 2 - 1 for _ in range(2))
    known = None
    if recipe.supervised and recipe.critic_classes:
        known = real.flip(0), torch.arange(size) % recipe.critic_classes
    latent = recipe.latent(size, random, "test")
    return Batch(real=real, fake=fake, label=label, random=random, step=0, labelled=known, latent=latent)


def realism(judged: Any, classes: int) -> torch.Tensor:
    """Of a critic's answer, which may be a pair with class logits."""
    if isinstance(judged, torch.Tensor):
        return judged
    logit, class_logits = judged
    assert class_logits.shape == (len(logit), classes)
    assert isinstance(logit, torch.Tensor)
    return logit


@every_family
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("classes", [0, 3])
def test_networks_keep_the_conventions(kind: type[Family[Any]], shape: tuple[int, int, int], classes: int) -> None:
    recipe = small(kind, shape, classes)
    networks = recipe.build()
    batch = batch_for(recipe, shape)
    latent = recipe.latent(4, batch.random, "test")
    images = networks.generator(latent, batch.label)
    assert images.shape == (4, *shape)
    assert images.dtype == torch.float32
    assert images.min() >= -1
    assert images.max() <= 1
    logits = realism(networks.critic(images, batch.label), recipe.critic_classes)
    assert logits.shape == (4,)
    if not recipe.num_classes:
        assert torch.equal(networks.generator.eval()(latent), networks.generator(latent, None)), "the label is optional"


@every_family
def test_losses_reach_every_weight(kind: type[Family[Any]]) -> None:
    shape = (3, 16, 16)
    recipe = small(kind, shape, 3)
    networks = recipe.build()
    batch = batch_for(recipe, shape)
    loss, numbers = recipe.d_loss(networks.critic, batch)
    loss.backward()
    assert loss.isfinite()
    assert {"d_real", "d_fake"} <= numbers.keys()
    assert all(not number.requires_grad for number in numbers.values())
    assert all(weight.grad is not None for weight in networks.critic.parameters())

    batch.fake = networks.generator(recipe.latent(4, batch.random, "test"), batch.label)
    loss, _ = recipe.g_loss(networks, batch)
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad is not None for weight in networks.generator.parameters())
    if networks.encoder is not None:
        assert all(weight.grad is not None for weight in networks.encoder.parameters())


@every_family
def test_widen_and_augment_keep_the_shape_and_depend_on_the_generator_alone(kind: type[Family[Any]]) -> None:
    recipe = small(kind, (3, 16, 12), 3)
    images = batch_for(recipe, (3, 16, 12)).real
    for change in (recipe.widen, recipe.augment):
        one, two = (change(images.clone(), torch.Generator().manual_seed(5)) for _ in range(2))
        assert one.shape == images.shape
        assert torch.equal(one, two)


@every_family
def test_schedule_depends_on_the_step_alone(kind: type[Family[Any]]) -> None:
    recipe = small(kind, (1, 8, 8), 0)

    def rates(steps: list[int]) -> list[float]:
        pair = recipe.optimizers(recipe.build())
        for step in steps:
            recipe.schedule(*pair, step, 100)
        return [group["lr"] for optimizer in pair for group in optimizer.param_groups]

    assert rates([0, 10, 90]) == rates([90])


@every_family
def test_cheaper_versions_are_cheaper(kind: type[Family[Any]]) -> None:
    options = options_from(kind.name, {})
    versions = (options, *kind.narrower(options))
    sizes = []
    for version in versions:
        networks = kind(version, (1, 28, 28), 0).build()
        parts = [part for part in (networks.generator, networks.encoder) if part is not None]
        sizes.append(sum(weight.numel() for part in parts for weight in part.parameters()))
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


@every_family
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 300, 300)], ids=str)
def test_a_shape_it_cannot_make_is_a_usage_error(kind: type[Family[Any]], shape: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="--resolution"):
        kind(options_from(kind.name, {}), shape, 0)


@every_family
def test_trains_saves_and_loads(kind: type[Family[Any]], request_of: Any) -> None:
    """One tiny run each: it moves the weights, and what is loaded is what was kept."""
    request: TrainRequest = request_of(family=kind.name, batch=8, settings=narrow(kind))
    run = train(request, progress=False)
    status = run.status()
    assert (status.state, status.step) == ("finished", 6)
    assert status.best is not None
    assert run.config.conditional == kind.conditional
    assert run.sheet_path(status.best.step).is_file()
    records = run.metrics()
    assert {record["kind"] for record in records} - {"prepared"} == {"losses", "score"}
    for which in ("best", "last"):
        generator, config = load_generator(run, which)
        critic, _ = load_critic(run, which)
        label = torch.tensor([0, 1, 2, 0]) if config.num_classes else None
        image = generator(torch.zeros(4, config.options.latent_dim), label)
        assert image.shape == (4, 1, 8, 8)
        assert realism(critic(image, label), config.make_family().critic_classes).shape == (4,)
        assert not generator.training
    last = run.load_checkpoint("last")["state"]
    torch.manual_seed(0)
    fresh = run.config.make_family().generator().state_dict()
    assert any(not torch.equal(fresh[name], last["generator"][name]) for name in fresh)


@every_family
def test_presets_are_options(kind: type[Family[Any]]) -> None:
    assert options_from(kind.name, {}, preset="paper") == options_from(kind.name, {})
    for preset, settings in kind.presets.items():
        options = options_from(kind.name, {}, preset=preset)
        assert {name: getattr(options, name) for name in settings} == dict(settings)
        assert options_from(kind.name, {"batch": 6}, preset=preset).batch == 6
    with pytest.raises(UsageError, match="--preset takes one of paper"):
        options_from(kind.name, {}, preset="none such")


def test_a_family_may_prepare_and_measure_itself(request_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `prepare` returns is in the metrics, once; the lowest `convergence` chooses the best checkpoint."""
    measures = iter([0.3, 0.1, 0.2])
    monkeypatch.setattr(Dcgan, "prepare", lambda *_: {"accuracy": 0.75})
    monkeypatch.setattr(Dcgan, "convergence", lambda *_: next(measures))
    run = train(request_of(family="dcgan", batch=8, evaluate_every=2), progress=False)
    assert [record for record in run.metrics() if record["kind"] == "prepared"] == [
        {"step": 0, "kind": "prepared", "accuracy": 0.75}
    ]
    best = run.status().best
    assert best is not None
    assert (best.step, best.score, best.details["convergence"]) == (4, -0.1, 0.1)


def test_an_unknown_family_lists_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"augment, acgan, .*dcgan, gan"):
        family("stylegan")
