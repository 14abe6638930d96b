"""Bootstrap intervals of recalls, and of their differences, over classifier seeds and test images at once.

Every method is resampled with the same draws of seeds and images, so that differences are paired. Images are drawn
within their class. Knows nothing of what the methods are, nor of pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["FEWEST", "Estimate", "Resampled", "estimate", "resample", "sd"]

FEWEST: Final = 6
"""Images on which two methods must differ before anything is claimed: with 5, even if all of them speak for the same
method, the sign test's p is 2 / 2⁵ > 0.05."""

_DRAWS: Final = 2000
_Key = TypeVar("_Key")


@dataclass(frozen=True, eq=False)
class Resampled:
    """Recalls of one method: `by_seed` [S, C] and `draws` [D, C] (0 for classes without images), and `hits` [N], the
    share of seeds that were right on each image, whose classes are `truth` [N]."""

    by_seed: NDArray[np.float64]
    draws: NDArray[np.float64]
    hits: NDArray[np.float64]
    truth: NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A weighted mean of recalls, in [0, 1], or a difference of two, in [-1, 1].

    `interval` is None where there are fewer than 2 images to judge the spread by. `differing` counts the images on
    which the two methods differ (of one method alone: all images).
    """

    value: float
    interval: tuple[float, float] | None
    differing: int

    @property
    def sign(self) -> int:
        """1 if the difference is above zero beyond the interval's doubt, -1 if below, 0 if this cannot be said."""
        if self.interval is None or self.differing < FEWEST:
            return 0
        return int(self.interval[0] > 0) - int(self.interval[1] < 0)


def resample(
    right: Mapping[_Key, NDArray[np.bool_]], truth: NDArray[np.int64], num_classes: int
) -> dict[_Key, Resampled]:
    """`right[method]` [S, N]: whether the classifier of each seed was right on each image; `truth` [N] in [0, C).

    Of n seeds n - 1 are drawn with replacement, and so of the images of a class: drawing all n of a handful understates
    the spread by (n - 1) / n (McCarthy & Snowden 1985). Classes with a single image are drawn as one: their spread is
    that about their common mean (collapsed strata, Cochran 1977, section 5A.12). One seed is taken as it is.
    """
    rng = np.random.Generator(np.random.Philox(0))
    seeds = len(next(iter(right.values())))
    of_seeds = _weights(rng, seeds)
    members = [np.flatnonzero(truth == c) for c in range(num_classes)]
    exact = {key: value.astype(np.float64) for key, value in right.items()}
    found = {
        key: Resampled(np.zeros((seeds, num_classes)), np.zeros((_DRAWS, num_classes)), value.mean(0), truth)
        for key, value in exact.items()
    }
    single = [c for c, rows in enumerate(members) if len(rows) == 1]
    together = np.array([members[c][0] for c in single], dtype=np.int64)
    shares = _weights(rng, len(single)) if single else np.empty((_DRAWS, 0))
    for c, rows in enumerate(members):
        if not len(rows):
            continue
        weights = shares if c in single else _weights(rng, len(rows))
        for key, value in exact.items():
            block = value[:, rows]
            found[key].by_seed[:, c] = block.mean(1)
            if c not in single:
                by_seed = block @ weights.T  # [S, D]
            else:
                off = weights[:, [single.index(c)]] * len(single) - 1
                by_seed = block + (block - value[:, together].mean(1, keepdims=True)) * off.T
            found[key].draws[:, c] = (of_seeds * by_seed.T).sum(1)
    return found


def estimate(
    of: Resampled, weights: NDArray[np.float64], than: Resampled | None = None, level: float = 0.95
) -> Estimate:
    """The mean over classes by `weights` [C] (0 for classes without images), less `than`'s, with its interval.

    The interval is the value ± t × the bootstrap's standard error (Efron & Tibshirani 1993, chapter 12), cut to what is
    possible. t has the degrees of freedom of Satterthwaite 1946 for the two sources of spread, seeds and images: with 5
    seeds 1.96 would make intervals of 88 % where seeds are all that varies.
    """
    by_seed, draws, hits = of.by_seed, of.draws, of.hits
    if than is not None:
        by_seed, draws, hits = by_seed - than.by_seed, draws - than.draws, hits - than.hits
    by_seed, draws = by_seed @ weights, draws @ weights
    value = float(by_seed.mean())
    counts = np.bincount(of.truth, minlength=len(weights))[weights > 0]
    counted = (weights > 0)[of.truth]
    differing = int((np.abs(hits[counted]) > 1e-9).sum()) if than is not None else int(counts.sum())
    if counts.sum() < 2:
        return Estimate(value, None, differing)
    variance = float(draws.var())
    if variance < 1e-18:
        return Estimate(value, (value, value), differing)
    seeds = len(by_seed)
    of_seeds = min(variance, float(by_seed.var(ddof=1)) / seeds) if seeds > 1 else 0.0
    of_images = variance - of_seeds
    strata = int((counts > 1).sum()) + int((counts == 1).any())
    freedom = variance**2 / (of_seeds**2 / max(1, seeds - 1) + of_images**2 / max(1, int(counts.sum()) - strata))
    half = float(stats.t.ppf(0.5 + level / 2, freedom)) * variance**0.5
    lowest = 0.0 if than is None else -1.0
    return Estimate(value, (max(lowest, value - half), min(1.0, value + half)), differing)


def sd(values: NDArray[np.float64]) -> float:
    """Standard deviation over seeds; 0 for one."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _weights(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """[draws, n], each row's sum 1."""
    drawn = max(1, n - 1)
    return rng.multinomial(drawn, np.full(n, 1 / n), size=_DRAWS) / drawn
