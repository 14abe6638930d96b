"""sgan: with few labels its critic classifies better than the same network trained on those labels alone.

Both are the critic's network with the same noise, scales from the data, optimiser, falling rate and number of steps, on
the same labelled images; of both the checkpoint is taken that is best on the validation images, at the same ten steps,
and what is reported is the accuracy on test images, which neither has seen. A seed draws other labelled images.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from augmint.data import load_data
from benchmarks.promises import Promise, Recipe, trained
from training import Run, load_critic
from training.config import TrainConfig
from training.families.base import Networks
from training.families.sgan import Critic
from training.machine import torch_settings
from training.randomness import StepRandom, seed_of
from training.sampling import Sampler

__all__ = ["RECIPE", "promise"]

PROMISED = 10
SEEDS = {5: (0,), PROMISED: (0, 1, 2), 20: (0,), 50: (0,)}
"""By labels a class: three where something is promised, one for the curve's other points, for the time they take."""
POINTS = 5.0
RECIPE = Recipe(preset="small", steps=1500, settings={"labels_per_class": PROMISED})


def promise(run: Run, work: Path) -> Promise:
    config = run.config
    data = load_data(config.data)
    train, validation, test = (
        data.images(split, shape=config.image_shape) for split in ("train", "validation", "test")
    )
    semi: dict[int, list[float]] = {labels: [] for labels in SEEDS}
    alone: dict[int, list[float]] = {labels: [] for labels in SEEDS}
    for labels, seeds in SEEDS.items():
        for seed in seeds:
            recipe = replace(RECIPE, settings={**RECIPE.settings, "labels_per_class": labels}, seed=seed)
            own = run if recipe == RECIPE else trained(work / f"sgan {labels} {seed}", "sgan", recipe)
            semi[labels].append(accuracy(load_critic(own)[0], *test))
            alone[labels].append(accuracy(_alone(own.config, train, validation), *test))
    gains = {labels: 100 * (np.array(semi[labels]) - np.array(alone[labels])) for labels in SEEDS}
    ours, theirs, gain = semi[PROMISED], alone[PROMISED], gains[PROMISED]
    sentence = (
        f"With {PROMISED} labels a class the critic is right on {np.mean(ours):.1%} of {len(test[0]):,} test images "
        f"(the least of {len(ours)} seeds {min(ours):.1%}), the same network trained on those labels alone on "
        f"{np.mean(theirs):.1%} (at best {max(theirs):.1%}): {gain.mean():+.1f} points, seed by seed "
        f"{', '.join(f'{each:+.1f}' for each in gain)}; promised are {POINTS:g}."
    )
    figures: dict[str, float | int | str] = {}
    for labels in SEEDS:
        figures |= {
            f"accuracy, {labels} labels a class": round(float(np.mean(semi[labels])), 4),
            f"accuracy of labels alone, {labels} a class": round(float(np.mean(alone[labels])), 4),
            f"gain in points, {labels} a class": round(float(gains[labels].mean()), 2),
        }
    return Promise(sentence, bool(gain.mean() >= POINTS), figures, _picture(semi, alone))


@torch.no_grad()
def accuracy(critic: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    """Share of images uint8 [N, H, W, C] that a critic in eval mode puts into their class, int64 [N]."""
    found = [critic(_floats(part))[1].argmax(1).numpy() for part in np.array_split(images, 4)]
    return float(np.mean(np.concatenate(found) == labels))


def _alone(
    config: TrainConfig,
    train: tuple[NDArray[np.uint8], NDArray[np.int64]],
    validation: tuple[NDArray[np.uint8], NDArray[np.int64]],
) -> nn.Module:
    """The critic of a run's configuration, trained on the images that are labelled there and on nothing else."""
    recipe = config.make_family()
    pixels, labels = torch.from_numpy(train[0].transpose(0, 3, 1, 2).copy()), torch.from_numpy(train[1])
    known = recipe.labelled(pixels, labels, seed_of(config.seed, "labelled"))
    images, labels = _floats(train[0][known.numpy() >= 0]), known[known >= 0]
    sampler = Sampler(labels, len(config.critic_classes), 0.0)
    best, kept = -1.0, {}
    with torch_settings(device="cpu", threads=1):
        torch.manual_seed(seed_of(config.seed, "initial weights"))
        critic = recipe.critic()
        assert isinstance(critic, Critic)
        critic.scale_to(images)
        _, optimizer = recipe.optimizers(Networks(recipe.generator(), critic))
        for step in range(config.steps):
            random = StepRandom(config.seed, step)
            torch.manual_seed(random.number("dropout"))
            recipe.schedule(optimizer, optimizer, step, config.steps)
            drawn = sampler.labels(config.options.batch, random, "labelled")
            logits = critic.train()(images[sampler.indices(drawn, random, "labelled")])[1]
            optimizer.zero_grad()
            F.cross_entropy(logits, drawn).backward()
            optimizer.step()
            if (step + 1) % config.evaluate_every == 0 or step + 1 == config.steps:
                found = accuracy(critic.eval(), *validation)
                if found > best:
                    best, kept = found, {name: value.clone() for name, value in critic.state_dict().items()}
    critic.load_state_dict(kept)
    return critic.eval()


def _floats(images: NDArray[np.uint8]) -> Tensor:
    """uint8 [N, H, W, C] -> float32 [N, C, H, W] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def _picture(semi: dict[int, list[float]], alone: dict[int, list[float]]) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, found, colour in (("sgan: with unlabelled images", semi, "C0"), ("the labels alone", alone, "C1")):
        axes.plot(list(found), [np.mean(each) for each in found.values()], color=colour, label=name)
        for labels, each in found.items():
            axes.plot([labels] * len(each), each, "o", color=colour, alpha=0.6)
    axes.set_xscale("log")
    axes.set_xticks(list(SEEDS), [str(labels) for labels in SEEDS])
    axes.minorticks_off()
    axes.set_xlabel("labelled images of each class")
    axes.set_ylabel("accuracy on test images")
    axes.set_title("The same network; a dot is one choice of labelled images")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
