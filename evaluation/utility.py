"""Does it help? A small classifier trained with and without generated images, judged on held-out real images alone.

Every method gets the same network, the same number of gradient steps and the same seeds; only the images differ. What
generated images must beat is oversampling with augmentation, because that costs nothing. Which augmentation that is,
and in what amount and mixture the generated images are used, is chosen on the validation split by one rule for both
sides; the test split only judges. Validation and test are predicted by the same fits, so choosing costs nothing.

Intervals are over classifier seeds and test images, for the one set of generated images that was given: another
generator from another seed is another experiment. Knows nothing of where images come from, and never looks at fidelity.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from augmint.errors import DataError, UsageError
from augmint.runtime import usable_cores
from evaluation import augmentation, classifier, smote
from evaluation.arrays import Labelled
from evaluation.augmentation import Augment
from evaluation.cache import Cache, Json, code_version, digest
from evaluation.classifier import SMALLEST, Synthetic, one_thread, train_classifier
from evaluation.intervals import FEWEST, Estimate, Resampled, estimate, resample, sd
from evaluation.utility_report import (
    Chosen,
    ClassEffect,
    Difference,
    Effect,
    UtilityReport,
    UtilityRow,
    Verdict,
    points,
    shown,
)

__all__ = [
    "BASELINE",
    "METHODS",
    "REAL",
    "ClassEffect",
    "Difference",
    "UtilityConfig",
    "UtilityReport",
    "UtilityRow",
    "Verdict",
    "images_needed",
    "utility",
]

Progress = Callable[[int, int, str], None]
_Label = TypeVar("_Label", bound=Hashable)

REAL: Final = "real only"
BASELINE: Final = "oversampling + affine"
METHODS: Final = (
    REAL,
    "class weights",
    "oversampling",
    BASELINE,
    "oversampling + RandAugment",
    "SMOTE",
    "real + synthetic",
    "real + synthetic + augmentation",
)

_FIT: Final = 1
"""Version of `_Work.fit`: to be raised with every change of what it makes of the same arguments."""

_BATCH: Final = 64
_FEW: Final = 100  # Validation images of the small classes below which the report calls them too few to choose by.


@dataclass(frozen=True)
class UtilityConfig:
    """What is compared.

    Attributes:
        methods: of METHODS; "real only", "oversampling + affine" and one with synthetic images must be among them.
        amounts: of generated images. 1 fills every class up to the largest; where no class has fewer than half as many
            images as the largest, 1 adds as many to every class as the largest has.
        shares: of a class's draws that are generated images, at most, in the mixture with augmentation. The first is
            used with every amount, the others with the amount nearest to 1.
        strengths: of the RandAugment-like policies.
        seeds, steps: of the classifiers; all methods have the same.
        processes: at one thread each; None: as many as cores, at most 8. They change the time and nothing else. With
            more than one the caller's main module must be importable (`if __name__ == "__main__":`).
    """

    methods: tuple[str, ...] = METHODS
    amounts: tuple[float, ...] = (0.5, 1.0, 4.0)
    shares: tuple[float, ...] = (0.5,)
    strengths: tuple[Augment, ...] = ("light", "strong")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    # With fewer steps the classifier learns less from varied images than there is to learn (docs/log.md).
    steps: int = 1200
    processes: int | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or len(set(self.methods)) < len(self.methods):
            raise UsageError(f"Methods are {', '.join(METHODS)}, each at most once; got {', '.join(self.methods)}.")
        if not {REAL, BASELINE} <= set(self.methods) or not any("synthetic" in name for name in self.methods):
            raise UsageError(f"A comparison needs {REAL!r}, {BASELINE!r} and a method with synthetic images.")
        if not self.amounts or min(self.amounts) <= 0 or not math.isfinite(sum(self.amounts)):
            raise UsageError(f"Amounts are above 0, got {list(self.amounts)}.")
        if not self.shares or min(self.shares) <= 0 or max(self.shares) >= 1:
            raise UsageError(f"Shares of generated images lie between 0 and 1, got {list(self.shares)}.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or self.steps < 1:
            raise UsageError("A comparison needs seeds, each once, and at least one step.")

    @classmethod
    def quick(cls) -> UtilityConfig:
        """One amount, one mixture, one strength, 3 seeds, half the steps: minutes become one."""
        return cls(amounts=(1.0,), shares=(0.5,), strengths=("light",), seeds=(0, 1, 2), steps=350)


def images_needed(train_counts: Mapping[_Label, int], config: UtilityConfig) -> dict[_Label, int]:
    """How many generated images of each class the largest amount needs (0: the class is not short)."""
    counts = np.array(list(train_counts.values()), np.int64)
    wanted = _wanted(counts, max(config.amounts), config.steps)
    return dict(zip(train_counts, wanted.tolist(), strict=True))


def utility(
    train: Labelled,
    validation: Labelled,
    test: Labelled,
    synthetic: Labelled,
    class_names: Sequence[str],
    *,
    minority: Sequence[str] | None = None,
    config: UtilityConfig | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> UtilityReport:
    """Fit a classifier for every method and seed, choose on `validation`, and compare on `test`.

    Each of the sets is (images uint8 [N, H, W, C], labels int64 [N]), of one shape, sides of at least 8; labels index
    `class_names`. `validation` may be empty. Of each class the first generated images are used, as many as an amount
    takes. `minority` names the classes whose recall is averaged; None: those with fewer than half of the largest
    class's training images, or all where there are none. Every fit's predictions go through `cache` (None: are not
    kept), so that an interrupted comparison goes on where it was. `progress(done, total, what)` is called after each
    fit, in this process.

    Raises:
        UsageError: a class that is not there.
        DataError: sets that cannot be compared, with the reason.
    """
    began = time.perf_counter()
    config = config or UtilityConfig()
    names = tuple(class_names)
    small, notes = _check(train, validation, test, synthetic, names, minority)
    amounts, more_notes = _amounts(train[1], synthetic[1], config, names)
    notes += more_notes
    if len(config.seeds) == 1:
        notes.append("With one classifier a row, the intervals say nothing of the luck of its seed.")
    free, words = _free_methods(config, train, names)
    with_images = _synthetic_methods(config, list(amounts))
    looked_at = np.concatenate([validation[0], test[0]])
    work = _Work(train, looked_at, synthetic, amounts, len(names), config.steps)
    total = (len(free) + len(with_images)) * len(config.seeds)
    with _Fits(work, config, cache or Cache(None), total, progress) as fits:
        fits.run(free)
        # The baseline's augmentation first: the mixtures get the same, so that only the images differ.
        seen = _weights(validation[1], small, len(names))
        default = next(method for method in free if method.augment == "affine")
        others = [method for method in free if method.augment is not None and method != default]
        scores = fits.scores(slice(len(validation[1])), validation[1])
        baseline, why_baseline, _ = _choose(default, others, scores, seen, validation[1], small, "augmentation")
        with_images = [replace(m, augment=baseline.augment) if m.augment else m for m in with_images]
        fits.run(with_images)
        scores = fits.scores(slice(len(validation[1])), validation[1])
        chosen, why, by_validation = _choose(
            with_images[0], with_images[1:], scores, seen, validation[1], small, "amount and mixture"
        )
        tested = fits.scores(slice(len(validation[1]), None), test[1])

    methods = [*free, *sorted(with_images, key=lambda m: (m.augment is not None, m.amount or 0, m.share or 0))]
    there = np.bincount(test[1], minlength=len(names)) / len(test[1])
    table = _Table(names, _weights(test[1], small, len(names)), there, seen, tested, scores, baseline, free[0])
    rows = {method: table.row(method, amounts, words) for method in methods}
    effects = table.effects(chosen)
    verdict, conclusion = _conclude(
        rows[chosen],
        rows[baseline],
        [rows[method] for method in free],
        effects,
        _difference(estimate(tested[chosen], there, tested[baseline])),
        [names[c] for c in small if (test[1] == c).any()],
    )

    def counted(labels: NDArray[np.int64]) -> dict[str, int]:
        return dict(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True))

    assert chosen.amount is not None, "only methods with generated images are chosen from"
    return UtilityReport(
        rows=tuple(rows.values()),
        skipped={name: word for name, word in words.items() if name not in {method.name for method in methods}},
        baseline=baseline.name,
        baseline_why=why_baseline,
        chosen=Chosen(
            method=chosen.name,
            amount=chosen.amount,
            share=chosen.share,
            augmentation=chosen.augment,
            images=counted(synthetic[1][amounts[chosen.amount]]),
            by_validation=by_validation,
            why=why,
        ),
        verdict=verdict,
        conclusion=conclusion,
        per_class=effects,
        minority=tuple(names[c] for c in small),
        n_train=counted(train[1]),
        n_validation=counted(validation[1]),
        n_test=counted(test[1]),
        n_synthetic=counted(synthetic[1]),
        seeds=config.seeds,
        steps=config.steps,
        notes=tuple(notes),
        fits=fits.total,
        fits_cached=fits.cached,
        seconds=round(time.perf_counter() - began, 1),
    )


# --- what is compared -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Method:
    """One way to make a training set; `amount` None: without generated images, `share` None: they are simply added."""

    balanced: bool = False
    weighted: bool = False
    smote: bool = False
    augment: Augment | None = None
    amount: float | None = None
    share: float | None = None

    @property
    def name(self) -> str:
        if self.smote:
            return "SMOTE"
        if self.weighted:
            return "class weights"
        base = "real + synthetic" if self.amount is not None else "oversampling" if self.balanced else REAL
        return base if self.augment is None else f"{base} + {self.augment}"


def _free_methods(config: UtilityConfig, train: Labelled, names: Sequence[str]) -> tuple[list[_Method], dict[str, str]]:
    """Those without generated images, "real only" first, and name → what is to be said of one that cannot be run."""
    counts = np.bincount(train[1], minlength=len(names)).tolist()
    able, word = smote.smote_note(dict(zip(names, counts, strict=True)))
    found = {
        REAL: [_Method()],
        "class weights": [_Method(weighted=True)],
        "oversampling": [_Method(balanced=True)],
        BASELINE: [_Method(balanced=True, augment="affine")],
        "oversampling + RandAugment": [_Method(balanced=True, augment=strength) for strength in config.strengths],
        "SMOTE": [_Method(smote=True)] if able else [],
    }
    methods = [method for name in METHODS if name in config.methods for method in found.get(name, [])]
    return methods, {"SMOTE": word} if word and "SMOTE" in config.methods else {}


def _synthetic_methods(config: UtilityConfig, amounts: list[float]) -> list[_Method]:
    """Those with generated images, the default first: the amount nearest to 1, mixed, with augmentation."""
    usual = min(amounts, key=lambda amount: abs(math.log(amount)))
    found = [_Method(amount=amount) for amount in amounts] if "real + synthetic" in config.methods else []
    if "real + synthetic + augmentation" in config.methods:
        mixture = _Method(balanced=True, augment="affine", amount=usual, share=config.shares[0])
        found += [replace(mixture, amount=amount) for amount in amounts]
        found += [replace(mixture, share=share) for share in config.shares[1:]]
    best = [method for method in found if method.amount == usual]
    default = next((method for method in best if method.augment is not None), best[0])
    return [default, *(method for method in found if method != default)]


def _wanted(counts: NDArray[np.int64], amount: float, steps: int) -> NDArray[np.int64]:
    """Generated images of each class for an amount; never more than a fit that draws classes alike could look at."""
    largest = counts.max(initial=0)
    base = largest - counts if _short(counts).any() else np.full_like(counts, largest)
    return np.minimum(np.ceil(amount * base), math.ceil(steps * _BATCH / max(1, len(counts)))).astype(np.int64)


def _short(counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    return counts * 2 < counts.max(initial=0)


def _amounts(
    train_labels: NDArray[np.int64], labels: NDArray[np.int64], config: UtilityConfig, names: Sequence[str]
) -> tuple[dict[float, NDArray[np.int64]], list[str]]:
    """Amount → indices of the generated images it takes. An amount that there are too few images for becomes what there
    is, by the name of the part of the shortfall that it covers."""
    counts = np.bincount(train_labels, minlength=len(names))
    of_class = [np.flatnonzero(labels == c) for c in range(len(names))]
    found: dict[float, NDArray[np.int64]] = {}
    notes: list[str] = []
    if not _short(counts).any():
        notes.append("No class is short of images: 1× adds as many generated ones to each as the largest has.")
    for amount in sorted(set(config.amounts)):
        wanted = _wanted(counts, amount, config.steps)
        rows = np.sort(np.concatenate([of_class[c][: wanted[c]] for c in range(len(names))]))
        if not len(rows):
            raise DataError(
                f"None of the {len(labels):,} generated images is of a class that is short of images: generate some of "
                f"{shown([names[c] for c in np.flatnonzero(wanted).tolist()])}."
            )
        real = amount * len(rows) / int(wanted.sum())
        if any(len(rows) == len(others) for others in found.values()):
            why = "there are too few" if len(rows) < wanted.sum() else f"{config.steps} steps look at no more"
            notes.append(f"{amount:g}× would be the same generated images again: {why}.")
            continue
        if len(rows) < wanted.sum():
            label = float(f"{real:.2g}")
            notes.append(
                f"{amount:g}× takes {int(wanted.sum()):,} generated images and {len(rows):,} of them were there: "
                f"called {label:g}×."
            )
            amount = label if label not in found else real
        found[amount] = rows
    return found, notes


def _check(
    train: Labelled,
    validation: Labelled,
    test: Labelled,
    synthetic: Labelled,
    names: Sequence[str],
    minority: Sequence[str] | None,
) -> tuple[list[int], list[str]]:
    """The indices of the small classes, and notes; or the sentence that says what is wrong."""
    if len(names) < 2:
        raise DataError("A comparison of classifiers needs at least 2 classes.")
    for (images, labels), what in (
        (train, "training"),
        (validation, "validation"),
        (test, "test"),
        (synthetic, "generated"),
    ):
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels):
            raise ValueError(f"Expected uint8 [N, H, W, C] and N labels, got {images.dtype} {images.shape}.")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
            raise ValueError(f"The {what} labels must lie in [0, {len(names)}).")
        if not len(images) and what != "validation":
            raise DataError(f"There are no {what} images, and the comparison needs some.")
        if len(images) and images.shape[1:] != train[0].shape[1:]:
            raise DataError(
                f"The {what} images are {images.shape[1:]} and the training images {train[0].shape[1:]}: read all at "
                "one size."
            )
    if min(train[0].shape[1:3]) < SMALLEST:
        height, width = train[0].shape[1:3]
        raise DataError(f"Images of {height}×{width} are too small: read them at {SMALLEST}×{SMALLEST} or more.")
    counts, held_out = (np.bincount(labels, minlength=len(names)) for labels in (train[1], test[1]))
    notes: list[str] = []
    if minority is None:
        short = _short(counts) & (counts > 0)
        small = np.flatnonzero(short if short.any() else counts > 0).tolist()
        if not short.any():
            notes.append("No class has fewer than half of the largest one's images, so the average is over all.")
    else:
        unknown = [name for name in minority if name not in names]
        if unknown or not minority:
            what = f"has no class {shown(unknown)}" if unknown else "needs the name of a small class or more"
            raise UsageError(f"The comparison {what}; the classes are {shown(names)}.")
        small = sorted({list(names).index(name) for name in minority})
        without = [names[c] for c in small if not counts[c]]
        if without:
            raise DataError(f"There are no training images of {shown(without)}: the comparison needs some of each.")
    untested = [names[c] for c in small if not held_out[c]]
    if len(untested) == len(small):
        raise DataError(
            f"There are no test images of {shown(untested)}: without real images to test on nothing can be said."
        )
    if untested:
        notes.append(f"There are no test images of {shown(untested)}: left out of the average.")
    return small, notes


# --- fitting ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """What every fit needs; sent to each process once."""

    train: Labelled
    looked_at: NDArray[np.uint8]
    synthetic: Labelled
    amounts: Mapping[float, NDArray[np.int64]]
    num_classes: int
    steps: int

    def fit(self, method: _Method, seed: int) -> NDArray[np.int64]:
        """Predictions for the images to look at, [N]. On one thread, so that they do not depend on where it runs."""
        images, labels = self.train
        weights, extra = None, None
        if method.smote:
            most = math.ceil(self.steps * _BATCH / self.num_classes)
            images, labels = smote.smote(images, labels, seed=seed, most=most)
        if method.weighted:
            counts = np.bincount(labels, minlength=self.num_classes)
            weights = len(labels) / (np.maximum(counts, 1) * (counts > 0).sum())
        if method.amount is not None:
            rows = self.amounts[method.amount]
            extra = Synthetic(self.synthetic[0][rows], self.synthetic[1][rows], share=method.share)
        with one_thread():
            fitted = train_classifier(
                images,
                labels,
                self.num_classes,
                seed=seed,
                steps=self.steps,
                batch=_BATCH,
                augment=method.augment,
                sampler="balanced" if method.balanced else None,
                class_weights=weights,
                synthetic=extra,
            )
            return fitted.predict(self.looked_at)


_work: _Work | None = None


def _start(work: _Work) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a process without a stack trace; the parent reports.


def _fit(method: _Method, seed: int) -> NDArray[np.int64]:
    assert _work is not None, "_start runs first in every process"
    return _work.fit(method, seed)


class _Fits(AbstractContextManager["_Fits"]):
    """Fits methods, each finished one kept at once; the processes live as long as the `with` block."""

    def __init__(self, work: _Work, config: UtilityConfig, cache: Cache, total: int, progress: Progress | None) -> None:
        self._work = work
        self._config = config
        self._cache = cache
        self._progress = progress
        self._shared: dict[str, Json] = {
            "code": code_version(augmentation, classifier, smote),
            "fit": _FIT,
            "train": digest(*work.train),
            "looked_at": digest(work.looked_at),
            "classes": work.num_classes,
            "steps": work.steps,
        }
        images, labels = work.synthetic
        self._synthetic: dict[float | None, Json] = {None: None}
        self._synthetic |= {amount: digest(images[rows], labels[rows]) for amount, rows in work.amounts.items()}
        self._pool: ProcessPoolExecutor | None = None
        self._predictions: dict[_Method, dict[int, NDArray[np.int64]]] = {}
        self.total, self.done, self.cached = total, 0, 0

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, methods: Sequence[_Method]) -> None:
        tasks = [(method, seed) for seed in self._config.seeds for method in methods]
        left: list[tuple[_Method, int]] = []
        for method, seed in tasks:
            found = self._cache.find("utility", self._key(method, seed))
            predicted = None if found is None else found.get("predicted")
            if predicted is not None and predicted.shape == (len(self._work.looked_at),):
                self.cached += 1
                self._finished(method, seed, predicted)
            else:
                left.append((method, seed))
        for method, seed, predicted in self._fit_all(left):
            self._cache.keep("utility", self._key(method, seed), {"predicted": predicted})
            self._finished(method, seed, predicted)

    def scores(self, here: slice, truth: NDArray[np.int64]) -> dict[_Method, Resampled]:
        """Of all that has been fitted, on these of the images to look at, whose classes are `truth`."""
        right = {
            method: np.stack([by_seed[seed][here] == truth for seed in self._config.seeds])
            for method, by_seed in self._predictions.items()
        }
        return resample(right, truth, self._work.num_classes)

    def _key(self, method: _Method, seed: int) -> dict[str, Json]:
        # Of the generated images their content, not the amount's name.
        own: dict[str, Json] = {key: value for key, value in vars(method).items() if key != "amount"}
        return {**self._shared, **own, "synthetic": self._synthetic[method.amount], "seed": seed}

    def _finished(self, method: _Method, seed: int, predicted: NDArray[np.int64]) -> None:
        self._predictions.setdefault(method, {})[seed] = predicted
        self.done += 1
        if self._progress is not None:
            amount = "" if method.amount is None else f" {method.amount:g}×"
            self._progress(self.done, self.total, f"{method.name}{amount}, seed {seed}")

    def _fit_all(self, tasks: list[tuple[_Method, int]]) -> Iterator[tuple[_Method, int, NDArray[np.int64]]]:
        processes = self._config.processes or min(8, usable_cores())
        left = list(tasks)
        if min(processes, len(tasks)) > 1:
            # Processes, because threads do not speed up networks this small; spawned, because torch's threads do not
            # survive a fork.
            if self._pool is None:
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(
                    processes, mp_context=context, initializer=_start, initargs=(self._work,)
                )
            try:
                futures = {self._pool.submit(_fit, *task): task for task in tasks}
                for future in as_completed(futures):
                    method, seed = futures[future]
                    predicted = future.result()
                    left.remove((method, seed))
                    yield method, seed, predicted
            except BrokenProcessPool:
                pass  # A caller whose main module cannot be imported, or too little memory for two: go on alone.
        for method, seed in left:
            yield method, seed, self._work.fit(method, seed)


# --- choosing and figures ---------------------------------------------------------------------------------------------


def _weights(labels: NDArray[np.int64], small: Sequence[int], num_classes: int) -> NDArray[np.float64]:
    """Equal for the small classes that have any image, 0 for the others; all 0 where none has."""
    weights = np.zeros(num_classes)
    weights[[c for c in small if (labels == c).any()]] = 1
    return weights / max(1.0, weights.sum())


def _choose(
    default: _Method,
    others: Sequence[_Method],
    scores: Mapping[_Method, Resampled],
    weights: NDArray[np.float64],
    labels: NDArray[np.int64],
    small: Sequence[int],
    what: str,
) -> tuple[_Method, str, bool]:
    """The default, unless others do better on validation: then the best of those. And why.

    Better means that the paired 95 % interval of the difference lies above zero. The best figure of several on a
    handful of images is chance, and to follow it would weaken the baseline as often as the generator. Both are chosen
    by this same rule.
    """
    n = int(np.isin(labels, small).sum())
    if not others:
        return default, f"Only one {what} was compared.", False
    if not n:
        return default, f"There are no validation images of the small classes to choose by: the default {what}.", False
    better = [other for other in others if estimate(scores[other], weights, scores[default]).sign > 0]
    images = f"{n:,} validation images of the small classes"
    if better:
        best = max(better, key=lambda other: estimate(scores[other], weights).value)
        return best, f"This {what} did best on the {images}.", True
    if n < _FEW:
        return default, f"The {images} are too few to choose by: the default {what}.", False
    return default, f"No other {what} was clearly better on the {images} than the default.", True


@dataclass(frozen=True, eq=False)
class _Table:
    """What rows are made from. `small`, `there` and `seen` [C] weigh the classes: the small ones' test images, all test
    images, the small ones' validation images."""

    names: Sequence[str]
    small: NDArray[np.float64]
    there: NDArray[np.float64]
    seen: NDArray[np.float64]
    tested: Mapping[_Method, Resampled]
    validated: Mapping[_Method, Resampled]
    baseline: _Method
    real: _Method

    def row(self, method: _Method, amounts: Mapping[float, NDArray[np.int64]], words: Mapping[str, str]) -> UtilityRow:
        own = self.tested[method]
        recall, accuracy = estimate(own, self.small), estimate(own, self.there)
        recalls = own.by_seed.mean(0)

        def against(other: _Method) -> Difference | None:
            return None if method == other else _difference(estimate(own, self.small, self.tested[other]))

        return UtilityRow(
            method=method.name,
            amount=method.amount,
            share=method.share,
            augmentation=method.augment,
            synthetic=0 if method.amount is None else len(amounts[method.amount]),
            minority_recall=recall.value,
            minority_recall_sd=sd(own.by_seed @ self.small),
            minority_recall_interval=recall.interval,
            accuracy=accuracy.value,
            accuracy_sd=sd(own.by_seed @ self.there),
            accuracy_interval=accuracy.interval,
            per_class={name: float(recalls[c]) if self.there[c] else None for c, name in enumerate(self.names)},
            against_baseline=against(self.baseline),
            against_real=against(self.real),
            validation=float((self.validated[method].by_seed @ self.seen).mean()) if self.seen.any() else None,
            note=words.get(method.name, ""),
        )

    def effects(self, chosen: _Method) -> dict[str, ClassEffect]:
        """Class by class, at 95 % for all classes together (Bonferroni)."""
        ours, theirs = self.tested[chosen], self.tested[self.baseline]
        counts = np.bincount(ours.truth, minlength=len(self.names)).tolist()
        level = 1 - 0.05 / sum(n > 0 for n in counts)
        found: dict[str, ClassEffect] = {}
        for c, (name, n) in enumerate(zip(self.names, counts, strict=True)):
            if not n:
                found[name] = ClassEffect(None, None, None, None, "no test images")
                continue
            difference = estimate(ours, np.eye(len(self.names))[c], theirs, level)
            effect: Effect = "helps" if difference.sign > 0 else "hurts" if difference.sign < 0 else "no difference"
            found[name] = ClassEffect(
                baseline=float(theirs.by_seed[:, c].mean()),
                chosen=float(ours.by_seed[:, c].mean()),
                difference=_difference(difference),
                effect=effect if n >= FEWEST else None,
                reason="" if n >= FEWEST else f"too few test images to tell: {n}",
            )
        return found


