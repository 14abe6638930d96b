"""Fréchet distance: how far apart two sets of points are, each taken for a normal distribution.

Heusel et al. 2017 ("GANs trained by a two time-scale update rule", section 2): |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½),
on features that the caller chose. On Inception features it is known as FID; on any other it is not, so nothing here
carries that name. With X and Y the centred points over √(n - 1), Σ₁ = XᵀX and Σ₂ = YᵀY, the trace of (Σ₁Σ₂)^½ is the
sum of the singular values of XYᵀ: no root of a matrix is taken, covariances of low rank do no harm, and nothing turns
complex or NaN.

Two samples of one law are never at distance 0: covariances from n points are wrong by about D / n, and the distance is
biased upwards by that (Chong & Forsyth 2020, "Effectively unbiased FID and Inception Score"). Hence `bias` beside each
value, and no value where n is below half of D. Knows nothing of images, classes or extractors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.features import Features, matrices

__all__ = ["FrechetDistance", "frechet_distance", "least_points"]

_LEAST = 50
_SPLITS = 3  # Random halvings of the reals that the bias is averaged over.


@dataclass(frozen=True)
class FrechetDistance:
    """`value` >= 0 in squared units of the features, or None with a `reason`.

    `bias` is about what two samples of the reals' law of these sizes would show: the distance between random halves of
    the reals, brought to n_real and n_fake as 1 / n. Only what exceeds it speaks against the fakes.
    `real_influence` [N] and `fake_influence` [M] are each point's first-order effect on the value, of mean 0: weighting
    the points by w (of mean 1) moves the value by mean(w · influence), summed over both sides, to first order.
    """

    value: float | None
    n_real: int
    n_fake: int
    dimensions: int
    bias: float | None = None
    reason: str | None = None
    real_influence: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)
    fake_influence: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)


def least_points(dimensions: int) -> int:
    """Points a side that a value needs: half of the dimensions, and 50. The bias is of the value's own size below."""
    return max(_LEAST, -(-dimensions // 2))


def frechet_distance(real: Features, fake: Features, *, least: int | None = None) -> FrechetDistance:
    """Distance of `fake` [M, D] from `real` [N, D] (finite floats), in float64.

    `least` points a side are needed, or there is a reason in place of a value; None: `least_points(D)`; never below 2.
    Covariances are the unbiased ones (over n - 1), as in torchmetrics and pytorch-fid.
    """
    x, y = matrices(real, fake)
    n, m, dimensions = len(x), len(y), x.shape[1]
    least = max(2, least_points(dimensions) if least is None else least)
    if min(n, m) < least:
        why = f"needs {least} images a side for features of {dimensions} dimensions, got {n} real and {m} fake"
        return FrechetDistance(None, n, m, dimensions, reason=why)
    value, real_influence, fake_influence = _distance(x, y)
    bias = None
    if n >= 4:
        rng = np.random.Generator(np.random.Philox(0))
        halves = [np.array_split(rng.permutation(n), 2) for _ in range(_SPLITS)]
        between = np.mean([_value(x[one], x[other]) for one, other in halves])
        bias = float(between) * (1 / n + 1 / m) / (4 / n)
    return FrechetDistance(value, n, m, dimensions, bias, real_influence=real_influence, fake_influence=fake_influence)


def _value(x: Tensor, y: Tensor) -> float:
    apart, x, y = _centred(x, y)
    # XYᵀ = Qx (Rx Ryᵀ) Qyᵀ: the singular values are those of a matrix of D or fewer rows and columns.
    r_x, r_y = torch.linalg.qr(x, mode="r").R, torch.linalg.qr(y, mode="r").R
    return _combined(apart, x, y, torch.linalg.svdvals(r_x @ r_y.T))


def _distance(x: Tensor, y: Tensor) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """`_value`, and the influence of each of x and of y, for several times the work."""
    apart, x, y = _centred(x, y)
    (q_x, r_x), (q_y, r_y) = torch.linalg.qr(x), torch.linalg.qr(y)
    u, s, vt = torch.linalg.svd(r_x @ r_y.T, full_matrices=False)
    # The derivative by Σ₁ is I - T, T the optimal transport of the first normal law to the second (Dowson & Landau
    # 1982), and the square of a row of X in T's metric is Σ s u² over that row of U.
    own_x = x.square().sum(1) - (q_x @ u).square() @ s
    own_y = y.square().sum(1) - (q_y @ vt.T).square() @ s
    own_x = (len(x) - 1) * own_x + 2 * math.sqrt(len(x) - 1) * (x @ apart)
    own_y = (len(y) - 1) * own_y - 2 * math.sqrt(len(y) - 1) * (y @ apart)
    return _combined(apart, x, y, s), (own_x - own_x.mean()).numpy(), (own_y - own_y.mean()).numpy()


def _centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The difference of the means, X and Y."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    return mean_x - mean_y, (x - mean_x) / math.sqrt(len(x) - 1), (y - mean_y) / math.sqrt(len(y) - 1)


def _combined(apart: Tensor, x: Tensor, y: Tensor, singular: Tensor) -> float:
    return max(0.0, float(apart @ apart + x.square().sum() + y.square().sum() - 2 * singular.sum()))
