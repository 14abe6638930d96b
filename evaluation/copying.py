"""Does the generator copy its training images? A check that calibrates itself on real images it has not seen.

Two questions:

- Are generated images nearer to the training images than new real images are? Each image's distance is that to the
  nearest training image of its class, in an extractor's features. The limit is the 1 % quantile of held-out real
  images' distances to the same training images, so about 1 % of a perfect generator's images lie below it, and more of
  one's that repeats what it was shown. Distances are divided by their class's scale (the median distance of a training
  image to the nearest other one), which lets classes with few held-out images be pooled. A class has a share of its own
  from 99 held-out images on. Where all together are fewer than 99 the limit is the 5 % quantile, from 19 on.
  A generator of typical images lies nearer than real ones without copying any: hence the second question, and the
  nearest pairs to look at.
- Are there copies? Exact: the same pixels as a training image of any class. Near: the same to the eye, that is, the
  root mean square difference is at most a tenth of the contrast after a shift of up to 2 pixels (pictures of more than
  32 pixels are averaged down to about that first). Flipped copies are not sought. How many held-out images pass for
  near copies is counted too: real sets have near duplicates of their own.

What one extractor is blind to, a copy may hide behind. Pixels see through noise but not through shifts, which the
second question covers up to 2 pixels; EfficientNet-Lite0 sees through some shift, but faint noise takes a copy of a
small image far away. Features of a network trained on the training images are a poor choice: it drew them together.
Knows nothing of where images come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from augmint.errors import DataError
from evaluation.arrays import evenly
from evaluation.bootstrap import DRAWS
from evaluation.features import Extractor
from evaluation.tables import fixed_width

__all__ = ["CopyingReport", "CopyingRow", "Pair", "copying"]

_LEVELS: Final = (0.01, 0.05)  # Quantiles of the held-out distances, the first that their number allows.
_SIDE: Final = 32
_SHIFT: Final = 2
_NEAR: Final = 0.1  # Of the contrast: as `augmint.data.duplicates`, which keeps such images on one side of the split.
_CANDIDATES: Final = 4  # Training images that are looked at closely for a near copy.
_CHUNK: Final = 1024

Interval = tuple[float, float]


@dataclass(frozen=True)
class Pair:
    """A generated image and the training image nearest to it; indices into the arrays that `copying` was given.

    `relative` is the distance over the limit: below 1 it is nearer than all but the expected share of real images
    (None without a limit). `copy` is "exact", "near" or "".
    """

    fake: int
    train: int
    distance: float
    relative: float | None
    copy: str


@dataclass(frozen=True)
class CopyingRow:
    """One class, or all. `share` of `n_fakes` lies nearer than the limit and `expected` of real images would; both are
    None where `reason` says why. `exact` and `near` count copies; `held_out_near` real images that pass for near ones.
    """

    name: str
    n_fakes: int
    n_train: int
    n_held_out: int
    share: float | None
    interval: Interval | None
    expected: float | None
    exact: int
    near: int
    held_out_near: int
    reason: str | None = None


@dataclass(frozen=True)
class CopyingReport:
    """`overall` is all classes together, `rows` each of them; `pairs` are the nearest, the nearest first."""

    extractor: str
    overall: CopyingRow
    rows: tuple[CopyingRow, ...]
    pairs: tuple[Pair, ...] = field(repr=False)
    suspicious: bool
    conclusion: str

    @property
    def share(self) -> float | None:
        """Of all generated images, nearer to a training image than the limit."""
        return self.overall.share

    @property
    def expected(self) -> float | None:
        """What `share` is for held-out real images."""
        return self.overall.expected

    def to_json(self) -> dict[str, Any]:
        """Plain values. No NaN in it."""
        return asdict(self)

    def text(self) -> str:
        """A table of fixed width and the conclusion."""
        lines = [["class", "fakes", "train", "held out", "nearer", "expected", "exact", "near", "held-out near"]]
        for row in (*self.rows, self.overall) if len(self.rows) > 1 else (self.overall,):
            shares = ("–" if value is None else f"{value:.1%}" for value in (row.share, row.expected))
            counts = (row.n_fakes, row.n_train, row.n_held_out)
            lines.append([row.name, *map(str, counts), *shares, *map(str, (row.exact, row.near, row.held_out_near))])
        reasons = [f"{row.name}: {row.reason}" for row in (*self.rows, self.overall) if row.reason]
        table = fixed_width(lines, right=True)
        return "\n".join([*table, f"features: {self.extractor}", *reasons, self.conclusion])


def copying(
    fakes: NDArray[np.uint8],
    fake_labels: NDArray[np.int64] | None,
    train: NDArray[np.uint8],
    train_labels: NDArray[np.int64] | None,
    held_out: NDArray[np.uint8],
    held_out_labels: NDArray[np.int64] | None,
    class_names: Sequence[str],
    *,
    features: Extractor,
    pairs: int = 24,
) -> CopyingReport:
    """Look for training images among `fakes`.

    Images are uint8 [N, H, W, C] of one shape and labels int64 [N], indices of `class_names`; without labels of fakes
    all images are one class. `held_out` is everything real that the generator was not trained on: validation and test
    together. `pairs` is how many of the nearest are listed.

    Raises:
        DataError: the shapes differ.
    """
    for images, what in ((fakes, "generated"), (held_out, "held-out")):
        if images.shape[1:] != train.shape[1:]:
            raise DataError(
                f"The {what} images are {images.shape[1:]} and the training images {train.shape[1:]}: read all at one "
                "size."
            )
    if fake_labels is None or train_labels is None or held_out_labels is None:
        class_names = ("all",)
        fake_labels, train_labels, held_out_labels = (
            np.zeros(len(images), np.int64) for images in (fakes, train, held_out)
        )
    points = {"train": features.features(train)}
    points |= {"fakes": features.features(fakes), "held_out": features.features(held_out)}

    of_fakes, of_held_out = _Nearest(len(fakes)), _Nearest(len(held_out))
    for c in range(len(class_names)):
        own = np.flatnonzero(train_labels == c)
        scale = _scale(points["train"][own])
        of_fakes.search(points["fakes"], np.flatnonzero(fake_labels == c), points["train"], own, scale)
        of_held_out.search(points["held_out"], np.flatnonzero(held_out_labels == c), points["train"], own, scale)

    originals = _exact(fakes, train)
    exact = originals >= 0
    near = np.where(exact, -1, _near(fakes, train))
    held_out_near = _near(held_out, train) >= 0

    rng = np.random.Generator(np.random.Philox(0))
    rows = []
    for c, name in enumerate(class_names):
        one, other = fake_labels == c, held_out_labels == c
        share, _ = _share(of_fakes.relative[one], of_held_out.relative[other], _LEVELS[:1], rng)
        counts = (int(exact[one].sum()), int((near[one] >= 0).sum()), int(held_out_near[other].sum()))
        rows.append(
            CopyingRow(
                name, int(one.sum()), int((train_labels == c).sum()), int(other.sum()), *share[:3], *counts, share[3]
            )
        )
    share, limit = _share(of_fakes.relative, of_held_out.relative, _LEVELS, rng)
    counts = (int(exact.sum()), int((near >= 0).sum()), int(held_out_near.sum()))
    overall = CopyingRow("all", len(fakes), len(train), len(held_out), *share[:3], *counts, share[3])
    if len(rows) == 1:
        rows = [overall]
    suspicious, conclusion = _conclude(overall)
    return CopyingReport(
        features.name, overall, tuple(rows), _pairs(of_fakes, originals, near, limit, pairs), suspicious, conclusion
    )


# --- distances --------------------------------------------------------------------------------------------------------


class _Nearest:
    """Of each image: the nearest training image of its class (-1: there is none), its distance, and the same over the
    class's scale (NaN: there is none).
    """

    def __init__(self, n: int) -> None:
        self.index = np.full(n, -1, np.int64)
        self.distance = np.full(n, np.nan)
        self.relative = np.full(n, np.nan)

    def search(
        self,
        points: NDArray[np.float32],
        rows: NDArray[np.int64],
        train: NDArray[np.float32],
        own: NDArray[np.int64],
        scale: float | None,
    ) -> None:
        if not len(own):
            return
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK]
            nearest = _distances(points[part], train[own]).min(1)
            self.index[part] = own[nearest.indices.numpy()]
            self.distance[part] = nearest.values.numpy()
            if scale is not None:
                self.relative[part] = self.distance[part] / scale


def _distances(a: NDArray[np.float32], b: NDArray[np.float32]) -> Tensor:
    # Without matrix multiplication, which loses the small distances that matter here.
    return torch.cdist(torch.from_numpy(a), torch.from_numpy(b), compute_mode="donot_use_mm_for_euclid_dist")


def _scale(points: NDArray[np.float32]) -> float | None:
    """Median distance of each point to the nearest other; None where there is none, or all are the same."""
    if len(points) < 2:
        return None
    some = evenly(len(points), _CHUNK)
    distances = _distances(points[some], points)
    distances[torch.arange(len(some)), torch.from_numpy(some)] = torch.inf
    nearest = distances.min(1).values.double()
    median = float(nearest.median()) or float(nearest.mean())
    return median if median > 0 else None


def _share(
    fakes: NDArray[np.float64], held_out: NDArray[np.float64], levels: Sequence[float], rng: np.random.Generator
) -> tuple[tuple[float | None, Interval | None, float | None, str | None], float | None]:
    """(share, interval, expected, reason), and the limit. NaN among the distances is left out."""
    fakes, held_out = fakes[~np.isnan(fakes)], np.sort(held_out[~np.isnan(held_out)])
    n = len(held_out)
    level = next((level for level in levels if math.floor(level * (n + 1) + 1e-9) >= 1), None)
    if level is None:
        least = round(1 / levels[-1]) - 1
        why = f"needs {least} held-out images of classes with 2 training images or more, got {n}"
        return (None, None, None, why), None
    if not len(fakes):
        return (None, None, None, "there are no generated images to compare"), None
    # The k-th of n distances: one more real image lies below it with probability k / (n + 1), whatever their law (Vovk
    # et al. 2005, "Algorithmic learning in a random world").
    k = math.floor(level * (n + 1) + 1e-9)
    limit = float(held_out[k - 1])
    drawn = np.sort(rng.integers(0, n, (DRAWS, n)), axis=1)[:, k - 1]
    below = np.searchsorted(np.sort(fakes), held_out[drawn], side="left") / len(fakes)
    shares = rng.binomial(len(fakes), below) / len(fakes)
    low, high = np.quantile(shares, [0.025, 0.975])
    return (float((fakes < limit).mean()), (float(low), float(high)), k / (n + 1), None), limit


# --- pixels -----------------------------------------------------------------------------------------------------------


def _exact(images: NDArray[np.uint8], train: NDArray[np.uint8]) -> NDArray[np.int64]:
    """[N] index of the training image with the same pixels, -1 where there is none."""
    where = {image.tobytes(): i for i, image in reversed(list(enumerate(train)))}
    return np.array([where.get(image.tobytes(), -1) for image in images], dtype=np.int64)


def _near(images: NDArray[np.uint8], train: NDArray[np.uint8]) -> NDArray[np.int64]:
    """[N] index of a training image that is the same to the eye, -1 where there is none."""
    found = np.full(len(images), -1, np.int64)
    if not len(train):
        return found
    small_train = _small(train)
    # A shift leaves the spectrum's magnitudes nearly as they are, so the source of a copy is among the nearest by them.
    spectra = _spectrum(small_train)
    squares = spectra.square().sum(1)
    for start in range(0, len(images), _CHUNK):
        small = _small(images[start : start + _CHUNK])
        by_spectrum = squares - 2 * _spectrum(small) @ spectra.T
        candidates = by_spectrum.topk(min(_CANDIDATES, len(train)), largest=False).indices
        off = torch.stack([_difference(small, small_train[column]) for column in candidates.T], dim=1).min(1)
        nearest = candidates.gather(1, off.indices[:, None])[:, 0]
        found[start : start + len(small)] = torch.where(off.values <= _NEAR, nearest, -1).numpy()
    return found


def _small(images: NDArray[np.uint8]) -> Tensor:
    """float32 [N, C, h, w], averaged down to about `_SIDE`."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    shrink = max(1, round(min(x.shape[2:]) / _SIDE))
    return F.avg_pool2d(x, shrink) if shrink > 1 else x


