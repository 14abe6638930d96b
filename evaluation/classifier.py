"""A small convolutional classifier, trained in seconds on one core: judge of labels and source of features.

For images of at least 8×8 pixels, grey or colour. The same arguments, seed and number of threads give the same weights:
all draws come from generators made of the seed, and torch's global generator is neither read nor advanced. Knows
nothing of splits, of where images come from, or of what is concluded from its answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluation.arrays import evenly
from evaluation.augmentation import Augment, augmented

__all__ = ["FEATURES", "SMALLEST", "Classifier", "Synthetic", "one_thread", "train_classifier"]

FEATURES = 128
"""Width of the penultimate layer."""
SMALLEST = 8
"""Pixels a side that images must have."""

_LARGEST = 64  # Longer images are averaged down to this before anything else: this judge is for the CPU.
_DROPOUT = 0.5  # Before the hidden layer: worth 5 points where a class has 20 images (docs/log.md).
_AUGMENTED_AT_ONCE = 16  # Steps whose images are transformed in one call, which halves the cost of each.


@dataclass(frozen=True)
class Synthetic:
    """Generated images to train on beside the real ones: uint8 [M, H, W, C], labels int64 [M].

    `share` None: they are simply more images. Otherwise, for every class that has any, that share of its draws comes
    from them and the rest from its real images; or their share of the class's images if that is less, so that a handful
    added to hundreds is not half of what is seen.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    share: float | None = None


class _Dropout(nn.Module):
    """Dropout whose draws come from a generator of its own: torch's layer uses the global one."""

    def __init__(self) -> None:
        super().__init__()
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.rand(x.shape, generator=self.generator) >= _DROPOUT
        return x * kept / (1 - _DROPOUT)


class _Network(nn.Module):
    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        height, width, channels = shape
        self.shrink = max(1, math.ceil(min(height, width) / _LARGEST))
        height, width = height // self.shrink, width // self.shrink
        # A stride first, because that is where the pixels are, and max pooling after: without pooling the network
        # learns too little from few images to be a fair baseline (docs/log.md).
        stride = 2 if min(height, width) > 8 else 1
        layers: list[nn.Module] = [nn.Conv2d(channels, 16, 5, stride=stride, padding=2), nn.ReLU()]
        height, width, channels = _up(height, stride), _up(width, stride), 16
        while min(height, width) > 4:
            layers += [nn.Conv2d(channels, 32, 3, padding=1), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU()]
            height, width, channels = _up(height, 2), _up(width, 2), 32
        self.dropout = _Dropout()
        layers += [nn.Flatten(), self.dropout, nn.Linear(channels * height * width, FEATURES), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURES, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.embed(images))

    def embed(self, images: Tensor) -> Tensor:
        if self.shrink > 1:
            images = F.avg_pool2d(images, self.shrink)
        return self.body(images)


