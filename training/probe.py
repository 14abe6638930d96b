"""From a time budget to a plan: measures the machine, picks its fastest settings, and fits steps and width to the time.

Measured are whole training steps of throw-away networks: threads, memory format and precision change each other's
worth, and two threads on a busy machine can be several times slower than one. Whatever comes out is written to
config.json, so a resumed run does not measure again. This module decides nothing about losses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from training.config import TrainConfig
from training.examination import images_an_examination
from training.families.base import FamilyOptions
from training.machine import cores, supports_bf16
from training.trainer import Trainer

__all__ = ["Plan", "candidates", "fastest_settings", "fit_to_time", "steps_per_second"]

SHARE = 0.06
"""Share of the budget that measuring may take, up to `MOST_SECONDS`."""
MOST_SECONDS = 5.0
EXAMINATIONS = 10
"""Examinations a run, fewer where they would take more than `EXAMINATION_SHARE` of the budget."""
EXAMINATION_SHARE = 0.08
SCORE_IMAGES = (1000, 500, 250)
"""Fakes an examination draws; fewer are taken only where time is short."""
_ROUND = 4  # lazy regularisation makes every fourth step dearer
_GAIN = 1.05  # a change of settings must be worth this much, else noise decides
_THREADS_GAIN = 1.25


@dataclass(frozen=True)
class Plan:
    config: TrainConfig
    steps_per_second: float
    examinations: int


def probe_seconds(budget: float) -> float:
    return min(MOST_SECONDS, SHARE * budget)


def steps_per_second(config: TrainConfig, images: Tensor, labels: Tensor, *, seconds: float) -> float:
    """Trains throw-away networks for about `seconds`, after one step to warm up."""
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        trainer = Trainer(config, images[:512], labels[:512])
        trainer.train_step()
        trainer.means()  # waits for a GPU
        began, steps = time.perf_counter(), 0
        # Whole rounds of lazy regularisation, but a setting that is far too slow is not waited for.
        while (passed := time.perf_counter() - began) < seconds or (steps % _ROUND and passed < 2 * seconds):
            trainer.train_step()
            steps += 1
        trainer.means()
        return steps / (time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)


def fastest_settings(
    config: TrainConfig, measure: Callable[[TrainConfig], float], *, fixed_precision: bool, fixed_threads: bool
) -> tuple[TrainConfig, float]:
    """The fastest of memory formats, precisions and threads, one change at a time, and its steps a second."""
    best, best_rate = config, measure(config)
    trials: list[Callable[[TrainConfig], TrainConfig]] = [lambda c: replace(c, channels_last=not c.channels_last)]
    if not fixed_precision and supports_bf16(config.device):
        trials.append(lambda c: replace(c, precision="bf16-mixed"))
    for trial in trials:
        changed = trial(best)
        rate = measure(changed)
        if rate > best_rate * _GAIN:
            best, best_rate = changed, rate
    # One core is left to the rest of the machine: OpenMP's threads wait for the slowest, so one busy core makes a step
    # on all cores many times slower than on one, at a moment that no probe can foresee.
    if not fixed_threads and config.device == "cpu" and cores() > 2:
        changed = replace(best, threads=cores() - 1)
        rate = measure(changed)
        if rate > best_rate * _THREADS_GAIN:
            best, best_rate = changed, rate
    return best, best_rate


def candidates(config: TrainConfig, settings: Sequence[str]) -> list[FamilyOptions]:
    """The options and the family's cheaper versions of them, dearest first, with what the user set left alone."""
    family = type(config.make_family())
    found = [config.options]
    for narrower in family.narrower(config.options):
        kept = replace(narrower, **{name: getattr(config.options, name) for name in settings})
        if kept not in found:
            found.append(kept)
    return found


def _affordable_examinations(config: TrainConfig, measured: float, seconds: float) -> tuple[TrainConfig, int, float]:
    """How large, how many, and how long each: 1,000 images if ten such are affordable, else fewer images, then fewer.

    `measured` is the time of an examination as `config` has it.
    """
    each = measured / images_an_examination(config)
    for score_images in SCORE_IMAGES:
        sized = replace(config, score_images=score_images)
        cost = max(1e-3, each * images_an_examination(sized))
        count = int(min(EXAMINATIONS, EXAMINATION_SHARE * seconds / cost))
        if count == EXAMINATIONS:
            break
    return sized, max(2, count), cost


def fit_to_time(
    config: TrainConfig,
    measure: Callable[[TrainConfig], float],
    *,
    settings: Sequence[str],
    fixed_precision: bool,
    fixed_threads: bool,
    examination_seconds: float,
    seconds: float,
) -> Plan:
    """The plan for `seconds` from now. `measure` gives steps a second and takes its share of that time."""
    began = time.monotonic()
    family = type(config.make_family())
    versions = candidates(config, settings)
    # Settings are tried on the cheapest version, which costs least and says the same.
    cheapest = replace(config, options=versions[-1])
    chosen, rate = fastest_settings(cheapest, measure, fixed_precision=fixed_precision, fixed_threads=fixed_threads)
    chosen, examinations, examination_seconds = _affordable_examinations(chosen, examination_seconds, seconds)
    rates = {versions[-1]: rate}

    def rate_of(options: FamilyOptions) -> float:
        if options not in rates:
            rates[options] = measure(replace(chosen, options=options))
        return rates[options]

    # 3 % for checkpoints, sheets and the start.
    left = 0.97 * (seconds - (time.monotonic() - began)) - examinations * examination_seconds
    options, steps = family.fit(
        versions, steps_per_second=rate_of, seconds=max(left, 0.0), images=sum(config.class_counts)
    )
    return Plan(replace(chosen, options=options, steps=steps), rate_of(options), examinations)
