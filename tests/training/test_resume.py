"""However a training was cut short, going on ends with the very same weights."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from augmint.data import load_data
from augmint.errors import TrainingError
from tests.training.conftest import CLASSES, draw
from tests.training.test_families import narrow
from training import FAMILIES, Interrupted, Run, TrainRequest, family, resume, train, weights_digest
from training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]


def fingerprint(run: Run) -> dict[str, Any]:
    """What must come out the same: all weights of the end, the best ones, and what was judged on the way."""
    last, best = run.load_checkpoint("last"), run.load_checkpoint("best")
    status = run.status()
    return {
        **{
            part: weights_digest(last["state"][part])
            for part in ("generator", "critic", "average", "encoder")
            if part in last["state"]
        },
        **{f"best {part}": weights_digest(best[part]) for part in ("generator", "critic")},
        "optimizers": [
            {key: {name: float(value.sum()) for name, value in state.items()} for key, state in optimizer.items()}
            for name in ("generator_optimizer", "critic_optimizer")
            for optimizer in [last["state"][name]["state"]]
        ],
        "best": status.best,
        "alarms": status.alarms,
        "metrics": [{name: value for name, value in record.items() if name != "seconds"} for record in run.metrics()],
    }


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Sends this process a signal in the middle of a step."""
    before = Trainer.train_step

    def train_step(self: Trainer) -> None:
        before(self)
        if self.step == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "train_step", train_step)


