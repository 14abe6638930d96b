"""What a bundle judges its own images by: a classifier, thresholds of realism, and a memory of the training images.

    classifier.onnx   a small CNN trained on the train split, every class alike often, affinely augmented
    realism.npy       quantiles of the critic's score over generated images of each class
    train.npy         the classifier's features of the training images, float16

The classifier's length and seed are fixed, and one thread trains it: the same run gives the same bytes again. Near
copies are told in its features, not in pixels, which would be the training images themselves; even so, whoever has an
image can find out whether it was among them, so `copies=False` leaves them out. The copies' threshold comes from the
validation split: the test split has no part in this. This module knows how the parts are made, and `augmint.judge` how
they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from augmint.bundle import MAX_SIDE_BYTES, Copies, Graph, Judges, Realism, Tensor, npy_bytes
from augmint.data import DataSet
from augmint.images import Resize
from augmint.judge import nearest
from augmint.runtime import open_session
from evaluation.arrays import evenly
from evaluation.classifier import FEATURES, SMALLEST, Classifier, train_classifier
from export import gates
from export.graph import classifier_graph, described, serialise
from training.config import TrainConfig
from training.machine import torch_settings

__all__ = ["CLASSIFIER", "Made", "make_judges"]

CLASSIFIER: Final = "classifier.onnx"
REALISM: Final = "realism.npy"
TRAIN: Final = "train.npy"

_STEPS: Final = 600
_SEED: Final = 303  # of the classifier: not one that measures or chooses anything else
_CALIBRATION_SEED: Final = 0xCA11B  # of the generated images: neither golden, nor on the sheet, nor measured
_SHARES: Final = tuple(round(i / 20, 2) for i in range(20))  # 0, 0.05 … 0.95
_PER_CLASS: Final = (40, 400)  # generated images of each class, at least and at most
_IMAGES: Final = 4000  # … in all, of 32 x 32 pixels
_MOST_CLASSES: Final = 500
_COPY_QUANTILE: Final = 0.01
_BATCH: Final = 64
_ENOUGH: Final = 20  # held-out images, for a quantile to say anything
# Of features whose mean square is 1, in 128 dimensions: below this lies only what float16 rounds away.
_LEAST_DISTANCE: Final = 0.1

Render = Callable[[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64]], NDArray[np.uint8]]


@dataclass(frozen=True)
class Made:
    """The manifest's section, file name -> bytes of what it names, and the classifier itself, where there is one."""

    section: Judges
    files: dict[str, bytes]
    trained: Classifier | None = None


def make_judges(
    config: TrainConfig,
    data: DataSet | None,
    problem: str,
    *,
    critic: bytes | None,
    render: Render,
    metadata: dict[str, str],
    copies: bool,
) -> Made:
    """Make what can be made, and say of the rest why not.

    Args:
        config: of the run.
        data: the run's own; None: they cannot be had, and `problem` says why.
        critic: the exported critic, if there is one.
        render: labels, seeds and indices -> images of the exported generator.
        metadata: of the classifier's ONNX file.
        copies: whether features of the training images may go into the bundle.

    Raises:
        GateError: the classifier's or critic's graph is not good enough.
    """
    missing: dict[Any, str] = {}
    files: dict[str, bytes] = {}
    realism = classifier = known = trained = None
    labels, images = _calibration(config, render)
    if critic is None:
        missing["realism"] = "its run has no critic"
    elif config.num_classes > _MOST_CLASSES:
        missing["realism"] = f"it has more than {_MOST_CLASSES} classes"
    else:
        realism, files[REALISM] = _realism(config, critic, labels, images)

    why = _why_no_classifier(config, data, problem)
    if why or data is None:
        missing["labels"] = missing["copies"] = why
    else:
        resize: Resize = config.resize  # type: ignore[assignment]  # checked when the run was made
        train, held_out = (
            data.images(split, shape=config.image_shape, resize=resize) for split in ("train", "validation")
        )
        with torch_settings(device="cpu", threads=1):
            trained = train_classifier(
                *train, config.num_classes, seed=_SEED, steps=_STEPS, augment="affine", sampler="balanced"
            )
        classifier, files[CLASSIFIER] = _classifier(config, trained, images, metadata)
        if not copies:
            missing["copies"] = "its exporter left the features of the training images out"
        elif len(held_out[0]) < _ENOUGH:
            missing["copies"] = f"the validation split has fewer than {_ENOUGH} images to set a threshold by"
        elif 2 * FEATURES * len(train[0]) + 256 > MAX_SIDE_BYTES:
            missing["copies"] = "there were too many training images to keep the features of"
        else:
            known, files[TRAIN] = _copies(files[CLASSIFIER], train[0], held_out[0])
    return Made(Judges(classifier=classifier, realism=realism, copies=known, missing=missing), files, trained)


