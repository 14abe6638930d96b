"""What a run writes for people to look at: metrics.jsonl, sample sheets, TensorBoard.

TensorBoard is optional: without the package a run says so once and goes on. This module knows formats, not training.
"""

from __future__ import annotations

import importlib
from types import TracebackType
from typing import Any, Self

import numpy as np

from augmint.sheets import contact_sheet
from training.examination import Examination
from training.progress import Reporter
from training.run import Run

__all__ = ["Journal"]


class Journal:
    """Used as a context manager, which closes TensorBoard's file."""

    def __init__(self, run: Run, reporter: Reporter, *, step: int) -> None:
        """What was written after `step` is forgotten: those steps are about to be taken (again)."""
        self.run = run
        self.rows = run.config.class_names if run.config.num_classes else ()
        self.tensorboard: Any = None
        if run.config.tensorboard:
            try:
                writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
                self.tensorboard = writer(str(run.path / "tensorboard"), purge_step=step + 1)
            except ImportError:
                reporter.say("tensorboard is not installed: metrics.jsonl and samples/ have the same content.")
        run.truncate_metrics(step)

    def losses(self, step: int, numbers: dict[str, float]) -> None:
        self.run.append_metrics({"step": step, "kind": "losses", **numbers})
        if self.tensorboard:
            for name, number in numbers.items():
                self.tensorboard.add_scalar(f"losses/{name}", number, step)

    def examined(self, examination: Examination) -> None:
        step, details = examination.step, examination.details
        seconds = round(examination.seconds, 3)
        self.run.append_metrics(
            {"step": step, "kind": "score", "score": examination.score, **details, "seconds": seconds}
        )
        sheet = contact_sheet(
            examination.sheet,
            examination.sheet_labels,
            self.rows,
            per_class=10 if self.rows else 100,
            columns=10,
            counts=self.run.config.class_counts if self.rows else None,
        )
        self.run.write_image(self.run.sheet_path(step), sheet)
        if self.tensorboard:
            for name, number in {"score": examination.score, **details}.items():
                if not isinstance(number, str):
                    self.tensorboard.add_scalar(f"examination/{name}", number, step)
            self.tensorboard.add_image("samples", np.asarray(sheet.convert("RGB")), step, dataformats="HWC")

    def rolled_back(self, step: int) -> None:
        self.run.truncate_metrics(step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.tensorboard:
            self.tensorboard.close()
