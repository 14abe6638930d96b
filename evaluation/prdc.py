"""Precision, recall, density and coverage of generated images, in a feature space that the caller chose.

Precision and recall are Kynkäänniemi et al. 2019 ("Improved precision and recall metric for assessing generative
models", section 2); density and coverage are Naeem et al. 2020 ("Reliable fidelity and diversity metrics for generative
models", section 3). Every figure is a share of points within a k-nearest-neighbour ball of another point, in Euclidean
distance, strictly, as in Naeem's definition and code; Kynkäänniemi's has "at most", which differs in ties alone. Knows
nothing of images, classes or extractors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.features import Features

__all__ = ["Prdc", "prdc"]

MEASURES = ("precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Prdc:
    """Shares in [0, 1] (density: >= 0, 1 for real data), or None where `reasons` says why under the same name.

    `k_real` and `k_fake` are the neighbours really used: at most the `k` asked for, fewer where a side has too few
    points, which `reasons["k"]` then mentions. `points` holds what each measure is the mean of, by its name: one number
    for each fake (precision, density) or real (recall, coverage); without the measures that are None.
    """

    precision: float | None
    recall: float | None
    density: float | None
    coverage: float | None
    n_real: int
    n_fake: int
    k_real: int
    k_fake: int
    reasons: dict[str, str] = field(default_factory=dict)
    points: dict[str, NDArray[np.float64]] = field(default_factory=dict, repr=False, compare=False)


def prdc(real: Features, fake: Features, *, k: int = 5, chunk: int = 1024) -> Prdc:
    """Compare `fake` [M, D] with `real` [N, D] (finite floats).

    Needs 2 real points (and for recall 2 fake ones); with fewer the figure is None and `reasons` says why. `chunk`
    bounds memory (chunk × max(N, M) distances) and changes nothing else.
    """
    if k < 1 or chunk < 1:
        raise ValueError(f"k and chunk must be at least 1, got k={k}, chunk={chunk}.")
    x, y = _matrix(real, "real"), _matrix(fake, "fake")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"Real features have {x.shape[1]} dimensions and fake ones {y.shape[1]}.")
    n, m = len(x), len(y)
    k_real, k_fake = max(0, min(k, n - 1)), max(0, min(k, m - 1))
    reasons: dict[str, str] = {}
    points: dict[str, NDArray[np.float64]] = {}
    if k_real < k or k_fake < k:
        reasons["k"] = f"k = {k} needs {k + 1} images a side, got {n} real and {m} fake: {k_real} and {k_fake} used"
    if n < 2 or m < 1:
        why = f"needs at least 2 real images and 1 fake one, got {n} and {m}"
        reasons |= dict.fromkeys(("precision", "density", "coverage"), why)
    else:
        radius = _radii(x, k_real, chunk)
        inside = torch.zeros(m, dtype=torch.int64)
        covered = torch.zeros(n, dtype=torch.bool)
        for start in range(0, n, chunk):
            rows = slice(start, start + chunk)
            ball = _distances(x[rows], y) < radius[rows, None]
            inside += ball.sum(0)
            covered[rows] = ball.any(1)
        points["precision"] = (inside > 0).double().numpy()
        points["density"] = inside.double().numpy() / k_real
        points["coverage"] = covered.double().numpy()
    if n < 1 or m < 2:
        reasons["recall"] = f"needs at least 2 fake images and 1 real one, got {m} and {n}"
    else:
        radius = _radii(y, k_fake, chunk)
        hit = [(_distances(x[start : start + chunk], y) < radius).any(1) for start in range(0, n, chunk)]
        points["recall"] = torch.cat(hit).double().numpy()
    # An exact sum, which does not depend on the order of the images.
    values = {name: math.fsum(points[name]) / len(points[name]) if name in points else None for name in MEASURES}
    return Prdc(**values, n_real=n, n_fake=m, k_real=k_real, k_fake=k_fake, reasons=reasons, points=points)


def _matrix(features: Features, name: str) -> Tensor:
    x = torch.as_tensor(features).detach()
    if x.ndim != 2:
        raise ValueError(f"The {name} features must have 2 dimensions [N, D], got {tuple(x.shape)}.")
    x = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"The {name} features hold NaN or infinite values.")
    return x


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # Not through matrix multiplication: that loses the small distances to rounding, and its rounding depends on the
    # chunk, so that a point could leave its own ball.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(x: Tensor, k: int, chunk: int) -> Tensor:
    """Distance of each point to its k-th nearest other point, [N]."""
    radii = []
    for start in range(0, len(x), chunk):
        d = _distances(x[start : start + chunk], x)
        rows = torch.arange(len(d))
        d[rows, rows + start] = torch.inf
        radii.append(d.kthvalue(k, dim=1).values)
    return torch.cat(radii)
