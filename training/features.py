"""What a trained critic sees in images: its layers as features for other models (DCGAN, section 5).

Radford, Metz & Chintala 2015, arXiv 1511.06434, section 5.1: max-pool each convolutional layer's maps to a 4x4 grid,
flatten and concatenate. Here, for any family's critic in eval mode:

- a layer is a convolution or a dense layer with the norm and activation that follow it; what has no activation is a
  head and left out; of a critic that is an auto-encoder, the part called `encoder` is taken whole and the rest not;
- maps are pooled to 4x4 by adaptive max pooling, whose windows overlap where a side is no multiple of 4 (7 -> 4);
  a side shorter than 4 stays as it is; dense layers are taken as they are;
- where a label is an input, only layers that it does not reach are taken, so features know nothing of labels.

This module knows nothing of what is done with the features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from augmint.data import DataSet, load_data
from augmint.data.records import SPLITS
from augmint.errors import DataError, TrainingError, UsageError
from augmint.images import Resize
from training.run import Run, Which, load_critic, write_atomically
from training.tracing import Layer, trace

__all__ = ["GRID", "FeatureLayer", "RunFeatures", "critic_features", "feature_layers", "run_features"]

GRID: Final = 4
"""Side that maps are pooled to; DCGAN, section 5.1."""


@dataclass(frozen=True)
class FeatureLayer:
    """A layer of the critic and what it gives for one image: `shape` (C, H, W), or (F,), and `width` features."""

    name: str
    shape: tuple[int, ...]
    width: int


@dataclass(frozen=True, eq=False)
class RunFeatures:
    """Features of a data set's images by a run's critic.

    `features` float32 [N, D]: the columns of `layers` one after the other. `labels` int64 [N] index `class_names`, the
    data set's. `splits` and `names` say of each image which split it is in and what it is called there.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    splits: tuple[str, ...]
    names: tuple[str, ...]
    layers: tuple[FeatureLayer, ...]
    which: Which
    step: int

    def write(self, out: Path) -> None:
        """An npz of plain arrays: features, labels, class_names, splits, names, and layers with their widths. Whole or
        not at all."""
        arrays: dict[str, NDArray[Any]] = {
            "features": self.features,
            "labels": self.labels,
            "class_names": np.array(self.class_names, np.str_),
            "splits": np.array(self.splits, np.str_),
            "names": np.array(self.names, np.str_),
            "layers": np.array([layer.name for layer in self.layers], np.str_),
            "widths": np.array([layer.width for layer in self.layers], np.int64),
        }

        def save(file: IO[bytes]) -> None:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stubs take the flag allow_pickle for one of them

        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, save)


