"""Label fidelity: how often a classifier takes a generated image for the class it was asked for.

As good as the judge: it must not have been trained on generated images, and should not have seen the images that the
generator was trained on, because it would share their gaps. So it is trained on held-out real images, where there are
enough. Knows nothing of picture quality: perfect labels are possible with one image a class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation import augmentation, classifier
from evaluation.arrays import Labelled, evenly
from evaluation.cache import Cache, Json, code_version, digest
from evaluation.classifier import SMALLEST, Classifier, train_classifier

__all__ = ["Judge", "TrainedJudge", "open_judge"]

_ENOUGH: Final = 10  # Held-out images of the rarest class from which on the judge is trained on them.
_SEED: Final = 102  # Another than that of any classifier that gives features or chooses a checkpoint.
_MOST: Final = 2000  # Images that the judge's own accuracy is measured on.


class Judge(Protocol):
    """What decides on labels: `name` goes into reports."""

    @property
    def name(self) -> str: ...

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """uint8 [N, H, W, C] -> class indices [N]."""
        ...


@dataclass(eq=False)
class TrainedJudge:
    """Made by `open_judge`; trained when it is first asked, unless its answers are remembered.

    `independent`: it has not seen the train split. `accuracy` is the mean of the classes' recalls on real images it was
    not trained on (`judged_on` names them): what a perfect generator could expect.
    """

    name: str
    independent: bool
    judged_on: str
    _own: Labelled = field(repr=False)
    _others: Labelled = field(repr=False)
    _num_classes: int = field(repr=False)
    _steps: int = field(repr=False)
    _cache: Cache = field(repr=False)
    _classifier: Classifier | None = field(default=None, repr=False)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """uint8 [N, H, W, C] -> class indices [N]."""
        key: dict[str, Json] = {
            "train": digest(*self._own),
            "classes": self._num_classes,
            "steps": self._steps,
            "seed": _SEED,
            "images": digest(images),
            "code": code_version(augmentation, classifier),
        }
        found: NDArray[np.int64] = self._cache.arrays("judged", key, lambda: {"labels": self._ask(images)})["labels"]
        return found

    @property
    def accuracy(self) -> float | None:
        """None where there are no real images but those it was trained on."""
        images, labels = self._others
        some = evenly(len(images), _MOST)
        if not len(some):
            return None
        right = self.predict(images[some]) == labels[some]
        # By class, so that a common class does not speak for a rare one.
        return float(np.mean([right[labels[some] == c].mean() for c in np.unique(labels[some])]))

    def _ask(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        if self._classifier is None:
            self._classifier = train_classifier(
                *self._own, self._num_classes, seed=_SEED, steps=self._steps, augment="affine", sampler="balanced"
            )
        return self._classifier.predict(images)


def open_judge(
    train: Labelled, held_out: Labelled, num_classes: int, *, steps: int = 1000, cache: Cache | None = None
) -> TrainedJudge | None:
    """A balanced, affinely augmented classifier of `held_out`, or of `train` where that has too few of a class.

    Both are images uint8 [N, H, W, C] and labels int64 [N] in [0, num_classes). `held_out` is the validation and the
    test split together: the judge is asked about generated images alone. None where a classifier cannot be trained:
    fewer than 2 classes, or images below 8 pixels a side.
    """
    fewest = np.bincount(held_out[1], minlength=num_classes).min() if len(held_out[1]) else 0
    independent = bool(fewest >= _ENOUGH)
    own, others = (held_out, train) if independent else (train, held_out)
    if len(np.unique(own[1])) < 2 or min(own[0].shape[1:3]) < SMALLEST:
        return None
    return TrainedJudge(
        name=f"a small CNN trained on {'held-out real images' if independent else 'the train split'}",
        independent=independent,
        judged_on="train" if independent else "held-out",
        _own=own,
        _others=others,
        _num_classes=num_classes,
        _steps=steps,
        _cache=cache or Cache(None),
    )
