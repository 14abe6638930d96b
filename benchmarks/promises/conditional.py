"""What the promises of families with classes are measured with: labels, variety within a class, and a set cut short.

The judge is a small classifier trained on all real digits of the train and the validation split of mnist5k, those that
are cut away for a generator too: it knows what a generator of 20 images cannot. Its accuracy on the test split, which
neither it nor any generator saw, stands beside its verdicts. Recall and coverage of each class compare samples with the
test images in its features. Similarity is the mean structural similarity (SSIM: Wang et al. 2004, "Image quality
assessment: from error visibility to structural similarity", 7x7 windows) of pairs of a class: Odena et al. 2016,
section 4.2, take its multi-scale form, whose five scales need images of 112 pixels or more. The higher, the more alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from augmint.data import load_data
from evaluation.arrays import Labelled
from evaluation.classifier import Classifier, train_classifier
from evaluation.prdc import prdc
from training import Run, load_generator
from training.examination import render
from training.health import FAITHFUL

__all__ = ["SMALL", "Measured", "cut", "judge_accuracy", "measured", "reals", "verdict"]

SMALL: Final = ("5", "6", "7", "8", "9")
SHOTS: Final = 20
PER_CLASS: Final = 200
_SEED: Final = 5  # Of the samples' addresses; 0 and 1 are the sheet's and the score's.
_STEPS: Final = 1200


@dataclass(frozen=True)
class Measured:
    """Each float64 [K], one a class; `fidelity` is the share that the judge takes for what was asked."""

    fidelity: NDArray[np.float64]
    recall: NDArray[np.float64]
    coverage: NDArray[np.float64]
    similarity: NDArray[np.float64]

    def small(self) -> NDArray[np.float64]:
        return self.fidelity[[int(name) for name in SMALL]]


def measured(run: Run) -> Measured:
    """`PER_CLASS` samples of each class of the run's best checkpoint, as its bundle would make them."""
    generator, config = load_generator(run, "best")
    labels = np.repeat(np.arange(config.num_classes), PER_CLASS)
    indices = np.tile(np.arange(PER_CLASS), config.num_classes)
    with torch.no_grad():
        images = render(generator, labels, _SEED, indices, config.options.latent_dim)
    return _of(images, labels)


def reals() -> Measured:
    """The same of real images, the train split's: what a perfect generator could expect."""
    return _of(*_split("train"))


def judge_accuracy() -> float:
    """On the test split."""
    images, labels = _split("test")
    return float((_judge().predict(images) == labels).mean())


def cut(work: Path) -> str:
    """mnist5k with `SHOTS` training images of each small class, written once; the path to train on."""
    out = work / f"mnist5k-{SHOTS}"
    if not out.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        load_data("mnist5k").cut(dict.fromkeys(SMALL, SHOTS)).write(out)
    return str(out)


def verdict(run: Run, figures: Measured) -> tuple[bool, str]:
    """Whether every small class holds, or else the run's health report names each that does not; and that in words."""
    names = run.config.class_names
    below = {c for c in range(len(names)) if names[c] in SMALL and figures.fidelity[c] < FAITHFUL}
    alarms = [alarm.message for alarm in run.status().alarms if alarm.kind == "unfaithful"]
    said = {c for c in range(len(names)) if any(f"class {names[c]!r}" in message for message in alarms)}
    small = figures.small()
    held = f"small classes {small.mean():.3f}, the lowest {small.min():.3f}"
    if not below:
        return True, f"{held}: all hold {FAITHFUL}" + (
            f"; its health report warns of {_list(said, names)}" if said else ""
        )
    return (
        below <= said,
        f"{held}: {_list(below, names)} below {FAITHFUL}; its health report warns of {_list(said, names)}",
    )


def _list(classes: set[int], names: Sequence[str]) -> str:
    return ", ".join(names[c] for c in sorted(classes)) or "none"


@cache
def _split(split: str) -> Labelled:
    data = load_data("mnist5k")
    return data.images(split, shape=data.native_shape())


@cache
def _judge() -> Classifier:
    (a, of_a), (b, of_b) = _split("train"), _split("validation")
    images, labels = np.concatenate([a, b]), np.concatenate([of_a, of_b])
    return train_classifier(images, labels, 10, seed=103, steps=_STEPS, augment="affine", sampler="balanced")


def _of(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Measured:
    test, of_test = _split("test")
    judge = _judge()
    found, features, held_out = judge.predict(images), judge.features(images), judge.features(test)
    rows: list[tuple[float, ...]] = []
    for c in range(10):
        own = labels == c
        compared = prdc(held_out[of_test == c], features[own][: len(test)])
        assert compared.recall is not None, "both sides have points"
        assert compared.coverage is not None, "both sides have points"
        rows.append((float((found[own] == c).mean()), compared.recall, compared.coverage, _similarity(images[own])))
    return Measured(*np.array(rows).T)


def _similarity(images: NDArray[np.uint8]) -> float:
    """Mean SSIM of image i and image i + n/2, uint8 [N, H, W, C]."""
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).double() / 255
    half = len(x) // 2
    return float(_ssim(x[:half], x[half : 2 * half]).mean())


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    """float64 [N, C, H, W] in [0, 1] -> [N]."""

    def mean(z: Tensor) -> Tensor:
        return F.avg_pool2d(z, 7, 1)

    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    ssim = (2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return ssim.mean((1, 2, 3))