@pytest.mark.parametrize("name", [kind.name for kind in FAMILIES])
def test_stopped_and_resumed_is_bit_for_bit_the_same(
    name: str, request_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {"family": name, "batch": 8, "steps": 9, "checkpoint_every": 4, "evaluate_every": 5}
    common["settings"] = narrow(family(name))
    whole = train(request_of(out=tmp_path / "whole", **common), progress=False)
    with monkeypatch.context() as patch:
        stop_at(patch, 6, signal.SIGINT)  # between two checkpoints, after an evaluation
        with pytest.raises(Interrupted) as stopped:
            train(request_of(out=tmp_path / "cut", **common), progress=False)
    assert stopped.value.exit_code == 130
    run = stopped.value.run
    assert (run.status().state, run.status().step) == ("stopped", 6)
    resumed = resume(tmp_path / "cut", progress=False)
    assert resumed.status().state == "finished"
    assert fingerprint(resumed) == fingerprint(whole)


def test_sigterm_is_143(request_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(monkeypatch, 2, signal.SIGTERM)
    with pytest.raises(Interrupted, match="--resume") as stopped:
        train(request_of(), progress=False)
    assert stopped.value.exit_code == 143
    assert stopped.value.run.status().note == "stopped by SIGTERM"


def test_a_second_ctrl_c_stops_at_once(request_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Trainer.train_step
    # A shell that starts the tests in the background makes them ignore Ctrl-C.
    handler = signal.getsignal(signal.SIGINT)

    def train_step(self: Trainer) -> None:
        before(self)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(request_of(), progress=False)
    assert not isinstance(stopped.value, Interrupted)
    assert signal.getsignal(signal.SIGINT) is handler, "the handlers are given back"


def test_kill_9_at_a_random_moment(request_of: Any, tiny_data: Path, tmp_path: Path) -> None:
    """A real process, killed once it has checkpoints. `benchmarks/kill_resume.py` does it ten times."""
    common = {"steps": 120, "checkpoint_every": 9, "evaluate_every": 40, "batch": 8}
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from training import TrainRequest, train\n"
        f"train(TrainRequest(data={str(tiny_data)!r}, out={str(tmp_path / 'cut')!r}, tensorboard=False, **{common!r}),"
        " progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    last = tmp_path / "cut" / "checkpoints" / "last.pt"
    deadline = time.monotonic() + 120
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(float(np.random.default_rng().uniform(0.0, 0.3)))
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was to be killed before it was done"
    run = Run.open(tmp_path / "cut")
    assert run.status().state == "running"
    assert not run.is_locked()
    resumed = resume(run, progress=False)
    whole = train(request_of(out=tmp_path / "whole", **common), progress=False)
    assert fingerprint(resumed) == fingerprint(whole)
    left = [path.name for path in resumed.path.rglob(".*") if path.name != ".lock"]
    assert len(left) <= 1, f"at most the file being written is left behind: {left}"


def test_killed_before_the_first_checkpoint_starts_over(request_of: Any, tmp_path: Path) -> None:
    whole = train(request_of(out=tmp_path / "whole"), progress=False)
    shutil.copytree(whole.path, tmp_path / "cut")
    for name in ("last", "best"):
        (tmp_path / "cut" / "checkpoints" / f"{name}.pt").unlink()
    resumed = resume(tmp_path / "cut", progress=False)
    assert fingerprint(resumed) == fingerprint(whole)


def test_killed_before_the_scorer_was_kept_scores_alike(request_of: Any, tmp_path: Path) -> None:
    """A run given in steps depends on nothing that is measured, the length of the scorer's training included."""
    whole = train(request_of(out=tmp_path / "whole"), progress=False)
    shutil.copytree(whole.path, tmp_path / "cut")
    for name in ("last", "best", "scorer"):
        (tmp_path / "cut" / "checkpoints" / f"{name}.pt").unlink()
    assert fingerprint(resume(tmp_path / "cut", progress=False)) == fingerprint(whole)


@pytest.mark.parametrize("damage", ["stale", "missing"])
def test_killed_after_the_last_checkpoint_is_finished(tiny_run: Run, tmp_path: Path, damage: str) -> None:
    """The weights were written and the status was not: `--resume` says what is true."""
    run = Run.open(shutil.copytree(tiny_run.path, tmp_path / "run"))
    whole = run.status()
    if damage == "stale":
        run.write_status(replace(whole, state="running", step=11, best=None))
    else:
        (run.path / "status.json").unlink()
    assert resume(run, progress=False).status() == replace(whole, seconds=run.status().seconds)


def test_a_finished_run_says_so(tiny_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = tiny_run.checkpoint_path("last").stat().st_mtime_ns
    assert resume(tiny_run.path, progress=True).status().state == "finished"
    assert "all 12 steps are done" in capsys.readouterr().err
    assert tiny_run.checkpoint_path("last").stat().st_mtime_ns == before


def test_examining_more_often_does_not_change_the_weights(request_of: Any, tmp_path: Path) -> None:
    digests = set()
    for every in (1, 6):
        run = train(request_of(out=tmp_path / str(every), evaluate_every=every, family="dcgan"), progress=False)
        digests.add(weights_digest(run.load_checkpoint("last")["state"]["generator"]))
    assert len(digests) == 1


def test_other_seeds_and_other_random_states(request_of: Any, tmp_path: Path) -> None:
    digests = []
    for number, (seed, state) in enumerate([(1, 0), (1, 99), (2, 0)]):
        torch.manual_seed(state)
        after = torch.random.get_rng_state()
        run = train(request_of(out=tmp_path / str(number), seed=seed), progress=False)
        assert torch.equal(torch.random.get_rng_state(), after), "the caller's random state is left alone"
        digests.append(weights_digest(run.load_checkpoint("last")["state"]["generator"]))
    assert digests[0] == digests[1], "torch's global generator has no part in it"
    assert digests[0] != digests[2]


def test_changed_data_is_refused_and_moved_data_is_not(request_of: Any, tmp_path: Path, tiny_data: Path) -> None:
    data = tmp_path / "data.npz"
    shutil.copy(tiny_data, data)
    run = train(request_of(data=data, steps=2), progress=False)
    _reopen(run)
    images, labels = draw(60)
    images[0] = 255 - images[0]
    np.savez(data, images=images, labels=labels, class_names=np.array(CLASSES))
    with pytest.raises(TrainingError, match="not the one") as refused:
        resume(run, progress=False)
    assert refused.value.code == "training.data-changed"
    shutil.copy(tiny_data, tmp_path / "moved.npz")
    assert resume(run, data=tmp_path / "moved.npz", progress=False).status().state == "finished"


def _reopen(run: Run) -> None:
    """As if the run had been killed before its first checkpoint."""
    for name in ("last", "best"):
        run.checkpoint_path(name).unlink()


def test_two_trainings_in_one_directory(request_of: Any, tmp_path: Path) -> None:
    run = train(request_of(steps=2), progress=False)
    _reopen(run)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with run.lock():
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    try:
        assert run.is_locked()
        with pytest.raises(TrainingError, match="another process"):
            resume(run, progress=False)
    finally:
        done.set()
        thread.join()
    assert not run.is_locked()


def test_training_works_outside_the_main_thread(request_of: Any) -> None:
    """Signal handlers can be set in the main thread only."""
    runs: list[Run] = []
    thread = threading.Thread(target=lambda: runs.append(train(request_of(steps=2), progress=False)))
    thread.start()
    thread.join()
    assert runs[0].status().state == "finished"


def test_a_data_set_in_memory(request_of: Any, tiny_data: Path) -> None:
    data = load_data(tiny_data).cut({"blob": 10})
    run = train(request_of(data=data, steps=2), progress=False)
    assert run.config.class_counts[1] == 10
    _reopen(run)
    with pytest.raises(TrainingError, match="DATA --resume RUN"):
        resume(run, progress=False)  # its spec names the whole set
    assert resume(run, data=data, progress=False).status().step == 2


def test_the_request_is_left_as_it_was(request_of: Any) -> None:
    request: TrainRequest = request_of(steps=1, settings={"batch": "4"})
    train(request, progress=False)
    assert dict(request.settings) == {"batch": "4"}
