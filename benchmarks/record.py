"""What every benchmark writes down: when, where and by what it was made; and the files it goes to."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from augmint.files import replacing

__all__ = ["made", "save"]

ROOT: Final = Path(__file__).resolve().parent.parent


def made(*packages: str) -> dict[str, Any]:
    """When, where and by what, with the versions of `packages` besides augmint's and numpy's."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    versions = {name: metadata.version(name) for name in ("augmint", *packages, "numpy")}
    return {
        "date": f"{datetime.date.today()}",
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"Python": platform.python_version(), **versions, "commit": commit or "unknown"},
    }


def save(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as written:
        written.write(text.encode())


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
