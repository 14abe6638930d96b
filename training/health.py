"""What a person should be told while training: alarms in words, each said once for what it is about.

Checks look at numbers and images only; they change nothing in the training. Thresholds are set so that a healthy run is
silent: an alarm that cries wolf is read by nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from training.run import Alarm

__all__ = [
    "FAITHFUL",
    "FEW_IMAGES",
    "LossWatch",
    "check_collapse",
    "check_faithful",
    "check_leaks",
    "few_images",
    "grey_share",
    "mass_spread",
]

FEW_IMAGES = 50
"""A class with fewer training images than this is warned of (facts: under 50 to 100 a class)."""
SATURATED_LOSS = 0.05
"""A logistic discriminator's loss under this (2 ln 2 = 1.39 is guessing) tells reals from fakes with certainty."""
SATURATED_LOGS = 10
COLLAPSED_DIVERSITY = 0.35
LEAKED_SHARE = 0.3
FAITHFUL = 0.9
"""A class whose samples are recognised as it less often than this is warned of."""


def few_images(class_names: Sequence[str], counts: Sequence[int]) -> list[Alarm]:
    few = [f"{name!r} ({count})" for name, count in zip(class_names, counts, strict=True) if count < FEW_IMAGES]
    if not few:
        return []
    which = ", ".join(few[:8]) + (f" and {len(few) - 8} more" if len(few) > 8 else "")
    return [
        Alarm(
            "few-images",
            0,
            f"few training images in {which}: under {FEW_IMAGES} a class the samples may be close to copies; "
            "compare the sheets in samples/ with the data, or add images.",
        )
    ]


@dataclass
class LossWatch:
    """Watches the logged means. Its two fields are all its memory and lie in the checkpoint."""

    low: int = 0
    said: list[str] = field(default_factory=list)

    def look(self, step: int, means: Mapping[str, float]) -> list[Alarm]:
        self.low = self.low + 1 if means.get("d_loss", 1.0) < SATURATED_LOSS else 0
        if self.low < SATURATED_LOGS:
            return []
        return self.once(
            Alarm(
                "saturated",
                step,
                f"the discriminator tells reals from fakes with certainty (its loss is {means['d_loss']:.3f}), so the "
                "generator learns little: lower its learning rate, add augmentation, or use more images.",
            )
        )

    def once(self, *alarms: Alarm, about: str = "") -> list[Alarm]:
        """Those that were not raised before. `about` tells alarms of one kind apart, such as the class."""
        new = []
        for alarm in alarms:
            key = f"{alarm.kind}:{about}"
            if key not in self.said:
                self.said.append(key)
                new.append(alarm)
        return new


def check_collapse(
    fakes: Tensor, fake_labels: Tensor, reals: Tensor, real_labels: Tensor, names: Sequence[str]
) -> dict[str, float]:
    """Classes whose fakes are far more alike than their reals: name -> diversity relative to reals.

    Diversity is the mean distance between images of the class, shrunk to about 16 pixels. Images float32 [N, C, H, W].
    """
    collapsed = {}
    for number, name in enumerate(names):
        fake, real = _thin(fakes[fake_labels == number]), _thin(reals[real_labels == number])
        if len(fake) < 4 or len(real) < 4:
            continue
        real_diversity = _diversity(real)
        ratio = _diversity(fake) / real_diversity if real_diversity > 0 else 1.0
        if ratio < COLLAPSED_DIVERSITY:
            collapsed[name] = ratio
    return collapsed


def check_faithful(labels: Tensor, recognised: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Classes of which too few samples are recognised as what was asked for: name -> share.

    `labels` int64 [N] were asked for, `recognised` int64 [N] is what a classifier takes the samples for.
    """
    shares = {names[c]: float((recognised[labels == c] == c).double().mean()) for c in labels.unique().tolist()}
    return {name: share for name, share in shares.items() if share < FAITHFUL}


def check_leaks(
    fakes: Tensor,
    fake_labels: Tensor,
    reals: Tensor,
    real_labels: Tensor,
    augmented: Tensor,
) -> dict[str, float]:
    """What of the augmentation shows in the fakes: kind -> how far they went from `reals` (0) to `augmented` reals (1).

    Two statistics: flat mid-grey squares (what cutout and translation leave behind) and the spread of the images'
    centres of mass within a class (shifts). Each counts only where augmentation changes it clearly.
    """
    leaks = {}
    # A change too small to be seen says nothing: the spread of young samples is as large.
    side = min(reals.shape[2:])
    for kind, statistic, least in (("grey squares", grey_share, 0.2), ("shifts", mass_spread, 0.03 * side)):
        real = statistic(reals, real_labels)
        effect = statistic(augmented, real_labels) - real
        if effect > least:
            share = (statistic(fakes, fake_labels) - real) / effect
            if share > LEAKED_SHARE:
                leaks[kind] = share
    return leaks


def grey_share(images: Tensor, labels: Tensor) -> float:
    """Share of images with a flat mid-grey square of 3/16 of the side, averaged over classes."""
    side = max(2, min(images.shape[2:]) * 3 // 16)
    grey = images.mean(1, keepdim=True)
    mean, square = F.avg_pool2d(grey, side, 1), F.avg_pool2d(grey**2, side, 1)
    flat = (mean.abs() < 0.1) & ((square - mean**2) < 0.005)
    return _by_class(flat.flatten(1).any(1).float(), labels)


def mass_spread(images: Tensor, labels: Tensor) -> float:
    """Standard deviation, in pixels, of the centre of mass within a class, averaged over axes and classes.

    Mass is the distance from the image's own border level, so that dark on light and light on dark weigh alike.
    """
    grey = images.mean(1)
    border = torch.cat([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], 1).median(1).values
    mass = (grey - border[:, None, None]).abs()
    mass = torch.where(mass > 0.25, mass, 0.0)
    total = mass.sum((1, 2)).clamp(min=1e-6)
    height, width = grey.shape[1:]
    y = (mass.sum(2) * torch.arange(height)).sum(1) / total
    x = (mass.sum(1) * torch.arange(width)).sum(1) / total
    spreads = []
    for number in labels.unique().tolist():
        of_class = labels == number
        if int(of_class.sum()) >= 2:
            spreads.append((y[of_class].std() + x[of_class].std()) / 2)
    return float(torch.stack(spreads).mean()) if spreads else 0.0


def _by_class(values: Tensor, labels: Tensor) -> float:
    return float(torch.stack([values[labels == number].mean() for number in labels.unique().tolist()]).mean())


def _thin(images: Tensor) -> Tensor:
    """At most 64, evenly spread: the first may be all of one kind."""
    kept = min(len(images), 64)
    return images[torch.arange(kept) * len(images) // max(kept, 1)]


def _diversity(images: Tensor) -> float:
    factor = max(1, min(images.shape[2:]) // 16)
    small = F.avg_pool2d(images, factor).flatten(1)
    return float(torch.pdist(small).mean())