def _up(size: int, by: int) -> int:
    return -(-size // by)


class Classifier:
    """A trained classifier of images uint8 [N, H, W, C] into `num_classes` classes; made by `train_classifier`.

    `shape` is (H, W, C). Answers come on the CPU as numpy arrays and do not depend on `batch`, up to float rounding.
    """

    name = "a small CNN trained on the train split"

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        self.shape = shape
        self.num_classes = num_classes
        # Made without values: the constructors' own initialisation would draw from torch's global generator.
        with torch.device("meta"):
            network = _Network(shape, num_classes)
        self._network = network.to_empty(device="cpu").eval()
        self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self._mean = torch.zeros(1, shape[2], 1, 1)
        self._std = torch.ones(1, shape[2], 1, 1)
        self._feature_scale = 1.0

    def logits(self, images: NDArray[np.uint8], *, batch: int = 512) -> NDArray[np.float32]:
        """[N, num_classes]."""
        return self._run(images, batch, self._network, self.num_classes)

    def features(self, images: NDArray[np.uint8], *, batch: int = 512) -> NDArray[np.float32]:
        """The penultimate layer after its ReLU, [N, 128], scaled so that the train images' mean square is 1."""
        return self._run(images, batch, self._network.embed, FEATURES) * np.float32(self._feature_scale)

    def predict(self, images: NDArray[np.uint8], *, batch: int = 512) -> NDArray[np.int64]:
        """[N] indices of the most likely class."""
        return self.logits(images, batch=batch).argmax(1).astype(np.int64)

    def module(self) -> nn.Module:
        """For export: float32 [N, C, H, W] in [-1, 1], as a critic takes it -> `logits` and `features` of N images."""
        return _Module(self)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and plain values that `torch.load(weights_only=True)` accepts."""
        return {
            "shape": list(self.shape),
            "num_classes": self.num_classes,
            "mean": self._mean,
            "std": self._std,
            "feature_scale": self._feature_scale,
            "network": self._network.state_dict(),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Classifier:
        height, width, channels = state["shape"]
        classifier = cls((height, width, channels), state["num_classes"])
        classifier._mean, classifier._std = state["mean"], state["std"]
        classifier._feature_scale = state["feature_scale"]
        classifier._network.load_state_dict(state["network"])
        return classifier

    @torch.no_grad()
    def _run(self, images: NDArray[np.uint8], batch: int, function: Any, width: int) -> NDArray[np.float32]:
        if images.ndim != 4 or images.shape[1:] != self.shape or images.dtype != np.uint8:
            raise ValueError(f"Expected uint8 images [N, {self.shape}], got {images.dtype} {images.shape}.")
        out = np.empty((len(images), width), np.float32)
        for start in range(0, len(images), batch):
            out[start : start + batch] = function(self._normalise(images[start : start + batch])).numpy()
        return out

    def _normalise(self, images: NDArray[np.uint8]) -> Tensor:
        x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)  # A view: channels last in memory.
        return (x.float() / 255 - self._mean) / self._std


class _Module(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.network = classifier._network
        self.register_buffer("mean", classifier._mean)
        self.register_buffer("std", classifier._std)
        self.feature_scale = classifier._feature_scale
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.embed(((image + 1) / 2 - self.mean) / self.std)
        return self.network.head(features), features * self.feature_scale


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread, so that weights and answers do not depend on where they are made."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train_classifier(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    num_classes: int,
    *,
    seed: int,
    steps: int = 1200,
    batch: int = 64,
    learning_rate: float = 3e-3,
    augment: Augment | None = None,
    sampler: Literal["balanced"] | None = None,
    class_weights: NDArray[np.floating[Any]] | None = None,
    synthetic: Synthetic | None = None,
) -> Classifier:
    """Fit on images uint8 [N, H, W, C] (sides of at least 8) with labels int64 [N] in [0, num_classes).

    Always `steps` gradient steps of `batch` images: methods that add images do not get more training. `sampler`
    "balanced" draws every class alike often (oversampling); None draws every image alike often. `class_weights`
    [num_classes] weigh the cross-entropy instead. AdamW; the rate warms up and falls as a cosine.
    """
    images, labels, probabilities = _pool(images, labels, num_classes, sampler, synthetic)
    height, width, channels = (int(side) for side in images.shape[1:])
    classifier = Classifier((height, width, channels), num_classes)
    network = classifier._network
    generator = torch.Generator().manual_seed(seed)
    _initialise(network, generator)
    network.dropout.generator = generator

    # Images are kept as bytes and normalised per batch. The mean and spread follow the law that is trained on.
    x, y = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
    order = torch.from_numpy(_draw(probabilities, steps * batch, seed))
    some = x[order[: 64 * batch]].float() / 255
    classifier._mean = some.mean((0, 2, 3), keepdim=True)
    classifier._std = some.std((0, 2, 3), keepdim=True).clamp_(min=1e-3)
    weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)

    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=0.01, fused=True)
    for step in range(steps):
        within = step % _AUGMENTED_AT_ONCE
        if within == 0:
            rows = order[step * batch : (step + _AUGMENTED_AT_ONCE) * batch]
            several = x[rows].float() / 255
            if augment is not None:
                several = augmented(several, augment, generator)
            several = (several - classifier._mean) / classifier._std
            several = several.contiguous(memory_format=torch.channels_last)
            targets = y[rows]
        here = slice(within * batch, (within + 1) * batch)
        for group in optimiser.param_groups:
            warm = min(1.0, (step + 1) / (0.1 * steps))
            group["lr"] = learning_rate * warm * max(0.01, 0.5 * (1 + math.cos(math.pi * step / steps)))
        loss = F.cross_entropy(network(several[here]), targets[here], weight=weights)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval()
    network.dropout.generator = None  # A classifier can be copied and pickled; a generator cannot.

    sample = images[evenly(len(images), 2000)]
    mean_square = float(np.square(classifier.features(sample), dtype=np.float64).mean())
    classifier._feature_scale = 1 / math.sqrt(max(mean_square, 1e-12))
    return classifier


def _pool(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    num_classes: int,
    sampler: str | None,
    synthetic: Synthetic | None,
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float64]]:
    """All images to draw from, their labels, and the probability of each to be drawn."""
    if images.ndim != 4 or images.dtype != np.uint8 or min(images.shape[1:3]) < SMALLEST:
        raise ValueError(
            f"Expected uint8 images [N, H, W, C] of {SMALLEST}x{SMALLEST} or more, got {images.dtype} {images.shape}."
        )
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(f"Expected as many labels as images, at least one, got {len(labels)} and {len(images)}.")
    fake = np.zeros(len(images), bool)
    if synthetic is not None and len(synthetic.images):
        images = np.concatenate([images, synthetic.images])
        labels = np.concatenate([labels, synthetic.labels])
        fake = np.arange(len(images)) >= len(fake)
    labels = labels.astype(np.int64)
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"Labels must lie in [0, {num_classes}), got {labels.min()} to {labels.max()}.")
    counts = np.bincount(labels, minlength=num_classes)
    of_class = (counts > 0) / max(1, (counts > 0).sum()) if sampler == "balanced" else counts / counts.sum()
    of_image = 1 / counts[labels]
    if synthetic is not None and synthetic.share is not None and fake.any():
        fakes, reals = (np.bincount(labels[side], minlength=num_classes) for side in (fake, ~fake))
        both = ((fakes > 0) & (reals > 0))[labels]
        share = np.minimum(synthetic.share, fakes / (fakes + reals).clip(1))[labels]
        share = np.where(fake, share / fakes[labels].clip(1), (1 - share) / reals[labels].clip(1))
        of_image = np.where(both, share, of_image)
    return np.ascontiguousarray(images), labels, of_class[labels] * of_image


def _draw(probabilities: NDArray[np.float64], number: int, seed: int) -> NDArray[np.int64]:
    """`number` indices in random order, each image as near to its expected number of times as whole numbers allow."""
    rng = np.random.Generator(np.random.Philox(seed))
    shuffled = rng.permutation(len(probabilities))  # Else rounding would favour neighbours in the given order.
    edges = np.cumsum(probabilities[shuffled])
    points = (np.arange(number) + rng.random()) / number * edges[-1]
    order = shuffled[np.searchsorted(edges, points, side="right").clip(max=len(edges) - 1)]
    return rng.permutation(order).astype(np.int64)


def _initialise(network: nn.Module, generator: torch.Generator) -> None:
    """He et al. 2015 for the layers before a ReLU, zeros for biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
            assert module.bias is not None, "every layer here has one"
            nn.init.zeros_(module.bias)
