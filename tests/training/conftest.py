"""A data set of three classes of 8x8 images, and runs on it that take a second."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training import Run, TrainRequest, train

CLASSES = ("bar", "blob", "cross")


def draw(count: int, *, side: int = 8, channels: int = 1, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """`count` images of each class, light on dark, with jittered place and brightness."""
    rng = np.random.default_rng(seed)
    images = np.zeros((3 * count, side, side, channels), np.uint8)
    labels = np.repeat(np.arange(3), count)
    for image, label in zip(images, labels, strict=True):
        y, x = rng.integers(2, side - 2, 2)
        level = rng.integers(120, 255, channels)
        if label != 1:
            image[y] = level
        if label == 2:
            image[:, x] = level
        if label == 1:
            image[y - 2 : y + 2, x - 2 : x + 2] = level
    return images, labels


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An npz of 3 x 60 images."""
    images, labels = draw(60)
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, images=images, labels=labels, class_names=np.array(CLASSES))
    return path


@pytest.fixture
def request_of(tiny_data: Path, tmp_path: Path) -> Any:
    """Makes a TrainRequest for the tiny data; keyword arguments change it."""

    def make(**changes: Any) -> TrainRequest:
        given: dict[str, Any] = {"data": tiny_data, "out": tmp_path / "run", "steps": 6, "tensorboard": False}
        return TrainRequest(**(given | changes))

    return make


@pytest.fixture(scope="session")
def tiny_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of the default family; not to be written to."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    return train(TrainRequest(data=tiny_data, out=out, steps=12), progress=False)


@pytest.fixture(autouse=True)
def _away_from_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default run directory is relative: keep it out of the checkout."""
    monkeypatch.chdir(tmp_path)
    assert os.getcwd() == str(tmp_path)
