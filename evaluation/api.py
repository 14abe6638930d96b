"""The door of this room: generated images and a data set in, an `Evaluation` out, which says whether they help.

Cheap parts come first (copying, fidelity), then what trains classifiers: the accuracy of classifiers of generated
images alone, and last the verdict. What a part computes is remembered by content, so that a second call goes on where a
first one was interrupted. Knows nothing of runs and how they become bundles, and nothing of pages
(`evaluation/report.py`).
"""

from __future__ import annotations

import platform
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

import augmint
from augmint.bundle import Utility
from augmint.data import DataSet
from augmint.errors import DataError, UsageError
from augmint.images import Resize
from augmint.runtime import usable_cores
from augmint.samples import Source
from evaluation.cache import Cache
from evaluation.cas import CasReport, cas
from evaluation.classifier import SMALLEST
from evaluation.copying import CopyingReport, copying
from evaluation.extractors import open_extractor
from evaluation.fidelity import FidelityReport, measure
from evaluation.inputs import Fakes, Inputs, SourceFacts, open_inputs
from evaluation.label_fidelity import open_judge
from evaluation.utility import UtilityConfig, images_needed, utility
from evaluation.utility_report import UtilityReport

__all__ = ["EvaluateRequest", "Evaluation", "Pictures", "Progress", "evaluate", "summary"]

Progress = Callable[[str, int, int, str], None]
"""Called with (part, done, total, what is being done)."""

EXTRACTORS: Final = ("efficientnet-lite0", "classifier")
_FIDELITY: Final = {False: 200, True: 60}  # generated images of each class that fidelity and copying look at
_MOST: Final = {False: 3000, True: 1000}  # … of all classes together
_STEPS: Final = 700  # of the classifiers beside the verdict's, at most
_CAS_SEEDS: Final = {False: 3, True: 2}
_MOST_ALONE: Final = 1000  # generated images of each class for classifiers of them alone
_LONG: Final = 80  # characters of a command line that fit
_SHOWN: Final = 12  # pictures of each class
_PAIRS: Final = 12  # nearest neighbours to look at
_THIN: Final = 30  # test images of a class below which one of them is worth more than three points

# The names of the parts, as progress and the report call them.
READ, GENERATE, COPYING, FIDELITY, CAS, VERDICT = (
    "reading",
    "generating",
    "copying",
    "fidelity",
    "trained on generated images",
    "verdict",
)


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """What to evaluate, as a user says it.

    Attributes:
        source: a bundle's directory, a service's http(s) URL, a folder, CSV or npz of generated images, or a `Source`.
        data: real images, as `load_data` takes them.
        bundle, token, device: see `augmint.sources.open_source`.
        quick: fewer classifiers and images: about 3 minutes on 5,000 small images and 2 cores, else up to 15.
        seed: of the images that are generated.
        quality: which of them to keep, see `augmint.quality`.
        seeds: classifiers of each method; None: the verdict's own number.
        extractors: see `evaluation.extractors`; None: EXTRACTORS, or those of them that the images allow.
        minority: classes that the verdict is about; None: those with few train images.
        resize: how real images of another shape are brought to the source's; None: as the bundle's training did.
        skip_bad: leave out images that cannot be read.
        cache: remember what was computed (`evaluation.cache`).
        words: what the report calls the source; None: as `source` is given.
    """

    source: str | Path | Source
    data: str | Path | DataSet
    bundle: str | None = None
    token: str | None = None
    device: str = "auto"
    quick: bool = False
    seed: int = 0
    quality: str = "none"
    seeds: int | None = None
    extractors: tuple[str, ...] | None = None
    minority: tuple[str, ...] | None = None
    resize: Resize | None = None
    skip_bad: bool = False
    cache: bool = True
    words: str | None = None


@dataclass(frozen=True, eq=False)
class NearestPair:
    """A generated image and the train image nearest to it, uint8 [H, W, C]; see `evaluation.copying.Pair`."""

    fake: NDArray[np.uint8]
    real: NDArray[np.uint8]
    label: str
    relative: float | None
    copy: str


