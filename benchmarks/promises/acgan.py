"""`acgan`: its labels are right; how much variety its classes have beside the default family, in the same time."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.figure import Figure

from benchmarks.promises import Promise, Recipe, trained
from benchmarks.promises.conditional import judge_accuracy, measured, reals
from training import Run

__all__ = ["RECIPE", "promise"]

RECIPE: Final = Recipe(preset="small", steps=1000)
# As much CPU time as RECIPE takes, measured side by side on one core: see docs/log.md.
_AUGMENT: Final = Recipe(steps=1000)
_WANTED: Final = 0.95


def promise(run: Run, work: Path) -> Promise:
    beside = trained(work / "acgan-augment", "augment", _AUGMENT)
    figures = {"acgan": measured(run), "augment": measured(beside), "real images": reals()}
    own, other = figures["acgan"], figures["augment"]

    picture = Figure(figsize=(8, 7), layout="constrained")
    panels = picture.subplots(3, 1, sharex=True)
    shown = (
        ("recognised as it", "fidelity"),
        ("recall in class", "recall"),
        ("similarity of pairs (SSIM)", "similarity"),
    )
    for axes, (words, name) in zip(panels, shown, strict=True):
        for i, (family, numbers) in enumerate(figures.items()):
            axes.bar(np.arange(10) + (i - 1) * 0.27, getattr(numbers, name), 0.25, label=family)
        axes.set(ylabel=words, ylim=(0, 1.02 if name != "similarity" else None))
    panels[0].legend(loc="lower left", fontsize=8, ncols=3)
    panels[-1].set(xticks=range(10), xlabel="digit asked for")

    mean = float(own.fidelity.mean())
    return Promise(
        sentence=(
            f"Label fidelity, wanted {_WANTED} or more: {mean:.3f} (the lowest class {own.fidelity.min():.3f}; augment "
            f"{other.fidelity.mean():.3f}) by a classifier that is right on {judge_accuracy():.3f} of real test "
            f"images. Variety within a class, beside augment in the same time: recall {own.recall.mean():.3f} and "
            f"{other.recall.mean():.3f}, coverage {own.coverage.mean():.3f} and {other.coverage.mean():.3f}, "
            f"similarity of pairs {own.similarity.mean():.3f} and {other.similarity.mean():.3f} (real images "
            f"{figures['real images'].similarity.mean():.3f})."
        ),
        kept=mean >= _WANTED,
        figures={
            "label fidelity": round(mean, 4),
            **{
                f"{name} in class, {family}": round(float(getattr(numbers, name).mean()), 4)
                for family, numbers in figures.items()
                for name in ("recall", "coverage", "similarity")
                if family != "real images" or name == "similarity"
            },
        },
        picture=picture,
    )
