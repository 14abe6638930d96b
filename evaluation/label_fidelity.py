"""Label fidelity: how often a classifier takes a generated image for the class it was asked for.

As good as the judge: it must not have been trained on generated images, and should not have seen the images that the
generator was trained on, because it would share their gaps (`train_judge` on held-out real images). Knows nothing of
picture quality: perfect labels are possible with one image a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.classifier import Classifier, train_classifier

__all__ = ["LabelFidelity", "label_fidelity", "train_judge"]


@dataclass(frozen=True)
class LabelFidelity:
    """Shares in [0, 1] by class name, None for a class without fakes; `overall` is over all fakes (None: there are
    none) and `mean` over the classes that have any. `judge_accuracy` is on real images that the judge had not seen, if
    it was measured: what a perfect generator could expect.
    """

    overall: float | None
    mean: float | None
    per_class: dict[str, float | None]
    n: dict[str, int]
    judge: str
    judge_accuracy: float | None = None


def train_judge(
    images: NDArray[np.uint8], labels: NDArray[np.int64], num_classes: int, *, seed: int = 0, steps: int = 1000
) -> Classifier:
    """A balanced, affinely augmented classifier of held-out real images (test and validation), uint8 [N, H, W, C]."""
    judge = train_classifier(images, labels, num_classes, seed=seed, steps=steps, augment="affine", sampler="balanced")
    judge.name = "a small CNN trained on held-out real images"
    return judge


def label_fidelity(
    judge: Classifier,
    fakes: NDArray[np.uint8],
    fake_labels: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    judge_accuracy: float | None = None,
) -> LabelFidelity:
    """Share of `fakes` uint8 [M, H, W, C] that `judge` labels as `fake_labels` int64 [M], indices of `class_names`."""
    right = judge.predict(fakes) == fake_labels
    per_class: dict[str, float | None] = {}
    n: dict[str, int] = {}
    for c, name in enumerate(class_names):
        of_class = right[fake_labels == c]
        n[name] = len(of_class)
        per_class[name] = float(of_class.mean()) if len(of_class) else None
    shares = [share for share in per_class.values() if share is not None]
    return LabelFidelity(
        overall=float(right.mean()) if len(right) else None,
        mean=float(np.mean(shares)) if shares else None,
        per_class=per_class,
        n=n,
        judge=judge.name,
        judge_accuracy=judge_accuracy,
    )
