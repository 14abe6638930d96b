"""What the promises of families without classes are measured with: does an independent classifier know the images?

An unconditional sample has no label to be right about. So a classifier that was trained on the held-out real images
alone (validation and test, which no generator saw) says of each sample which class it is and how surely: `recognised`
is the share that it gives 0.9 or more to one class, beside that share of real images it has not seen either, the train
split's; `classes` are those it takes half an even share of the samples or more for. Precision, recall,
density and coverage against the test images come from `evaluation.fidelity`, in the features of another classifier,
trained on the train split.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from augmint.data import load_data
from augmint.sheets import contact_sheet
from evaluation.classifier import Classifier, train_classifier
from evaluation.fidelity import measure
from training import Run, load_generator
from training.examination import render

__all__ = ["SURE", "Judged", "judged", "samples", "show_samples"]

SURE: Final = 0.9
"""The probability from which on the classifier is called sure."""
SAMPLES: Final = 1000
_SEED: Final = 5  # Of the samples' addresses; 0 and 1 are the sheet's and the score's.
_STEPS: Final = 1200


@dataclass(frozen=True)
class Judged:
    """Measures of `SAMPLES` samples. `recognised_reals` is what a perfect generator could expect."""

    recognised: float
    recognised_reals: float
    classes: int
    """Classes that got at least half an even share of the samples."""
    shares: tuple[float, ...]
    """Of the samples, by the class that the judge takes them for."""
    precision: float
    recall: float
    density: float
    coverage: float

    def words(self) -> str:
        return (
            f"recognised {self.recognised:.3f} (real images {self.recognised_reals:.3f}), classes {self.classes}, "
            f"precision {self.precision:.3f}, recall {self.recall:.3f}, density {self.density:.3f}, "
            f"coverage {self.coverage:.3f}"
        )

    def figures(self, suffix: str = "") -> dict[str, float | int | str]:
        """Named for a promise's figures; `suffix` says whose they are."""
        names = ("recognised", "recognised_reals", "classes", "precision", "recall", "density", "coverage")
        return {name.replace("_", " ") + suffix: round(getattr(self, name), 4) for name in names}


def samples(run: Run, count: int = SAMPLES, *, seed: int = _SEED) -> NDArray[np.uint8]:
    """uint8 [count, H, W, C] of the run's best checkpoint, as its bundle would make them."""
    generator, config = load_generator(run)
    return render(generator, None, seed, np.arange(count), config.options.latent_dim)


def judged(run: Run) -> Judged:
    config = run.config
    judge, features, reals, test = _judges(config.data, config.image_shape, config.resize)
    fakes = samples(run)
    sure, classes = _answers(judge, fakes)
    shares = np.bincount(classes, minlength=judge.num_classes) / len(fakes)
    row = measure(fakes, None, test, None, config.class_names, features=features).overall
    assert row.precision is not None
    assert row.recall is not None
    assert row.density is not None
    assert row.coverage is not None
    return Judged(
        recognised=float(sure.mean()),
        recognised_reals=float(_answers(judge, reals)[0].mean()),
        classes=int((shares >= 0.5 / judge.num_classes).sum()),
        shares=tuple(shares.tolist()),
        precision=row.precision,
        recall=row.recall,
        density=row.density,
        coverage=row.coverage,
    )


def show_samples(axes: Axes, run: Run, title: str, *, rows: int = 6, columns: int = 10) -> None:
    """The first samples of the run's best checkpoint, without choosing."""
    images = samples(run, rows * columns)
    sheet = contact_sheet(images, np.zeros(len(images), np.int64), (), per_class=len(images), columns=columns)
    axes.imshow(np.asarray(sheet), cmap="gray" if sheet.mode == "L" else None, interpolation="nearest")
    axes.set_title(title)
    axes.set_axis_off()


def _answers(judge: Classifier, images: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether the judge is sure of each image, and of which class."""
    logits = judge.logits(images).astype(np.float64)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return 1 / shares.sum(1) >= SURE, logits.argmax(1)


@cache
def _judges(
    name: str, shape: tuple[int, int, int], resize: str
) -> tuple[Classifier, Classifier, NDArray[np.uint8], NDArray[np.uint8]]:
    """The judge, the classifier whose features are used, train images, test images."""
    data = load_data(name)
    train, test, validation = (
        data.images(split, shape=shape, resize=resize)  # type: ignore[arg-type]
        for split in ("train", "test", "validation")
    )
    classes = len(data.class_names)
    held_out = np.concatenate([validation[0], test[0]]), np.concatenate([validation[1], test[1]])
    judge = train_classifier(*held_out, classes, seed=201, steps=_STEPS, augment="affine", sampler="balanced")
    features = train_classifier(*train, classes, seed=202, steps=_STEPS, augment="affine", sampler="balanced")
    return judge, features, train[0], test[0]
