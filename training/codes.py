"""Which label each category is that a generator found without labels.

Categories have no names. After training they are sorted by the training images that the critic puts into them: each
label gets the category that is most its own (Hungarian matching, so that no label goes without), and where there are
more categories than labels, each of the rest goes to the label of at least half of its images, if there is one. Labels
have no part in the training itself. This module knows counts, and neither networks nor files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

__all__ = ["LEAST_PURITY", "CodeMap"]

LEAST_PURITY: Final = 0.5
"""A label can be asked for when at least this share of the images in its categories is of it, for every label."""


@dataclass(frozen=True)
class CodeMap:
    """The categories of each label, in the classes' order, and how pure they are.

    Attributes:
        clusters: category numbers of each label, ascending; () for a label that has none.
        categories: how many there are in all.
        purity: share of the images that lie in a category of their own label.
        purities: for each label, the share of the images in its categories that are of it; 0 where there are none.
        n: images that all this was counted on.
    """

    clusters: tuple[tuple[int, ...], ...]
    categories: int
    purity: float
    purities: tuple[float, ...]
    n: int

    @classmethod
    def fit(cls, found: NDArray[np.int64], labels: NDArray[np.int64], categories: int, num_classes: int) -> CodeMap:
        """From the category and the label of each image, int64 [N] each, N > 0."""
        table = np.zeros((categories, num_classes), np.int64)
        np.add.at(table, (found, labels), 1)
        label_of = table.argmax(1)
        label_of[2 * table.max(1) < np.maximum(table.sum(1), 1)] = -1  # of no label, or empty
        matched, theirs = linear_sum_assignment(table, maximize=True)
        label_of[matched] = theirs
        clusters = tuple(tuple(np.flatnonzero(label_of == c).tolist()) for c in range(num_classes))
        own = [int(table[list(group), c].sum()) for c, group in enumerate(clusters)]
        held = [int(table[list(group)].sum()) for group in clusters]
        return cls(
            clusters=clusters,
            categories=categories,
            purity=sum(own) / len(labels),
            purities=tuple(right / all_ if all_ else 0.0 for right, all_ in zip(own, held, strict=True)),
            n=len(labels),
        )

    @property
    def members(self) -> NDArray[np.bool_]:
        """[L, K]: whether a category is one of a label's."""
        table = np.zeros((len(self.clusters), self.categories), np.bool_)
        for row, group in zip(table, self.clusters, strict=True):
            row[list(group)] = True
        return table

    def label_of(self, found: NDArray[np.int64]) -> NDArray[np.int64]:
        """The label number of each category number; -1 for a category that no label has."""
        labels = np.full(self.categories, -1, np.int64)
        for c, group in enumerate(self.clusters):
            labels[list(group)] = c
        result: NDArray[np.int64] = labels[found]
        return result

    def refusal(self, class_names: Sequence[str]) -> str:
        """Why it cannot be asked by label, as half a sentence; "" when it can."""
        if self.categories < len(class_names):
            return f"it has {self.categories} categories for {len(class_names)} labels"
        least, name = min(zip(self.purities, class_names, strict=True))
        if least < LEAST_PURITY:
            return (
                f"of the training images in the category that is nearest to {name!r} only {least:.0%} are of it "
                f"(purity over all labels: {self.purity:.2f})"
            )
        return ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as a checkpoint holds them."""
        return {
            "clusters": [list(group) for group in self.clusters],
            "categories": self.categories,
            "purity": self.purity,
            "purities": list(self.purities),
            "n": self.n,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> CodeMap:
        clusters = tuple(tuple(group) for group in state["clusters"])
        return cls(clusters, state["categories"], state["purity"], tuple(state["purities"]), state["n"])
