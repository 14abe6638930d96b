"""Does it help? A small classifier trained with and without generated images, judged on held-out real images alone.

Every method gets the same network, the same number of gradient steps and the same seeds; only the images differ. The
strong baseline is oversampling with affine augmentation, because that costs nothing: generated images that do not beat
it are not worth their training. Intervals are over classifier seeds and test images, for the one set of generated
images that was given: another generator from another seed is another experiment. Knows nothing of where images come
from, and never looks at fidelity.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from augmint.errors import DataError, UsageError
from evaluation.classifier import Synthetic, train_classifier

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["BASELINE", "METHODS", "Method", "UtilityRow", "UtilityTable", "Verdict", "compare"]

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]
Progress = Callable[[int, int, str], None]
Verdict = Literal["helps", "makes no difference", "do not use it"]

_DRAWS: Final = 2000  # Of the bootstrap.


@dataclass(frozen=True)
class Method:
    """One way to make a training set. `share` None with `synthetic`: the images are added, and all count alike."""

    name: str
    balanced: bool = False
    affine: bool = False
    synthetic: bool = False
    share: float | None = None


BASELINE: Final = "oversampling + affine"
OURS: Final = "real + synthetic + affine"
METHODS: Final[tuple[Method, ...]] = (
    Method("real only"),
    Method("oversampling", balanced=True),
    Method(BASELINE, balanced=True, affine=True),
    Method("real + synthetic", synthetic=True),
    # Half of the draws of a class that has generated images are those, half its real images: an even mixture was as
    # good as any other that was tried (docs/log.md).
    Method(OURS, balanced=True, affine=True, synthetic=True, share=0.5),
)


@dataclass(frozen=True)
class UtilityRow:
    """Shares in [0, 1], mean and standard deviation over seeds (0 for one seed).

    `difference` is this method's minority recall less the baseline's, with a 95 % interval; None for the baseline.
    """

    method: str
    minority_recall: float
    minority_recall_sd: float
    accuracy: float
    accuracy_sd: float
    difference: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class UtilityTable:
    """What `compare` found. `conclusion` is one sentence; `verdict` its key word for programs."""

    rows: tuple[UtilityRow, ...]
    verdict: Verdict
    conclusion: str
    minority: tuple[str, ...]
    n_train: dict[str, int]
    n_synthetic: dict[str, int]
    n_test: dict[str, int]
    seeds: tuple[int, ...]
    steps: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `json.dumps`."""
        return asdict(self)

    def text(self) -> str:
        """The table in fixed width, what was compared, and the conclusion."""
        lines = [_TITLES, *self._cells()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(_TITLES))]
        table = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([*table, self.note(), self.conclusion])

    def rich(self) -> Table:
        """The table for a terminal, with the conclusion as its caption."""
        from rich.table import Table

        table = Table(title="Does it help?", caption=f"{self.note()}\n{self.conclusion}")
        for title in _TITLES:
            table.add_column(title, justify="left" if title == _TITLES[0] else "right")
        for row, cells in zip(self.rows, self._cells(), strict=True):
            table.add_row(*cells, style="bold" if row.method in (BASELINE, OURS) else "")
        return table

    def note(self) -> str:
        """What was compared, in one line."""
        return (
            f"Mean ± sd of {len(self.seeds)} classifier seeds, {self.steps} steps each, on "
            f"{sum(self.n_test.values()):,} held-out real images; small classes: {', '.join(self.minority)}."
        )

    def _cells(self) -> list[tuple[str, ...]]:
        cells: list[tuple[str, ...]] = []
        for row in self.rows:
            against = "–"
            if row.difference is not None and row.interval is not None:
                low, high = row.interval
                against = f"{_points(row.difference)} ({_points(low)} to {_points(high)})"
            cells.append(
                (
                    row.method,
                    f"{row.minority_recall:.3f} ± {row.minority_recall_sd:.3f}",
                    f"{row.accuracy:.3f} ± {row.accuracy_sd:.3f}",
                    against,
                )
            )
        return cells


_TITLES = ("training set", "minority recall", "accuracy", f"points over {BASELINE} (95 %)")


