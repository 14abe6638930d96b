"""Looks at the averaged generator: score, health, sheet. All of it from fixed addresses, none of it random.

An examination takes a copy of the averaged generator, recalibrates its batch norm, and makes the images that the bundle
would make for seeds 0 and 1. It draws nothing from the training's randomness and changes nothing of its state, so
examining more often or not at all ends with the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from augmint.latents import latents
from evaluation.arrays import evenly
from evaluation.selection import SelectionScore
from training.averaging import CALIBRATION_IMAGES, calibration_batches, recalibrate_batch_norm
from training.codes import CodeMap
from training.config import TrainConfig
from training.families.base import Family, FamilyOptions
from training.health import FAITHFUL, check_collapse, check_faithful, check_leaks
from training.randomness import seed_of
from training.run import Alarm

__all__ = ["Examination", "Examiner", "images_an_examination", "render"]

SHEET_SEED = 0
SCORE_SEED = 1
_CHUNK = 250
_SORTED = 20_000  # Training images that say which label a category is, at most.
_SURE = 0.95  # Agreement on the score's images from which on a class's labels are not looked at again …
_LOOK_AGAIN = 200  # … and how many more images of it are, otherwise.


@dataclass(frozen=True)
class Examination:
    """`generator` is on the CPU, in eval mode, with recalibrated statistics: what best.pt keeps."""

    step: int
    score: float
    details: dict[str, float | int | str]
    """The score's parts and remarks, see `evaluation.selection`."""
    alarms: list[tuple[str, Alarm]]
    """Alarms, each with what it is about, so that class 3 and class 7 may both raise one."""
    sheet: NDArray[np.uint8]
    sheet_labels: NDArray[np.int64]
    generator: nn.Module = field(repr=False)
    seconds: float


