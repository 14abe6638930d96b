"""NaN guards and alarms."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch

from augmint.errors import TrainingError
from tests.training.test_resume import fingerprint, stop_at
from training import Interrupted, resume, train
from training.diffaugment import AugmentPolicy, diff_augment
from training.examination import Examiner
from training.families.augment import Augment
from training.families.base import Batch, Losses
from training.health import LossWatch, check_collapse, check_leaks, few_images, grey_share, mass_spread


def poison(monkeypatch: pytest.MonkeyPatch, *, step: int, retries: int = 1) -> None:
    """The discriminator's loss is NaN at `step`, until so many roll-backs."""
    before = Augment.d_loss

    def d_loss(self: Augment, critic: torch.nn.Module, batch: Batch) -> Losses:
        loss, numbers = before(self, critic, batch)
        if batch.step == step and batch.random.retry < retries:
            loss = loss * float("nan")
        return loss, numbers

    monkeypatch.setattr(Augment, "d_loss", d_loss)


def test_a_nan_is_rolled_back_and_told(request_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, step=7)
    run = train(request_of(steps=12, checkpoint_every=5), progress=False)
    status = run.status()
    assert status.state == "finished"
    (alarm,) = [alarm for alarm in status.alarms if alarm.kind == "rolled-back"]
    assert "rolled back to step 5" in alarm.message
    assert "the discriminator's loss" in alarm.message
    state = run.load_checkpoint("last")["state"]
    assert state["retry"] == 1
    assert all(value.isfinite().all() for value in state["generator"].values())
    assert [record["step"] for record in run.metrics() if record["kind"] == "losses"] == list(range(1, 13))


def test_a_roll_back_is_resumed_exactly(request_of: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped off the cadence before the NaN: the roll-back goes where it would have gone without the stop."""
    poison(monkeypatch, step=8)
    common = {"steps": 12, "checkpoint_every": 5, "evaluate_every": 4}
    whole = train(request_of(out=tmp_path / "whole", **common), progress=False)
    with monkeypatch.context() as patch:
        stop_at(patch, 7, 2)
        with pytest.raises(Interrupted):
            train(request_of(out=tmp_path / "cut", **common), progress=False)
    assert fingerprint(resume(tmp_path / "cut", progress=False)) == fingerprint(whole)


def test_divergence_is_an_error_that_names_the_mend(request_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, step=3, retries=100)
    with pytest.raises(TrainingError, match="learning_rate") as failed:
        train(request_of(steps=12, checkpoint_every=2), progress=False)
    assert failed.value.code == "training.diverged"


def test_few_images_name_the_classes() -> None:
    (alarm,) = few_images(["a", "b", "c"], [500, 20, 49])
    assert "'b' (20), 'c' (49)" in alarm.message
    assert few_images(["a"], [50]) == []


def test_a_saturated_discriminator_is_told_once() -> None:
    watch = LossWatch()
    alarms = [alarm for step in range(50) for alarm in watch.look(step, {"d_loss": 0.001})]
    assert [alarm.kind for alarm in alarms] == ["saturated"]
    watch = LossWatch()
    assert not [alarm for step in range(50) for alarm in watch.look(step, {"d_loss": 0.001 if step % 9 else 0.9})]


def test_collapse_names_the_class() -> None:
    draws = torch.Generator().manual_seed(0)
    reals, labels = torch.rand(40, 1, 8, 8, generator=draws), torch.arange(40) % 2
    fakes = torch.rand(40, 1, 8, 8, generator=draws)
    assert check_collapse(fakes, labels, reals, labels, ["a", "b"]) == {}
    fakes[labels == 1] = fakes[1].clone()
    assert list(check_collapse(fakes, labels, reals, labels, ["a", "b"])) == ["b"]


def test_an_unconditional_generator_is_compared_with_all_classes(request_of: Any) -> None:
    """Not with the first one: a generator that only knows that one has collapsed."""
    images = np.zeros((200, 8, 8, 1), np.uint8)
    images[:100, 3, 3] = np.arange(100)[:, None]  # nearly alike
    images[100:] = np.random.default_rng(0).integers(0, 255, (100, 8, 8, 1))
    labels = np.repeat([0, 1], 100)
    run = train(request_of(steps=1, ignore_labels=True), progress=False)
    examiner = Examiner(run.config, cast(Any, None), images, labels)
    fakes = torch.from_numpy(images[:100].transpose(0, 3, 1, 2)).float() / 127.5 - 1
    assert check_collapse(fakes, torch.zeros(100), examiner.reals, examiner.real_labels, [""])


def test_leaks_are_seen_and_their_absence_too() -> None:
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 2
    reals = torch.full((80, 1, 28, 28), -1.0)
    reals[:, :, 8:20, 8:20] = torch.rand(80, 1, 12, 12, generator=draws) * 0.3 + 0.7
    fakes = reals.flip(0)
    cut = diff_augment(reals, AugmentPolicy(cutout=0.4), draws)
    moved = diff_augment(reals, AugmentPolicy(translation=0.2), draws)
    assert check_leaks(fakes, labels, reals, labels, cut) == {}
    assert "grey squares" in check_leaks(cut, labels, reals, labels, cut)
    assert "shifts" in check_leaks(moved, labels, reals, labels, moved)
    assert grey_share(cut, labels) > 0.5 > grey_share(reals, labels)
    assert mass_spread(moved, labels) > 1 > mass_spread(reals, labels)
