"""`python -m export.again RUN WHICH PRECISION`: trace a run's networks once more and print the sha256 of the bytes.

`export_run` starts it beside its own work. A fresh process has another hash seed, other addresses and another history
of traced graphs, which is where an exporter's bytes come to differ. Prints one line of JSON on stdout.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal, cast

from augmint.errors import AugmintError, GateError

__all__ = ["SecondExport"]


class SecondExport:
    """A second export under way in a process of its own; a context manager that never leaves it behind."""

    def __init__(self, run: Path, which: str, precision: str) -> None:
        # The checkout need not be installed, and the child must not inherit a fixed hash seed.
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED"} | {"PYTHONPATH": path}
        self._process = subprocess.Popen(
            # -P: the directory we are called from may have an `export` of its own.
            [sys.executable, "-P", "-m", "export.again", str(run), which, precision],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._digests: dict[str, str] | None = None

    def digest(self, part: str) -> str:
        """sha256 hex of "generator" or "critic"; waits for the process the first time."""
        if self._digests is None:
            out, err = self._process.communicate()
            if self._process.returncode != 0:
                reason = (err.strip().splitlines() or ["no reason given"])[-1][:200]
                raise GateError(f"A second export failed ({reason}).", code="export.not-reproducible")
            self._digests = json.loads(out)
        return self._digests[part]

    def __enter__(self) -> SecondExport:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


def _main(arguments: list[str]) -> int:
    from export.networks import load, trace  # torch only here: the parent of a second export has it already

    run, which, precision = arguments
    try:
        networks = load(Path(run), cast(Literal["best", "last"], which))
        graphs = trace(networks, cast(Literal["fp32", "fp16"], precision))
    except AugmintError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in graphs.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
