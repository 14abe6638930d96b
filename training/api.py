"""The two doors of this room: `train` makes a run, `resume` goes on with one.

From a request (some of it open) to a configuration (none of it open) to the loop; everything that a user can have got
wrong is found here, before time is spent.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from augmint.data import DataSet, load_data
from augmint.errors import DataError, TrainingError, UsageError
from augmint.images import RESIZE_POLICIES, Resize
from evaluation.selection import SelectionScore
from training.config import Precision, TrainConfig, TrainRequest, options_from, parse_resolution
from training.examination import Examiner
from training.families import family
from training.loop import finish, train_loop
from training.machine import resolve_device, torch_settings
from training.probe import EXAMINATIONS, SCORE_IMAGES, fit_to_time, probe_seconds, steps_per_second
from training.progress import Reporter, make_reporter
from training.run import Run
from training.trainer import Trainer

__all__ = ["resume", "train"]

DEFAULT_MINUTES = 10.0
TIME_LIMIT = 1.3
"""A run that takes this many times its budget is finished early, at the step it reached."""
CHECKPOINT_SECONDS = 15.0


def train(request: TrainRequest, *, progress: bool | None = None) -> Run:
    """Trains as `request` says and returns the finished run.

    `progress` False is silent, None shows a bar on a terminal and lines elsewhere, on stderr.

    Raises UsageError, DataError, DeviceError or TrainingError for what the user can mend, and Interrupted (a
    KeyboardInterrupt) when Ctrl-C or SIGTERM stopped it after a checkpoint.
    """
    with make_reporter(progress) as reporter:
        # Everything a user may have got wrong, cheapest first.
        family_type = family(request.family)
        options = options_from(request.family, request.settings, batch=request.batch, preset=request.preset)
        seconds, steps = _length(request)
        device = resolve_device(request.device)
        precision = _precision(request.precision)
        if request.threads is not None and request.threads < 1:
            raise UsageError(f"--threads {request.threads}: give at least 1.")
        if not 0 <= request.seed < 2**63:
            raise UsageError(f"--seed {request.seed} is out of range: choose 0 … 2^63 - 1.")
        for name, every in (("checkpoint", request.checkpoint_every), ("evaluate", request.evaluate_every)):
            if every is not None and every < 1:
                raise UsageError(f"--{name}-every {every}: give at least 1 step.")
        if request.resize not in RESIZE_POLICIES:
            raise UsageError(f"--resize {request.resize!r} is unknown: choose one of {', '.join(RESIZE_POLICIES)}.")
        resolution = parse_resolution(request.resolution)
        if request.out is not None:
            Run.check_free(request.out)

        data = load_data(request.data, skip_bad=request.skip_bad)
        began = time.monotonic()
        for note in data.notes:
            reporter.say(f"note: {note}")
        shape = data.native_shape(resolution)
        height, width, channels = shape
        conditional = family_type.conditional and not request.ignore_labels and len(data.class_names) > 1
        if conditional:
            data.require_images("train")
        elif family_type.finds_categories and not request.ignore_labels:
            reporter.say(f"family {request.family!r} learns without labels: they name its categories afterwards.")
        elif len(data.class_names) > 1 and not request.ignore_labels and not family_type.supervised:
            reporter.say(f"family {request.family!r} is unconditional: it ignores the {len(data.class_names)} labels.")
        elif family_type.supervised and request.ignore_labels:
            raise UsageError(f"family {request.family!r} learns to classify: it cannot do with --ignore-labels.")

        draft = TrainConfig(
            made_with=_made_with(),
            data=data.spec,
            data_name=data.name,
            data_fingerprint=data.fingerprint,
            skip_bad=request.skip_bad,
            class_names=data.class_names,
            class_counts=tuple(data.counts("train").values()),
            image_shape=shape,
            resize=request.resize,
            family=request.family,
            options=options,
            conditional=conditional,
            seed=request.seed,
            steps=steps or 1,
            minutes=None if steps else seconds / 60,
            device=device,
            precision=precision or "32-true",
            threads=request.threads or 1,
            channels_last=True,  # never measured slower; a probe may still find it so
            log_every=1,
            evaluate_every=1,
            score_images=SCORE_IMAGES[-1],
            checkpoint_every=1,
            tensorboard=request.tensorboard,
            ignore_labels=request.ignore_labels,
        )
        recipe = draft.make_family()  # with the family's own checks
        classes = 0 if request.ignore_labels else len(data.class_names)
        if family_type.finds_categories and recipe.categories < classes:
            reporter.say(
                f"note: {recipe.categories} categories cannot be told by {classes} labels: pass --set "
                f"categories={classes} --set latent_dim={options.latent_dim + classes - recipe.categories}."
            )
        if family_type.supervised and draft.critic_classes:
            data.require_images("train")
            reporter.say(
                f"family {request.family!r} is unconditional; its critic learns {len(draft.critic_classes)} classes."
            )
        material = _Material(draft, data)
        with torch_settings(device=device, threads=draft.threads):
            reporter.say(
                f"{data.name}: {sum(draft.class_counts):,} training images of {len(data.class_names)} classes, "
                f"{height}x{width}, {'colour' if channels == 3 else 'grey'}; family {request.family!r} on {device}."
            )
            if steps is None:
                scorer = material.fit_scorer(0.05 * seconds)
                config = _fit(draft, request, material, scorer, seconds - (time.monotonic() - began), reporter)
            else:
                # A run given in steps is the same wherever its command is typed: nothing is measured.
                scorer = material.fit_scorer()
                config = _with_cadence(replace(draft, score_images=500), None, EXAMINATIONS)
        if request.checkpoint_every is not None:
            config = replace(config, checkpoint_every=request.checkpoint_every)
        if request.evaluate_every is not None:
            config = replace(config, evaluate_every=request.evaluate_every)

        run = Run.create(request.out or _next_out(data.name, request.family), config)
        with run.lock():
            run.save_checkpoint("scorer", scorer.state_dict())
            deadline = None if steps else began + TIME_LIMIT * seconds
            _train(run, material, scorer, reporter, deadline=deadline)
        return run


def resume(run: Run | str | Path, *, data: str | Path | DataSet | None = None, progress: bool | None = None) -> Run:
    """Goes on where `run` stopped, with the same result as if it never had, bit for bit on the CPU.

    `data` is the data set, where it is no longer where the run found it; its content must be the same. A finished run
    is returned as it is.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    config = run.config
    with make_reporter(progress) as reporter, run.lock():
        started = run.checkpoint_path("last").is_file()
        resumed = run.load_checkpoint("last") if started else None
        if resumed is not None and resumed["state"]["step"] >= config.steps:
            finish(run, resumed)
            reporter.say(f"{run.path} is finished: all {config.steps} steps are done.")
            return run
        if config.made_with != _made_with():
            reporter.say(
                f"note: the run was made with {config.made_with}, this is {_made_with()}: the last bits may differ."
            )
        resolve_device(config.device)
        found = load_data(config.data if data is None else data, skip_bad=config.skip_bad)
        if found.fingerprint != config.data_fingerprint:
            raise TrainingError(
                f"the data set at {found.spec} is not the one that {run.path} was trained on (images, labels or split "
                "changed): restore it, say where it is (`augmint train DATA --resume RUN`), or train anew.",
                code="training.data-changed",
            )
        material = _Material(config, found)
        with torch_settings(device=config.device, threads=config.threads):
            scorer = material.restore_scorer(run)
            if scorer is None:
                if resumed is not None:
                    reporter.say("note: what scored checkpoints cannot be read; scores from now on are from a new one.")
                scorer = material.fit_scorer()
                run.save_checkpoint("scorer", scorer.state_dict())
        reporter.say(f"going on with {run.path} at step {resumed['state']['step'] if resumed else 0}.")
        _train(run, material, scorer, reporter, resumed=resumed)
        return run


