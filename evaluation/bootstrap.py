"""95 % intervals by the bootstrap (Efron 1979), for figures that are a mean over images plus something fixed.

Drawing images again and measuring anew would take long, and it would mislead: an image drawn twice is its own nearest
neighbour at distance 0, and a distance between sets grows with every double. So what is drawn again is each image's
contribution: of precision, recall, density, coverage and label fidelity whether (or how often) it counted, all balls
held fixed; of the kernel and Fréchet distance its influence on the value (the infinitesimal jackknife, Efron 1982).

Knows nothing of images or measures.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["DRAWS", "interval", "resampled_means"]

DRAWS: Final = 1000


def resampled_means(
    values: NDArray[np.floating], rng: np.random.Generator, *, share: bool = False
) -> NDArray[np.float64]:
    """[DRAWS] means of `values` [n] drawn with replacement; zeros where n is 0.

    n - 1 of n are drawn, because drawing all n of a few understates the spread by (n - 1) / n (McCarthy & Snowden
    1985). `share`: the values are 0 or 1, and two of each are added before drawing (Agresti & Coull 1998), or 20 hits
    of 20 would look certain.
    """
    if share:
        values = np.concatenate([values, [0, 0, 1, 1]])
    n = len(values)
    if n < 2:
        return np.full(DRAWS, float(values.sum()))
    drawn = rng.integers(0, n, (DRAWS, n - 1), dtype=np.int32)
    return np.asarray(values, dtype=np.float64)[drawn].mean(1)


def interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of `draws`."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)
