"""What several measures do with arrays, and what they call them. Knows nothing of what is in the arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Labelled", "evenly"]

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images uint8 [N, H, W, C] and their labels int64 [N]."""


def evenly(n: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the indices 0 … n - 1, evenly spread: what lies first may be all of one kind.

    >>> evenly(9, 3), evenly(2, 3)
    (array([0, 4, 8]), array([0, 1]))
    """
    return np.linspace(0, n - 1, min(n, most)).astype(np.int64)
