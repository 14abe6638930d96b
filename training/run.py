"""The run directory: what a training leaves on disk, and what export reads.

    config.json            the resolved configuration; written first, never changed
    status.json            state, step, best step and score, alarms; replaced atomically
    metrics.jsonl          one line for each logged step and each evaluation
    samples/step_*.png     sheets from fixed addresses
    tensorboard/           the same for TensorBoard
    checkpoints/last.pt    everything that the next step depends on
    checkpoints/best.pt    averaged generator and critic of the best-scored step: what export takes
    checkpoints/scorer.pt  what scores checkpoints, so that a resumed run scores alike
    .lock                  held while a process trains here

Checkpoints are read with `weights_only=True`: nothing is ever unpickled into code. Every file is written under a
temporary name and renamed, so a reader, or a run after `kill -9`, sees a whole file or the one before.

This module knows files and nothing of how training works.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal, Self

import torch
from PIL.Image import Image
from torch import Tensor, nn

from augmint.errors import TrainingError
from augmint.images import synthetic_sheet_png
from training.averaging import calibration_batches, recalibrate_batch_norm
from training.codes import CodeMap
from training.config import TrainConfig

if sys.platform != "win32":
    import fcntl

__all__ = ["Alarm", "Best", "Run", "State", "Status", "load_codes", "load_critic", "load_generator", "weights_digest"]

State = Literal["running", "stopped", "finished", "failed"]
Which = Literal["best", "last"]
Kept = Which | Literal["scorer"]


@dataclass(frozen=True)
class Alarm:
    """Something a person should know, in words. `kind` is a stable word, such as "saturated"."""

    kind: str
    step: int
    message: str


@dataclass(frozen=True)
class Best:
    """The best evaluation so far: `score` (higher is better) and the measures it was made of."""

    step: int
    score: float
    details: dict[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """status.json. `note` says in words why the run is in this state, where that needs saying."""

    state: State
    step: int
    steps: int
    seconds: float = 0.0
    best: Best | None = None
    alarms: tuple[Alarm, ...] = ()
    note: str = ""


class Run:
    """A run directory. `Run.create` makes one, `Run.open` reads one."""

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = path
        self.config = config

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @classmethod
    def check_free(cls, path: str | Path) -> Path:
        """Raises TrainingError when `path` is there and not an empty directory."""
        path = Path(path)
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            mend = "go on with --resume, or" if (path / "config.json").is_file() else "pass"
            raise TrainingError(
                f"{path} exists already: {mend} another directory with --out.", code="training.run-exists"
            )
        return path

    @classmethod
    def create(cls, path: str | Path, config: TrainConfig) -> Self:
        path = cls.check_free(path)
        try:
            for folder in (path / "samples", path / "checkpoints"):
                folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path / "config.json", config.to_json().encode())
        except OSError as error:
            raise TrainingError(f"cannot write the run to {path}: {error.strerror}; pass another --out.") from error
        run = cls(path, config)
        run.write_status(Status("running", 0, config.steps))
        return run

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Raises TrainingError when `path` is no run directory or its config.json is not whole."""
        path = Path(path)
        file = path / "config.json"
        if not file.is_file():
            what = "is no run directory (no config.json in it)" if path.exists() else "does not exist"
            raise TrainingError(f"{path} {what}: name a directory that `augmint train` made.", code="training.no-run")
        return cls(path, TrainConfig.from_json(file.read_bytes(), source=str(file)))

    # -- status and metrics ----------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def status(self) -> Status:
        """What status.json says. A run killed without a word still says "running": `is_locked` tells."""
        try:
            raw = json.loads((self.path / "status.json").read_bytes())
            raw["best"] = Best(**raw["best"]) if raw["best"] else None
            raw["alarms"] = tuple(Alarm(**alarm) for alarm in raw["alarms"])
            return Status(**raw)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise TrainingError(
                f"{self.path / 'status.json'} is missing or damaged; `augmint train --resume {self.path}` mends it."
            ) from error

    def write_status(self, status: Status) -> None:
        text = json.dumps(asdict(status), indent=2, ensure_ascii=False)
        write_atomically(self.path / "status.json", (text + "\n").encode())

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl; a last line cut short by a kill is left out."""
        if not self.metrics_path.exists():
            return []
        records = []
        for line in self.metrics_path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return records

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def truncate_metrics(self, step: int) -> None:
        """Forgets what was logged after `step`: those steps are about to be taken again."""
        kept = [json.dumps(record, ensure_ascii=False) for record in self.metrics() if record["step"] <= step]
        write_atomically(self.metrics_path, "".join(line + "\n" for line in kept).encode())

    def write_image(self, path: Path, image: Image) -> None:
        """A sheet of generated images as PNG, marked as synthetic, whole or not at all."""
        write_atomically(path, synthetic_sheet_png(image))

    def sheet_path(self, step: int) -> Path:
        return self.path / "samples" / f"step_{step:07d}.png"

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def checkpoint_path(self, which: Kept) -> Path:
        return self.path / "checkpoints" / f"{which}.pt"

    def save_checkpoint(self, which: Kept, state: Mapping[str, Any]) -> None:
        """With `written`, the time of now in ISO 8601: a file's own time is lost when the run is copied."""
        content = {**state, "written": datetime.now(UTC).isoformat(timespec="seconds")}
        write_atomically(self.checkpoint_path(which), lambda file: torch.save(content, file))

    def load_checkpoint(self, which: Kept) -> dict[str, Any]:
        """The checkpoint's tensors and plain values, on the CPU."""
        path = self.checkpoint_path(which)
        if not path.is_file():
            mend = "it was stopped before the first one; train anew"
            if which == "best" and self.checkpoint_path("last").is_file():
                mend = f"none was evaluated yet; go on with `augmint train --resume {self.path}`"
            raise TrainingError(f"{self.path} has no {which} checkpoint: {mend}.", code="training.no-checkpoint")
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError … for damaged files
            raise TrainingError(
                f"{path} is damaged and cannot be read; restore it from a copy, or train anew.",
                code="training.checkpoint-damaged",
            ) from error
        return state

    # -- the lock --------------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while training. Raises TrainingError when another process trains here; freed even by `kill -9`."""
        with (self.path / ".lock").open("a") as file:
            if not _try_lock(file):
                raise TrainingError(
                    f"another process is training in {self.path}: wait for it, stop it, or pass another --out.",
                    code="training.locked",
                )
            yield

    def is_locked(self) -> bool:
        """Whether a living process trains here."""
        try:
            with (self.path / ".lock").open("r+") as file:
                return not _try_lock(file)
        except FileNotFoundError:
            return False


