"""Fidelity and diversity of generated images against real ones, class by class: the evidence for a model card.

One row a class and their mean: precision, recall, density and coverage (`evaluation/prdc.py`), kernel distance
(`evaluation/kernel_distance.py`) and label fidelity (`evaluation/label_fidelity.py`), with the number of images and the
extractor named. The reals should be held out from whoever made the fakes, or copies look perfect. What it does not
know: whether the images help a classifier (`evaluation/utility.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augmint.errors import DataError
from evaluation.classifier import Classifier
from evaluation.features import Extractor
from evaluation.kernel_distance import kernel_distance
from evaluation.label_fidelity import label_fidelity
from evaluation.prdc import prdc

__all__ = ["MEASURES", "FidelityReport", "FidelityRow", "measure"]

MEASURES = ("precision", "recall", "density", "coverage", "kernel_distance", "label_fidelity")


@dataclass(frozen=True)
class FidelityRow:
    """The measures of one class, or of all images together. None where `reasons`, by the measure's name, says why.

    `n` is the number of images a side in precision, recall, density and coverage, which need equal numbers: the larger
    side is thinned evenly. Kernel distance and label fidelity use all `n_real` and `n_fake`.
    """

    name: str
    n_real: int
    n_fake: int
    n: int
    k: int
    precision: float | None
    recall: float | None
    density: float | None
    coverage: float | None
    kernel_distance: float | None
    label_fidelity: float | None
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FidelityReport:
    """`rows` are the classes in their order, or one row "all" for fakes without labels."""

    extractor: str
    judge: str | None
    rows: tuple[FidelityRow, ...]

    def mean(self, names: Sequence[str] | None = None) -> dict[str, float | None]:
        """Each measure averaged over the classes `names` (None: all) that have it; None where none has."""
        rows = [row for row in self.rows if names is None or row.name in names]
        means: dict[str, float | None] = {}
        for measure_name in MEASURES:
            values = [value for row in rows if (value := getattr(row, measure_name)) is not None]
            means[measure_name] = float(np.mean(values)) if values else None
        return means

    def to_json(self) -> dict[str, Any]:
        """Plain values: extractor, judge, mean, classes. No NaN in it."""
        return {
            "extractor": self.extractor,
            "judge": self.judge,
            "mean": self.mean(),
            "classes": [asdict(row) for row in self.rows],
        }

    def text(self) -> str:
        """A table of fixed width, and the reasons for gaps under it."""
        titles = ["class", "fakes", "reals", "precision", "recall", "density", "coverage", "kernel", "labels"]
        lines = [titles]
        for row in self.rows:
            figures = (_figure(getattr(row, measure_name)) for measure_name in MEASURES)
            lines.append([row.name, str(row.n_fake), str(row.n_real), *figures])
        if len(self.rows) > 1:
            lines.append(["mean", "", "", *(_figure(value) for value in self.mean().values())])
        widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
        table = ["  ".join(_pad(line, widths)).rstrip() for line in lines]
        notes = [f"features: {self.extractor}"] + ([f"labels: {self.judge}"] if self.judge else [])
        notes += [f"{row.name}: {what}: {why}" for row in self.rows for what, why in row.reasons.items()]
        return "\n".join([*table, *notes])


def measure(
    fakes: NDArray[np.uint8],
    fake_labels: NDArray[np.int64] | None,
    reals: NDArray[np.uint8],
    real_labels: NDArray[np.int64] | None,
    class_names: Sequence[str],
    *,
    features: Extractor,
    judge: Classifier | None = None,
    k: int = 5,
) -> FidelityReport:
    """Measure `fakes` uint8 [M, H, W, C] against `reals` uint8 [N, H, W, C], by class where both have labels int64.

    `features` gives the space of the distances. `judge` decides on labels; None leaves label fidelity out. Features
    and judge may be one classifier, but an independent judge is stricter.
    """
    if fakes.shape[1:] != reals.shape[1:]:
        raise DataError(
            f"The generated images are {_shape(fakes)} and the real ones {_shape(reals)}: read the real images at the "
            "generator's size."
        )
    real_points, fake_points = features.features(reals), features.features(fakes)
    if fake_labels is None or real_labels is None:
        return FidelityReport(features.name, None, (_row("all", real_points, fake_points, None, k),))
    shares: dict[str, float | None] = dict.fromkeys(class_names)
    if judge is not None:
        shares = label_fidelity(judge, fakes, fake_labels, class_names).per_class
    rows = [
        _row(name, real_points[real_labels == c], fake_points[fake_labels == c], shares[name], k)
        for c, name in enumerate(class_names)
    ]
    return FidelityReport(features.name, judge.name if judge else None, tuple(rows))


def _row(
    name: str, real: NDArray[np.float32], fake: NDArray[np.float32], label_share: float | None, k: int
) -> FidelityRow:
    n = min(len(real), len(fake))
    shares = prdc(_thin(real, n), _thin(fake, n), k=k)
    distance = kernel_distance(real, fake)
    reasons = dict(shares.reasons)
    if distance.reason:
        reasons["kernel_distance"] = distance.reason
    return FidelityRow(
        name=name,
        n_real=len(real),
        n_fake=len(fake),
        n=n,
        k=shares.k_real,
        precision=shares.precision,
        recall=shares.recall,
        density=shares.density,
        coverage=shares.coverage,
        kernel_distance=distance.value,
        label_fidelity=label_share,
        reasons=reasons,
    )


def _thin(points: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    return points[np.linspace(0, len(points) - 1, n).astype(np.int64)] if n else points[:0]


def _pad(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _shape(images: NDArray[np.uint8]) -> str:
    return "×".join(str(side) for side in images.shape[1:])