@dataclass(frozen=True, eq=False)
class Pictures:
    """The images that a report shows: real ones (of the train split) and generated ones, with their labels."""

    real: NDArray[np.uint8]
    real_labels: NDArray[np.int64]
    fake: NDArray[np.uint8]
    fake_labels: NDArray[np.int64] | None
    pairs: tuple[NearestPair, ...] = ()


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found. Parts that could not be measured are None or empty, and `reasons` says why, by the part's name.

    Attributes:
        source: where the generated images come from.
        data, data_words: the real images, and what they were called.
        shape: (height, width, channels) at which everything was compared.
        generated: images by class name ("" without classes), of `seed` (None: they were there already) and `quality`.
        utility: the verdict with every figure behind it.
        fidelity: by extractor.
        copying: near and exact copies of training images.
        cas: classifiers trained on generated images alone.
        caveats: what the figures do not say, in sentences.
        notes: what was noticed on the way.
        ran: what was run, for the record: plain values.
        seconds: by part.
        pictures: images for the report.
    """

    source: SourceFacts
    data: DataSet
    data_words: str
    shape: tuple[int, int, int]
    generated: dict[str, int]
    seed: int | None
    quality: str
    quick: bool
    utility: UtilityReport | None
    fidelity: tuple[FidelityReport, ...]
    copying: CopyingReport | None
    cas: CasReport | None
    reasons: dict[str, str]
    caveats: tuple[str, ...]
    notes: tuple[str, ...]
    ran: dict[str, Any]
    seconds: dict[str, float] = field(compare=False)
    pictures: Pictures = field(repr=False)

    @property
    def no_verdict(self) -> str:
        """Why there is no verdict, in a clause; "" where there is one."""
        return self.reasons.get(VERDICT, "")

    @property
    def sentence(self) -> str:
        """The answer."""
        if self.utility is not None:
            return self.utility.conclusion
        return f"Whether the images help a classifier cannot be said: {self.no_verdict}."

    @property
    def advice(self) -> str:
        """What to do with it, in a sentence or two."""
        if self.utility is None:
            return "Look at fidelity, diversity and copying below, and at the images themselves."
        chosen = self.utility.chosen
        if self.utility.verdict != "helps":
            than = "as well" if self.utility.verdict == "makes no difference" else "better"
            return f"Train with {self.utility.baseline} and without generated images: it costs nothing and does {than}."
        mixed = ""
        if chosen.share is not None:
            mixed = (
                f" Draw every class alike often, and up to {chosen.share:.0%} of a class's draws from its generated "
                "images."
            )
        augmented = "" if chosen.augmentation is None else f" Augment all of them ({chosen.augmentation})."
        made = sum(chosen.images.values())
        return f"Add {made:,} generated images ({chosen.amount:g}×).{mixed}{augmented}" + (
            " This writes the data set:" if self.command else ""
        )

    @property
    def command(self) -> str:
        """The command lines that make the recommended data set; "" where there is nothing to recommend."""
        if self.utility is None or self.utility.verdict != "helps" or self.source.kind == "images":
            return ""
        train = self.data.counts("train")
        more = {name: n for name, n in self.utility.chosen.images.items() if n}
        largest = max(train.values())
        lines, bundle = [], self.source.words or self.source.name
        if self.source.kind == "run":
            lines.append(["augmint", "export", bundle, "--out", bundle := f"bundles/{Path(bundle).name}"])
        words = ["augmint", "balance", self.data_words, bundle]
        # Without a strategy, every class is filled up to the largest.
        if any(train[name] + more.get(name, 0) != largest for name in train):
            for name, n in more.items():
                words += ["--strategy", f"{name}={train[name] + n}"]
        words += ["--seed", str(self.seed)]
        words += ["--quality", self.quality] if self.quality != "none" else []
        words += ["--out", "balanced"]
        return "\n".join(shlex.join(line) for line in [*lines, words])

    @property
    def command_lines(self) -> list[str]:
        """The same, long lines continued before their options, still to be pasted as they are."""
        lines: list[str] = []
        for line in self.command.splitlines():
            words = shlex.split(line)
            parts = [[words[0]]]
            for word in words[1:]:
                parts.append([word]) if word.startswith("--") else parts[-1].append(word)
            joined = [("  " if i else "") + shlex.join(part) for i, part in enumerate(parts)]
            lines += [line] if len(line) <= _LONG else [f"{part} \\" for part in joined[:-1]] + joined[-1:]
        return lines

    def to_json(self, *, timings: bool = True) -> dict[str, Any]:
        """Plain values, without NaN. Without `timings` nothing in it depends on how long anything took."""
        counts = {split: self.data.counts(split) for split in ("train", "validation", "test")}
        document: dict[str, Any] = {
            "kind": "augmint-evaluation",
            "schema_version": 1,
            "verdict": None if self.utility is None else self.utility.verdict,
            "sentence": self.sentence,
            "advice": self.advice,
            "command": self.command or None,
            "source": asdict(self.source),
            "data": {
                "name": self.data.name,
                "fingerprint": self.data.fingerprint,
                "shape": list(self.shape),
                "classes": {name: {split: n[name] for split, n in counts.items()} for name in self.data.class_names},
            },
            "generated": {"images": self.generated, "seed": self.seed, "quality": self.quality},
            "quick": self.quick,
            "utility": self.utility and self.utility.to_json(),
            "fidelity": [report.to_json() for report in self.fidelity],
            "copying": self.copying and self.copying.to_json(),
            "cas": self.cas and self.cas.to_json(),
            "reasons": self.reasons,
            "caveats": list(self.caveats),
            "notes": list(self.notes),
            "ran": self.ran,
        }
        if timings:
            return document | {"seconds": {part: round(value, 2) for part, value in self.seconds.items()}}
        # Nor whether a fit was remembered.
        plain: dict[str, Any] = _without(document, frozenset({"seconds", "fits_cached"}))
        return plain

    def text(self) -> str:
        """What a terminal shows: the answer, the table, and what else was measured in a line each."""
        lines = [self.sentence, self.advice]
        if self.command:
            lines += ["", *(f"  {line}" for line in self.command_lines)]
        if self.utility is not None:
            # The conclusion stands above already.
            lines += ["", self.utility.text().removesuffix(self.utility.conclusion).rstrip()]
        lines += ["", *self._measured()]
        lines += [f"{part}: {reason}" for part, reason in self.reasons.items() if part != VERDICT]
        if self.caveats:
            lines += ["", "read with care", *(f"  - {caveat}" for caveat in self.caveats)]
        # Class names are somebody else's words: nothing in them may steer a terminal.
        return "".join(c if c.isprintable() or c == "\n" else "?" for c in "\n".join(lines))

    def _measured(self) -> Iterator[str]:
        for report in self.fidelity:
            figures = (
                f"{name.replace('_', ' ')} {value:.3f}" for name, value in report.mean().items() if value is not None
            )
            yield f"fidelity  {', '.join(figures)}; in {report.extractor}"
        if self.copying is not None:
            yield f"copying   {self.copying.conclusion}"
        if self.cas is not None:
            yield f"cas       {self.cas.conclusion}"


def evaluate(request: EvaluateRequest, progress: Progress | None = None) -> Evaluation:
    """Measure everything that can be measured.

    Args:
        request: see there.
        progress: called often, from this thread.

    Raises:
        AugmintError: the source, the data or an option cannot be used; the sentence says which.
    """
    clock = _Clock(progress or (lambda part, done, total, what: None))
    quick = request.quick
    cache = Cache.default() if request.cache else Cache(None)
    config = UtilityConfig.quick() if quick else UtilityConfig()
    if request.seeds is not None:
        config = replace(config, seeds=tuple(range(request.seeds)))

    # Of what is not the verdict: it need not know as much.
    steps = min(config.steps, _STEPS)

    with clock.part(READ):
        inputs = open_inputs(
            request.source,
            request.data,
            bundle=request.bundle,
            device=request.device,
            token=request.token,
            seed=request.seed,
            resize=request.resize,
            skip_bad=request.skip_bad,
            words=request.words,
            quality=request.quality,
        )
        _check_minority(request, inputs)
        extractors = _extractors(request, inputs, quick)
    with clock.part(GENERATE) as step:
        fakes = inputs.fakes(_wanted(inputs, config, quick), lambda done, total: step(done, total, "images"))
        few = fakes.first(_looked_at(inputs, quick))
    reasons: dict[str, str] = {}

    held_out = (
        np.concatenate([inputs.validation[0], inputs.test[0]]),
        np.concatenate([inputs.validation[1], inputs.test[1]]),
    )
    copies: CopyingReport | None = None
    if not len(held_out[0]):
        reasons[COPYING] = "the data have no images that were not trained on"
    else:
        with clock.part(COPYING) as step:
            copies = copying(
                few.images,
                few.labels,
                *inputs.train,
                *held_out,
                inputs.class_names,
                # In pixels, always: a network trained on the train split draws its images together, and one trained
                # on photographs hardly sees a noisy copy of a small image.
                features=open_extractor("pixels", train=inputs.train, cache=cache, progress=step),
                pairs=_PAIRS,
            )

    fidelity: list[FidelityReport] = []
    if len(inputs.test[0]) < 2:
        reasons[FIDELITY] = "the data have fewer than 2 test images"
    else:
        judge = None
        if inputs.source.labelled:
            judge = open_judge(inputs.train, held_out, len(inputs.class_names), steps=steps, cache=cache)
        for spec in extractors:
            with clock.part(f"{FIDELITY} in {Path(spec).name}") as step:
                fidelity.append(
                    measure(
                        few.images,
                        few.labels,
                        inputs.test[0],
                        None if few.labels is None else inputs.test[1],
                        inputs.class_names,
                        features=open_extractor(
                            spec,
                            train=inputs.train,
                            num_classes=len(inputs.class_names),
                            steps=steps,
                            cache=cache,
                            progress=step,
                        ),
                        judge=judge,
                    )
                )

    alone: CasReport | None = None
    report: UtilityReport | None = None
    if inputs.no_verdict:
        reasons[CAS] = reasons[VERDICT] = inputs.no_verdict
    else:
        with clock.part(CAS) as step:
            try:
                alone = cas(
                    fakes.first(_as_many_as_real(inputs)).labelled,
                    inputs.train,
                    inputs.test,
                    inputs.class_names,
                    seeds=config.seeds[: _CAS_SEEDS[quick]],
                    steps=steps,
                    cache=cache,
                    progress=step,
                )
            except DataError as error:
                reasons[CAS] = str(error).rstrip(".")
        with clock.part(VERDICT) as step:
            try:
                report = utility(
                    inputs.train,
                    inputs.validation,
                    inputs.test,
                    fakes.labelled,
                    inputs.class_names,
                    minority=request.minority,
                    config=config,
                    cache=cache,
                    progress=step,
                )
            except DataError as error:
                reasons[VERDICT] = str(error).rstrip(".")

    data_words = str(request.data) if isinstance(request.data, str | Path) else inputs.data.name
    return Evaluation(
        source=inputs.source,
        data=inputs.data,
        data_words=data_words,
        shape=inputs.shape,
        generated=_counts(fakes, inputs.class_names),
        seed=fakes.seed,
        quality=request.quality,
        quick=quick,
        utility=report,
        fidelity=tuple(fidelity),
        copying=copies,
        cas=alone,
        reasons=reasons,
        caveats=tuple(_caveats(inputs, report, request)),
        notes=inputs.notes,
        ran=_ran(config, extractors, len(few.images)),
        seconds=clock.seconds,
        pictures=_pictures(inputs, few, copies),
    )


def summary(evaluation: Evaluation) -> Utility | None:
    """The verdict as a bundle's manifest states it; None where there is none."""
    report = evaluation.utility
    if report is None:
        return None
    row = next(row for row in report.rows if report.is_chosen(row))
    difference = row.against_baseline
    return Utility(
        verdict=report.verdict,
        sentence=report.conclusion,
        method=row.method,
        amount=f"{sum(report.chosen.images.values()):,} generated images ({report.chosen.amount:g}×)",
        classes=report.minority,
        difference=None if difference is None else round(difference.value, 6),
        interval=None
        if difference is None or difference.interval is None
        else (round(difference.interval[0], 6), round(difference.interval[1], 6)),
        seeds=len(report.seeds),
        n=sum(report.n_test.values()),
    )


