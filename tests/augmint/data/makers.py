"""Small pictures and folders for the tests of this room."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def noise(seed: int, shape: tuple[int, ...] = (8, 8, 1)) -> NDArray[np.uint8]:
    """Pixels that no other seed has, and that look like nothing else."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(path)
    return path


def folder(root: Path, counts: Mapping[str, int], *, first: int = 0) -> Path:
    """A folder of class folders of different noise pictures, named 0.png, 1.png, …"""
    seed = first
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            save(root / name / f"{i}.png", noise(seed))
            seed += 1
    return root
