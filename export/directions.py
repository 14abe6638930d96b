"""Directions in latent space along which an attribute of the image changes: tl-GAN (Guan 2018), measured and gated.

Shaobo Guan's transparent latent-space GAN (2018, "Generating custom photo-realistic faces using AI") regresses labelled
attributes of generated images on their latents, and makes the regression's vectors orthogonal, so that one attribute
changes while others stay. Here the attributes are measured in the image (`augmint.attributes`), and `clarity`, how much
surer the bundle's classifier is of the image's own class than of any other, from its logits.

    fit         ridge regression within classes of each attribute, in its standard deviations, on the latent
    orthogonal  to the others' vectors, where that does not cost more than half again of a step's length
    scale       a step by 1 takes the attribute up by one standard deviation, as the regression predicts
    gate        on other latents, in growing steps both ways: the attribute must move on, and nine in ten images must
                stay in their class; how far that holds is the edit's limit, and what never holds is dropped

One direction serves all classes: it is fitted within them, and in the default recipe a latent means the same style in
each. This module knows graphs, not runs or files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from augmint.attributes import ATTRIBUTES, measure
from augmint.bundle import Edit, Edits, EditStep, npy_bytes
from augmint.latents import latents
from augmint.runtime import open_session
from evaluation.arrays import evenly
from export.gates import Subject

__all__ = ["DIRECTIONS", "make_directions"]

DIRECTIONS: Final = "directions.npy"

_SEED: Final = 0x71_6A4  # of the images fitted to; the gate's are of the next: none that measure or show anything else
_FIT: Final = (4, 2400)  # images: at least so many for each number of the latent, at most so many
_HELD_OUT: Final = (80, 200)  # images of each step
_MOST_CLASSES: Final = 100
_RIDGE: Final = 0.01  # of an image's share in the normal equations: latents have variance 1
_LEAST_R2: Final = 0.1  # of the attribute's variance in other images: below it a step says little about any one of them
_LONGEST: Final = 1.5  # times the length of a step that holds nothing
_AMOUNTS: Final = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)  # beyond three there are hardly any latents
_LEAST_CHANGE: Final = 1 / 3  # of what the regression predicts
_KEPT: Final = 0.92  # nine in ten, and a standard error of so many images: the largest step that passes was lucky
_BATCH: Final = 64
_DECIMALS: Final = 6  # of a direction: more than it means, less than linear algebra differs in from machine to machine

_CLARITY: Final = "clarity"
_TEXTS: Final = {name: (attribute.what, attribute.unit) for name, attribute in ATTRIBUTES.items()} | {
    _CLARITY: ("how much surer the bundle's classifier is of the image's class than of any other", "logits")
}

_Values = dict[str, NDArray[np.float64]]
_Look = Callable[[NDArray[np.float32], NDArray[np.int64]], tuple[_Values, NDArray[np.int64] | None]]


def make_directions(subject: Subject, classifier: bytes | None) -> tuple[Edits, dict[str, bytes]]:
    """The manifest's section, and file name -> bytes of what it names.

    Args:
        subject: the exported generator.
        classifier: image -> class_logits, the exported graph; None: nobody can say whether an image keeps its class.
    """
    look = _looker(subject, classifier)
    height, width, _ = subject.image_shape
    scale = min(1024 / (height * width), 1.0)
    least, most = _FIT[0] * subject.latent_dim, _FIT[1]
    n = max(round(most * scale), min(least, most))
    held_out = max(round(_HELD_OUT[1] * scale), _HELD_OUT[0])

    latent, label = _addresses(subject, _SEED, n)
    values, _ = look(latent, label)
    model = _Fit(latent, label, values)
    latent, label = _addresses(subject, _SEED + 1, held_out)
    values, classes = look(latent, label)
    model.test(latent, label, values)

    found: list[tuple[Edit, NDArray[np.float32]]] = []
    dropped = dict(model.dropped)
    for name in model.vectors:
        direction, holds = model.direction(name)
        steps, why = _climb(name, direction, model.deviations[name], look, latent, label, values[name], classes)
        if not steps:
            dropped[name] = why
            continue
        what, unit = _TEXTS[name]
        edit = Edit(
            name=name,
            what=what,
            unit=unit,
            deviation=float(f"{model.deviations[name]:.4g}"),
            r2=round(model.r2[name], 3),
            holds=holds,
            limit=steps[-1].amount,
            steps=tuple(steps),
        )
        found.append((edit, direction))
    files = {DIRECTIONS: npy_bytes(np.stack([row for _, row in found]).astype("<f4"))} if found else {}
    section = Edits(
        file=DIRECTIONS if found else None,
        attributes=tuple(edit for edit, _ in found),
        dropped={name: dropped[name] for name in sorted(dropped)},
        n=n,
        held_out=held_out,
    )
    return section, files


def _looker(subject: Subject, classifier: bytes | None) -> _Look:
    """(latents, labels) -> their images' attributes, and the class that the classifier takes each for."""
    session = subject.session()
    judge = None if classifier is None else open_session(classifier, device="cpu", threads=1).session

    def look(latent: NDArray[np.float32], label: NDArray[np.int64]) -> tuple[_Values, NDArray[np.int64] | None]:
        found: list[_Values] = []
        classes: list[NDArray[np.int64]] = []
        for start in range(0, len(latent), _BATCH):
            rows = slice(start, start + _BATCH)
            images = subject.run(session, latent[rows], label[rows])
            values = measure(images)
            if judge is not None:
                logits = judge.run(["class_logits"], {"image": images})[0].astype(np.float64)
                classes.append(logits.argmax(axis=1))
                own = np.take_along_axis(logits, label[rows, None], axis=1)[:, 0]
                np.put_along_axis(logits, label[rows, None], -np.inf, axis=1)
                values[_CLARITY] = own - logits.max(axis=1)
            found.append(values)
        values = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
        return values, np.concatenate(classes) if classes else None

    return look


