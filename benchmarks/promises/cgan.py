"""`cgan`: its labels are right on balanced data; what a set with rare classes does to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.figure import Figure

from benchmarks.promises import Promise, Recipe, trained
from benchmarks.promises.conditional import SHOTS, SMALL, cut, judge_accuracy, measured, verdict
from training import Run

__all__ = ["RECIPE", "promise"]

RECIPE: Final = Recipe(preset="small", steps=1200)
_WANTED: Final = 0.95


def promise(run: Run, work: Path) -> Promise:
    data = cut(work)
    runs = {"all classes whole": run}
    alike_often = replace(RECIPE, data=data)  # by its default, class_power 0
    few = f"{', '.join(SMALL)} cut to {SHOTS}"
    runs[f"{few}, drawn alike often"] = trained(work / "cgan-cut", "cgan", alike_often)
    as_is = replace(alike_often, settings={"class_power": 1.0})
    runs[f"{few}, drawn as the data are"] = trained(work / "cgan-cut-as-is", "cgan", as_is)
    figures = {words: measured(each) for words, each in runs.items()}
    whole, alike, uneven = figures.values()
    said = [verdict(each, figures[words]) for words, each in runs.items()][1:]

    picture = Figure(figsize=(8, 3.6), layout="constrained")
    axes = picture.add_subplot()
    for i, (words, numbers) in enumerate(figures.items()):
        axes.bar(np.arange(10) + (i - 1) * 0.27, numbers.fidelity, 0.25, label=words)
    axes.axhline(0.9, color="0.5", linewidth=0.8, linestyle="--")
    axes.set(xticks=range(10), xlabel="digit asked for", ylabel="recognised as it", ylim=(0, 1.02))
    axes.legend(loc="lower left", fontsize=8)

    mean, kept = float(whole.fidelity.mean()), float(whole.fidelity.mean()) >= _WANTED
    return Promise(
        sentence=(
            f"Label fidelity on balanced data, wanted {_WANTED} or more: {mean:.3f} (the lowest class "
            f"{whole.fidelity.min():.3f}) by a classifier that is right on {judge_accuracy():.3f} of real test images. "
            f"With {SHOTS} images of each of {', '.join(SMALL)}, drawn alike often: {said[0][1]}. Drawn as the data "
            f"are: {said[1][1]}."
        ),
        kept=kept,
        figures={
            "label fidelity": round(mean, 4),
            "label fidelity, lowest class": round(float(whole.fidelity.min()), 4),
            "recall in class": round(float(whole.recall.mean()), 4),
            "coverage in class": round(float(whole.coverage.mean()), 4),
            "cut, alike often: small classes": round(float(alike.small().mean()), 4),
            "cut, as the data are: small classes": round(float(uneven.small().mean()), 4),
            "cut: held, or said so": " and ".join("yes" if good else "no" for good, _ in said),
        },
        picture=picture,
    )
