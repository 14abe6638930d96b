"""Classification accuracy score: how good is a classifier that has seen generated images alone?

Ravuri & Vinyals 2019 ("Classification accuracy score for conditional generative models"): train on generated images,
test on real ones. Beside it, the same classifier trained on real train images, as many of each class as were generated
or all there are, so that the gap is what the generated images lack (or, where real ones are few, what they add). Each
with and without affine augmentation, all classes drawn alike often, with the same seeds and steps. It punishes wrong
labels and lost diversity, which fidelity figures can miss; it is not the verdict, because nobody has to choose between
the two (`evaluation/utility.py`). Intervals are over classifier seeds and test images. Knows nothing of where images
come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from augmint.errors import DataError
from evaluation import augmentation, classifier
from evaluation.arrays import Labelled, evenly
from evaluation.augmentation import Augment
from evaluation.cache import Cache, Json, code_version, digest
from evaluation.classifier import SMALLEST, one_thread, train_classifier
from evaluation.intervals import Estimate, estimate, resample, sd
from evaluation.tables import fixed_width

__all__ = ["CasReport", "CasRow", "cas"]

Progress = Callable[[int, int, str], None]
Interval = tuple[float, float]

GENERATED: Final = "generated"
REAL: Final = "real"
_SUFFIX: Final = " + affine"


@dataclass(frozen=True)
class CasRow:
    """A training set: "generated" or "real", with or without " + affine".

    `accuracy` on the test images, in [0, 1], mean over seeds, with its standard deviation over seeds and 95 % interval;
    `recalls` by class (None: no test images). `difference` is the accuracy less that of real images with the same
    augmentation; None for those.
    """

    name: str
    n_train: dict[str, int]
    accuracy: float
    accuracy_sd: float
    interval: Interval | None
    recalls: dict[str, float | None]
    difference: float | None
    difference_interval: Interval | None


@dataclass(frozen=True)
class CasReport:
    """`conclusion` is one sentence on the rows with augmentation."""

    rows: tuple[CasRow, ...]
    n_test: int
    seeds: tuple[int, ...]
    steps: int
    conclusion: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def text(self) -> str:
        """A table of fixed width and the conclusion."""
        lines = [["trained on", "images", "accuracy", "95 %", "less real", "95 %"]]
        for row in self.rows:
            accuracy = f"{row.accuracy:.3f} ± {row.accuracy_sd:.3f}"
            less = "–" if row.difference is None else f"{row.difference:+.3f}"
            images = f"{sum(row.n_train.values()):,}"
            lines.append([row.name, images, accuracy, _between(row.interval), less, _between(row.difference_interval)])
        return "\n".join([*fixed_width(lines, right=False), self.conclusion])


def cas(
    fakes: Labelled,
    train: Labelled,
    test: Labelled,
    class_names: Sequence[str],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 700,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> CasReport:
    """Fit 4 × `len(seeds)` classifiers of `steps` steps and test them; all are (images uint8 [N, H, W, C], labels
    int64 [N]) and labels index `class_names`.

    `cache` remembers each fit. `progress(done, total, what)` is called after each.

    Raises:
        DataError: fewer than 2 classes generated, no test images, shapes that differ, or images below 8 pixels a side.
    """
    _check(fakes, train, test)
    cache = cache or Cache(None)
    n = len(class_names)
    counts = np.bincount(fakes[1], minlength=n)
    rows = [np.flatnonzero(train[1] == c) for c in range(n)]
    kept = np.sort(np.concatenate([own[evenly(len(own), counts[c])] for c, own in enumerate(rows)]))
    sets = {GENERATED: fakes, REAL: (train[0][kept], train[1][kept])}
    if len(np.unique(sets[REAL][1])) < 2:
        raise DataError("Fewer than 2 of the generated classes have train images: there is nothing to compare with.")
    augments: dict[str, Augment | None] = {"": None, _SUFFIX: "affine"}
    tasks = [(name, suffix, seed) for seed in seeds for name in sets for suffix in augments]
    right: dict[str, list[NDArray[np.bool_]]] = {name + suffix: [] for name in sets for suffix in augments}
    for done, (name, suffix, seed) in enumerate(tasks, start=1):
        predicted = _fit(sets[name], test[0], n, augments[suffix], seed, steps, cache)
        right[name + suffix].append(predicted == test[1])
        if progress is not None:
            progress(done, len(tasks), f"{name}{suffix}, seed {seed}")

    resampled = resample({key: np.stack(value) for key, value in right.items()}, test[1], n)
    weights = np.bincount(test[1], minlength=n) / len(test[1])
    found = []
    for name, images in sets.items():
        of_class = np.bincount(images[1], minlength=n).tolist()
        for suffix in augments:
            own, real = resampled[name + suffix], resampled[REAL + suffix]
            accuracy = estimate(own, weights)
            gap = estimate(own, weights, real) if name != REAL else None
            found.append(
                CasRow(
                    name=name + suffix,
                    n_train=dict(zip(class_names, of_class, strict=True)),
                    accuracy=accuracy.value,
                    accuracy_sd=sd(own.by_seed @ weights),
                    interval=accuracy.interval,
                    recalls={
                        label: float(own.by_seed[:, c].mean()) if weights[c] else None
                        for c, label in enumerate(class_names)
                    },
                    difference=gap.value if gap else None,
                    difference_interval=gap.interval if gap else None,
                )
            )
    gap = estimate(resampled[GENERATED + _SUFFIX], weights, resampled[REAL + _SUFFIX])
    return CasReport(tuple(found), len(test[1]), tuple(seeds), steps, _conclude(found, gap))


def _check(fakes: Labelled, train: Labelled, test: Labelled) -> None:
    for (images, _), what in ((fakes, "generated"), (test, "test")):
        if images.shape[1:] != train[0].shape[1:]:
            raise DataError(
                f"The {what} images are {images.shape[1:]} and the training images {train[0].shape[1:]}: read all at "
                "one size."
            )
    if min(train[0].shape[1:3]) < SMALLEST:
        raise DataError(f"The classifier takes images of {SMALLEST} pixels a side or more.")
    if len(np.unique(fakes[1])) < 2:
        raise DataError("A classifier of generated images needs images of 2 classes or more.")
    if not len(test[1]):
        raise DataError("There are no test images.")


def _fit(
    images: Labelled,
    test: NDArray[np.uint8],
    num_classes: int,
    augment: Augment | None,
    seed: int,
    steps: int,
    cache: Cache,
) -> NDArray[np.int64]:
    """Predictions for `test`, [N]. On one thread, so that they do not depend on the machine's load."""
    key: dict[str, Json] = {
        "train": digest(*images),
        "test": digest(test),
        "classes": num_classes,
        "augment": augment,
        "seed": seed,
        "steps": steps,
        "code": code_version(augmentation, classifier),
    }

    def fit() -> dict[str, NDArray[np.int64]]:
        with one_thread():
            fitted = train_classifier(*images, num_classes, seed=seed, steps=steps, augment=augment, sampler="balanced")
            return {"predicted": fitted.predict(test)}

    return cache.arrays("cas", key, fit)["predicted"]


def _conclude(rows: Sequence[CasRow], gap: Estimate) -> str:
    by_name = {row.name: row for row in rows}
    ours, real = by_name[GENERATED + _SUFFIX], by_name[REAL + _SUFFIX]
    within = ""
    if gap.interval is not None:
        low, high = (100 * side + 0.0 for side in gap.interval)
        within = f"; {100 * gap.value:+.1f} points, {low:+.1f} to {high:+.1f} with 95 % confidence"
    return (
        f"A classifier of {sum(ours.n_train.values()):,} generated images alone is right on {ours.accuracy:.1%} of the "
        f"test images, one of {sum(real.n_train.values()):,} real ones on {real.accuracy:.1%} (both with affine "
        f"augmentation{within})."
    )


def _between(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval[0]:.3f} … {interval[1]:.3f}"