def _addresses(subject: Subject, seed: int, n: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Latents, and labels in turn: of all classes, or of some where there are many."""
    classes = evenly(max(subject.num_classes, 1), _MOST_CLASSES)
    indices = np.arange(n, dtype=np.uint64)
    return latents(np.uint64(seed), indices, subject.latent_dim), classes[np.arange(n) % len(classes)]


class _Fit:
    """The regression of each attribute, less its class's mean, on the latent, less its class's mean.

    `vectors` are the attributes' coefficients, in standard deviations; `dropped` says why an attribute has none.
    """

    def __init__(self, latent: NDArray[np.float32], label: NDArray[np.int64], values: _Values) -> None:
        self.dropped: dict[str, str] = {}
        self.deviations: dict[str, float] = {}
        self.vectors: dict[str, NDArray[np.float64]] = {}
        self.r2: dict[str, float] = {}
        self._means: dict[str, dict[int, float]] = {}
        rows = latent.astype(np.float64)
        present = np.unique(label)
        self._latent_means = {int(k): rows[label == k].mean(axis=0) for k in present}
        centred = self._centred(rows, label)
        gram = centred.T @ centred + _RIDGE * len(rows) * np.eye(rows.shape[1])
        for name, value in values.items():
            self._means[name] = {int(k): float(value[label == k].mean()) for k in present}
            rest = value - np.array([self._means[name][int(k)] for k in label])
            deviation = float(np.sqrt((rest * rest).sum() / max(len(rows) - len(present), 1)))
            if not deviation > 1e-6 * max(float(np.abs(value).max()), 1.0):
                self.dropped[name] = "it is the same in all images of a class"
                continue
            self.deviations[name] = deviation
            self.vectors[name] = np.linalg.solve(gram, centred.T @ (rest / deviation))

    def _centred(self, rows: NDArray[np.float64], label: NDArray[np.int64]) -> NDArray[np.float64]:
        return rows - np.stack([self._latent_means[int(k)] for k in label])

    def test(self, latent: NDArray[np.float32], label: NDArray[np.int64], values: _Values) -> None:
        """Drop what the regression does not predict in other images."""
        centred = self._centred(latent.astype(np.float64), label)
        for name in list(self.vectors):
            means = np.array([self._means[name][int(k)] for k in label])
            rest = (values[name] - means) / self.deviations[name]
            self.r2[name] = float(1 - ((rest - centred @ self.vectors[name]) ** 2).sum() / max((rest**2).sum(), 1e-12))
            if self.r2[name] < _LEAST_R2:
                self.dropped[name] = (
                    f"a linear model of the latent explains {max(self.r2[name], 0):.0%} of its variance within a class"
                )
                del self.vectors[name]

    def direction(self, name: str) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        """float32 [Z]: the step that takes the attribute up by one, and leaves those that it holds, which follow.

        Others are held beginning with those that are least bound up with it: the last, brightness for one where
        strokes are white on black, would leave next to nothing of it.
        """
        vector = self.vectors[name]
        others = [other for other in self.vectors if other != name]
        others.sort(key=lambda other: (round(abs(_cosine(vector, self.vectors[other])), _DECIMALS), other))
        held: list[str] = []
        step = vector / (vector @ vector)
        longest = _LONGEST * np.linalg.norm(step)
        for other in others:
            basis, _ = np.linalg.qr(np.stack([self.vectors[kept] for kept in (*held, other)], axis=1))
            left = vector - basis @ (basis.T @ vector)
            reach = float(vector @ left)
            if reach > 0 and np.linalg.norm(left) / reach <= longest:
                held.append(other)
                step = left / reach
        return np.round(step, _DECIMALS).astype(np.float32), tuple(other for other in self.vectors if other in held)


def _climb(
    name: str,
    direction: NDArray[np.float32],
    deviation: float,
    look: _Look,
    latent: NDArray[np.float32],
    label: NDArray[np.int64],
    before: NDArray[np.float64],
    classes: NDArray[np.int64] | None,
) -> tuple[list[EditStep], str]:
    """The steps up to the largest that does what it should, ascending; and why there is no larger one."""
    right = None if classes is None or not (classes == label).any() else classes == label
    steps: list[EditStep] = []
    for amount in _AMOUNTS:
        pair: list[EditStep] = []
        for signed in (-amount, amount):
            values, found = look(latent + np.float32(signed) * direction, label)
            kept = None if right is None or found is None else round(float((found == label)[right].mean()), 3)
            change = round(float((values[name] - before).mean()) / deviation, 3)
            pair.append(EditStep(amount=signed, change=change, kept=kept))
        down, up = pair
        for step, last in ((down, steps[0].change if steps else 0.0), (up, steps[-1].change if steps else 0.0)):
            asked = f"a step of {step.amount:+g}".replace("-", "−")
            moved = step.change - last if step is up else last - step.change
            if not moved > 0 or not abs(step.change) >= _LEAST_CHANGE * amount:
                return steps, f"{asked} changes it by {step.change:+.2f} standard deviations".replace("-", "−")
            if step.kept is not None and step.kept < _KEPT:
                return steps, f"{asked} keeps {step.kept:.1%} of the images in their class, not {_KEPT:.0%}"
        steps = [down, *steps, up]
    return steps, ""


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
