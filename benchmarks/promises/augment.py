"""`augment`: remains the default, because in the same time it helps the small classes more than the others by class.

Each conditional family is trained on mnist5k with classes 5 to 9 cut to 20 images, for as much CPU time as `_STEPS`
steps of augment take: what a step costs is measured first, in turns, on this machine. Then its images fill the small
classes up, and a classifier of those and the real ones is judged on real test images: what this project is for. Label
fidelity, recall and coverage of the small classes stand beside it (`conditional.py`).
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Final

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from augmint.data import DataSet, load_data
from benchmarks.promises import Promise, Recipe, trained
from benchmarks.promises.conditional import SHOTS, SMALL, Measured, cut, measured
from evaluation.classifier import Synthetic, one_thread, train_classifier
from training import Run, TrainRequest, load_generator, train
from training.examination import render
from training.run import write_atomically
from training.trainer import Trainer

__all__ = ["RECIPE", "promise"]

RECIPE: Final = Recipe(steps=3000)
_STEPS: Final = 2500
"""Of augment, whose encoder needs as many; the others' follow from what theirs cost."""
_OTHERS: Final = {"acgan": "small", "cgan": "small"}
"""The other families by class, and the preset that is meant for CPU minutes."""
_FULL: Final = 350
"""Images that the small classes are filled up to: as many as the others have."""
_WITHIN: Final = 0.05
"""How far label fidelity and coverage may lie under the best."""
_SEED: Final = 7  # of the images; not that of the figures'
_CLASSIFIERS: Final = (0, 1, 2)
_CLASSIFIER_STEPS: Final = 1200
_TIMED: Final = 15  # steps in a turn
_TURNS: Final = 4
_PLAIN: Final = "no generated images"


def promise(run: Run, work: Path) -> Promise:
    data = cut(work)
    steps = _plan(data, work / "plan.json")
    runs = {
        name: trained(work / f"augment-{name}", name, Recipe(steps=count, preset=_OTHERS.get(name), data=data))
        for name, count in steps.items()
    }
    figures = {name: measured(each) for name, each in runs.items()}
    loaded = load_data(data)
    helped = {_PLAIN: _recall(loaded, None)} | {name: _recall(loaded, each) for name, each in runs.items()}
    small = [int(name) for name in SMALL]

    def of_small(numbers: Measured, what: str) -> float:
        return float(getattr(numbers, what)[small].mean())

    shown = {
        "label fidelity": {name: of_small(numbers, "fidelity") for name, numbers in figures.items()},
        "recall in class": {name: of_small(numbers, "recall") for name, numbers in figures.items()},
        "coverage in class": {name: of_small(numbers, "coverage") for name, numbers in figures.items()},
        "classifier's recall": {name: float(np.mean(shares)) for name, shares in helped.items()},
    }
    helping = shown["classifier's recall"]
    kept = max(runs, key=helping.__getitem__) == "augment" and all(
        shown[what]["augment"] >= max(shown[what].values()) - _WITHIN
        for what in ("label fidelity", "coverage in class")
    )
    each = "; ".join(
        f"{name} ({steps[name]:,} steps): {helping[name]:.3f} ± {np.std(helped[name], ddof=1):.3f}, "
        f"label fidelity {shown['label fidelity'][name]:.3f}, recall {shown['recall in class'][name]:.3f}, coverage "
        f"{shown['coverage in class'][name]:.3f}"
        for name in runs
    )
    return Promise(
        sentence=(
            f"In equal CPU time on mnist5k with {SHOTS} images of each of {', '.join(SMALL)}, a classifier's mean "
            f"recall of these classes (real and generated images, affine warps; {len(_CLASSIFIERS)} seeds) is for "
            f"{each}; without generated images {np.mean(helped[_PLAIN]):.3f} ± {np.std(helped[_PLAIN], ddof=1):.3f}. "
            f"It is the default for as long as the first figure is the highest and label fidelity and coverage are no "
            f"more than {_WITHIN} under the best."
        ),
        kept=kept,
        figures={f"{what}, {name}": round(value, 4) for what, values in shown.items() for name, value in values.items()}
        | {f"steps, {name}": count for name, count in steps.items()},
        picture=_drawn(shown, runs),
    )