def _try_lock(file: IO[str]) -> bool:
    if sys.platform == "win32":  # no flock there: no lock, the rest works
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_atomically(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Writes beside `path`, flushes to disk, and renames: whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)  # temporary files are private; runs are as readable as any other file
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


# -- for export ----------------------------------------------------------------------------------------------------


def load_generator(
    run: Run | str | Path, which: Which = "best", *, by_label: bool = True
) -> tuple[nn.Module, TrainConfig]:
    """The averaged generator in eval mode on the CPU, and the run's configuration.

    `forward(latent float32 [N, Z], label int64 [N] | None) -> float32 [N, C, H, W] in [-1, 1]`; the label is left out
    when `config.num_classes == 0`. Batch-norm statistics are recalibrated already. "last" is the newest checkpoint.
    A generator that found its categories without labels takes labels where `load_codes` knows which category each is;
    `config.conditional` is then true, and with `by_label=False` it is loaded as it was trained.
    """
    return _load(run, which, "generator", by_label)


def load_critic(
    run: Run | str | Path, which: Which = "best", *, by_label: bool = True
) -> tuple[nn.Module, TrainConfig]:
    """The critic of the same step, in eval mode: `forward(image, label | None) -> float32 [N]`, larger is more real."""
    return _load(run, which, "critic", by_label)


def load_codes(run: Run | str | Path, which: Which = "best") -> tuple[CodeMap | None, str]:
    """Which categories each label is, for a generator that found its categories without labels.

    None where it cannot be asked by label, and as half a sentence why: "" for families that find no categories, for
    data without classes, and where labels were to be ignored.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    return _codes(run.config, run.load_checkpoint(which))


def _codes(config: TrainConfig, state: Mapping[str, Any]) -> tuple[CodeMap | None, str]:
    if not config.names_categories:
        return None, ""
    if state.get("codes") is None:
        return None, "this checkpoint was written between two examinations, which find out what its categories are"
    codes = CodeMap.from_dict(state["codes"])
    refusal = codes.refusal(config.class_names)
    return (None, refusal) if refusal else (codes, "")


def _load(
    run: Run | str | Path, which: Which, part: Literal["generator", "critic"], by_label: bool
) -> tuple[nn.Module, TrainConfig]:
    run = run if isinstance(run, Run) else Run.open(run)
    config = run.config
    state = run.load_checkpoint(which)
    recipe = config.make_family()
    with torch.random.fork_rng(devices=[]):
        module = recipe.generator() if part == "generator" else recipe.critic()
    weights = state["state"]["average" if part == "generator" else "critic"] if which == "last" else state[part]
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise TrainingError(
            f"{run.checkpoint_path(which)} does not fit the networks of {run.path / 'config.json'}: one of them was "
            "changed; train anew.",
            code="training.checkpoint-damaged",
        ) from error
    if part == "generator" and which == "last":
        # The best checkpoint was calibrated when it was evaluated.
        module = recalibrate_batch_norm(module, calibration_batches(config.options.latent_dim, config.num_classes))
    if by_label and (codes := _codes(config, state)[0]) is not None:
        labelled = recipe.generator_by_label if part == "generator" else recipe.critic_by_label
        module, config = labelled(module, torch.from_numpy(codes.members)), replace(config, conditional=True)
    return module.eval().requires_grad_(False), config


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 hex over names, types, shapes and bytes of a state_dict: equal exactly when all weights are equal."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
