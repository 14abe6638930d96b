"""The alarm for classes whose samples are not recognised as theirs: at the end, for the right classes, and truly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluation.selection import SelectionScore
from tests.training.conftest import CLASSES, draw
from training import Run, loop, train
from training.examination import Examiner
from training.health import FAITHFUL, check_faithful
from training.run import Alarm


class Copies(nn.Module):
    """Draws images of the class that is asked for, but every `wrong`-th cross is a blob."""

    bank: Tensor

    def __init__(self, wrong: int = 0) -> None:
        super().__init__()
        images, _ = draw(60)
        bank = torch.from_numpy(images.transpose(0, 3, 1, 2)).float().div(127.5).sub(1).unflatten(0, (3, 60))
        self.register_buffer("bank", bank)
        self.weight = nn.Parameter(torch.zeros(1))  # says which device it is on
        self.wrong = wrong

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        chosen = (latent[:, 0].abs() * 1e4).long()
        if self.wrong:
            label = torch.where((label == 2) & (chosen % self.wrong == 0), 1, label)
        return self.bank[label, chosen // 7 % 60]


@pytest.fixture(scope="module")
def examiner(tiny_run: Run) -> Examiner:
    images, labels = draw(60)
    scorer = SelectionScore.fit(images, labels, CLASSES, images[:0], labels[:0], seed=0, steps=60)
    config = replace(tiny_run.config, class_counts=(60, 60, 20))
    return Examiner(config, scorer, images, labels)


def unfaithful(examiner: Examiner, generator: nn.Module) -> list[tuple[str, str]]:
    alarms = examiner.unfaithful(generator, step=300)
    assert all((alarm.kind, alarm.step) == ("unfaithful", 300) for _, alarm in alarms)
    return [(about, alarm.message) for about, alarm in alarms]


def test_shares_below_the_threshold_are_named() -> None:
    labels = torch.arange(3).repeat_interleave(100)
    recognised = labels.clone()
    assert check_faithful(labels, recognised, ["a", "b", "c"]) == {}
    recognised[100:110], recognised[200:211] = 0, 0
    assert check_faithful(labels, recognised, ["a", "b", "c"]) == {"c": pytest.approx(0.89)}


def test_a_healthy_run_is_not_warned_of(examiner: Examiner) -> None:
    assert unfaithful(examiner, Copies()) == []


def test_a_class_that_is_not_recognised_is_named_with_number_and_mend(examiner: Examiner) -> None:
    ((about, message),) = unfaithful(examiner, Copies(wrong=2))
    assert about == "cross"
    share = float(message.split(" only ")[1].split("%")[0]) / 100
    assert share == pytest.approx(0.5, abs=0.15)
    assert share < FAITHFUL
    assert "class 'cross' (20 training images)" in message
    assert "train longer" in message
    assert 'quality "labels"' in message


def test_the_loop_asks_once_at_the_end_and_of_what_is_kept(request_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def watched(examiner: Examiner, generator: nn.Module, step: int) -> list[tuple[str, Alarm]]:
        assert not generator.training
        asked.append(step)
        return [("bar", Alarm("unfaithful", step, "of 'bar'")), ("blob", Alarm("unfaithful", step, "of 'blob'"))]

    monkeypatch.setattr(Examiner, "unfaithful", watched)
    short = train(request_of(), progress=False)
    assert asked == [], "too short a training for labels"
    assert "unfaithful" not in {alarm.kind for alarm in short.status().alarms}
    monkeypatch.setattr(loop, "LABELS_FROM", 6)
    run = train(request_of(out="longer"), progress=False)
    status = run.status()
    assert status.best is not None
    assert asked == [status.best.step]
    assert [alarm.message for alarm in status.alarms if alarm.kind == "unfaithful"] == ["of 'bar'", "of 'blob'"]


def test_a_doubt_is_looked_at_again(examiner: Examiner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score's few images may miss by chance: what decides is a larger lot of the doubtful classes."""
    asked: list[tuple[int, set[int]]] = []
    recognised = examiner.scorer.recognised

    def watched(images: NDArray[np.uint8]) -> NDArray[np.int64] | None:
        found = recognised(images)
        assert found is not None
        asked.append((len(images), set(found.tolist())))
        return found

    monkeypatch.setattr(examiner.scorer, "recognised", watched)
    assert unfaithful(examiner, Copies(wrong=2))
    first, again = asked
    assert first[1] == {0, 1, 2}
    assert again[0] >= 200
    assert 0 not in again[1]
