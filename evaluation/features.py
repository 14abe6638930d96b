"""What every source of features offers, so that measures need not know which one they were given."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Extractor"]


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