class Examiner:
    def __init__(
        self,
        config: TrainConfig,
        scorer: SelectionScore,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        *,
        judged: tuple[NDArray[np.uint8], NDArray[np.int64]] | None = None,
    ) -> None:
        """`images` uint8 [N, H, W, C] and `labels` are the training images, for comparison; `judged` are held-out ones
        for a critic that classifies."""
        self.config = config
        self.scorer = scorer
        self.images, self.labels = images, labels
        self.family: Family[FamilyOptions] = config.make_family()
        # Enough reals to compare with: of each class, or of all images where the generator knows no classes.
        if config.num_classes:
            kept = np.concatenate([np.flatnonzero(labels == number)[:64] for number in np.unique(labels)])
        else:
            labels = np.zeros_like(labels)
            kept = evenly(len(images), 512)
        self.reals = _to_float(images[kept])
        self.real_labels = torch.from_numpy(labels[kept])
        self.judged = judged

    def examine(self, average: nn.Module, *, step: int) -> Examination:
        began = time.monotonic()
        config = self.config
        device = next(average.parameters()).device
        batches = calibration_batches(config.options.latent_dim, config.num_classes, device=device)
        generator = recalibrate_batch_norm(average, batches)
        per_row = 10 if config.num_classes else 100
        sheet, sheet_labels = self._render_each(generator, per_class=per_row, seed=SHEET_SEED)
        fakes, fake_labels = self._render_each(generator, per_class=_per_class(config), seed=SCORE_SEED)
        score = self.scorer.score(fakes, fake_labels if config.num_classes else None)
        alarms = self._alarms(_to_float(fakes), torch.from_numpy(fake_labels), step)
        return Examination(
            step=step,
            score=score.value,
            details=score.details,
            alarms=alarms,
            sheet=sheet,
            sheet_labels=sheet_labels,
            generator=generator.cpu(),
            seconds=time.monotonic() - began,
        )

    def accuracy(self, critic: nn.Module) -> float | None:
        """Mean of the classes' recalls of a critic that classifies, on held-out images; None where it cannot be had."""
        if self.judged is None:
            return None
        images, labels = self.judged
        found = _asked(critic, images, lambda part: critic(part, None)[1].argmax(1))
        right, classes = torch.from_numpy(found == labels), torch.from_numpy(labels)
        return float(torch.stack([right[classes == c].float().mean() for c in classes.unique()]).mean())

    def codes(self, critic: nn.Module) -> CodeMap | None:
        """Which label each category is that the critic sorts the training images into; None where it sorts none, or
        nobody wants labels."""
        family, names = self.family, self.config.class_names
        if not self.config.names_categories:
            return None
        some = evenly(len(self.images), _SORTED)
        found = _asked(critic, self.images[some], lambda images: family.categories_of(critic, images))
        return CodeMap.fit(found, self.labels[some], family.categories, len(names))

    def _render_each(
        self, generator: nn.Module, *, per_class: int, seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        classes = self.config.num_classes
        count = per_class
        labels = np.repeat(np.arange(max(classes, 1)), count)
        indices = np.tile(np.arange(count), max(classes, 1))
        return render(generator, labels if classes else None, seed, indices, self.config.options.latent_dim), labels

    def _alarms(self, fakes: Tensor, labels: Tensor, step: int) -> list[tuple[str, Alarm]]:
        config = self.config
        # A young generator draws grey fog whatever its recipe: judging it would be a false alarm.
        if step < max(config.steps // 2, 200):
            return []
        alarms = []
        names = config.class_names if config.num_classes else ("",)
        for name, ratio in check_collapse(fakes, labels, self.reals, self.real_labels, names).items():
            which = f"class {name!r} has" if name else "the samples have"
            message = (
                f"{which} collapsed: the samples are {ratio:.0%} as varied as the training images; export takes "
                "the best-scored checkpoint, but look at its sheet in samples/ first."
            )
            alarms.append((name, Alarm("collapsed", step, message)))
        generator = torch.Generator().manual_seed(seed_of(config.seed, "leak check"))
        reals = self.family.widen(self.reals, generator)
        leaks = check_leaks(fakes, labels, reals, self.real_labels, self.family.augment(reals, generator))
        for kind, share in leaks.items():
            message = (
                f"augmentation leaks into the samples ({kind}: {share:.0%} of what augmented images show): weaken it, "
                "for example --set cutout=0 or --set translation=0.05."
            )
            alarms.append((kind, Alarm("leaking", step, message)))
        return alarms

    def unfaithful(self, generator: nn.Module, step: int) -> list[tuple[str, Alarm]]:
        """Alarms, each with its class, for those whose samples are not recognised as theirs: to be asked once, of the
        generator that is kept, in eval mode; `step` is its step. Before, labels come and go."""
        config = self.config
        if not config.num_classes:
            return []
        fakes, labels = self._render_each(generator, per_class=_per_class(config), seed=SCORE_SEED)
        recognised = self.scorer.recognised(fakes)
        if recognised is None:
            return []
        doubtful = [c for c in range(config.num_classes) if (recognised[labels == c] == c).mean() < _SURE]
        if not doubtful:
            return []
        # The score's few images of a class would raise false alarms by chance: look again, at others.
        count = max(_per_class(config), min(_LOOK_AGAIN, 2000 // len(doubtful)))
        labels = np.repeat(np.array(doubtful), count)
        indices = np.tile(np.arange(count) + _per_class(config), len(doubtful))
        fakes = render(generator, labels, SCORE_SEED, indices, config.options.latent_dim)
        recognised = self.scorer.recognised(fakes)
        assert recognised is not None, "there is a classifier"
        alarms = []
        names = config.class_names
        for name, share in check_faithful(torch.from_numpy(labels), torch.from_numpy(recognised), names).items():
            message = (
                f"of {count} samples of class {name!r} ({config.class_counts[names.index(name)]} training images) only "
                f"{share:.1%} are recognised as it, by a classifier of the training images, where {FAITHFUL:.0%} is "
                "the least to train others on: train longer, keep --set class_power=0, add images, or ask for quality "
                '"labels", which leaves the others out.'
            )
            alarms.append((name, Alarm("unfaithful", step, message)))
        return alarms


@torch.no_grad()
def render(
    generator: nn.Module, labels: NDArray[np.int64] | None, seed: int, indices: NDArray[np.int64], latent_dim: int
) -> NDArray[np.uint8]:
    """The images of addresses (label, seed, index), as the exported graph would: uint8 [N, H, W, C]."""
    device = next(generator.parameters()).device
    made = []
    for start in range(0, len(indices), _CHUNK):
        part = slice(start, start + _CHUNK)
        latent = torch.from_numpy(latents(seed, indices[part], latent_dim)).to(device)
        label = torch.from_numpy(labels[part]).to(device) if labels is not None else None
        pixels = generator(latent, label).float().add(1).mul(127.5).round().clamp(0, 255)
        made.append(pixels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(made)


@torch.no_grad()
def _asked(critic: nn.Module, images: NDArray[np.uint8], answer: Callable[[Tensor], Tensor]) -> NDArray[np.int64]:
    """What a critic in eval mode says of images uint8 [N, H, W, C]: class or category numbers, int64 [N]."""
    device, training = next(critic.parameters()).device, critic.training
    critic.eval()
    parts = (images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK))
    found = torch.cat([answer(_to_float(part).to(device)).cpu() for part in parts])
    critic.train(training)
    return found.numpy()


def _per_class(config: TrainConfig) -> int:
    """`score_images` shared out, but at least 16 of each class: fewer say nothing about it."""
    return max(16, config.score_images // max(config.num_classes, 1))


def images_an_examination(config: TrainConfig) -> int:
    """How many images an examination generates: its cost, nearly."""
    classes = max(config.num_classes, 1)
    return _per_class(config) * classes + (10 * classes if config.num_classes else 100) + CALIBRATION_IMAGES


def _to_float(images: NDArray[np.uint8]) -> Tensor:
    """uint8 [N, H, W, C] -> float32 [N, C, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float().div_(127.5).sub_(1)
