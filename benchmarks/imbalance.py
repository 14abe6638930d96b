"""Rare classes: what every family that takes classes makes of 20 images, and whether its health report says so.

    python benchmarks/imbalance.py [--families augment,cgan,acgan] [--steps 1000] [--out DIR]

mnist5k with its classes 5 to 9 cut to 20 training images each, beside 350 of the others. Each family is trained as its
preset for small images says, and asked for 200 images of each class. A judge that knows all the real digits, those cut
away too, says how many it takes for what was asked (`benchmarks/promises/conditional.py`). A family passes when every
small class reaches 0.9, or the run's own health report (`status.json`), which knows the 20 images alone, names each
class that does not. Finished runs in --out are kept. Results go to stdout, with machine and date.
"""

from __future__ import annotations

import os

# One thread: networks this small gain nothing by two. Before numpy and torch are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import datetime
import platform
import sys
from pathlib import Path
from typing import Final

import torch

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.promises import Recipe, trained  # noqa: E402
from benchmarks.promises.conditional import cut, judge_accuracy, measured, verdict  # noqa: E402
from training.families import family  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default="augment,cgan,acgan")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=ROOT / "bench-families-out" / "imbalance")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    now = datetime.datetime.now(datetime.UTC)
    print(f"{now:%Y-%m-%d}, {platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread")
    print(f"the judge is right on {judge_accuracy():.3f} of the test images\n")
    data, passed = cut(arguments.out), True
    for name in arguments.families.split(","):
        preset = "small" if "small" in family(name).presets else None
        run = trained(arguments.out / f"{name}-cut", name, Recipe(preset=preset, steps=arguments.steps, data=data))
        figures = measured(run)
        held, words = verdict(run, figures)
        passed &= held
        large = figures.fidelity[: 10 - len(figures.small())]
        print(f"{name}, {arguments.steps} steps: large classes {large.mean():.3f}; {words}")
        print(f"  by class: {', '.join(f'{share:.2f}' for share in figures.fidelity)}", flush=True)
    print("\npassed" if passed else "\nNOT passed: a class below 0.9 of which the health report says nothing")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
