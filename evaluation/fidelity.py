"""Fidelity and diversity of generated images against real ones, by class and over all, in one extractor's features.

Precision, recall, density and coverage (`evaluation/prdc.py`), kernel distance (`evaluation/kernel_distance.py`),
Fréchet distance with its bias (`evaluation/frechet.py`) and label fidelity (`evaluation/label_fidelity.py`), each with
the number of images and a 95 % interval (`evaluation/bootstrap.py`): over images, for this generator and extractor.
Fréchet and kernel distance nearly miss a collapse that recall and coverage show, and those are blind to what the
extractor is blind to: look at more than one. The reals should be held out from whoever made the fakes, or copies look
perfect (`evaluation/copying.py`). What it does not know: whether the images help (`evaluation/utility.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from augmint.errors import DataError
from evaluation import bootstrap
from evaluation.arrays import evenly
from evaluation.features import Extractor
from evaluation.frechet import frechet_distance
from evaluation.kernel_distance import kernel_distance
from evaluation.label_fidelity import Judge
from evaluation.prdc import prdc
from evaluation.tables import fixed_width

__all__ = ["MEASURES", "FidelityReport", "FidelityRow", "measure", "missing"]

MEASURES: Final = (
    "precision",
    "recall",
    "density",
    "coverage",
    "kernel_distance",
    "frechet_distance",
    "label_fidelity",
)

_MOST_NEIGHBOURS: Final = 2000  # Images a side among which neighbours are sought: time grows with the square.
_MOST: Final = 5000  # Images a side for distances between sets.
_SHARES: Final = ("precision", "recall", "coverage", "label_fidelity")

Interval = tuple[float, float]


@dataclass(frozen=True)
class FidelityRow:
    """The measures of one class, or of all images together. None where `reasons`, by the measure's name, says why.

    `n` is the number of images a side in precision, recall, density and coverage, which need equal numbers: the larger
    side is thinned evenly. The other measures use all `n_real` and `n_fake`. `intervals` are at 95 %, by the measure's
    name. `frechet_bias` is about what the Fréchet distance would be for real images in the place of the fakes.
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
    frechet_distance: float | None
    frechet_bias: float | None
    label_fidelity: float | None
    intervals: dict[str, Interval] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FidelityReport:
    """`rows` are the classes in their order, or one row "all" for fakes without labels.

    `overall` compares all classes at once, the same number of fakes as of reals from each, so that their shares do not
    count; for fakes without labels it is the one row. `mean_intervals` belong to `mean()` over all classes.
    """

    extractor: str
    judge: str | None
    rows: tuple[FidelityRow, ...]
    overall: FidelityRow
    mean_intervals: dict[str, Interval] = field(default_factory=dict)

    def mean(self, names: Sequence[str] | None = None) -> dict[str, float | None]:
        """Each measure averaged over the classes `names` (None: all) that have it; None where none has."""
        rows = [row for row in self.rows if names is None or row.name in names]
        means: dict[str, float | None] = {}
        for measure_name in MEASURES:
            values = [value for row in rows if (value := getattr(row, measure_name)) is not None]
            means[measure_name] = float(np.mean(values)) if values else None
        return means

    def to_json(self) -> dict[str, Any]:
        """Plain values: extractor, judge, overall, mean, mean_intervals, classes. No NaN in it."""
        return {
            "extractor": self.extractor,
            "judge": self.judge,
            "overall": asdict(self.overall),
            "mean": self.mean(),
            "mean_intervals": self.mean_intervals,
            "classes": [asdict(row) for row in self.rows],
        }

    def text(self) -> str:
        """A table of fixed width, and the reasons for gaps under it."""
        titles = ["class", "fakes", "reals", *_TITLES]
        lines = [titles]
        for row in self.rows:
            lines.append([row.name, str(row.n_fake), str(row.n_real), *_figures(row)])
        every = self.rows
        if len(self.rows) > 1:
            every = (*self.rows, self.overall)
            lines.append(["mean", "", "", *(_figure(value) for value in self.mean().values())])
            lines.append(["  95 %", "", "", *(_between(self.mean_intervals.get(name)) for name in MEASURES)])
            lines.append(
                [self.overall.name, str(self.overall.n_fake), str(self.overall.n_real), *_figures(self.overall)]
            )
        lines.append(["  95 %", "", "", *(_between(self.overall.intervals.get(name)) for name in MEASURES)])
        notes = [f"features: {self.extractor}"] + ([f"labels: {self.judge}"] if self.judge else [])
        biases = [row.frechet_bias for row in self.rows if row.frechet_bias is not None]
        if biases and len(self.rows) > 1:
            about = _figure(float(np.mean(biases)))
            notes.append(f"Fréchet distance of real images in the fakes' place: about {about} (mean over classes)")
        if self.overall.frechet_bias is not None:
            about = _figure(self.overall.frechet_bias)
            notes.append(f"Fréchet distance of real images in the fakes' place: about {about} ({self.overall.name})")
        notes += [f"{', '.join(names)}: {what}: {why}" for (what, why), names in missing(every).items()]
        return "\n".join([*fixed_width(lines, right=True), *notes])