def _why_no_classifier(config: TrainConfig, data: DataSet | None, problem: str) -> str:
    if config.num_classes == 0:
        return "it is unconditional"
    if data is None:
        return problem[0].lower() + problem[1:]
    if sum(n > 0 for n in config.class_counts) < 2:
        return "it has only one class"
    if min(config.image_shape[:2]) < SMALLEST:
        return f"its images have sides under {SMALLEST} pixels"
    return ""


def _calibration(config: TrainConfig, render: Render) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Generated images, as many of each class, in the classes' order."""
    classes = max(min(config.num_classes, _MOST_CLASSES), 1)
    height, width, _ = config.image_shape
    total = _IMAGES * min(1024 / (height * width), 1.0)
    each = int(np.clip(total // classes, *_PER_CLASS))
    labels = np.repeat(np.arange(classes), each)
    indices = np.tile(np.arange(each, dtype=np.uint64), classes)
    return labels, render(labels, np.full(len(labels), _CALIBRATION_SEED, dtype=np.uint64), indices)


def _realism(
    config: TrainConfig, critic: bytes, labels: NDArray[np.int64], images: NDArray[np.uint8]
) -> tuple[Realism, bytes]:
    feeds: dict[str, Any] = {"image": images} | ({"label": labels} if config.num_classes else {})
    some = evenly(len(images), 64)
    gates.alone(critic, {key: value[some] for key, value in feeds.items()}, what="critic")
    scores = _run(critic, feeds)[0].reshape(max(config.num_classes, 1), -1)
    table = np.quantile(scores.astype(np.float64), _SHARES, axis=1).T
    return Realism(file=REALISM, shares=_SHARES, n=scores.shape[1]), npy_bytes(table.astype("<f4"))


def _classifier(
    config: TrainConfig, trained: Classifier, generated: NDArray[np.uint8], metadata: dict[str, str]
) -> tuple[Graph, bytes]:
    network = trained.module()
    graph = classifier_graph(network, image_shape=config.image_shape, num_classes=config.num_classes, width=FEATURES)
    model = serialise(graph, metadata)
    height, width, channels = config.image_shape
    inputs = (Tensor(name="image", dtype="uint8", shape=("N", height, width, channels)),)
    outputs = (
        Tensor(name="class_logits", dtype="float32", shape=("N", config.num_classes)),
        Tensor(name="features", dtype="float32", shape=("N", FEATURES)),
    )
    gates.same_signature(model, inputs, outputs, what="classifier")
    gates.plain(model)
    some = generated[evenly(len(generated), 64)]
    gates.critic_parity(model, network, some, None, what="classifier")
    gates.alone(model, {"image": some}, what="classifier")
    return described(CLASSIFIER, inputs, outputs, "fp32"), model


def _copies(model: bytes, train: NDArray[np.uint8], held_out: NDArray[np.uint8]) -> tuple[Copies, bytes]:
    """By the graph, not by PyTorch: the same arithmetic as when images are judged."""
    known = _run(model, {"image": train})[1].astype("<f2")
    distances = nearest(_run(model, {"image": held_out})[1], known.astype(np.float32))
    threshold = max(float(np.quantile(distances, _COPY_QUANTILE)), _LEAST_DISTANCE)
    part = Copies(
        file=TRAIN,
        n=len(known),
        width=known.shape[1],
        threshold=round(threshold, 6),
        quantile=_COPY_QUANTILE,
        held_out=len(held_out),
    )
    return part, npy_bytes(known)


def _run(model: bytes, feeds: dict[str, Any]) -> list[NDArray[np.float32]]:
    return gates.in_batches(open_session(model, device="cpu", threads=1).session, feeds, _BATCH)