def _plan(data: str, file: Path) -> dict[str, int]:
    """Family → steps that cost the same CPU time; measured once: an interrupted benchmark goes on as it began."""
    if file.is_file():
        found: dict[str, int] = json.loads(file.read_text(encoding="utf-8"))
        return found
    trainers = {}
    loaded = load_data(data)
    images, labels = loaded.images("train", shape=loaded.native_shape())
    tensors = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))), torch.from_numpy(labels)
    for name in ("augment", *_OTHERS):
        request = TrainRequest(
            data=data, family=name, preset=_OTHERS.get(name), steps=1, out=file.parent / f"cost-{name}",
            threads=1, tensorboard=False,
        )  # fmt: skip
        made = request.out
        assert isinstance(made, Path)
        trainers[name] = Trainer((Run.open(made) if made.is_dir() else train(request, progress=False)).config, *tensors)
    costs = dict.fromkeys(trainers, 0.0)
    with one_thread():
        for turn in range(_TURNS + 1):
            for name, trainer in trainers.items():
                began = time.process_time()
                for _ in range(_TIMED):
                    trainer.train_step()
                costs[name] += time.process_time() - began if turn else 0.0  # the first warms up
    plan = {name: round(_STEPS * costs["augment"] / cost) for name, cost in costs.items()}
    write_atomically(file, json.dumps(plan).encode())
    return plan


def _recall(data: DataSet, run: Run | None) -> list[float]:
    """Of the small classes, mean over them, by a classifier of the real images and those that fill these classes up;
    one for each seed."""
    shape = data.native_shape()
    images, labels = data.images("train", shape=shape)
    test, truth = data.images("test", shape=shape)
    small = [data.class_names.index(name) for name in SMALL]
    synthetic = None
    if run is not None:
        needed = np.repeat(small, _FULL - SHOTS)
        indices = np.tile(np.arange(_FULL - SHOTS), len(small))
        synthetic = Synthetic(_made(run, needed, indices), needed.astype(np.int64), share=0.5)
    found = []
    for seed in _CLASSIFIERS:
        with one_thread():
            classifier = train_classifier(
                images, labels, len(data.class_names), seed=seed, steps=_CLASSIFIER_STEPS, augment="affine",
                sampler="balanced", synthetic=synthetic,
            )  # fmt: skip
            predicted = classifier.predict(test)
        found.append(float(np.mean([(predicted[truth == c] == c).mean() for c in small])))
    return found


def _made(run: Run, labels: NDArray[np.int64], indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    generator, config = load_generator(run)
    with torch.no_grad():
        return render(generator, labels, _SEED, indices, config.options.latent_dim)


def _drawn(shown: dict[str, dict[str, float]], runs: dict[str, Run]) -> Figure:
    picture = Figure(figsize=(9, 6.2), layout="constrained")
    above, below = picture.subfigures(2, 1, height_ratios=(1, 1.15))
    colours = {"augment": "#3b78c2", "acgan": "#c2543b", "cgan": "#c98a12", _PLAIN: "#9aa3ad"}
    for axes, (what, values) in zip(above.subplots(1, len(shown)), shown.items(), strict=True):
        bars = axes.bar(range(len(values)), list(values.values()), color=[colours[name] for name in values])
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
        axes.set_xticks(range(len(values)), [name.replace(" generated", "\ngenerated") for name in values], fontsize=7)
        axes.set(ylim=(min(0.6, *values.values()) if what == "classifier's recall" else 0, 1.04))
        axes.set_title(f"{what}\n(classes {SMALL[0]} to {SMALL[-1]})", fontsize=8)
    labels = np.repeat([int(name) for name in SMALL], 4)
    for axes, (name, run) in zip(below.subplots(len(runs), 1), runs.items(), strict=True):
        images = _made(run, labels, np.tile(np.arange(4), len(SMALL)))
        axes.imshow(np.concatenate(list(images[..., 0] if images.shape[3] == 1 else images), 1), cmap="gray")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_ylabel(name, fontsize=8)
    below.suptitle("Their images (synthetic), not chosen", fontsize=8)
    return picture