def missing(rows: Iterable[FidelityRow]) -> dict[tuple[str, str], list[str]]:
    """(measure, reason for which it is missing) → names of the rows it is missing in."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for what, why in row.reasons.items():
            found.setdefault((what, why), []).append(row.name)
    return found


_TITLES: Final = ("precision", "recall", "density", "coverage", "kernel", "Fréchet", "labels")


def measure(
    fakes: NDArray[np.uint8],
    fake_labels: NDArray[np.int64] | None,
    reals: NDArray[np.uint8],
    real_labels: NDArray[np.int64] | None,
    class_names: Sequence[str],
    *,
    features: Extractor,
    judge: Judge | None = None,
    k: int = 5,
) -> FidelityReport:
    """Measure `fakes` uint8 [M, H, W, C] against `reals` uint8 [N, H, W, C], by class where both have labels int64.

    `features` gives the space of the distances. `judge` decides on labels; None leaves label fidelity out. Features
    and judge may be one classifier, but an independent judge is stricter (`evaluation.label_fidelity.open_judge`).

    Raises:
        DataError: fakes and reals differ in size.
    """
    if fakes.shape[1:] != reals.shape[1:]:
        raise DataError(
            f"The generated images are {_shape(fakes)} and the real ones {_shape(reals)}: read the real images at the "
            "generator's size."
        )
    rng = np.random.Generator(np.random.Philox(0))  # Of the intervals.
    real_points, fake_points = features.features(reals), features.features(fakes)
    if fake_labels is None or real_labels is None:
        row, _ = _row("all", real_points, fake_points, None, k, rng)
        return FidelityReport(features.name, None, (row,), row)

    right: NDArray[np.bool_] | None = None
    if judge is not None and len(fakes):
        right = judge.predict(fakes) == fake_labels
    rows, draws = [], []
    real_chosen, fake_chosen = [], []
    for c, name in enumerate(class_names):
        real, fake = np.flatnonzero(real_labels == c), np.flatnonzero(fake_labels == c)
        row, drawn = _row(name, real_points[real], fake_points[fake], None if right is None else right[fake], k, rng)
        rows.append(row)
        draws.append(drawn)
        real_chosen.append(_thin(real, row.n))
        fake_chosen.append(_thin(fake, row.n))
    if len(class_names) == 1:
        overall = rows[0]
    else:
        all_real, all_fake = np.concatenate(real_chosen), np.concatenate(fake_chosen)
        own = None if right is None else right[all_fake]
        overall, _ = _row("all", real_points[all_real], fake_points[all_fake], own, k, rng)
    of_mean = {}
    for name in MEASURES:
        # About the value: what steadies a class's own share would otherwise push all of them the same way.
        several = [
            drawn[name] - drawn[name].mean() + getattr(row, name)
            for row, drawn in zip(rows, draws, strict=True)
            if name in drawn
        ]
        if several:
            low, high = bootstrap.interval(np.mean(several, axis=0))
            of_mean[name] = (max(low, 0.0), min(high, 1.0)) if name in _SHARES else (low, high)
    return FidelityReport(features.name, judge.name if judge else None, tuple(rows), overall, of_mean)


def _row(
    name: str,
    real: NDArray[np.float32],
    fake: NDArray[np.float32],
    right: NDArray[np.bool_] | None,
    k: int,
    rng: np.random.Generator,
) -> tuple[FidelityRow, dict[str, NDArray[np.float64]]]:
    """The row, and the draws of its measures that the intervals were taken from."""
    n_real, n_fake = len(real), len(fake)
    n = min(n_real, n_fake, _MOST_NEIGHBOURS)
    shares = prdc(_thin(real, n), _thin(fake, n), k=k)
    real, fake = _thin(real, min(n_real, _MOST)), _thin(fake, min(n_fake, _MOST))
    kernel, frechet = kernel_distance(real, fake), frechet_distance(real, fake)
    reasons = dict(shares.reasons)
    reasons |= {"kernel_distance": kernel.reason} if kernel.reason else {}
    reasons |= {"frechet_distance": frechet.reason} if frechet.reason else {}
    if right is None:
        reasons["label_fidelity"] = "no labels, or no judge of them"
    elif not len(right):
        reasons["label_fidelity"] = "there are no generated images of this class"

    values: dict[str, float | None] = {
        "precision": shares.precision,
        "recall": shares.recall,
        "density": shares.density,
        "coverage": shares.coverage,
        "kernel_distance": kernel.value,
        "frechet_distance": frechet.value,
        "label_fidelity": None if right is None or not len(right) else float(right.mean()),
    }
    contributions = dict(shares.points)
    if right is not None:
        contributions["label_fidelity"] = right.astype(np.float64)
    draws: dict[str, NDArray[np.float64]] = {}
    for measure_name, value in values.items():
        if value is None:
            continue
        if measure_name in contributions:
            draws[measure_name] = bootstrap.resampled_means(
                contributions[measure_name], rng, share=measure_name in _SHARES
            )
        else:
            found = kernel if measure_name == "kernel_distance" else frechet
            assert found.real_influence is not None, "it comes with the value"
            assert found.fake_influence is not None, "it comes with the value"
            draws[measure_name] = (
                value
                + bootstrap.resampled_means(found.real_influence, rng)
                + bootstrap.resampled_means(found.fake_influence, rng)
            )
    if "frechet_distance" in draws:
        draws["frechet_distance"] = draws["frechet_distance"].clip(min=0)
    row = FidelityRow(
        name=name,
        n_real=n_real,
        n_fake=n_fake,
        n=n,
        k=shares.k_real,
        frechet_bias=frechet.bias,
        intervals={measure_name: bootstrap.interval(drawn) for measure_name, drawn in draws.items()},
        reasons=reasons,
        **values,
    )
    return row, draws


def _thin(points: NDArray[Any], n: int) -> NDArray[Any]:
    return points[evenly(len(points), n)]


def _figures(row: FidelityRow) -> list[str]:
    return [_figure(getattr(row, measure_name)) for measure_name in MEASURES]


def _between(interval: Interval | None) -> str:
    return "" if interval is None else f"{_figure(interval[0])} … {_figure(interval[1])}"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _shape(images: NDArray[np.uint8]) -> str:
    return "×".join(str(side) for side in images.shape[1:])