def _spectrum(x: Tensor) -> Tensor:
    return torch.fft.rfft2(x).abs().flatten(1)


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """[N] root mean square difference over the lesser contrast, at the best shift; a border is left out."""
    height, width = a.shape[2:]
    reach = max(0, min(_SHIFT, (min(height, width) - 4) // 2))
    inner = a[:, :, reach : height - reach, reach : width - reach]
    best = torch.full((len(a),), torch.inf)
    for y in range(2 * reach + 1):
        for x in range(2 * reach + 1):
            other = b[:, :, y : y + inner.shape[2], x : x + inner.shape[3]]
            best = torch.minimum(best, (inner - other).square().mean((1, 2, 3)))
    return best.sqrt() / torch.minimum(_contrast(a), _contrast(b))


def _contrast(x: Tensor) -> Tensor:
    """[N] standard deviation of the pixels, at least a grey level."""
    return (x.square().mean((1, 2, 3)) - x.mean((1, 2, 3)).square()).clamp(min=1.0).sqrt()


# --- what it means ----------------------------------------------------------------------------------------------------


def _pairs(
    of_fakes: _Nearest, originals: NDArray[np.int64], near: NDArray[np.int64], limit: float | None, number: int
) -> tuple[Pair, ...]:
    index = np.where(originals >= 0, originals, np.where(near >= 0, near, of_fakes.index))
    kind = np.where(originals >= 0, 0, np.where(near >= 0, 1, 2))
    relative = np.where(np.isnan(of_fakes.relative), np.inf, of_fakes.relative)
    order = [i for i in np.lexsort((relative, kind)).tolist() if index[i] >= 0][:number]
    return tuple(
        Pair(
            fake=i,
            train=int(index[i]),
            distance=float(of_fakes.distance[i]) if not np.isnan(of_fakes.distance[i]) else 0.0,
            relative=None if not limit or np.isinf(relative[i]) else float(relative[i] / limit),
            copy=("exact", "near", "")[int(kind[i])],
        )
        for i in order
    )


def _conclude(row: CopyingRow) -> tuple[bool, str]:
    n = f"{row.n_fakes:,} generated images"
    if row.exact:
        return True, f"Copies: {row.exact:,} of {n} are training images to the pixel (and {row.near:,} nearly so)."
    # More near copies than such sets have among themselves, beyond chance.
    usual = (row.held_out_near + 1) / (row.n_held_out + 1) * row.n_fakes
    if row.near > usual + 3 * math.sqrt(usual):
        real = f"{row.held_out_near:,} of {row.n_held_out:,} held-out real ones are"
        return True, f"Copies: {row.near:,} of {n} are training images to the eye; {real}."
    if row.share is None or row.expected is None or row.interval is None:
        return (
            False,
            f"No copies to the eye among {n}. How near they come cannot be judged: {row.reason}.",
        )
    low, high = row.interval
    words = (
        f"{row.share:.1%} of {n} lie nearer to a training image than the nearest {row.expected:.1%} of held-out real "
        f"ones ({low:.1%} to {high:.1%} with 95 % confidence)"
    )
    if low > row.expected:
        return True, f"Nearer to the training images than real ones are: {words}. Look at the nearest pairs."
    return False, f"No sign of copying: {words}."
