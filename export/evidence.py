"""What a bundle says of its own quality: fidelity and diversity against the test split, which nothing else has used.

The validation split chose the checkpoint, so figures against it would flatter. Everything here is of fixed length and
seed, not fitted to a time: the same run gives the same figures on the same machine, hence the same bundle.
This module knows no verdict: whether the images help a classifier takes minutes, and is `evaluation/utility.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from augmint.bundle import Metric
from augmint.data import DataSet, load_data
from augmint.errors import AugmintError
from augmint.images import Resize
from evaluation.classifier import SMALLEST, Classifier, train_classifier
from evaluation.fidelity import MEASURES, FidelityReport, FidelityRow, measure
from evaluation.label_fidelity import TrainedJudge, open_judge
from evaluation.pixels import PixelPCA
from training.config import TrainConfig
from training.machine import torch_settings

__all__ = ["measured", "training_data"]

_METHODS: Final = {
    "precision": "improved precision, Kynkäänniemi et al. 2019",
    "recall": "improved recall, Kynkäänniemi et al. 2019",
    "density": "Naeem et al. 2020",
    "coverage": "Naeem et al. 2020",
    "kernel_distance": "MMD² with a cubic kernel, Bińkowski et al. 2018",
    "frechet_distance": "Heusel et al. 2017",
    "label_fidelity": "share that a judge takes for their class",
}
_STEPS: Final = 300  # of each classifier: 0.97 on digits, about 3 seconds
_MOST_ROWS: Final = 200  # classes that get rows of their own
_SEED: Final = 0xE71DE  # of the images measured; not that of the sample sheet

Render = Callable[[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64]], NDArray[np.uint8]]


def training_data(config: TrainConfig, say: Callable[[str], None]) -> tuple[DataSet | None, str]:
    """The data set a run was trained on; or None and, for the model card, why not.

    What exactly was wrong goes to `say`: it names a path of this machine, which is nobody else's business.
    """
    try:
        data = load_data(config.data, skip_bad=config.skip_bad)
    except AugmintError as error:
        say(str(error))
        return None, "The training data could not be read again at export"
    if data.fingerprint != config.data_fingerprint:
        return None, "The training data have changed since training"
    return data, ""


def measured(
    config: TrainConfig, data: DataSet, render: Render, *, classifier: Classifier | None = None
) -> tuple[tuple[Metric, ...], tuple[str, ...]]:
    """Metrics against the test split, and warnings in words.

    Args:
        config: of the run; says the image shape and whether the generator takes labels.
        data: the run's own.
        render: labels int64, seeds and indices uint64 -> images uint8 [N, H, W, C] of the exported graph.
        classifier: of the train split, for its features; None: one is trained where that can be.
    """
    resize: Resize = config.resize  # type: ignore[assignment]  # checked when the run was made
    shape = config.image_shape
    parts = {split: data.images(split, shape=shape, resize=resize) for split in ("train", "validation", "test")}
    reals, real_labels = parts["test"]
    if len(reals) < 2:
        return (), ("Nothing was measured at export: the test split has fewer than 2 images.",)

    names = config.class_names
    num_classes = config.num_classes
    per_class = max(_affordable(shape) // max(num_classes, 1), 10)
    labels = np.repeat(np.arange(max(num_classes, 1)), per_class)
    indices = np.tile(np.arange(per_class, dtype=np.uint64), max(num_classes, 1))
    fakes = render(labels, np.full(len(labels), _SEED, dtype=np.uint64), indices)

    with torch_settings(device="cpu", threads=1):
        train, train_labels = parts["train"]
        features: Classifier | PixelPCA
        judge: TrainedJudge | None = None
        if classifier is not None:
            features = classifier
        elif len(np.unique(train_labels)) < 2 or min(shape[:2]) < SMALLEST:
            features = PixelPCA.fit(train)
        else:
            # Another seed than the classifier that chose the checkpoint, which would flatter its choice.
            features = train_classifier(
                train, train_labels, len(names), seed=101, steps=_STEPS, augment="affine", sampler="balanced"
            )
        if isinstance(features, Classifier):
            features.name = "features of a small CNN trained on the train split"
        if num_classes:
            held_out = [np.concatenate([parts["validation"][i], parts["test"][i]]) for i in (0, 1)]
            judge = open_judge(parts["train"], (held_out[0], held_out[1]), len(names), steps=_STEPS)
        report = measure(
            fakes,
            labels if num_classes else None,
            reals,
            real_labels if num_classes else None,
            names,
            features=features,
            judge=judge,
        )
        judge_note = _judge_note(judge)
    return _metrics(report, judge_note), _warnings(report, len(names) if num_classes else 1)


def _affordable(shape: tuple[int, int, int]) -> int:
    """Images to measure in a few seconds: 2,000 up to 32 px, 500 from 64 px on."""
    return int(np.clip(2000 * 1024 / (shape[0] * shape[1]), 500, 2000))


def _judge_note(judge: TrainedJudge | None) -> str | None:
    if judge is None:
        return None
    accuracy = judge.accuracy
    right = "" if accuracy is None else f", right on {accuracy:.3f} of the {judge.judged_on} images (mean over classes)"
    return f"judge: {judge.name}{right}"


def _metrics(report: FidelityReport, judge_note: str | None) -> tuple[Metric, ...]:
    several = len(report.rows) > 1
    mean = report.mean()
    metrics = []
    for name in MEASURES:
        if name == "label_fidelity" and report.judge is None:
            continue
        if name == "frechet_distance":
            metrics.append(_frechet(report))
            continue
        space = judge_note if name == "label_fidelity" else f"in {report.extractor}; reals: the test split"
        have = sum(getattr(row, name) is not None for row in report.rows)
        over = f"mean over {have if have == len(report.rows) else f'{have} of {len(report.rows)}'} classes"
        method = "; ".join(filter(None, [_METHODS[name], over if several else None, space]))
        missing = sorted({row.reasons[name] for row in report.rows if name in row.reasons})
        metrics.append(
            Metric(
                name=name,
                value=_rounded(mean[name]),
                n=sum(_images_in(row, name) for row in report.rows if getattr(row, name) is not None),
                method=method,
                note="; ".join(missing)[:400] or None,
            )
        )
        if several:
            metrics += [_of_class(row, name) for row in report.rows[:_MOST_ROWS]]
    return tuple(metrics)


def _frechet(report: FidelityReport) -> Metric:
    """Over all classes at once: a class alone has too few images for more than its bias."""
    row = report.overall
    note = row.reasons.get("frechet_distance")
    if row.frechet_bias is not None:
        note = f"real images in the generated ones' place would be at about {row.frechet_bias:.4g}"
    return Metric(
        name="frechet_distance",
        value=_rounded(row.frechet_distance),
        n=_images_in(row, "frechet_distance"),
        method=f"{_METHODS['frechet_distance']}; all images at once; in {report.extractor}; reals: the test split",
        note=note,
    )


def _of_class(row: FidelityRow, name: str) -> Metric:
    reason = row.reasons.get(name)
    return Metric(
        name=name,
        value=_rounded(getattr(row, name)),
        n=_images_in(row, name),
        method="as overall",
        label=row.name,
        note=reason[:400] if reason else None,
    )


def _images_in(row: FidelityRow, name: str) -> int:
    """How many images, real and generated, a measure of a row rests on."""
    both = row.n_fake + row.n_real
    return {"kernel_distance": both, "frechet_distance": both, "label_fidelity": row.n_fake}.get(name, 2 * row.n)


# Below these a class's images are not fit to be mixed in unseen: held-out reals have about .9 in both.
WEAK_RECALL: Final = 0.4
WEAK_COVERAGE: Final = 0.6
_ENOUGH: Final = 15  # test images, for such a figure to say anything


def _warnings(report: FidelityReport, classes: int) -> tuple[str, ...]:
    warnings = []
    thin = [row.name for row in report.rows if row.n_real < 20]
    if thin:
        shown = ", ".join(thin[:10]) + (", …" if len(thin) > 10 else "")
        of = f" of {shown}" if classes > 1 else ""
        warnings.append(f"Fewer than 20 test images{of}: the figures there are rough.")
    wrong = [r.name for r in report.rows if r.label_fidelity is not None and r.label_fidelity < 0.8]
    if wrong:
        shown = ", ".join(wrong[:10]) + (", …" if len(wrong) > 10 else "")
        warnings.append(f"More than a fifth of the images of {shown} were not taken for their class.")
    weak = [
        f"{row.name} (recall {row.recall:.2f}, coverage {row.coverage:.2f})"
        for row in report.rows
        if row.n_real >= _ENOUGH
        and row.recall is not None
        and row.coverage is not None
        and (row.recall < WEAK_RECALL or row.coverage < WEAK_COVERAGE)
    ]
    if weak:
        shown = ", ".join(weak[:10]) + (", …" if len(weak) > 10 else "")
        warnings.append(
            f"The images miss much of the real ones: {shown}. Look at samples.png before using them; train longer, or "
            "leave those classes out."
        )
    return tuple(warnings)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
