"""began: M_global falls and chooses the checkpoint; the lower γ, the less varied the samples (the paper's section 4.2).

Four trainings differ in γ alone: the paper's 0.3, 0.5 and 0.7, and the recipe's 1. Variety is the mean distance between
two samples, over that between two test images (shrunk to 14 pixels, so that noise counts for little), and recall and
coverage against test images, in the features of a classifier of the train images.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.nn import functional as F

from augmint.data import load_data
from benchmarks.promises import Promise, Recipe, trained
from benchmarks.promises.unconditional import judged, samples, show_samples
from training import Run

__all__ = ["RECIPE", "promise"]

RECIPE = Recipe(preset="small", steps=500)
GAMMAS = (0.3, 0.5, 0.7, 1.0)  # the last is the preset's
FALLEN = 0.5
"""M at the end, of what it was after a tenth of the steps, that counts as fallen."""


def promise(run: Run, work: Path) -> Promise:
    runs = {
        gamma: run
        if gamma == run.config.options.gamma  # type: ignore[attr-defined]
        else trained(work / f"began gamma {gamma}", "began", replace(RECIPE, settings={"gamma": gamma}))
        for gamma in GAMMAS
    }
    curves = {gamma: _measures(each) for gamma, each in runs.items()}
    fallen = {gamma: _mean(curve[-len(curve) // 10 :]) / _early(curve) for gamma, curve in curves.items()}
    chosen = all(_chosen_by_measure(each) for each in runs.values())
    test, _ = load_data(run.config.data).images("test", shape=run.config.image_shape)
    varied = {gamma: _variety(samples(each)) / _variety(test) for gamma, each in runs.items()}
    judgements = {gamma: judged(each) for gamma, each in runs.items()}
    rising = [varied[gamma] for gamma in GAMMAS] == sorted(varied.values())
    recalls = {gamma: each.recall for gamma, each in judgements.items()}
    kept = chosen and rising and max(fallen.values()) < FALLEN and recalls[GAMMAS[-1]] > recalls[GAMMAS[0]]
    sentence = (
        f"M_global falls to {', '.join(f'{100 * fallen[gamma]:.0f} %' for gamma in GAMMAS)} of that after a tenth "
        f"of the steps, for γ = {', '.join(f'{gamma:g}' for gamma in GAMMAS)}, and "
        f"{'its lowest running mean' if chosen else 'NOT its lowest running mean'} is the best checkpoint. The samples "
        f"are {', '.join(f'{100 * varied[gamma]:.0f} %' for gamma in GAMMAS)} as varied as test images, recall is "
        f"{', '.join(f'{recalls[gamma]:.3f}' for gamma in GAMMAS)}: "
        f"{'variety rises with γ' if rising else 'variety does NOT rise with γ throughout'}."
    )
    figures: dict[str, float | int | str] = {}
    for gamma in GAMMAS:
        figures |= {
            f"variety, γ {gamma:g}": round(varied[gamma], 4),
            f"recall, γ {gamma:g}": round(judgements[gamma].recall, 4),
            f"coverage, γ {gamma:g}": round(judgements[gamma].coverage, 4),
            f"precision, γ {gamma:g}": round(judgements[gamma].precision, 4),
            f"M at the end, γ {gamma:g}": round(_mean(curves[gamma][-len(curves[gamma]) // 10 :]), 4),
        }
    return Promise(sentence, kept, figures, _picture(runs, curves, varied, recalls))


def _measures(run: Run) -> list[tuple[int, float]]:
    """(step, M_global) of the log."""
    return [(record["step"], record["m_global"]) for record in run.metrics() if record["kind"] == "losses"]


def _mean(curve: list[tuple[int, float]]) -> float:
    return float(np.mean([measure for _, measure in curve]))


def _early(curve: list[tuple[int, float]]) -> float:
    """After a tenth of the steps: the first steps of an untrained auto-encoder would make any fall look deep."""
    tenth = len(curve) // 10
    return _mean(curve[tenth : 2 * tenth])


def _chosen_by_measure(run: Run) -> bool:
    best = run.status().best
    scores = [record for record in run.metrics() if record["kind"] == "score"]
    return best is not None and best.details["convergence"] == min(record["convergence"] for record in scores)


def _variety(images: NDArray[np.uint8]) -> float:
    small = F.avg_pool2d(torch.from_numpy(images[:1000].transpose(0, 3, 1, 2).copy()).float(), 2)
    return float(torch.pdist(small.flatten(1)).mean())


def _picture(
    runs: dict[float, Run],
    curves: dict[float, list[tuple[int, float]]],
    varied: dict[float, float],
    recalls: dict[float, float],
) -> Figure:
    figure = Figure(figsize=(12, 7), layout="constrained")
    above, below = figure.subfigures(2, 1)
    falling, variety = above.subplots(1, 2)
    for gamma, curve in curves.items():
        falling.plot(*zip(*curve, strict=True), label=f"γ = {gamma:g}", linewidth=1)
    falling.set_yscale("log")
    falling.set_xlabel("step")
    falling.set_ylabel("M_global")
    falling.legend()
    variety.plot(GAMMAS, [varied[gamma] for gamma in GAMMAS], "o-", label="distance between samples / between reals")
    variety.plot(GAMMAS, [recalls[gamma] for gamma in GAMMAS], "s--", label="recall")
    variety.set_xlabel("γ, the diversity ratio")
    variety.set_ylim(bottom=0)
    variety.legend()
    for axes, (gamma, run) in zip(below.subplots(1, len(runs)), runs.items(), strict=True):
        show_samples(axes, run, f"γ = {gamma:g}", rows=6, columns=8)
    return figure