# ------------------------------------------------------------------------------------------------- before the work


def _check_minority(request: EvaluateRequest, inputs: Inputs) -> None:
    unknown = [name for name in request.minority or () if name not in inputs.class_names]
    if unknown:
        raise UsageError(
            f"--minority: the data have no class {unknown[0]!r}, but {', '.join(inputs.class_names[:20])}.",
            code="usage.minority",
        )


def _extractors(request: EvaluateRequest, inputs: Inputs, quick: bool) -> tuple[str, ...]:
    """What was asked for; or, where nothing was, what the images allow and the time is enough for."""
    if request.extractors is not None:
        # Opened now, so that a wrong path is refused before an hour's work, not after.
        for spec in request.extractors:
            open_extractor(spec, train=inputs.train, num_classes=len(inputs.class_names))
        return tuple(dict.fromkeys(request.extractors))
    trained = len(inputs.class_names) > 1 and min(inputs.shape[:2]) >= SMALLEST
    own = "classifier" if trained else "pixels"
    return (own,) if quick else (EXTRACTORS[0], own)


def _wanted(inputs: Inputs, config: UtilityConfig, quick: bool) -> dict[str, int] | int:
    """How many images of each class all parts together can use: the largest of their wishes."""
    classes = inputs.source.classes
    if not inputs.source.labelled:
        return _MOST[quick]
    counts = inputs.data.counts("train")
    needed = images_needed(counts, config)
    return {name: max(needed[name], _looked_at(inputs, quick), _as_many_as_real(inputs)) for name in classes}


