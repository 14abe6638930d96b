"""What a training says while it runs: on stderr, never on stdout.

Three voices with one interface: a bar on a terminal, a line every ten seconds elsewhere, and silence for library use
and tests. This module knows nothing of training beyond numbers.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

__all__ = ["BarReporter", "LineReporter", "Reporter", "SilentReporter", "make_reporter"]


class Reporter(Protocol):
    def say(self, message: str) -> None:
        """One sentence of its own line."""

    def start(self, step: int, steps: int, batch: int) -> None:
        """Training begins at `step`."""

    def update(self, step: int, numbers: dict[str, float], score: float | None) -> None:
        """After a step; `score` is the last evaluation's. Called often: rate-limits itself."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class SilentReporter:
    def say(self, message: str) -> None:
        pass

    def start(self, step: int, steps: int, batch: int) -> None:
        pass

    def update(self, step: int, numbers: dict[str, float], score: float | None) -> None:
        pass

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LineReporter(SilentReporter):
    """Plain lines, for logs and pipes."""

    def __init__(self, stream: TextIO | None = None, *, every: float = 10.0) -> None:
        self._stream = stream
        self._every = every
        self._speed = _Speed(0, 0, 0)
        self._printed = 0.0

    def say(self, message: str) -> None:
        print(message, file=self._stream or sys.stderr, flush=True)

    def start(self, step: int, steps: int, batch: int) -> None:
        self._speed = _Speed(step, steps, batch)
        self._printed = time.monotonic()

    def update(self, step: int, numbers: dict[str, float], score: float | None) -> None:
        now = time.monotonic()
        if now - self._printed < self._every and step < self._speed.steps:
            return
        self._printed = now
        self.say(f"step {step}/{self._speed.steps}  {self._speed.words(step)}{_numbers(numbers, score)}")


class BarReporter(SilentReporter):
    """A progress bar, for terminals."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}"),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None
        self._speed = _Speed(0, 0, 0)
        self._words = ""

    def say(self, message: str) -> None:
        self._progress.console.print(message, markup=False, highlight=False)

    def start(self, step: int, steps: int, batch: int) -> None:
        self._speed = _Speed(step, steps, batch)
        self._task = self._progress.add_task("", total=steps, completed=step, words="")
        self._progress.start()

    def update(self, step: int, numbers: dict[str, float], score: float | None) -> None:
        if self._task is not None:
            words = f"{self._speed.words(step)}{_numbers(numbers, score)}"
            self._progress.update(self._task, completed=step, words=words)

    def close(self) -> None:
        self._progress.stop()


def make_reporter(progress: bool | None) -> Reporter:
    """None: a bar on a terminal, else lines. False: silence. True: lines or bar as well."""
    if progress is False:
        return SilentReporter()
    return BarReporter() if sys.stderr.isatty() else LineReporter()


class _Speed:
    def __init__(self, step: int, steps: int, batch: int) -> None:
        self.first, self.steps, self.batch = step, steps, batch
        self.began = time.monotonic()

    def words(self, step: int) -> str:
        seconds = time.monotonic() - self.began
        if step <= self.first or seconds <= 0:
            return "starting"
        rate = (step - self.first) / seconds
        return f"{rate * self.batch:,.0f} images/s, {_duration((self.steps - step) / rate)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _numbers(numbers: dict[str, float], score: float | None) -> str:
    parts = [
        f"{name.replace('_loss', '').upper()} {numbers[name]:.2f}" for name in ("d_loss", "g_loss") if name in numbers
    ]
    if score is not None:
        parts.append(f"score {score:.3f}")
    return "".join(f", {part}" for part in parts)