def _train(
    run: Run,
    material: _Material,
    scorer: SelectionScore,
    reporter: Reporter,
    *,
    resumed: dict[str, object] | None = None,
    deadline: float | None = None,
) -> None:
    config = run.config
    with torch_settings(device=config.device, threads=config.threads):
        trainer = Trainer(config, *material.tensors())
        examiner = Examiner(config, scorer, material.images, material.labels, judged=material.judged())
        train_loop(run, trainer, examiner, reporter, resumed=resumed, deadline=deadline)
    best = run.status().best
    if best is not None:
        reporter.say(f"best at step {best.step} of {config.steps}: score {best.score:.3f}; the run is in {run.path}.")


class _Material:
    """A data set at the shape of a training."""

    def __init__(self, config: TrainConfig, data: DataSet) -> None:
        self.config, self.class_names = config, data.class_names
        resize = cast(Resize, config.resize)
        self.images, self.labels = data.images("train", shape=config.image_shape, resize=resize)
        self.val_images, self.val_labels = data.images("validation", shape=config.image_shape, resize=resize)
        if len(self.images) < 2:
            raise DataError(f"{data.name} has {len(self.images)} training images: add some.", code="data.too-few")

    def tensors(self) -> tuple[Tensor, Tensor]:
        """uint8 [N, C, H, W], and int64 [N]: numbers of `critic_classes`, -1 for images of no such class, or zeros when
        no network takes a label."""
        labels = self._numbers(self.labels) if self.config.critic_classes else np.zeros_like(self.labels)
        return torch.from_numpy(np.ascontiguousarray(self.images.transpose(0, 3, 1, 2))), torch.from_numpy(labels)

    def judged(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        """Validation images of `critic_classes`, with their numbers: what a critic that classifies is judged on."""
        if not (family(self.config.family).supervised and self.config.critic_classes):
            return None
        numbers = self._numbers(self.val_labels)
        return (self.val_images[numbers >= 0], numbers[numbers >= 0]) if (numbers >= 0).any() else None

    def _numbers(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        names = self.config.critic_classes
        return np.array([names.index(n) if n in names else -1 for n in self.config.class_names])[labels]

    def fit_scorer(self, seconds: float = 6.0) -> SelectionScore:
        """In at most `seconds`, or, for a run given in steps, for a number of steps that follows from them."""
        timed = self.config.minutes is not None
        steps = None if timed else min(max(self.config.steps // 2, 20), 600)
        return SelectionScore.fit(*self._scored(), seed=0, steps=steps, seconds=min(seconds, 6.0))

    def restore_scorer(self, run: Run) -> SelectionScore | None:
        """None when the run was killed before it had one, or had one that this version cannot read."""
        try:
            return SelectionScore.restore(run.load_checkpoint("scorer"), *self._scored())
        except (TrainingError, RuntimeError, KeyError, ValueError):
            return None

    def _scored(
        self,
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...], NDArray[np.uint8], NDArray[np.int64]]:
        # An unconditional generator is scored without labels, but in features that a classifier learned from them.
        images, labels = self.images, self.labels
        if self.config.critic_classes:  # "unlabelled" is no class to tell from others
            known = self._numbers(labels) >= 0
            images, labels = images[known], labels[known]
        return images, labels, self.class_names, self.val_images, self.val_labels


def _fit(
    draft: TrainConfig,
    request: TrainRequest,
    material: _Material,
    scorer: SelectionScore,
    seconds: float,
    reporter: Reporter,
) -> TrainConfig:
    """The configuration for the `seconds` that are left of the budget."""
    began = time.monotonic()
    images, labels = material.tensors()
    examiner = Examiner(draft, scorer, material.images, material.labels)
    examination = examiner.examine(Trainer(draft, images[:64], labels[:64]).average, step=0)
    each = probe_seconds(seconds) / 5

    def measure(config: TrainConfig) -> float:
        return steps_per_second(config, images, labels, seconds=each)

    plan = fit_to_time(
        draft,
        measure,
        settings=[*request.settings, *(["batch"] if request.batch is not None else [])],
        fixed_precision=request.precision is not None,
        fixed_threads=request.threads is not None,
        examination_seconds=examination.seconds,
        seconds=seconds - (time.monotonic() - began),
    )
    config = _with_cadence(plan.config, plan.steps_per_second, plan.examinations)
    rate = plan.steps_per_second * config.options.batch
    reporter.say(
        f"{config.steps:,} steps of {config.options.batch} images fit {seconds:.0f} s at {rate:,.0f} images/s "
        f"({config.threads} thread{'s' if config.threads > 1 else ''}, {config.precision}"
        f"{', channels last' if config.channels_last else ''})."
    )
    if config.steps < 300:
        reporter.say(f"note: {config.steps} steps are too few to learn much; give more --minutes.")
    return config


def _with_cadence(config: TrainConfig, rate: float | None, examinations: int) -> TrainConfig:
    """Logs about 200 times, examines `examinations` times, keeps a checkpoint about every 15 seconds."""
    keep = CHECKPOINT_SECONDS * rate if rate else min(config.steps / 10, 250)
    return replace(
        config,
        log_every=max(1, min(100, config.steps // 200)),
        evaluate_every=math.ceil(config.steps / examinations),
        checkpoint_every=max(1, min(config.steps, round(keep))),
    )


def _length(request: TrainRequest) -> tuple[float, int | None]:
    """Seconds of the budget, and steps if those were given instead."""
    if request.steps is not None and request.minutes is not None:
        raise UsageError("give either --minutes or --steps, not both.")
    if request.steps is not None:
        if request.steps < 1:
            raise UsageError(f"--steps {request.steps}: give at least 1.")
        return 0.0, request.steps
    minutes = DEFAULT_MINUTES if request.minutes is None else request.minutes
    if not (math.isfinite(minutes) and minutes > 0):
        raise UsageError(f"--minutes {minutes}: give a positive number, such as 10 or 0.5.")
    return 60 * minutes, None


def _precision(precision: str | None) -> Precision | None:
    if precision is not None and precision not in get_args(Precision):
        raise UsageError(f"--precision {precision!r} is unknown: choose one of {', '.join(get_args(Precision))}.")
    return cast(Precision | None, precision)


def _next_out(data_name: str, family_name: str) -> Path:
    """runs/<data>-<family>-<n> with the first n that is free."""
    stem = re.sub(r"[^\w.-]+", "-", data_name).strip("-.") or "data"
    n = 1
    while (path := Path("runs") / f"{stem}-{family_name}-{n}").exists():
        n += 1
    return path


def _made_with() -> str:
    try:
        version = metadata.version("augmint")
    except metadata.PackageNotFoundError:  # a checkout that was not installed
        version = "unknown"
    return f"augmint {version}, torch {torch.__version__}"