def run_features(
    run: Run | str | Path,
    data: str | Path | DataSet,
    *,
    split: str | None = None,
    which: Which = "best",
    layers: Sequence[str] | None = None,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> RunFeatures:
    """Features of `data`'s images (of one `split`, or of all), brought to the run's shape as in its training.

    Raises:
        UsageError: no such layer; the error lists those there are.
        DataError: the data cannot be read, or there are no images in the split.
        TrainingError: `run` is no run or has no such checkpoint, or its critic has no layer to take.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    critic, config = load_critic(run, which, by_label=False)
    loaded = load_data(data, skip_bad=skip_bad)
    chosen = loaded.where(split)
    if not chosen.any():
        raise DataError(
            f"{loaded.name} has no images{f' in its {split} split' if split else ''}.", code="data.no-images"
        )
    resize: Resize = config.resize  # type: ignore[assignment]  # checked when the run was made
    images, labels = loaded.images(split, shape=config.image_shape, resize=resize)
    features, taken = critic_features(critic, images, config.num_classes, layers=layers, progress=progress)
    return RunFeatures(
        features=features,
        labels=labels,
        class_names=loaded.class_names,
        splits=tuple(SPLITS[number] for number in loaded.split[chosen].tolist()),
        names=tuple(name for name, kept in zip(loaded.names, chosen.tolist(), strict=True) if kept),
        layers=taken,
        which=which,
        step=_step(run, which),
    )


def feature_layers(critic: nn.Module, image_shape: tuple[int, int, int], num_classes: int = 0) -> tuple[str, ...]:
    """Names of the layers that `critic_features` takes of a critic in eval mode; `image_shape` is (C, H, W)."""
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(2, *image_shape, generator=draws) * 2 - 1
    seen = _by_name(trace(critic, images, _labels(2, 0, num_classes))[0])
    names = [name for name, layer in seen.items() if isinstance(layer.module, nn.Conv2d | nn.Linear)]
    if encoders := [name for name in names if "encoder" in name.split(".")]:
        names = encoders
    else:
        names = [name for name in names if seen[name].activated]
    if num_classes > 1:
        other = _by_name(trace(critic, images, _labels(2, 1, num_classes))[0])
        names = [name for name in names if torch.equal(seen[name].output, other[name].output)]
    return tuple(name for name in names if len(seen[name].output) == len(images))


@torch.no_grad()
def critic_features(
    critic: nn.Module,
    images: NDArray[np.uint8],
    num_classes: int = 0,
    *,
    layers: Sequence[str] | None = None,
    grid: int = GRID,
    batch: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[NDArray[np.float32], tuple[FeatureLayer, ...]]:
    """Features float32 [N, D] of images uint8 [N, H, W, C] by a critic in eval mode, and the layers they are of.

    `num_classes` is how many classes the critic takes as an input. `layers` chooses among `feature_layers`; their order
    is the network's. `progress` is told (images done, images).

    Raises:
        UsageError: no such layer.
        TrainingError: the critic has none to take.
    """
    height, width, channels = images.shape[1:]
    there = feature_layers(critic, (channels, height, width), num_classes)
    if not there:
        raise TrainingError(
            "this critic has no convolution or dense layer that sees the image without its label: take another run.",
            code="training.no-features",
        )
    for name in layers or ():
        if name not in there:
            raise UsageError(f"there is no layer {name!r}: choose from {', '.join(there)}.", code="usage.layer")
    chosen = [name for name in there if layers is None or name in layers]

    parts: list[NDArray[np.float32]] = []
    shapes: dict[str, tuple[int, ...]] = {}
    widths: dict[str, int] = {}
    for start in range(0, len(images), batch):
        some = torch.from_numpy(np.ascontiguousarray(images[start : start + batch].transpose(0, 3, 1, 2)))
        seen = _by_name(trace(critic, some.float().div_(127.5).sub_(1), _labels(len(some), 0, num_classes))[0])
        pooled = {name: _pooled(seen[name].output, grid) for name in chosen}
        shapes = {name: tuple(seen[name].output.shape[1:]) for name in chosen}
        widths = {name: part.shape[1] for name, part in pooled.items()}
        parts.append(torch.cat(list(pooled.values()), 1).numpy())
        if progress is not None:
            progress(start + len(some), len(images))
    return np.concatenate(parts), tuple(FeatureLayer(name, shapes[name], widths[name]) for name in chosen)


def _pooled(output: Tensor, grid: int) -> Tensor:
    if output.ndim == 4:
        output = F.adaptive_max_pool2d(output, (min(grid, output.shape[2]), min(grid, output.shape[3])))
    return output.flatten(1).float()


def _by_name(layers: Sequence[Layer]) -> dict[str, Layer]:
    """Of a layer that was used twice, its first use."""
    found: dict[str, Layer] = {}
    for layer in layers:
        found.setdefault(layer.name, layer)
    return found


def _labels(count: int, label: int, num_classes: int) -> Tensor | None:
    return torch.full((count,), label) if num_classes else None


def _step(run: Run, which: Which) -> int:
    state = run.load_checkpoint(which)
    return int(state["state"]["step"] if which == "last" else state["step"])