def compare(
    train: Labelled,
    test: Labelled,
    synthetic: Labelled,
    class_names: Sequence[str],
    minority: Sequence[str],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    methods: Sequence[Method] = METHODS,
    steps: int = 700,
    processes: int | None = None,
    progress: Progress | None = None,
) -> UtilityTable:
    """Fit `len(methods) × len(seeds)` classifiers and compare them on `test`.

    `train`, `test` and `synthetic` are (images uint8 [N, H, W, C], labels int64 [N]); all labels index `class_names`.
    `minority` names the classes whose recall is averaged. `methods` must hold the baseline and may leave out others.
    `processes` at one thread each (None: as many as cores, at most 2) change the time and nothing else; with more than
    one the caller's main module must be importable (`if __name__ == "__main__":`). `progress(done, total, what)` is
    called after each fit, in this process.
    """
    began = time.perf_counter()
    small = _check(train, test, synthetic, class_names, minority, methods, seeds)
    tasks = [(method, seed) for seed in seeds for method in methods]
    work = _Work(train, test[0], synthetic, len(class_names), steps)
    if processes is None:
        processes = min(2, os.cpu_count() or 1)
    predictions: dict[tuple[str, int], NDArray[np.int64]] = {}
    for method, seed, predicted in _fits(work, tasks, min(processes, len(tasks))):
        predictions[method.name, seed] = predicted
        if progress is not None:
            progress(len(predictions), len(tasks), f"{method.name}, seed {seed}")

    truth = test[1]
    right = {m.name: np.stack([predictions[m.name, seed] == truth for seed in seeds]) for m in methods}
    rows = tuple(_row(m.name, right, truth, small) for m in methods)
    verdict, conclusion = _conclude(rows)
    return UtilityTable(
        rows=rows,
        verdict=verdict,
        conclusion=conclusion,
        minority=tuple(minority),
        n_train=_counts(train[1], class_names),
        n_synthetic=_counts(synthetic[1], class_names),
        n_test=_counts(truth, class_names),
        seeds=tuple(seeds),
        steps=steps,
        seconds=round(time.perf_counter() - began, 1),
    )


def _check(
    train: Labelled,
    test: Labelled,
    synthetic: Labelled,
    class_names: Sequence[str],
    minority: Sequence[str],
    methods: Sequence[Method],
    seeds: Sequence[int],
) -> list[int]:
    """The minority's indices, or the sentence that says what is wrong."""
    unknown = [name for name in minority if name not in class_names]
    if unknown or not minority:
        what = f"has no class {', '.join(map(repr, unknown))}" if unknown else "needs the name of a small class or more"
        raise UsageError(f"The comparison {what}; the classes are {', '.join(map(repr, class_names))}.")
    if len(class_names) < 2:
        raise DataError("A comparison of classifiers needs at least 2 classes.")
    if BASELINE not in [method.name for method in methods] or len({m.name for m in methods}) < len(methods):
        raise ValueError(f"methods must have names of their own and one be {BASELINE!r}.")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be given, each once, got {list(seeds)}.")
    for images, what in ((test[0], "test"), (synthetic[0], "generated")):
        if images.shape[1:] != train[0].shape[1:]:
            raise DataError(
                f"The {what} images are {images.shape[1:]} and the training images {train[0].shape[1:]}: read all at "
                "one size."
            )
    small = [list(class_names).index(name) for name in minority]
    for (_, labels), what in ((train, "training"), (test, "test")):
        missing = [class_names[c] for c in small if not (labels == c).any()]
        if missing:
            raise DataError(f"There are no {what} images of {', '.join(missing)}: the comparison needs some of each.")
    return small


