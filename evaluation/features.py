"""What every source of features offers, so that measures need not know which one they were given; and how those that
compare sets of features check them.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Extractor", "Features", "matrices", "matrix"]

Features = NDArray[np.float32] | NDArray[np.float64] | Tensor


class Extractor(Protocol):
    """Maps images to points; a distance between points is then a distance between pictures, to that extractor.

    `evaluation.classifier.Classifier` and `evaluation.pixels.PixelPCA` are extractors. Figures in the features of
    different extractors must not be compared, which is why each has a `name` that goes into reports.
    """

    @property
    def name(self) -> str: ...

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, H, W, C] -> float32 [N, D], each row of its own image alone."""
        ...


def matrix(features: Features, name: str) -> Tensor:
    """float64 [N, D]. Raises ValueError where they have another shape, no width, or values that are not finite."""
    x = torch.as_tensor(features).detach()
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"The {name} features must have 2 dimensions [N, D], got {tuple(x.shape)}.")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"The {name} features hold NaN or infinite values.")
    return x.double()


def matrices(real: Features, fake: Features) -> tuple[Tensor, Tensor]:
    """Both as `matrix`, of one width."""
    x, y = matrix(real, "real"), matrix(fake, "fake")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"Real features have {x.shape[1]} dimensions and fake ones {y.shape[1]}.")
    return x, y
