"""Balance a labelled set with generated images: plan how many of each class, generate them, keep them apart.

The plan speaks imbalanced-learn's `sampling_strategy` vocabulary, with its meanings for over-sampling. Real images come
first and unchanged in number, synthetic ones after them, and a mask says which is which. Of a data set only the train
split is used: no image that was set aside for validation or testing is counted, returned or written.

This module knows nothing of how images are made, and does not judge whether they help.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from augmint.data import DataSet, load_data, write_folder, write_npz
from augmint.errors import DataError, RequestError, ServiceError, ShortfallError, UnknownLabelError, UsageError
from augmint.images import RESIZE_POLICIES, Marks, Resize, canonical, resize_image
from augmint.quality import Quality, add_rejected, check_offered
from augmint.samples import BundleInfo, Source, pick_seed
from augmint.sources import open_source

__all__ = ["STRATEGIES", "Balanced", "Balancer", "PlanRow", "Strategy", "balance", "plan"]

Strategy = float | str | Mapping[str, int] | Callable[[Mapping[str, int]], Mapping[str, int]]
STRATEGIES: Final = ("auto", "minority", "not minority", "not majority", "all")

_CHUNK: Final = 256
_LabelT = TypeVar("_LabelT")


# ------------------------------------------------------------------------------------------------- the plan


def plan(counts: Mapping[_LabelT, int], strategy: Any = "auto") -> dict[_LabelT, int]:
    """How many images of each class to generate.

    Args:
        counts: label → real images, each ≥ 0.
        strategy: as imbalanced-learn's `sampling_strategy` for over-samplers.

            - "minority": the smallest class up to the largest (of several smallest, the first);
              "not minority": every class but that one; "not majority" and "auto": every class but the largest;
              "all": every class. With over-sampling the last three come to the same.
            - a float in (0, 1], for two classes: the smaller one up to that share of the larger one.
            - a mapping label → images in total, real ones included; classes left out are left alone.
            - a function that is given `counts` and returns such a mapping.

    Returns:
        label → images to generate, ≥ 0, for every label of `counts` and in its order.

    Raises:
        UsageError: the strategy is not one of these, or asks for fewer images than there are.

    >>> plan({"good": 200, "scratch": 6, "dent": 20})
    {'good': 0, 'scratch': 194, 'dent': 180}
    >>> plan({"good": 200, "scratch": 6}, 0.5)
    {'good': 0, 'scratch': 94}
    >>> plan({"good": 200, "scratch": 6}, {"scratch": 50})
    {'good': 0, 'scratch': 44}
    """
    if callable(strategy):
        strategy = strategy(dict(counts))
        if not isinstance(strategy, Mapping):
            raise _wrong(f"the strategy function must return a mapping label → total, not {type(strategy).__name__}.")
    if isinstance(strategy, Mapping):
        return _plan_totals(counts, strategy)
    if len(counts) < 2:
        raise _wrong(f"balancing needs two classes or more, not {len(counts)}: give totals by label instead.")
    largest = max(counts.values())
    first_largest = next(label for label, n in counts.items() if n == largest)
    first_smallest = min(counts, key=lambda label: counts[label])
    match strategy:
        case "auto" | "not majority" | "all":
            return {label: largest - n for label, n in counts.items()}
        case "minority":
            return {label: largest - n if label == first_smallest else 0 for label, n in counts.items()}
        case "not minority":
            return {label: 0 if label == first_smallest else largest - n for label, n in counts.items()}
        case "majority":
            raise _wrong('"majority" cannot be generated up to anything: use "not majority".')
        case str():
            raise _wrong(f"there is no strategy {strategy[:40]!r}: use {', '.join(STRATEGIES)}, or totals by label.")
    if isinstance(strategy, bool) or not isinstance(strategy, numbers.Real):
        raise _wrong(
            f"a strategy is a word ({', '.join(STRATEGIES)}), a share, totals by label, or a function, "
            f"not {type(strategy).__name__}."
        )
    share = float(strategy)
    if not 0 < share <= 1:  # also catches NaN
        raise _wrong(f"as a share, the strategy must be in (0, 1], not {share:g}.")
    if len(counts) != 2:
        raise _wrong(f"a share is for two classes, and there are {len(counts)}: give totals by label instead.")
    # Truncated after the subtraction, as imbalanced-learn does.
    missing = {label: 0 if label == first_largest else int(largest * share - n) for label, n in counts.items()}
    if any(n <= 0 for label, n in missing.items() if label != first_largest):
        raise _wrong(f"the smaller class already has {share:g} of the larger one: raise the share.")
    return missing


def _plan_totals(counts: Mapping[_LabelT, int], totals: Mapping[Any, Any]) -> dict[_LabelT, int]:
    for label, total in totals.items():
        if label not in counts:
            known = ", ".join(str(name) for name in list(counts)[:20])
            raise _wrong(f"the strategy names {str(label)[:80]!r}, which the data does not have: it has {known}.")
        if isinstance(total, bool) or not isinstance(total, numbers.Integral) or total < 0:
            raise _wrong(f"the total for {str(label)[:80]!r} must be a whole number, not {str(total)[:40]!r}.")
        if total < counts[label]:
            raise _wrong(
                f"{str(label)[:80]!r} has {counts[label]} real images, more than the total of {total} asked for: "
                "nothing is ever taken away, so raise the total or leave the class out."
            )
    return {label: int(totals[label]) - n if label in totals else 0 for label, n in counts.items()}


def _wrong(sentence: str) -> UsageError:
    return UsageError(sentence[0].upper() + sentence[1:], code="balance.strategy")


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One class of a plan."""

    label: str
    real: int
    generate: int

    @property
    def target(self) -> int:
        return self.real + self.generate


