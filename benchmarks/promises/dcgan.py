"""dcgan: both heads and both upsamplings give comparable quality, and 64 pixels work.

Four trainings differ in head and upsampling alone. Comparable: in each of `COMPARED` the least of the four is no
further than `APART` under the best; one seed each, so differences well under that say nothing. For 64 pixels mnist5k is
enlarged, so that the same measures hold: they work if the classifier is sure of at least `AT_64` times as many samples
as of real images and every class is there. That is a check of the networks, not of detail: enlarged digits have none.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.figure import Figure

from augmint.data import load_data
from benchmarks.promises import Promise, Recipe, trained
from benchmarks.promises.unconditional import judged, show_samples
from training import Run

__all__ = ["RECIPE", "promise"]

RECIPE = Recipe(preset="cpu", steps=1500)
COMPARED: Final = ("recognised", "precision", "coverage")
APART: Final = 0.15
AT_64: Final = 0.6
_STEPS_AT_64: Final = 1000


def promise(run: Run, work: Path) -> Promise:
    runs: dict[str, Run] = {}
    for upsampling in ("upsample_conv", "transposed"):
        for head in ("one_logit", "two_logits"):
            settings = {"upsampling": upsampling, "head": head}
            here = {name: getattr(run.config.options, name) for name in settings}
            name = f"{upsampling}, {head}"
            runs[name] = (
                run
                if here == settings
                else trained(work / f"dcgan {name}", "dcgan", replace(RECIPE, settings=settings))
            )
    found = {name: judged(own) for name, own in runs.items()}
    spreads = {name: np.ptp([getattr(result, name) for result in found.values()]) for name in COMPARED}
    recipe = replace(RECIPE, data=str(_enlarged(work)), steps=_STEPS_AT_64, settings={"batch": 32})
    large = trained(work / "dcgan 64", "dcgan", recipe)
    at_64 = judged(large)
    comparable = max(spreads.values()) <= APART
    works = at_64.recognised >= AT_64 * at_64.recognised_reals and at_64.classes == len(run.config.class_names)
    sentence = (
        f"After {RECIPE.steps:,} steps "
        + "; ".join(f"{name}: {result.words()}" for name, result in found.items())
        + ". Apart by at most "
        + ", ".join(
            f"{spread:.3f} in {'share recognised' if name == 'recognised' else name}"
            for name, spread in spreads.items()
        )
        + f" (promised: {APART:g}). At 64x64 after {_STEPS_AT_64:,} steps of 32 images: {at_64.words()}."
    )
    figures: dict[str, float | int | str] = {}
    for name, result in {**found, "64 pixels": at_64}.items():
        figures |= result.figures(f", {name}")
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(2, 3).flat
    for (name, shown), place in zip({**runs, "64 pixels": large}.items(), axes, strict=False):
        show_samples(place, shown, name.replace("_", " "), rows=5, columns=6)
    bars = figure.axes[5]
    for i, (name, result) in enumerate(found.items()):
        values = [getattr(result, measure) for measure in COMPARED]
        bars.bar(np.arange(len(COMPARED)) + 0.2 * i, values, 0.18, label=name.replace("_", " "))
    bars.set_xticks(np.arange(len(COMPARED)) + 0.3, COMPARED)
    bars.set(ylim=(0, 1.35), title="the four compared")
    bars.legend(fontsize="small", ncols=2)
    return Promise(sentence, comparable and works, figures, figure)


def _enlarged(work: Path) -> Path:
    """mnist5k at 64x64, with its split, as an npz."""
    path = work / "mnist5k-64.npz"
    if not path.is_file():
        data = load_data("mnist5k")
        parts = [data.images(split, shape=(64, 64, 1)) for split in ("train", "validation", "test")]
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            path,
            images=np.concatenate([images for images, _ in parts]),
            labels=np.concatenate([labels for _, labels in parts]),
            class_names=np.array(data.class_names),
            split=np.repeat(np.arange(3), [len(labels) for _, labels in parts]),
        )
    return path