# --- fitting ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """What every fit needs; sent to each process once."""

    train: Labelled
    test_images: NDArray[np.uint8]
    synthetic: Labelled
    num_classes: int
    steps: int

    def fit(self, method: Method, seed: int) -> NDArray[np.int64]:
        """Predictions for the test images, [N]. On one thread, so that they do not depend on where it runs."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            classifier = train_classifier(
                *self.train,
                self.num_classes,
                seed=seed,
                steps=self.steps,
                augment="affine" if method.affine else None,
                sampler="balanced" if method.balanced else None,
                synthetic=Synthetic(*self.synthetic, share=method.share) if method.synthetic else None,
            )
            return classifier.predict(self.test_images)
        finally:
            torch.set_num_threads(threads)


_work: _Work | None = None


def _start(work: _Work) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a process without a stack trace; the parent reports.


def _fit(method: Method, seed: int) -> NDArray[np.int64]:
    assert _work is not None, "_start runs first in every process"
    return _work.fit(method, seed)


def _fits(
    work: _Work, tasks: list[tuple[Method, int]], processes: int
) -> Iterator[tuple[Method, int, NDArray[np.int64]]]:
    if processes <= 1:
        for method, seed in tasks:
            yield method, seed, work.fit(method, seed)
        return
    # Processes, because threads do not speed up networks this small; spawned, because torch's threads do not survive
    # a fork.
    context = multiprocessing.get_context("spawn")
    left = list(tasks)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(work,)) as pool:
        futures = {pool.submit(_fit, *task): task for task in tasks}
        try:
            for future in as_completed(futures):
                method, seed = futures[future]
                predicted = future.result()
                left.remove((method, seed))
                yield method, seed, predicted
        except BrokenProcessPool:
            pass  # A caller whose main module cannot be imported, or too little memory for two: go on alone.
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for method, seed in left:
        yield method, seed, work.fit(method, seed)


# --- figures ----------------------------------------------------------------------------------------------------------


def _row(name: str, right: Mapping[str, NDArray[np.bool_]], truth: NDArray[np.int64], small: list[int]) -> UtilityRow:
    """`right` [seeds, test images] by method."""
    recalls = np.mean([right[name][:, truth == c].mean(1) for c in small], axis=0)
    accuracies = right[name].mean(1)
    difference, interval = None, None
    if name != BASELINE:
        paired = right[name].astype(np.float64) - right[BASELINE]
        difference, interval = _difference([paired[:, truth == c] for c in small])
    return UtilityRow(
        name, float(recalls.mean()), _sd(recalls), float(accuracies.mean()), _sd(accuracies), difference, interval
    )


def _difference(paired: list[NDArray[np.float64]]) -> tuple[float, tuple[float, float]]:
    """Mean over classes of paired differences [seeds, images], and its 95 % bootstrap interval over both.

    Of n seeds n - 1 are drawn with replacement, and so of the images of a class: drawing all n of a handful understates
    the spread by (n - 1) / n (McCarthy & Snowden 1985).
    """
    rng = np.random.Generator(np.random.Philox(0))
    seeds = len(paired[0])

    def weights(n: int) -> NDArray[np.float64]:
        return rng.multinomial(max(1, n - 1), np.full(n, 1 / n), size=_DRAWS) / max(1, n - 1)

    of_seeds = weights(seeds)
    draws = np.mean([((of_seeds @ block) * weights(block.shape[1])).sum(1) for block in paired], axis=0)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(np.mean([block.mean() for block in paired])), (float(low), float(high))


def _conclude(rows: Sequence[UtilityRow]) -> tuple[Verdict, str]:
    """From the mixture with augmentation if it was run, else from the best method with generated images."""
    ours = [row for row in rows if row.method == OURS] or [row for row in rows if "synthetic" in row.method]
    if not ours:
        return "makes no difference", "No method with generated images was compared."
    row = max(ours, key=lambda row: row.minority_recall)
    assert row.difference is not None, "only the baseline has none"
    assert row.interval is not None, "it comes with the difference"
    low, high = row.interval
    within = f"({_points(low)} to {_points(high)} with 95 % confidence)"
    found = f"{row.method} finds {row.minority_recall:.1%} of the small classes' test images"
    size = f"{abs(row.difference) * 100:.1f} points"
    if low > 0:
        return "helps", f"It helps: {found}, {size} more than {BASELINE} {within}."
    if high < 0:
        return "do not use it", f"Do not use it: {found}, {size} fewer than {BASELINE} {within}."
    return (
        "makes no difference",
        f"It makes no difference that this test could see: {found}, {_points(row.difference)} points "
        f"against {BASELINE} {within}.",
    )


def _points(share: float) -> str:
    return f"{share * 100 + 0.0:+.1f}"


def _sd(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _counts(labels: NDArray[np.int64], class_names: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(labels, minlength=len(class_names))
    return {name: int(counts[c]) for c, name in enumerate(class_names)}