# ------------------------------------------------------------------------------------------------- the result


@dataclass(frozen=True, eq=False)
class Balanced:
    """Real images first, then synthetic ones.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int64 [N], index into `class_names`.
        class_names: the data's own order.
        synthetic: bool [N], True where an image was generated.
        seeds, indices: uint64 [N], the addresses of the synthetic images; 0 for real ones.
        names: where each real image came from; "" for synthetic ones.
        bundle: digest of the bundle that generated, "" if nothing was.
        seed: of all synthetic images; None if nothing was generated.
        truncation: of all synthetic images.
        plan: what was to be generated.
        quality: which images were to be kept, as text; "none" for all.
        rejected: under a quality, label → reason → images that were made and rejected.
        notes: sentences worth telling, e.g. that real images were resized.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    synthetic: NDArray[np.bool_]
    seeds: NDArray[np.uint64]
    indices: NDArray[np.uint64]
    names: tuple[str, ...]
    bundle: str
    seed: int | None
    truncation: float
    plan: tuple[PlanRow, ...]
    quality: str = "none"
    rejected: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    _cause: str = field(default="", repr=False)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def label_names(self) -> list[str]:
        return [self.class_names[label] for label in self.labels]

    @property
    def delivered(self) -> dict[str, int]:
        """label → images that were generated."""
        found = np.bincount(self.labels[self.synthetic], minlength=len(self.class_names))
        return dict(zip(self.class_names, found.tolist(), strict=True))

    @property
    def missing(self) -> dict[str, int]:
        """label → images that were planned and not delivered; empty if all were."""
        delivered = self.delivered
        return {
            row.label: row.generate - delivered[row.label] for row in self.plan if delivered[row.label] < row.generate
        }

    def raise_for_shortfall(self) -> None:
        """Raises ShortfallError if fewer images were delivered than planned."""
        if missing := self.missing:
            wanted, got = sum(row.generate for row in self.plan), int(self.synthetic.sum())
            short = ", ".join(f"{n} of {label!r}" for label, n in list(missing.items())[:10])
            if self._cause or self.quality == "none":
                because = f" ({self._cause.rstrip('.')})" if self._cause else ""
                mend = f"ask again with seed {self.seed}"
            else:
                made = got + sum(sum(counts.values()) for counts in self.rejected.values())
                because = f" (of {made:,} made, the others were not {self.quality})"
                mend = "ask for a lower quality, or for fewer"
            raise ShortfallError(
                f"{got:,} of {wanted:,} images were delivered, {short} are missing{because}: {mend}.",
                requested=wanted,
                delivered=got,
            )

    def write(self, out: str | Path, *, format: Literal["folder", "npz"] = "folder") -> Path:
        """Write all images, whole or not at all.

        Args:
            out: "folder": a new or empty folder, which gets a folder of PNGs per class and a metadata.csv with
                file_name, label, split (all train), synthetic, seed, index, bundle, truncation and origin; synthetic
                PNGs carry their address and the IPTC mark. "npz": a new .npz with images, labels, class_names, split,
                synthetic, seeds, indices, bundle and truncation. `load_data` reads both.

        Raises:
            DataError: `out` is in use or cannot be written.
        """
        if format == "npz":
            arrays: dict[str, NDArray[Any]] = {
                "split": np.zeros(len(self), dtype=np.uint8),
                "synthetic": self.synthetic,
                "seeds": self.seeds,
                "indices": self.indices,
                "bundle": np.array(self.bundle),
                "truncation": np.array(self.truncation),
            }
            return write_npz(self.images, self.labels, self.class_names, out, arrays=arrays)
        if format != "folder":
            raise UsageError(f'format must be "folder" or "npz", not {format!r}.', code="usage.format")
        rows = list(zip(self.synthetic.tolist(), self.seeds.tolist(), self.indices.tolist(), strict=True))
        marks = [
            Marks(bundle=self.bundle, label=label, seed=seed, index=index, truncation=self.truncation) if made else None
            for label, (made, seed, index) in zip(self.label_names, rows, strict=True)
        ]
        return write_folder(
            self.images,
            self.labels,
            self.class_names,
            out,
            names=[f"synthetic-{index:06}" if made else f"real-{i:06}" for i, (made, _, index) in enumerate(rows)],
            marks=marks,
            columns={
                "split": ["train"] * len(self),
                "synthetic": ["true" if made else "false" for made, _, _ in rows],
                "seed": [seed if made else None for made, seed, _ in rows],
                "index": [index if made else None for made, _, index in rows],
                "bundle": [self.bundle if made else None for made, _, _ in rows],
                "truncation": [self.truncation if made else None for made, _, _ in rows],
                "origin": [name or None for name in self.names],
            },
        )


# ------------------------------------------------------------------------------------------------- balancing


@dataclass(frozen=True, eq=False)
class _Real:
    """The real side: labels and names at hand, pixels once the source's shape is known."""

    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    shaped: Callable[[tuple[int, int, int]], NDArray[np.uint8]]
    sizes: tuple[tuple[int, int, int], ...]

    def counts(self) -> dict[str, int]:
        found = np.bincount(self.labels, minlength=len(self.class_names))
        return dict(zip(self.class_names, found.tolist(), strict=True))


