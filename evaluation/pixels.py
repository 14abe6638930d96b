"""Principal components of pixels as features, for sets without labels to train an extractor on.

Linear, so close in brightness and coarse shape counts as close; a network's sense of parts and strokes is not in it,
and slight blur is seen worse. Knows nothing of measures or classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from evaluation.arrays import evenly

__all__ = ["PixelPCA"]

_LARGEST = 32  # Longer sides are averaged down to about this.


class PixelPCA:
    """Fit on images uint8 [N, H, W, C] with `PixelPCA.fit`; same interface as a classifier's features."""

    name = "principal components of the train split's pixels"

    def __init__(self, mean: NDArray[np.float32], components: NDArray[np.float32], scale: float) -> None:
        self._mean, self._components, self._scale = mean, components, scale

    @classmethod
    def fit(cls, images: NDArray[np.uint8], *, dimensions: int = 64, most: int = 2000) -> PixelPCA:
        """Up to `dimensions` components of at most `most` images, spread evenly over the given order."""
        chosen = evenly(len(images), most)
        x = _flatten(images[chosen])
        mean = x.mean(0)
        # Features are not whitened: small components are mostly noise, and would weigh as much as the shape.
        _, _, directions = np.linalg.svd((x - mean).astype(np.float64), full_matrices=False)
        components = np.ascontiguousarray(directions[:dimensions].T, dtype=np.float32)
        mean_square = float(np.square((x - mean) @ components, dtype=np.float64).mean())
        return cls(mean, components, 1 / math.sqrt(max(mean_square, 1e-12)))

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[N, D], scaled so that the train images' mean square is 1."""
        return ((_flatten(images) - self._mean) @ self._components * np.float32(self._scale)).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and plain values that `torch.load(weights_only=True)` accepts."""
        return {
            "mean": torch.from_numpy(self._mean),
            "components": torch.from_numpy(self._components),
            "scale": self._scale,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> PixelPCA:
        return cls(state["mean"].numpy(), state["components"].numpy(), state["scale"])


def _flatten(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    shrink = math.ceil(min(x.shape[2:]) / _LARGEST)
    if shrink > 1:
        x = F.avg_pool2d(x, shrink)
    return x.flatten(1).numpy()
