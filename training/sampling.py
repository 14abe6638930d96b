"""Which training images a step sees: class-balanced (or tempered) batches, as a pure function of the step.

Classes are drawn by systematic sampling, so that each batch has every class as nearly as its law says (with 10 classes
and 32 images: 3 or 4 of each) and not a lottery's counts; images within the class uniformly. Fakes take the same
labels, hence the same law.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.randomness import StepRandom

__all__ = ["Sampler", "class_law"]


def class_law(counts: Tensor, power: float) -> Tensor:
    """p_c ∝ n_c ** power, and 0 for classes without images. float64 [K] that sums to 1."""
    weights = torch.where(counts > 0, counts.double() ** power, 0.0)
    return weights / weights.sum()


class Sampler:
    """Draws indices into labels int64 [N]; `power` is `FamilyOptions.class_power`.

    With `pairs`, draws 2i and 2i + 1 are of one class, and two different images where the class has two.
    """

    def __init__(self, labels: Tensor, num_classes: int, power: float, *, pairs: bool = False) -> None:
        self.pairs = pairs
        # Images sorted by class, so that class c lies at starts[c] .. starts[c] + counts[c].
        self.order = torch.argsort(labels, stable=True)
        self.counts = torch.bincount(labels, minlength=num_classes)
        self.starts = torch.cumsum(self.counts, 0) - self.counts
        self.law = class_law(self.counts, power)
        # The last edge is exactly 1 whatever rounding did; classes without images then lie beyond every draw.
        self.edges = torch.cumsum(self.law, 0)
        self.edges[self.law.nonzero()[-1, 0] :] = 1.0

    def labels(self, count: int, random: StepRandom, purpose: str) -> Tensor:
        """int64 [count], ascending; `count` is even with pairs."""
        draws = count // 2 if self.pairs else count
        start = torch.rand(1, generator=random.generator(purpose + " labels"), dtype=torch.float64)
        points = (torch.arange(draws, dtype=torch.float64) + start) / draws
        labels = torch.searchsorted(self.edges, points.clamp(max=1 - 1e-12), right=True)
        return labels.repeat_interleave(2) if self.pairs else labels

    def indices(self, labels: Tensor, random: StepRandom, purpose: str) -> Tensor:
        """For each label an image of that class: int64 [N]."""
        shares = torch.rand(len(labels), generator=random.generator(purpose + " images"), dtype=torch.float64)
        counts = self.counts[labels]
        offsets = (shares * counts).long()
        if self.pairs:
            # The second is 1 to n - 1 places after the first, round the class: never the same image.
            ahead = 1 + (shares[1::2] * (counts[1::2] - 1)).long()
            offsets[1::2] = (offsets[::2] + ahead) % counts[1::2]
        return self.order[self.starts[labels] + offsets]
