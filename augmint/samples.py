"""A request for samples, its answer, and the one interface that near and far sources share.

`Request` is validated once, at the public door, against what the bundle can do; everything behind it may trust it.
This module knows neither ONNX nor HTTP.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from augmint.errors import RequestError, ShortfallError, UnknownLabelError
from augmint.latent_space import Edit, check_edit
from augmint.quality import EVERY, REASONS, Quality, check_offered, most_candidates

__all__ = ["BundleInfo", "Counts", "Reproducibility", "Request", "Samples", "Source", "label_numbers", "pick_seed"]

Counts = Mapping[str, int] | int
Reproducibility = Literal["exact", "tolerance"]

MAX_SEED: Final = 2**64 - 1
# A seed we pick ourselves stays below 2^53, where every JSON reader keeps it whole.
_PICKED_SEED_LIMIT: Final = 2**53


@dataclass(frozen=True, slots=True)
class BundleInfo:
    """What a source can make.

    Attributes:
        name: the bundle's name.
        digest: sha256 of its manifest, 64 hex digits: the bundle's identity.
        family: the GAN family that made it.
        class_names: in the order of the generator's integers; empty when unconditional.
        image_shape: (height, width, channels) of the uint8 images.
        latent_dim: length of the latent vector.
        reproducibility: "exact" where the golden samples came out byte for byte on this machine, else "tolerance".
        tolerance: largest difference in grey levels to be expected elsewhere.
        device: what it runs on, e.g. "cpu" or "cuda:0".
        quality: part of a `Quality` → "" where it can be judged, else why not.
        edits: attribute that can be edited → the largest amount, in its standard deviations.
        latest: of the versions that a service has of this name, the newest: the one that the name alone means.
    """

    name: str
    digest: str
    family: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    latent_dim: int
    reproducibility: Reproducibility
    tolerance: int
    device: str
    quality: Mapping[str, str] = field(default_factory=dict)
    edits: Mapping[str, float] = field(default_factory=dict)
    latest: bool = True

    @property
    def conditional(self) -> bool:
        return bool(self.class_names)


@dataclass(frozen=True, slots=True)
class Request:
    """A validated request: so many images of each class, from a seed, starting at an offset.

    Image i of a class has the address (bundle, label, seed, offset + i); under a quality it is the i-th from there that
    is kept. Labels are asked in the mapping's order and indices rise within each label; the order is part of the
    answer's contract, the batch that computed it is not.

    `firsts` are the labels' first indices: the offset, unless `augmint.selection` asks for what comes next.
    `candidates` bounds how many images of each label are made under a quality, beside the bound there is.
    `draws` are (seed, truncation) of each entry of `counts`, where they are not all the same; see `of_addresses`.
    """

    counts: tuple[tuple[str, int], ...]
    label_ids: tuple[int, ...]
    seed: int
    offset: int = 0
    truncation: float = 1.0
    class_names: tuple[str, ...] = ()
    quality: Quality = EVERY
    candidates: int | None = None
    firsts: tuple[int, ...] = ()
    edit: Edit = ()
    draws: tuple[tuple[int, float], ...] = ()
    total: int = field(init=False, compare=False, repr=False)
    """Images of all labels together."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", sum(n for _, n in self.counts))

    @classmethod
    def make(
        cls,
        counts: Counts,
        class_names: tuple[str, ...],
        *,
        seed: int | None = None,
        offset: int = 0,
        truncation: float = 1.0,
        quality: str | Quality = "none",
        offered: Mapping[str, str] | None = None,
        candidates: int | None = None,
        edit: Mapping[str, float] | None = None,
        editable: Mapping[str, float] | None = None,
    ) -> Request:
        """Check a request against a bundle's classes, and its quality and edit against what the bundle can do.

        Args:
            counts: {"label": n} for a conditional bundle, n for an unconditional one; each n ≥ 0, the sum ≥ 1.
            class_names: the bundle's; empty when unconditional.
            seed: 0 … 2^64 - 1; None picks one (it is returned with the answer).
            offset: index of the first image of each class; offset + n must stay below 2^64.
            truncation: in (0, 1]; see `augmint.latents`.
            quality: see `augmint.quality`.
            offered: the bundle's `BundleInfo.quality`; None: nothing.
            candidates: most images to make of each label, for a piece of a larger request.
            edit: attribute → amount, in its standard deviations; see `augmint.latent_space.check_edit`.
            editable: the bundle's `BundleInfo.edits`; None: nothing.

        Raises:
            UnknownLabelError: a label the bundle does not have; the error lists those it has.
            RequestError: anything else that is wrong.

        >>> Request.make({"b": 2, "a": 1}, ("a", "b"), seed=3).total
        3
        """
        numbers = _numbers(class_names)
        pairs = _check_counts(counts, class_names, numbers)
        seed = pick_seed() if seed is None else _whole(seed, "seed")
        if seed > MAX_SEED:
            raise RequestError("seed must be a whole number from 0 to 2^64 - 1: choose a smaller one.")
        offset = _whole(offset, "offset")
        largest = max(n for _, n in pairs)
        if offset + largest > MAX_SEED:
            raise RequestError("offset + count must stay below 2^64: choose a smaller offset.")
        if isinstance(truncation, bool) or not isinstance(truncation, int | float | np.number):
            raise RequestError("truncation must be a number in (0, 1].")
        truncation = float(truncation)
        if not 0.0 < truncation <= 1.0:  # also catches NaN
            raise RequestError(f"truncation must be in (0, 1], not {truncation}.")
        ids = tuple(numbers[label] if class_names else 0 for label, _ in pairs)
        wish = check_offered(quality, offered or {})
        if candidates is not None and _whole(candidates, "candidates") < 1:
            raise RequestError("candidates must be at least 1.")
        step = check_edit(edit, editable or {})
        return cls(pairs, ids, seed, offset, truncation, class_names, wish, candidates, (offset,) * len(pairs), step)

    @classmethod
    def of_addresses(
        cls,
        labels: NDArray[np.int64],
        seeds: NDArray[np.uint64],
        indices: NDArray[np.uint64],
        truncation: NDArray[np.float64],
        class_names: tuple[str, ...],
    ) -> Request:
        """One image of each address, in this order: any mixture of labels and seeds is one request.

        Args:
            labels: int64 [N], numbers of `class_names`; all 0 for an unconditional bundle.
            seeds: uint64 [N].
            indices: uint64 [N], each below 2^64 - 1.
            truncation: float64 [N], in (0, 1].
            class_names: the bundle's; empty when unconditional.

        Raises:
            UnknownLabelError: a number that no label has.
            RequestError: anything else that is wrong.
        """
        if not len(labels):
            raise RequestError("nothing was asked for: give at least one address.")
        wrong = (labels < 0) | (labels >= max(len(class_names), 1))
        if wrong.any():
            raise _unknown(int(labels[wrong][0]), class_names)
        if (indices == MAX_SEED).any():
            raise RequestError("an index must be below 2^64 - 1: choose a smaller one.")
        if not ((truncation > 0) & (truncation <= 1)).all():  # also catches NaN
            raise RequestError("truncation must be in (0, 1].")
        # Rows that go on where the one before ended are one run.
        same = (labels[1:] == labels[:-1]) & (seeds[1:] == seeds[:-1]) & (truncation[1:] == truncation[:-1])
        same &= indices[1:] == indices[:-1] + np.uint64(1)
        begins = np.flatnonzero(np.concatenate([[True], ~same]))
        lengths = np.diff(begins, append=len(labels)).tolist()
        ids = labels[begins].tolist()
        names = class_names or ("",)
        draws = tuple(zip(seeds[begins].tolist(), truncation[begins].tolist(), strict=True))
        return cls(
            counts=tuple((names[label], n) for label, n in zip(ids, lengths, strict=True)),
            label_ids=tuple(ids),
            seed=draws[0][0],
            truncation=draws[0][1],
            class_names=class_names,
            firsts=tuple(indices[begins].tolist()),
            draws=draws,
        )

    def bound(self, n: int) -> int:
        """How many images of a label are made, at most, for n of the answer."""
        if not self.quality:
            return n
        return min(most_candidates(n), self.candidates or MAX_SEED, MAX_SEED - self.offset)

    def parts(self, most: int, start: int = 0, stop: int | None = None) -> Iterator[Request]:
        """Rows start … stop of the answer (all of it by default), in order, as requests of at most `most` rows each.

        Of requests by counts; not under a quality, where what a row holds depends on those before it.

        >>> [part.counts for part in Request.make({"a": 2, "b": 2}, ("a", "b")).parts(3)]
        [(('a', 2), ('b', 1)), (('b', 1),)]
        """
        assert not self.quality
        assert not self.draws
        left = (self.total if stop is None else min(stop, self.total)) - start
        taken: list[tuple[str, int, int, int]] = []  # label, its number, first index, how many
        room = most
        for (label, n), number, first in zip(self.counts, self.label_ids, self.firsts, strict=True):
            skipped = min(start, n)
            start -= skipped
            first, n = first + skipped, min(n - skipped, left)
            while n > 0:
                here = min(n, room)
                taken.append((label, number, first, here))
                first, n, left, room = first + here, n - here, left - here, room - here
                if not room or not left:
                    yield self._part(taken)
                    taken, room = [], most

    def _part(self, runs: Sequence[tuple[str, int, int, int]]) -> Request:
        labels, numbers, firsts, counts = zip(*runs, strict=True)
        return replace(self, counts=tuple(zip(labels, counts, strict=True)), label_ids=numbers, firsts=firsts)

    def addresses(self, start: int = 0, stop: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Labels int64 [n] and indices uint64 [n] of positions start … stop of the answer (all of it by default)."""
        stop = self.total if stop is None else min(stop, self.total)
        labels = np.empty(max(stop - start, 0), dtype=np.int64)
        indices = np.empty_like(labels, dtype=np.uint64)
        position = 0
        for (_, n), label_id, begin in zip(self.counts, self.label_ids, self.firsts, strict=True):
            low, high = max(start, position), min(stop, position + n)
            if low < high:
                span = slice(low - start, high - start)
                labels[span] = label_id
                first = begin + low - position
                indices[span] = np.uint64(first) + np.arange(high - low, dtype=np.uint64)
            position += n
        return labels, indices


@lru_cache(maxsize=64)
def _numbers(class_names: tuple[str, ...]) -> dict[str, int]:
    # A table, because a body of a megabyte names a hundred thousand labels, and a bundle may have ten thousand.
    return {name: number for number, name in enumerate(class_names)}


def label_numbers(labels: Sequence[str], class_names: Sequence[str]) -> NDArray[np.int64]:
    """The place of each label among `class_names`, int64 [N]; "" is the only one of an unconditional bundle.

    Raises:
        UnknownLabelError: one that is not there.
    """
    numbers = _numbers(tuple(class_names) or ("",))
    for label in labels:
        if label not in numbers:
            raise _unknown(label, class_names)
    return np.array([numbers[label] for label in labels], dtype=np.int64)


def _unknown(label: object, class_names: Sequence[str]) -> UnknownLabelError:
    shown = (", ".join(class_names[:20]) or "no labels") + (", …" if len(class_names) > 20 else "")
    return UnknownLabelError(f"unknown label {str(label)[:80]!r}: this bundle has {shown}.", labels=tuple(class_names))


def pick_seed() -> int:
    """A seed for somebody who names none, below 2^53."""
    return secrets.randbelow(_PICKED_SEED_LIMIT)


def _check_counts(
    counts: Counts, class_names: tuple[str, ...], numbers: Mapping[str, int]
) -> tuple[tuple[str, int], ...]:
    if isinstance(counts, Mapping):
        if not class_names:
            raise RequestError(
                "this bundle is unconditional and has no labels: ask for a number of images instead of counts by label."
            )
        for label in counts:
            if not isinstance(label, str):
                raise RequestError(f"labels are names: write the label {str(label)[:80]} as text, in quotes.")
            if label not in numbers:
                raise _unknown(label, class_names)
        pairs = tuple((label, _whole(n, f"the count of {label!r}")) for label, n in counts.items())
    else:
        if class_names:
            raise RequestError(
                f'this bundle makes images by label: ask for counts by label, such as {{"{class_names[0]}": 10}}.'
            )
        pairs = (("", _whole(counts, "the count")),)
    if sum(n for _, n in pairs) < 1:
        raise RequestError("nothing was asked for: the counts must add up to at least 1.")
    return pairs


def _whole(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise RequestError(f"{what} must be a whole number, 0 or more, not {str(value)[:40]!r}.")
    return int(value)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Samples:
    """Generated images with their addresses.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int64 [N], index into `class_names`; all 0 for an unconditional bundle.
        seeds: uint64 [N].
        indices: uint64 [N].
        class_names: of the bundle; empty when unconditional.
        bundle: the bundle's digest.
        reproducibility: "exact" or "tolerance", see `BundleInfo`.
        truncation: that of the request.
        requested: label → count asked for ("" for an unconditional bundle).
        rejected: under a quality, label → how many images were rejected for each of `augmint.quality.REASONS`: those
            between the images kept, up to the last one, or up to the bound where fewer than requested are delivered.
        edit: that of the request, attribute → amount; with it an image is a function of (bundle, label, seed, index,
            truncation, edit).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    seeds: NDArray[np.uint64]
    indices: NDArray[np.uint64]
    class_names: tuple[str, ...]
    bundle: str
    reproducibility: Reproducibility
    truncation: float = 1.0
    requested: Mapping[str, int] = field(default_factory=dict)
    rejected: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    edit: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return f"Samples({len(self)} images of {shape}, {self.delivered}, bundle={self.bundle[:12]!r})"

    @property
    def label_names(self) -> list[str]:
        """The label of each image, as a name; "" for an unconditional bundle."""
        names = self.class_names or ("",)
        return [names[label] for label in self.labels]

    @property
    def delivered(self) -> dict[str, int]:
        """label → count in this answer, for every label that was requested."""
        names = self.label_names
        return (
            {label: names.count(label) for label in self.requested}
            if self.requested
            else {label: names.count(label) for label in dict.fromkeys(names)}
        )

    @property
    def generated(self) -> dict[str, int]:
        """label → images that were made and looked at: those delivered and those rejected.

        The label's next images begin at offset + generated, under whatever quality.
        """
        return {label: n + sum(self.rejected.get(label, ())) for label, n in self.delivered.items()}

    @property
    def missing(self) -> dict[str, int]:
        """label → images that were requested and not delivered; empty if all were."""
        delivered = self.delivered
        return {label: n - delivered[label] for label, n in self.requested.items() if delivered[label] < n}

    def raise_for_shortfall(self) -> None:
        """Raises ShortfallError if fewer images were delivered than requested."""
        if missing := self.missing:
            wanted = sum(self.requested.values())
            short = ", ".join(f"{n} of {label!r}" if label else str(n) for label, n in list(missing.items())[:10])
            raise ShortfallError(
                f"{len(self):,} of {wanted:,} images were good enough, {short} are missing: ask for a lower quality, "
                "or for more with a higher offset.",
                requested=wanted,
                delivered=len(self),
            )

    @classmethod
    def concatenate(cls, parts: list[Samples]) -> Samples:
        """Join chunks of one stream, in order; `parts` must not be empty."""
        first = parts[0]
        requested: dict[str, int] = {}
        rejected: dict[str, tuple[int, ...]] = {}
        for part in parts:
            for label, n in part.requested.items():
                requested[label] = requested.get(label, 0) + n
            for label, counts in part.rejected.items():
                before = rejected.get(label, (0,) * len(REASONS))
                rejected[label] = tuple(a + b for a, b in zip(before, counts, strict=True))
        return cls(
            images=np.concatenate([p.images for p in parts]),
            labels=np.concatenate([p.labels for p in parts]),
            seeds=np.concatenate([p.seeds for p in parts]),
            indices=np.concatenate([p.indices for p in parts]),
            class_names=first.class_names,
            bundle=first.bundle,
            reproducibility=first.reproducibility,
            truncation=first.truncation,
            requested=requested,
            rejected=rejected,
            edit=first.edit,
        )


@runtime_checkable
class Source(Protocol):
    """Where samples come from: `augmint.Generator` in this process, `augmint.Client` over HTTP."""

    def info(self) -> BundleInfo:
        """What this source can make."""
        ...

    def generate(
        self,
        counts: Counts,
        *,
        seed: int | None = None,
        offset: int = 0,
        truncation: float = 1.0,
        quality: str | Quality = "none",
        edit: Mapping[str, float] | None = None,
    ) -> Samples:
        """All images of a request at once. See `Request.make` for the arguments and errors.

        Under a quality there may be fewer, which `Samples.missing` says.
        """
        ...

    def stream(
        self,
        counts: Counts,
        *,
        seed: int | None = None,
        offset: int = 0,
        truncation: float = 1.0,
        quality: str | Quality = "none",
        edit: Mapping[str, float] | None = None,
        chunk: int = 256,
    ) -> Iterator[Samples]:
        """The same images in the same order, at most `chunk` at a time."""
        ...
