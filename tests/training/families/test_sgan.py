"""The semi-supervised GAN: which labels it may see, its losses, and that it learns to classify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from augmint.errors import UsageError
from tests.training.conftest import CLASSES, draw
from training import Run, TrainRequest, load_critic, train
from training.api import _Material
from training.families.base import Batch, Networks
from training.families.sgan import Critic, Sgan, SganOptions
from training.randomness import StepRandom
from training.trainer import Trainer

NARROW = {"hidden": 32, "critic_hidden": [64, 32], "batch": 24}


def recipe(classes: int = 3, **changes: Any) -> Sgan:
    given: dict[str, Any] = {"hidden": 16, "critic_hidden": (32, 16)}
    return Sgan(SganOptions(**given | changes), (1, 8, 8), classes)


def critic_of(family: Sgan) -> Critic:
    torch.manual_seed(0)
    critic = family.critic()
    assert isinstance(critic, Critic)
    return critic


def some_images(count: int = 9) -> torch.Tensor:
    return torch.from_numpy(draw(count // 3)[0].transpose(0, 3, 1, 2).copy())


def as_floats(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 127.5 - 1


def test_realism_is_the_log_odds_of_any_class_against_the_fakes_logit_of_0() -> None:
    critic = critic_of(recipe()).eval()
    realism, logits = critic(as_floats(some_images()))
    of_fake = torch.cat([logits, torch.zeros(len(logits), 1)], 1).softmax(1)[:, -1]
    torch.testing.assert_close(realism.sigmoid(), 1 - of_fake)


def test_d_loss_is_the_papers() -> None:
    """Section 5: cross-entropy of the class on labelled images, of real against fake on the others."""
    family = recipe(noise=0, input_noise=0)
    critic = critic_of(family)
    real, fake, known = (as_floats(some_images())[rows] for rows in (slice(0, 4), slice(4, 6), slice(6, 9)))
    labels = torch.tensor([0, 2, 1])
    loss, _ = family.d_loss(critic, Batch(real, fake, None, StepRandom(0, 0), 0, (known, labels)))
    log_real = torch.log(critic(real)[0].sigmoid())
    log_fake = torch.log(1 - critic(fake)[0].sigmoid())
    expected = -(log_real.mean() + log_fake.mean()) / 2 + F.cross_entropy(critic(known)[1], labels)
    torch.testing.assert_close(loss, expected)
    without, numbers = family.d_loss(critic, Batch(real, fake, None, StepRandom(0, 0), 0))
    torch.testing.assert_close(without, -(log_real.mean() + log_fake.mean()) / 2)
    assert "class_loss" not in numbers


def test_g_matches_the_mean_features() -> None:
    family = recipe(noise=0, input_noise=0)
    critic = critic_of(family)
    real, fake = as_floats(some_images())[:4], as_floats(some_images())[4:]
    networks = Networks(family.generator(), critic)
    loss, _ = family.g_loss(networks, Batch(real, fake, None, StepRandom(0, 0), 0))
    expected = (critic.features(real).mean(0) - critic.features(fake).mean(0)).square().mean()
    torch.testing.assert_close(loss, expected)
    same, _ = family.g_loss(networks, Batch(real, real.flip(0), None, StepRandom(0, 0), 0))
    assert float(same.detach()) < 1e-10, "the means alone are matched"


def test_scales_come_from_the_data() -> None:
    family = recipe(noise=0, input_noise=0)
    images = as_floats(some_images(90))
    critic = critic_of(family)
    critic.scale_to(images)
    logits = critic(images)[1]
    torch.testing.assert_close(logits.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(logits.std(0, correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_labels_per_class_are_chosen_by_content_and_nested() -> None:
    images, labels = some_images(60), torch.arange(3).repeat_interleave(20)
    labels[0] = -1
    five, two = (recipe(labels_per_class=count).labelled(images, labels, 7) for count in (5, 2))
    for known, count in ((five, 5), (two, 2)):
        assert torch.bincount(known[known >= 0]).tolist() == [count] * 3
        assert torch.equal(known[known >= 0], labels[known >= 0])
        assert known[0] == -1
    assert ((two < 0) | (five >= 0)).all(), "2 a class are among 5 a class"
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(recipe(labels_per_class=5).labelled(images[shuffled], labels[shuffled], 7), five[shuffled])
    assert not torch.equal(recipe(labels_per_class=5).labelled(images, labels, 8), five)
    assert torch.equal(recipe().labelled(images, labels, 7), labels)


@pytest.fixture(scope="module")
def partly_labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An npz in which most images are of the class "unlabelled", which is not the last of the classes."""
    images, labels = draw(60)
    kept = np.tile(np.arange(60) < 20, 3)
    names = np.array(["bar", "unlabelled", "blob", "cross"])
    numbers = np.where(kept, np.array([0, 2, 3])[labels], 1)
    path = tmp_path_factory.mktemp("partly") / "partly.npz"
    np.savez(path, images=images, labels=numbers, class_names=names)
    return path


def test_a_class_called_unlabelled_is_none(partly_labelled: Path, tmp_path: Path) -> None:
    request = TrainRequest(
        data=partly_labelled, family="sgan", out=tmp_path / "run", steps=2, settings=NARROW, tensorboard=False
    )
    run = train(request, progress=False)
    assert run.config.class_names == ("bar", "unlabelled", "blob", "cross")
    assert run.config.critic_classes == CLASSES
    critic, _ = load_critic(run)
    assert critic(torch.zeros(2, 1, 8, 8))[1].shape == (2, 3)
    best = run.status().best
    assert best is not None
    assert best.score == best.details["accuracy"]

    from augmint.data import load_data

    material = _Material(run.config, load_data(partly_labelled))
    images, labels = material.tensors()
    assert labels.unique().tolist() == [-1, 0, 1, 2]
    judged = material.judged()
    assert judged is not None
    assert set(judged[1]) == {0, 1, 2}
    assert len(judged[0]) < len(material.val_images)
    trainer = Trainer(run.config, images, labels)
    batch = trainer._batch(StepRandom(0, 0), "D")
    assert batch.labelled is not None
    assert torch.bincount(batch.labelled[1]).tolist() == [8, 8, 8], "each class alike often"
    originals = {row.numpy().tobytes(): int(label) for row, label in zip(images, labels, strict=True)}
    for image, label in zip(*batch.labelled, strict=True):
        assert originals[((image + 1) * 127.5).round().to(torch.uint8).numpy().tobytes()] == int(label)
    again = trainer._batch(StepRandom(0, 0), "D").labelled
    assert again is not None
    assert torch.equal(again[0], batch.labelled[0]), "a function of the step"
    assert trainer._batch(StepRandom(0, 0), "G").labelled is None


def test_it_learns_to_classify(request_of: Any) -> None:
    request = request_of(family="sgan", steps=100, evaluate_every=100, settings={**NARROW, "noise": 0.2})
    run: Run = train(request, progress=False)
    images, labels = draw(30, seed=5)
    critic, _ = load_critic(run)
    found = critic(as_floats(torch.from_numpy(images.transpose(0, 3, 1, 2))))[1].argmax(1).numpy()
    assert (found == labels).mean() > 0.7, "a third is guessing"


def test_without_labels_there_is_nothing_to_learn(request_of: Any) -> None:
    with pytest.raises(UsageError, match="--ignore-labels"):
        train(request_of(family="sgan", ignore_labels=True), progress=False)
