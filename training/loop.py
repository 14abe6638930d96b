"""The loop: steps, and at fixed cadences logs, examinations and checkpoints, until done, stopped or out of time.

What must be exact (weights, best score, alarms) depends on the configuration and the step alone; what depends on the
clock or on the user (bars, time limit, Ctrl-C) only decides when to leave. This module knows files through `Run`,
images through `Examiner` and losses not at all.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from types import FrameType
from typing import Any

from augmint.errors import TrainingError
from training.codes import CodeMap
from training.config import TrainConfig
from training.examination import Examiner
from training.health import LossWatch, few_images
from training.journal import Journal
from training.progress import Reporter
from training.run import Alarm, Best, Run, State, Status, load_generator
from training.trainer import Trainer

__all__ = ["Interrupted", "finish", "train_loop"]

GUARD_EVERY = 10
"""Steps between looks for NaN: a look waits for a GPU. Nothing is kept or judged without one."""
MOST_ROLLBACKS = 5
LABELS_FROM = 200
"""Steps that a training must have for its samples' labels to be judged at its end."""


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop (Ctrl-C or SIGTERM) and did: the checkpoint is written and `run` can be resumed.

    `exit_code` is the shell's: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, run: Run, signal_number: int) -> None:
        self.run = run
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
        super().__init__(f"training stopped; go on with `augmint train --resume {run.path}`.")


@dataclass
class _Memory:
    """What the loop itself remembers, beside the trainer's state; it lies in the checkpoint."""

    best: Best | None = None
    alarms: list[Alarm] = field(default_factory=list)
    watch: LossWatch = field(default_factory=LossWatch)
    seconds: float = 0.0

    def state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> _Memory:
        return cls(
            best=Best(**state["best"]) if state["best"] else None,
            alarms=[Alarm(**alarm) for alarm in state["alarms"]],
            watch=LossWatch(**state["watch"]),
            seconds=state["seconds"],
        )


