"""Kernel distance: the unbiased squared maximum mean discrepancy with a cubic polynomial kernel.

The estimator of Bińkowski et al. 2018 ("Demystifying MMD GANs", section 4), k(x, y) = (x·y / D + 1)³, on features
that the caller chose. On Inception features it is known as KID; on any other it is not, so nothing here carries that
name. Unbiased means that two samples of one law differ by zero on average: small negative values are right. Knows
nothing of images, classes or extractors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.features import Features, matrices, matrix

__all__ = ["KernelDistance", "kernel_distance", "mean_kernel"]


@dataclass(frozen=True)
class KernelDistance:
    """`value` in kernel units (of the features' scale), or None with a `reason`.

    `blocks` is 1 where all pairs were used; otherwise `value` is the mean and `std` the standard deviation over
    `blocks` random subsets of `block_size` points a side. Where all pairs were used, `real_influence` [N] and
    `fake_influence` [M] are each point's first-order effect on the value, of mean 0: weighting the points by w (of mean
    1) moves it by mean(w · influence), summed over both sides.
    """

    value: float | None
    n_real: int
    n_fake: int
    blocks: int = 1
    block_size: int | None = None
    std: float | None = None
    reason: str | None = None
    real_influence: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)
    fake_influence: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)


def kernel_distance(
    real: Features,
    fake: Features,
    *,
    blocks: int | None = None,
    block_size: int = 1000,
    seed: int = 0,
    chunk: int = 1024,
) -> KernelDistance:
    """Distance of `fake` [M, D] from `real` [N, D] (finite floats), in float64.

    Without `blocks` all pairs count: exact, independent of order, O((N + M)²) time and O(chunk × N) memory. With
    `blocks` it is the mean over that many pairs of subsets, drawn without replacement from `seed` (the papers' way for
    large samples, with a spread); subsets shrink to the smaller side. Fewer than 2 points a side: None and a reason.
    """
    x, y = matrices(real, fake)
    n, m = len(x), len(y)
    if n < 2 or m < 2:
        return KernelDistance(None, n, m, reason=f"needs at least 2 images a side, got {n} real and {m} fake")
    if blocks is None:
        value, of_x, of_y = _mmd2(x, y, chunk)
        return KernelDistance(value, n, m, real_influence=of_x, fake_influence=of_y)
    if blocks < 1 or block_size < 2:
        raise ValueError(f"blocks must be at least 1 and block_size at least 2, got {blocks} and {block_size}.")
    size = min(block_size, n, m)
    rng = np.random.Generator(np.random.Philox(seed))
    values = []
    for _ in range(blocks):
        rows = torch.from_numpy(rng.permutation(n)[:size])
        columns = torch.from_numpy(rng.permutation(m)[:size])
        values.append(_mmd2(x[rows], y[columns], chunk)[0])
    return KernelDistance(float(np.mean(values)), n, m, blocks, size, float(np.std(values)))


def _mmd2(x: Tensor, y: Tensor, chunk: int) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """The distance, and the influence of each of x and of y."""
    n, m = len(x), len(y)
    within_x = (_kernel_sums(x, x, chunk) - _kernel_of_self(x)) / (n - 1)
    within_y = (_kernel_sums(y, y, chunk) - _kernel_of_self(y)) / (m - 1)
    from_x, from_y = _kernel_sums(x, y, chunk) / m, _kernel_sums(y, x, chunk) / n
    value = float(within_x.mean() + within_y.mean() - 2 * from_x.mean())
    own_x, own_y = 2 * (within_x - from_x), 2 * (within_y - from_y)
    return value, (own_x - own_x.mean()).numpy(), (own_y - own_y.mean()).numpy()


def _kernel_sums(a: Tensor, b: Tensor, chunk: int) -> Tensor:
    """Of k between each of a and all of b, [N]."""
    dim = a.shape[1]
    return torch.cat([((a[i : i + chunk] @ b.T) / dim + 1).pow_(3).sum(1) for i in range(0, len(a), chunk)])


def _kernel_of_self(x: Tensor) -> Tensor:
    return (x.square().sum(1) / x.shape[1] + 1) ** 3


def mean_kernel(x: Features) -> float:
    """Mean of k over all pairs of x [N, D], N >= 1: the squared length of the sample's mean in kernel space.

    A distance divided by this has no unit: 0 is the same law and about 1 as far away as the origin.
    """
    points = matrix(x, "real")
    return float(_kernel_sums(points, points, 1024).sum()) / len(points) ** 2