def _looked_at(inputs: Inputs, quick: bool) -> int:
    """Of each class (in all, without classes) for fidelity and copying."""
    return max(20, min(_FIDELITY[quick], _MOST[quick] // max(1, len(inputs.source.classes))))


def _as_many_as_real(inputs: Inputs) -> int:
    """Of each class for classifiers of generated images alone: as many as the largest class has, within reason."""
    return min(max(inputs.data.counts("train").values()), _MOST_ALONE)


# ------------------------------------------------------------------------------------------------- after it


def _caveats(inputs: Inputs, report: UtilityReport | None, request: EvaluateRequest) -> Iterator[str]:
    """What the figures do not say."""
    if request.quick:
        yield "This was a quick evaluation: fewer classifiers and one amount. Decide on a full one."
    if inputs.source.trained_on == "another":
        yield (
            "The generator was trained on other data than these, or on another split of them. If test images were "
            "among them, every figure here flatters it."
        )
    elif inputs.source.trained_on == "unknown":
        yield (
            "Nothing here says which images the generator was trained on. If test images were among them, every "
            "figure here flatters it."
        )
    if report is None:
        return
    yield (
        f"{len(report.seeds)} classifiers were trained of each method, but all on the images of one generator: the "
        "same recipe trained anew may come out otherwise."
    )
    if not report.chosen.by_validation:
        yield report.chosen.why
    thin = [name for name in report.minority if report.n_test[name] < _THIN]
    if thin:
        yield (
            f"There are fewer than {_THIN} test images of {', '.join(thin[:10])}{', …' if len(thin) > 10 else ''}: one "
            "image more or less is worth more than three points of recall there."
        )
    yield (
        f"The classifiers are small networks, trained for {report.steps} steps from nothing. A large network that was "
        "trained on other pictures before may gain less."
    )
    yield from report.notes


def _ran(config: UtilityConfig, extractors: tuple[str, ...], looked_at: int) -> dict[str, Any]:
    return {
        "augmint": augmint.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cores": usable_cores(),
        "device": "cpu",
        "classifier_seeds": list(config.seeds),
        "classifier_steps": config.steps,
        "extractors": [Path(spec).name for spec in extractors],
        "fidelity_images": looked_at,
    }


def _pictures(inputs: Inputs, fakes: Fakes, copies: CopyingReport | None) -> Pictures:
    """Real train images in an order that their names do not decide, and the first generated ones."""
    images, labels = inputs.train
    order = np.random.Generator(np.random.Philox(0)).permutation(len(images))
    rows = [order[labels[order] == c][:_SHOWN] for c in range(len(inputs.class_names))]
    chosen = np.concatenate(rows)
    shown = fakes.first(_SHOWN if fakes.labels is not None else 4 * _SHOWN)
    pairs = []
    for found in copies.pairs if copies is not None else ():
        label = "" if fakes.labels is None else inputs.class_names[fakes.labels[found.fake]]
        pairs.append(NearestPair(fakes.images[found.fake], images[found.train], label, found.relative, found.copy))
    return Pictures(images[chosen], labels[chosen], shown.images, shown.labels, tuple(pairs))


def _counts(fakes: Fakes, names: tuple[str, ...]) -> dict[str, int]:
    if fakes.labels is None:
        return {"": len(fakes.images)}
    return {name: int(n) for name, n in zip(names, np.bincount(fakes.labels, minlength=len(names)), strict=True)}


def _without(value: Any, names: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(item, names) for key, item in value.items() if key not in names}
    return [_without(item, names) for item in value] if isinstance(value, list | tuple) else value


class _Clock:
    """What took how long, part by part, and the voice of each part."""

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def part(self, name: str) -> Iterator[Callable[[int, int, str], None]]:
        began = time.monotonic()
        last = (0, 1)

        def step(done: int, total: int, what: str) -> None:
            nonlocal last
            last = (done, total)
            self._progress(name, done, total, what)

        self._progress(name, 0, 1, "")
        yield step
        if last[0] < last[1]:
            self._progress(name, last[1], last[1], "")
        self.seconds[name] = time.monotonic() - began