def _difference(found: Estimate) -> Difference:
    return Difference(found.value, found.interval, found.differing, found.sign)


def _conclude(
    chosen: UtilityRow,
    baseline: UtilityRow,
    free: Sequence[UtilityRow],
    effects: Mapping[str, ClassEffect],
    accuracy: Difference,
    small: Sequence[str],
) -> tuple[Verdict, str]:
    """`free` are all rows without generated images, `accuracy` the chosen row's over the baseline's on all classes."""
    against = chosen.against_baseline
    assert against is not None, "only the baseline has none"
    best = max(free, key=lambda row: row.minority_recall)
    within = "with too few test images for an interval"
    if against.interval is not None:
        low, high = against.interval
        within = f"{points(low)} to {points(high)} with 95 % confidence"
    found = (
        f"{chosen.method} at {chosen.amount:g}× finds {chosen.minority_recall:.1%} of the small classes' test images "
        f"({shown(small)})"
    )
    size = f"{abs(against.value) * 100:.1f} points"
    if against.sign > 0 and best.minority_recall >= chosen.minority_recall:
        # Seen on the test images, but to the generator's disadvantage alone.
        return (
            "makes no difference",
            f"It makes no difference worth a generator: {found}, {size} more than {baseline.method} ({within}), but "
            f"{best.method}, which needs no generated images, finds {best.minority_recall:.1%}.",
        )
    parts = [
        f"taken singly it {word} {shown(names)}"
        for word in ("helps", "hurts")
        if (names := [name for name, effect in effects.items() if effect.effect == word])
    ]
    if accuracy.sign * against.sign < 0:
        parts.append(f"over all classes accuracy changes by {points(accuracy.value)} points")
    more = "".join(f"; {part}" for part in parts)
    if against.sign > 0:
        return "helps", f"It helps: {found}, {size} more than {baseline.method} ({within}){more}."
    if against.sign < 0:
        return "do not use it", f"Do not use it: {found}, {size} fewer than {baseline.method} ({within}){more}."
    return (
        "makes no difference",
        f"It makes no difference that this test could see: {found}, {points(against.value)} points against "
        f"{baseline.method} ({within}){more}.",
    )
