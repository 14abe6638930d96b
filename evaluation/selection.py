"""One number for the training loop: how near a checkpoint's images are to real ones. Higher is better, about 1 is real.

For each class alike often, and then averaged, so that a rare class weighs as much as a common one:

    value = label agreement × (coverage + recall + closeness) / 3

- coverage (Naeem et al. 2020): the share of real images that have a fake within reach of their k-th real neighbour,
  divided by its expectation for a second real sample of that size (their section 3), at most 1. It falls on mode
  collapse.
- recall (Kynkäänniemi et al. 2019): the share of real images that lie among the fakes. It falls when the fakes keep to
  the typical, which a few real images too easily call covered: without it, the generator that helps a classifier more
  scored less (docs/log.md).
- closeness: 1 / (1 + 10 r), where r is the kernel distance (Bińkowski et al. 2018) over the mean kernel of the real
  images, at least 0. It falls on blur, noise and artefacts that coverage forgives.
- label agreement: the share of fakes which the classifier takes for the class that was asked for. It multiplies,
  because a wrong label harms whoever trains on it, however good the picture. Absent where no labels are given.

The features are of a small classifier trained on the train split (balanced, affinely augmented); sets without labels or
with one class get principal components of their pixels instead, which are blinder to fine detail. Real images are the
validation split's where a class has enough, else train and validation together, which cannot tell a copy of the train
split from a new image: `details` says which. The score compares checkpoints of one run. It is not a measure to report:
the classifier that judges was trained on what the generator was trained on. Knows nothing of generators or runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augmint.errors import DataError
from evaluation.arrays import evenly
from evaluation.classifier import SMALLEST, Classifier, train_classifier
from evaluation.kernel_distance import kernel_distance, mean_kernel
from evaluation.pixels import PixelPCA
from evaluation.prdc import prdc

__all__ = ["Score", "SelectionScore"]

_ENOUGH = 30  # Validation images of a class from which on they stand alone.
_ENOUGH_POOLED = 100
_MOST = 200  # Real images of a class that are compared with, for speed.
_MOST_POOLED = 1000
_STEPS = (200, 1200)  # Fewest and most gradient steps of the classifier.


@dataclass(frozen=True)
class Score:
    """`value` in [0, 1]; `details` and `per_class` hold its parts, counts and remarks as plain JSON values."""

    value: float
    details: dict[str, float | int | str]
    per_class: dict[str, dict[str, float | int | str]]


@dataclass(frozen=True)
class _Reference:
    """Features of the real images of one class, or of all of them."""

    features: NDArray[np.float32]
    mean_kernel: float
    source: str


class SelectionScore:
    """Made once per run by `fit`; `state_dict` and `restore` carry it through a resume, to the same scores.

    `steps` says how long the classifier was trained (0: pixel features), `extractor` names the features.
    """

    def __init__(
        self,
        extractor: Classifier | PixelPCA,
        steps: int,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64] | None,
        class_names: Sequence[str],
        val_images: NDArray[np.uint8],
        val_labels: NDArray[np.int64] | None,
    ) -> None:
        self._extractor = extractor
        self.steps = steps
        self.extractor = extractor.name
        self.class_names = tuple(class_names)
        self._pooled = self._reference(images, val_images, _ENOUGH_POOLED, _MOST_POOLED)
        self._of_class: dict[int, _Reference] = {}
        if labels is not None:
            val_labels = np.zeros(0, np.int64) if val_labels is None else val_labels
            for c in range(len(self.class_names)):
                train, validation = images[labels == c], val_images[val_labels == c]
                if len(train) + len(validation) >= 2:
                    self._of_class[c] = self._reference(train, validation, _ENOUGH, _MOST)

    @classmethod
    def fit(
        cls,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64] | None,
        class_names: Sequence[str],
        val_images: NDArray[np.uint8],
        val_labels: NDArray[np.int64] | None,
        *,
        seed: int,
        seconds: float = 6.0,
        steps: int | None = None,
    ) -> SelectionScore:
        """Train the feature classifier on `images` uint8 [N, H, W, C] with `labels` int64 [N]; keep real features.

        `val_images` may have no rows. `steps` fixes the length of training; without it the length is what fits into
        about `seconds` on this machine now, which another time may be another: keep `state_dict()` for a resume.
        """
        if len(images) < 2:
            raise DataError(f"Choosing a checkpoint needs at least 2 training images, but there are {len(images)}.")
        present = 0 if labels is None else len(np.unique(labels))
        if labels is None or present < 2 or min(images.shape[1:3]) < SMALLEST:
            return cls(PixelPCA.fit(images), 0, images, labels, class_names, val_images, val_labels)
        if steps is None:
            steps = _affordable_steps(images, labels, len(class_names), seconds)
        classifier = train_classifier(
            images, labels, len(class_names), seed=seed, steps=steps, augment="affine", sampler="balanced"
        )
        return cls(classifier, steps, images, labels, class_names, val_images, val_labels)

    def state_dict(self) -> dict[str, Any]:
        """The extractor, as values that `torch.load(weights_only=True)` accepts; the images are not in it."""
        return {"steps": self.steps, "extractor": self._extractor.state_dict()}

    @classmethod
    def restore(
        cls,
        state: Mapping[str, Any],
        images: NDArray[np.uint8],
        labels: NDArray[np.int64] | None,
        class_names: Sequence[str],
        val_images: NDArray[np.uint8],
        val_labels: NDArray[np.int64] | None,
    ) -> SelectionScore:
        """The score that `state_dict` came from, given the same images again."""
        kind = Classifier if state["steps"] else PixelPCA
        extractor = kind.from_state_dict(state["extractor"])
        return cls(extractor, state["steps"], images, labels, class_names, val_images, val_labels)

    def score(self, fake_images: NDArray[np.uint8], fake_labels: NDArray[np.int64] | None = None) -> Score:
        """Score fakes uint8 [M, H, W, C] (M >= 2) that were asked for as `fake_labels` int64 [M], or pooled without.

        A class that real images have and fakes lack scores 0. Compare scores of equal M and labels only.
        """
        if len(fake_images) < 2:
            raise ValueError(f"A score needs at least 2 images, got {len(fake_images)}.")
        features = self._extractor.features(fake_images)
        details: dict[str, float | int | str] = {"extractor": self.extractor, "n_fake": len(fake_images)}
        if fake_labels is None or not self._of_class:
            parts = _compare(self._pooled, features)
            details.update(parts)
            return Score(_round(_mean_of(parts)), details, {})
        predicted = self.recognised(fake_images)
        per_class: dict[str, dict[str, float | int | str]] = {}
        for c, reference in self._of_class.items():
            of_class = fake_labels == c
            parts = _compare(reference, features[of_class])
            value = _mean_of(parts)
            if predicted is not None:
                agreement = float((predicted[of_class] == c).mean()) if of_class.any() else 0.0
                parts["label agreement"] = _round(agreement)
                value *= agreement
            per_class[self.class_names[c]] = {"value": _round(value), **parts}
        for part in ("coverage", "recall", "closeness", "label agreement"):
            numbers = [float(row[part]) for row in per_class.values() if part in row]
            if numbers:
                details[part] = _round(float(np.mean(numbers)))
        together = [name for name, row in per_class.items() if row["real images"] != "validation"]
        if together:
            details["remark"] = f"compared with train and validation images together: {', '.join(together)}"
        without = [name for c, name in enumerate(self.class_names) if c not in self._of_class]
        if without:
            details["not scored"] = f"fewer than 2 real images: {', '.join(without)}"
        return Score(_round(float(np.mean([float(row["value"]) for row in per_class.values()]))), details, per_class)

    def recognised(self, images: NDArray[np.uint8]) -> NDArray[np.int64] | None:
        """The class that the classifier takes each of images uint8 [N, H, W, C] for; None where there is none."""
        return self._extractor.predict(images) if isinstance(self._extractor, Classifier) else None

    def _reference(self, train: NDArray[np.uint8], validation: NDArray[np.uint8], enough: int, most: int) -> _Reference:
        alone = len(validation) >= enough
        images = validation if alone or len(train) == 0 else np.concatenate([validation, train])
        images = images[evenly(len(images), most)]
        features = self._extractor.features(images)
        return _Reference(features, mean_kernel(features), "validation" if alone else "train and validation")


def _compare(reference: _Reference, fakes: NDArray[np.float32]) -> dict[str, float | int | str]:
    n, m = len(reference.features), len(fakes)
    row: dict[str, float | int | str] = {"real images": reference.source, "n_real": n, "n_fake": m}
    if m < 2:
        return row | {"coverage": 0.0, "recall": 0.0, "closeness": 0.0, "remark": "fewer than 2 fakes"}
    k, expected = _neighbours(n, m)
    coverage = prdc(reference.features, fakes, k=k).coverage
    recall = prdc(reference.features, fakes).recall
    distance = kernel_distance(reference.features, fakes).value
    assert coverage is not None, "both sides have 2 points or more"
    assert recall is not None, "both sides have 2 points or more"
    assert distance is not None, "both sides have 2 points or more"
    relative = max(0.0, distance / reference.mean_kernel)
    return row | {
        "k": k,
        "coverage": _round(min(1.0, coverage / expected)),
        "recall": _round(recall),
        "closeness": _round(1 / (1 + 10 * relative)),
    }


def _mean_of(parts: dict[str, float | int | str]) -> float:
    return sum(float(parts[part]) for part in ("coverage", "recall", "closeness")) / 3


def _neighbours(n: int, m: int) -> tuple[int, float]:
    """The smallest k at which m more real images would cover 95 % of n real ones, and the share they cover there."""
    missed = 1.0
    for k in range(1, n):
        missed *= (n - k) / (n + m - k)
        if missed <= 0.05:
            return k, 1 - missed
    return n - 1, 1 - missed


def _affordable_steps(images: NDArray[np.uint8], labels: NDArray[np.int64], num_classes: int, seconds: float) -> int:
    probe = 16
    train_classifier(images, labels, num_classes, seed=0, steps=2, augment="affine")  # First calls cost more.
    start = time.perf_counter()
    train_classifier(images, labels, num_classes, seed=0, steps=probe, augment="affine")
    each = (time.perf_counter() - start) / probe
    return int(np.clip(math.floor(seconds / each), *_STEPS))


def _round(value: float) -> float:
    """To 6 places: thread counts and batch sizes must not decide which checkpoint is best."""
    return round(value, 6)