def train_loop(
    run: Run,
    trainer: Trainer,
    examiner: Examiner,
    reporter: Reporter,
    *,
    resumed: dict[str, Any] | None = None,
    deadline: float | None = None,
) -> None:
    """Trains to the last step. Raises Interrupted when stopped, TrainingError when it cannot go on.

    Args:
        resumed: the content of last.pt.
        deadline: `time.monotonic()` after which to finish early, at the state reached.
    """
    config: TrainConfig = run.config
    memory = _Memory()
    prepared: dict[str, float] = {}
    if resumed is None:
        for alarm in few_images(config.class_names, config.class_counts) if config.num_classes else []:
            _raise_alarm(memory, reporter, alarm)
        prepared = trainer.prepare()
        good = trainer.state()
    else:
        trainer.load_state(resumed["state"])
        good = resumed["good"]
        memory = _Memory.from_state(resumed["memory"])
    journal = Journal(run, reporter, step=trainer.step)
    began = time.monotonic() - memory.seconds
    numbers: dict[str, float] = {}
    codes: tuple[int, CodeMap | None] = (-1, None)  # as of which step
    if prepared:
        reporter.say("prepared: " + ", ".join(f"{name} {value:.4g}" for name, value in prepared.items()))
        run.append_metrics({"step": 0, "kind": "prepared", **prepared})

    def status(state: State, note: str = "") -> None:
        memory.seconds = round(time.monotonic() - began, 3)
        run.write_status(
            Status(state, trainer.step, config.steps, memory.seconds, memory.best, tuple(memory.alarms), note)
        )

    def save(state: dict[str, Any]) -> None:
        memory.seconds = round(time.monotonic() - began, 3)
        content = {"state": state, "good": good, "memory": memory.state()}
        step, found = codes
        if step == trainer.step and found is not None:
            content["codes"] = found.as_dict()
        run.save_checkpoint("last", content)

    def examine() -> None:
        nonlocal codes
        examination = examiner.examine(trainer.average, step=trainer.step)
        codes = trainer.step, examiner.codes(trainer.critic.module)
        for about, alarm in examination.alarms:
            for new in memory.watch.once(alarm, about=about):
                _raise_alarm(memory, reporter, new)
        score, details = examination.score, examination.details
        if (measure := trainer.family.convergence(trainer.critic.module)) is not None:
            score, details = -measure, {**details, "convergence": measure, "validation score": score}
        elif (accuracy := examiner.accuracy(trainer.critic.module)) is not None:
            score, details = accuracy, {**details, "accuracy": accuracy, "validation score": score}
        if (found := codes[1]) is not None:
            details = {**details, "purity": found.purity}
        if memory.best is None or score > memory.best.score:
            memory.best = Best(examination.step, score, details)
            run.save_checkpoint(
                "best",
                {
                    "step": examination.step,
                    "score": score,
                    "generator": examination.generator.state_dict(),
                    "critic": trainer.state()["critic"],
                    "codes": found and found.as_dict(),
                },
            )
        journal.examined(replace(examination, score=score, details=details))

    def judge_labels() -> None:
        """Of the checkpoint that export takes, and once: before the end labels come and go."""
        if memory.best is None or trainer.step < LABELS_FROM:
            return
        for about, alarm in examiner.unfaithful(load_generator(run, "best")[0], memory.best.step):
            for new in memory.watch.once(alarm, about=about):
                _raise_alarm(memory, reporter, new)

    status("running")
    reporter.start(trainer.step, config.steps, config.options.batch)
    try:
        with _stop_signals() as stop, journal:
            while trainer.step < config.steps:
                trainer.train_step()
                step, last = trainer.step, trainer.step == config.steps
                late = deadline is not None and time.monotonic() > deadline
                leaving = last or late or stop.number is not None
                log = step % config.log_every == 0 or last
                judge = step % config.evaluate_every == 0 or last or late
                keep = step % config.checkpoint_every == 0 or last or late

                # Look for NaN before anything is judged or kept; roll back to the last state known to be good.
                if (log or judge or keep or leaving or step % GUARD_EVERY == 0) and (what := trainer.not_finite()):
                    retry = trainer.retry + 1
                    if retry > MOST_ROLLBACKS:
                        raise TrainingError(_give_up(what, step), code="training.diverged")
                    trainer.load_state(good)
                    trainer.retry = retry
                    message = (
                        f"{what} was not finite at or before step {step}: rolled back to step {trainer.step}, and go "
                        "on with other batches."
                    )
                    _raise_alarm(memory, reporter, Alarm("rolled-back", step, message))
                    journal.rolled_back(trainer.step)
                    continue

                if log:
                    numbers = trainer.means()
                    trainer.clear_means()
                    for alarm in memory.watch.look(step, numbers) if trainer.family.logistic else []:
                        _raise_alarm(memory, reporter, alarm)
                    journal.losses(step, numbers)
                    status("running")
                if judge:
                    examine()
                if keep:
                    good = trainer.state()
                    save(good)
                elif leaving:
                    # Between two cadences the roll-back target stays what it would have been without the stop.
                    save(trainer.state())
                reporter.update(step, numbers, memory.best.score if memory.best else None)

                if stop.number is not None and not last:
                    status("stopped", f"stopped by {signal.Signals(stop.number).name}")
                    raise Interrupted(run, stop.number)
                if late and not last:
                    done = f"step {step} of {config.steps}"
                    message = f"stopped early, well past the time limit, at {done}: the machine slowed down"
                    judge_labels()
                    status("finished", message)
                    reporter.say(f"{message}; `augmint train --resume {run.path}` takes the rest.")
                    return
        judge_labels()
        status("finished")
    except TrainingError as error:
        status("failed", str(error))
        raise


def finish(run: Run, last: dict[str, Any]) -> None:
    """Mends the status of a run that was killed between its last checkpoint, `last`, and its last word."""
    with suppress(TrainingError):  # a damaged status is mended alike
        if run.status().state == "finished":
            return
    memory, steps = _Memory.from_state(last["memory"]), run.config.steps
    run.write_status(Status("finished", steps, steps, memory.seconds, memory.best, tuple(memory.alarms)))


def _raise_alarm(memory: _Memory, reporter: Reporter, alarm: Alarm) -> None:
    memory.alarms.append(alarm)
    reporter.say(f"alarm: {alarm.message}")


def _give_up(what: str, step: int) -> str:
    return (
        f"training diverges: {what} is not finite around step {step}, after {MOST_ROLLBACKS} roll-backs; lower the "
        "learning rate (--set learning_rate=…), or use full precision, and train anew."
    )


class _Stop:
    number: int | None = None


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Ctrl-C and SIGTERM ask to stop after the step at hand; a second one stops at once, between two checkpoints."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.number is not None:
            raise KeyboardInterrupt
        stop.number = number

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
