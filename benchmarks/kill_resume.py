"""Does killing a training change its result? Kills one at random moments and compares the final weights.

    python benchmarks/kill_resume.py [--kills 10] [--family augment] [--data digits] [--steps 600] [--threads 1]

One training runs through; another is killed with SIGKILL (every third time with SIGTERM) at random moments, resumed
each time in a new process, and at last left to finish. The weights of both, last and best, must have the same sha256.
Prints a table; exits 1 when any differs.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHILD = """
import sys
from training import Interrupted, Run, TrainRequest, resume, train
out, data, family, steps, threads = sys.argv[1:]
try:
    if (sys.argv[1] and __import__("pathlib").Path(out, "config.json").exists()):
        resume(out, progress=False)
    else:
        train(TrainRequest(data=data, family=family, steps=int(steps), threads=int(threads), out=out,
                           checkpoint_every=max(1, int(steps) // 40)), progress=False)
except Interrupted as stopped:
    sys.exit(stopped.exit_code)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--family", default="augment")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; default: another each time")
    options = parser.parse_args()
    moments = random.Random(options.seed)

    with tempfile.TemporaryDirectory() as folder:
        arguments = [options.data, options.family, str(options.steps), str(options.threads)]
        whole, cut = Path(folder, "whole"), Path(folder, "cut")
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", CHILD, str(whole), *arguments], cwd=ROOT, check=True)
        print(f"uninterrupted: {options.steps} steps of {options.family!r} in {time.monotonic() - began:.0f} s")

        from training import Run

        for kill in range(options.kills):
            number = signal.SIGTERM if kill % 3 == 2 else signal.SIGKILL
            process = subprocess.Popen([sys.executable, "-c", CHILD, str(cut), *arguments], cwd=ROOT)
            # Let it come to training, then take between nothing and a good part of the steps that are left.
            target = moments.randrange(1, max(2, options.steps // options.kills))
            before = step_of(cut)
            while process.poll() is None and step_of(cut) < min(before + target, options.steps - 1):
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 0.2))
            if process.poll() is not None:
                print(f"  {kill + 1:2}: it was done before it could be killed")
                break
            process.send_signal(number)
            code = process.wait()
            print(f"  {kill + 1:2}: {number.name} near step {step_of(cut)}, exit code {code}")
        subprocess.run([sys.executable, "-c", CHILD, str(cut), *arguments], cwd=ROOT, check=True)

        same = True
        print(f"{'weights':<18}{'uninterrupted':<18}{'killed and resumed':<20}")
        for which, part in (
            ("last", "generator"),
            ("last", "critic"),
            ("last", "average"),
            ("best", "generator"),
            ("best", "critic"),
        ):
            one, two = (digest(Run.open(path), which, part) for path in (whole, cut))
            same &= one == two
            print(f"{which + ' ' + part:<18}{one[:16]:<18}{two[:16]:<20}{'same' if one == two else 'DIFFERENT'}")
        one_status, two_status = (Run.open(path).status() for path in (whole, cut))
        alike = (one_status.best, one_status.alarms) == (two_status.best, two_status.alarms)
        same &= alike
        print("best score and alarms:", "same" if alike else "DIFFERENT")
    return 0 if same else 1


def step_of(path: Path) -> int:
    """The step of the run's status; 0 before there is one."""
    import json

    try:
        return int(json.loads((path / "status.json").read_text())["step"])
    except (OSError, ValueError, KeyError):
        return 0


def digest(run: object, which: str, part: str) -> str:
    from training import Run, weights_digest

    assert isinstance(run, Run)
    state = run.load_checkpoint(which)  # type: ignore[arg-type]
    return weights_digest(state["state"][part] if which == "last" else state[part])


if __name__ == "__main__":
    sys.exit(main())
