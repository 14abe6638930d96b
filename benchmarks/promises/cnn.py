"""cnn: recognisable digits, and the accuracy of the discriminator's pre-training is printed.

Recognisable: an independent classifier is sure (0.9) of the class of at least `RECOGNISED` times as many samples as of
real images that it has not seen either, and every class is there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from benchmarks.promises import Promise, Recipe
from benchmarks.promises.unconditional import judged, show_samples
from training import Run

__all__ = ["RECIPE", "promise"]

RECIPE = Recipe(preset="cpu", steps=3000)
RECOGNISED: Final = 0.75


def promise(run: Run, work: Path) -> Promise:
    (said,) = (record for record in run.metrics() if record["kind"] == "prepared")
    before, after = said["accuracy before pre-training"], said["pre-training accuracy"]
    found = judged(run)
    share = found.recognised / found.recognised_reals
    classes = len(run.config.class_names)
    kept = share >= RECOGNISED and found.classes == classes
    sentence = (
        f"An independent classifier is sure of {found.recognised:.1%} of the samples, {share:.2f} times as many as of "
        f"real images (promised: {RECOGNISED:g}), and {found.classes} of {classes} classes have half an even share or "
        f"more; {found.words()}. Pre-training took D's accuracy on held-back images from {before:.3f} to {after:.3f}."
    )
    figures = found.figures() | {
        "pre-training accuracy": round(after, 4),
        "accuracy before pre-training": round(before, 4),
    }
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    sheet, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    show_samples(sheet, run, f"samples ({run.config.steps:,} steps), not chosen")
    bars.bar(run.config.class_names, found.shares)
    bars.axhline(1 / classes, color="black", linewidth=0.8, linestyle=":")
    bars.set(title="What a classifier takes them for", xlabel="class", ylabel="share of samples")
    return Promise(sentence, kept, figures, figure)