def balance(
    data: DataSet | str | Path | tuple[ArrayLike, ArrayLike],
    source: Source | str | Path,
    strategy: Strategy = "auto",
    *,
    seed: int | None = None,
    offset: int = 0,
    truncation: float = 1.0,
    quality: str | Quality = "none",
    resize: Resize = "fit",
    allow_shortfall: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Balanced:
    """Add generated images to a labelled set until its classes have the sizes that the strategy says.

    Args:
        data: a DataSet, or what `load_data` takes: only its train split is used. Or (X, y): images uint8
            [N, H, W, C] or [N, H, W], and N labels, integers or strings, which as text are the bundle's class names.
        source: a Generator, a Client, a bundle's path or a service's URL.
        strategy: see `plan`.
        seed: 0 … 2^64 - 1; None picks one, which is in the result.
        offset: index of the first image of each class, to go on where an earlier call with this seed ended.
        truncation: in (0, 1].
        quality: which images to keep, such as "labels,copies"; see `augmint.quality`. For each class, up to 20 times as
            many as planned and 64 are made to find enough.
        resize: how real images of other sizes are brought to the source's: "fit", "crop" or "stretch"; see
            `augmint.images.resize_image`. `notes` says when that was done.
        allow_shortfall: return what was delivered, even if it is less than planned; see `Balanced.raise_for_shortfall`.
        progress: called with (images generated, images planned) as they arrive.

    Raises:
        UsageError: the strategy is wrong.
        DataError: the data cannot be read or used.
        RequestError: the source cannot make what is needed: it is unconditional, or lacks a class.
        ShortfallError: fewer images were delivered than planned, or the service broke off after some were.
    """
    if resize not in RESIZE_POLICIES:
        raise UsageError(
            f"There is no resize policy {resize!r}: use {', '.join(RESIZE_POLICIES)}.", code="usage.resize"
        )
    real = _of_arrays(*data, resize=resize) if isinstance(data, tuple) else _of_data_set(load_data(data), resize)
    wanted = plan(real.counts(), strategy)
    rows = tuple(PlanRow(label, n, wanted[label]) for label, n in real.counts().items())
    source = open_source(source)
    info = source.info()
    ask = {row.label: row.generate for row in rows if row.generate}
    check_labels(ask, info)
    quality = check_offered(quality, info.quality)
    rejected: dict[str, dict[str, int]] = {}

    total = sum(ask.values())
    first = len(real.labels)
    try:
        images = np.empty((first + total, *info.image_shape), dtype=np.uint8)
    except (MemoryError, ValueError):  # ValueError: more than an array can ever hold
        raise DataError(
            f"{total:,} images of {'×'.join(map(str, info.image_shape))} more do not fit in memory: ask for fewer, or "
            "for parts of them with offset.",
            code="data.memory",
        ) from None
    labels = np.empty(first + total, dtype=np.int64)
    seeds = np.zeros(first + total, dtype=np.uint64)
    indices = np.zeros(first + total, dtype=np.uint64)
    images[:first] = real.shaped(info.image_shape)
    labels[:first] = real.labels
    end, digest, cause = first, "", ""
    if total:
        seed = pick_seed() if seed is None else seed  # an answer without any images would not say which it was
        # Generators and services number the classes in the bundle's order, the data in its own. By the names in each
        # answer, because a service may have got another bundle since it was asked what it has.
        own = {name: i for i, name in enumerate(real.class_names)}
        try:
            stream = source.stream(ask, seed=seed, offset=offset, truncation=truncation, quality=quality, chunk=_CHUNK)
            for part in stream:
                here = slice(end, end + len(part))
                images[here], labels[here] = part.images, [own[name] for name in part.label_names]
                seeds[here], indices[here] = part.seeds, part.indices
                end, digest = here.stop, part.bundle
                add_rejected(rejected, part.rejected)
                if progress is not None:
                    progress(end - first, total)
        except ShortfallError as error:
            cause = str(error)
        except ServiceError as error:
            if end == first:
                raise
            cause = str(error)  # what has arrived is not thrown away
    result = Balanced(
        images=images[:end],
        labels=labels[:end],
        class_names=real.class_names,
        synthetic=np.arange(end) >= first,
        seeds=seeds[:end],
        indices=indices[:end],
        names=real.names + ("",) * (end - first),
        bundle=digest,
        seed=seed if end > first else None,
        truncation=truncation,
        plan=rows,
        quality=str(quality),
        rejected=rejected,
        notes=_notes(real, info, resize, total),
        _cause=cause,
    )
    if not allow_shortfall:
        result.raise_for_shortfall()
    return result


def check_labels(ask: Mapping[str, int], info: BundleInfo) -> None:
    """Refuse a source that cannot make these labels.

    Raises:
        RequestError: it is unconditional. UnknownLabelError: it lacks one of them.
    """
    if ask and not info.class_names:
        raise RequestError(
            f"The bundle {info.name!r} is unconditional: balancing needs one that was trained with labels.",
            code="request.unconditional",
        )
    if lacking := [label for label in ask if label not in info.class_names]:
        shown = ", ".join(info.class_names[:20]) + (", …" if len(info.class_names) > 20 else "")
        raise UnknownLabelError(
            f"The bundle {info.name!r} cannot make {lacking[0][:80]!r}, it has {shown}: use a bundle trained on this "
            "data, labels as it names them, or totals for the classes it has.",
            labels=info.class_names,
        )


def _of_data_set(data: DataSet, resize: Resize) -> _Real:
    train = data.where("train")
    if not train.any():
        raise DataError(f"{data.name} has no train images: there is nothing to balance.", code="data.no-images")
    chosen = [picture for picture, is_train in zip(data.pictures, train, strict=True) if is_train]
    return _Real(
        labels=data.labels[train],
        class_names=data.class_names,
        names=tuple(picture.name for picture in chosen),
        shaped=lambda shape: data.images("train", shape=shape, resize=resize)[0],
        sizes=tuple(sorted({(picture.height, picture.width, data.channels) for picture in chosen})),
    )


def _of_arrays(x: ArrayLike, y: ArrayLike, *, resize: Resize) -> _Real:
    images, labels = np.asarray(x), np.asarray(y)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
        raise DataError(
            f"The images must be uint8 [N, H, W, C] with C 1, 3 or 4, or [N, H, W], not {images.dtype} "
            f"{list(images.shape)}: if they lie in 0 … 1, give (X * 255).round().astype(numpy.uint8).",
            code="data.images",
        )
    if labels.shape != (len(images),):
        raise DataError(
            f"There are {len(images)} images, and labels of the shape {list(labels.shape)}: give one label per image.",
            code="data.labels",
        )
    if not images.size:
        raise DataError("There are no images: there is nothing to balance.", code="data.no-images")
    values, numbers_ = np.unique(labels, return_inverse=True)
    images = images[..., None] if images.ndim == 3 else images

    def shaped(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        if images.shape[1:] == shape:
            return images
        return np.stack([resize_image(canonical(image), shape, resize) for image in images])

    return _Real(
        labels=numbers_.astype(np.int64),
        class_names=tuple(str(value) for value in values.tolist()),
        names=tuple(str(i) for i in range(len(images))),
        shaped=shaped,
        sizes=((images.shape[1], images.shape[2], images.shape[3]),),
    )


def _notes(real: _Real, info: BundleInfo, resize: str, total: int) -> tuple[str, ...]:
    notes = []
    if other := [size for size in real.sizes if size != info.image_shape]:
        first = "×".join(map(str, other[0]))
        more = f" and {len(other) - 1} other sizes" if len(other) > 1 else ""
        notes.append(
            f"real images were resized from {first}{more} to {'×'.join(map(str, info.image_shape))} ({resize})."
        )
    if not total:
        notes.append("nothing was generated: the classes have the sizes that were asked for already.")
    return tuple(notes)


# ------------------------------------------------------------------------------------------------- fit_resample


class Balancer:
    """`balance` as an imbalanced-learn sampler: `fit_resample(X, y)`, also as a step of its Pipeline.

    Args:
        source: a Generator, a Client, a bundle's path or a service's URL.
        sampling_strategy: see `plan`; as in imbalanced-learn, a function is given `y`, and labels are those of `y`.
        random_state: the seed, 0 … 2^64 - 1; a numpy RandomState or Generator to draw one from; None picks one.
        truncation: in (0, 1].
        quality: which images to keep, such as "labels"; see `augmint.quality`.

    Attributes after `fit_resample`:
        sampling_strategy_: label, as in `y`, → images generated, for the classes that got any.
        synthetic_: bool [N], the rows of the result that were generated.
        balanced_: the whole result, see `Balanced`.

    Example::

        X_new, y_new = augmint.Balancer(generator, random_state=0).fit_resample(X, y)
    """

    _estimator_type = "sampler"

    def __init__(
        self,
        source: Source | str | Path,
        *,
        sampling_strategy: Any = "auto",
        random_state: int | np.random.RandomState | np.random.Generator | None = None,
        truncation: float = 1.0,
        quality: str | Quality = "none",
    ) -> None:
        self.source = source
        self.sampling_strategy = sampling_strategy
        self.random_state = random_state
        self.truncation = truncation
        self.quality = quality

    def fit_resample(self, X: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Args:
            X: uint8 [N, H, W, C], [N, H, W] (grey), or [N, H·W·C] in that order; of the source's image shape.
            y: [N], integers or strings; as text they are the bundle's class names.

        Returns:
            X and y of the same kinds, the given rows first and unchanged, then the generated ones.
        """
        source = open_source(self.source)
        shape = source.info().image_shape
        rows, labels = np.asarray(X), np.asarray(y)
        form = rows.shape[1:]
        if form not in (shape, shape[:2] if shape[2] == 1 else shape, (int(np.prod(shape)),)):
            raise DataError(
                f"X has rows of the shape {list(form)}, and the source makes {list(shape)}: resize X first, or use "
                "augmint.balance(…, resize=…).",
                code="data.shape",
            )
        strategy = self.sampling_strategy
        if callable(strategy):
            strategy = strategy(labels)
        if isinstance(strategy, Mapping):
            strategy = {str(label): total for label, total in strategy.items()}
        result = balance(
            (rows.reshape(-1, *shape), labels),
            source,
            strategy,
            seed=self._seed(),
            truncation=self.truncation,
            quality=self.quality,
        )
        values = np.unique(labels)
        generated = {value: row.generate for value, row in zip(values.tolist(), result.plan, strict=True)}
        self.sampling_strategy_ = {value: n for value, n in generated.items() if n}
        self.synthetic_ = result.synthetic
        self.balanced_ = result
        return result.images.reshape(-1, *form), values[result.labels]

    def _seed(self) -> int | None:
        state = self.random_state
        if isinstance(state, np.random.Generator):
            return int(state.integers(2**53))
        if isinstance(state, np.random.RandomState):
            return int(state.randint(2**53, dtype=np.int64))
        return state  # the source says what is wrong with it, if anything is

    # scikit-learn's own convention for cloning and for setting a step's parameters, without importing it.
    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {name: getattr(self, name) for name in list(inspect.signature(type(self).__init__).parameters)[1:]}

    def set_params(self, **parameters: Any) -> Balancer:
        known = self.get_params()
        for name, value in parameters.items():
            if name not in known:
                raise UsageError(
                    f"Balancer has no parameter {name!r}: it has {', '.join(known)}.", code="usage.parameter"
                )
            setattr(self, name, value)
        return self


def describe_plan(rows: Sequence[PlanRow]) -> list[dict[str, Any]]:
    """The plan as plain values, for JSON and tables."""
    return [{"label": row.label, "real": row.real, "generate": row.generate, "target": row.target} for row in rows]
