"""What the verbs print: tables, JSON, and progress.

Rich draws on terminals only; into a pipe or a file goes plain, aligned text.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["parts_progress", "print_json", "print_table", "progress_bar", "talk"]


def talk(line: str) -> None:
    """A remark for the person at the terminal, on stderr."""
    print(line, file=sys.stderr)


def print_json(document: Any) -> None:
    """One JSON document on stdout; figures that are no numbers (NaN, infinity) become null, which JSON has."""
    print(json.dumps(_finite(document), ensure_ascii=False, indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout; numbers to the right."""
    texts = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for name, is_right in zip(header, right, strict=True):
            table.add_column(name, justify="right" if is_right else "left")
        for row in texts:
            table.add_row(*(Text(cell) for cell in row))  # Text, because a class may be called "[red]"
        Console().print(table)
        return
    widths = [max(len(line[i]) for line in [list(header), *texts]) for i in range(len(header))]
    for line in [list(header), *texts]:
        cells = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, right, strict=True)
        ]
        print("  ".join(cells).rstrip())


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function to be told (done, total); draws on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield update


@contextmanager
def parts_progress() -> Iterator[Callable[[str, int, int, str], None]]:
    """A function to be told (part, done, total, what): bars on a terminal, else a line now and then; on stderr."""
    if not sys.stderr.isatty():
        lines = _Lines()
        yield lines
        lines.finish()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}", style="dim", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=60) as bars:
        tasks: dict[str, Any] = {}

        def update(part: str, done: int, total: int, what: str) -> None:
            if part not in tasks:
                tasks[part] = bars.add_task(part, total=total, what=what)
            bars.update(tasks[part], completed=done, total=total, what="" if done >= total else what)

        yield update


class _Lines:
    """Plain lines for logs and pipes: when a part begins, every ten seconds, and when it has ended."""

    def __init__(self, *, every: float = 10.0) -> None:
        self._every = every
        self._part = ""
        self._began = self._said = 0.0
        self._recent: deque[tuple[float, int]] = deque(maxlen=20)

    def __call__(self, part: str, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if part != self._part:
            self.finish()
            self._part, self._began, self._said = part, now, now
            self._recent.clear()
            print(f"{part} …", file=sys.stderr, flush=True)
        if self._recent and done < self._recent[-1][1]:
            self._recent.clear()  # a part of several steps, each of which counts anew
        self._recent.append((now, done))
        if done < total and now - self._said >= self._every:
            self._said = now
            print(f"{part}: {done} of {total}, {self._left(total)}, {what}", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """The part that was going on has ended."""
        if self._part:
            print(f"{self._part}: {time.monotonic() - self._began:.0f} s", file=sys.stderr, flush=True)
            self._part = ""

    def _left(self, total: int) -> str:
        (first, before), (last, after) = self._recent[0], self._recent[-1]
        if after <= before:
            return "time left unknown"
        seconds = round((last - first) / (after - before) * (total - after))
        return f"{seconds // 60}:{seconds % 60:02} left"
