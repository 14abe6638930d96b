"""Where a service's CPU time goes while it is loaded: by thread, exactly; within a thread, by py-spy's samples.

Knows nothing of what the service does.
"""

from __future__ import annotations

import collections
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil

from benchmarks.contenders import PEERS
from benchmarks.load import Figures, Service

__all__ = ["profile"]

_WAITING: Final = ("Condition.wait ", "_worker (concurrent/", "wait (threading", "get (queue")
_MOST: Final = 45


def profile(service: Service, once: Callable[[float], Figures], seconds: float, scratch: Path) -> str:
    """Microseconds of CPU an image, by thread and by function.

    Args:
        service: what is loaded.
        once: loads it for about so many seconds.
        seconds: of each of two loads, the first without py-spy, which slows it.
        scratch: a directory.
    """
    once(1.0)
    before = _threads(service)
    figures = once(seconds)
    after = _threads(service)
    spent = {key: after[key] - before.get(key, 0.0) for key in after}
    images = sum(spent.values()) / figures.cpu * 1e6
    by_process: collections.Counter[int] = collections.Counter()
    for (pid, _), time in spent.items():
        by_process[pid] += time
    ((worker, _),) = by_process.most_common(1)
    own = {tid: time / images * 1e6 for (pid, tid), time in spent.items() if pid == worker}
    lines = [
        f"{figures.images:.0f} images/s, {figures.cpu:.1f} µs of CPU an image, p50 {figures.p50:.1f} ms, "
        f"p99 {figures.p99:.1f} ms"
    ]
    program = PEERS / "bin/py-spy"
    if not program.exists():
        return "\n".join([*lines, "for functions, make py-spy there: python benchmarks/serving.py --setup"])
    raw = scratch / "stacks"
    spy = subprocess.Popen(
        [
            *(str(program), "record", "--pid", str(worker), "--duration", str(max(1, round(seconds)))),
            *("--rate", "200", "--threads", "--nonblocking", "--format", "raw", "--output", str(raw)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while spy.poll() is None:
        once(min(seconds, 1.0))
    return "\n".join([*lines, *_by_function(raw.read_text(encoding="utf-8"), own)])


def _threads(service: Service) -> dict[tuple[int, int], float]:
    """CPU seconds so far by (process, thread)."""
    found = {}
    for process in service.processes():
        try:
            threads = process.threads()
        except psutil.NoSuchProcess:
            continue
        found |= {(process.pid, thread.id): thread.user_time + thread.system_time for thread in threads}
    return found


def _by_function(stacks: str, own: dict[int, float]) -> list[str]:
    """Lines of a table. `own` is microseconds an image by thread."""
    samples: dict[int, list[tuple[list[str], int]]] = {}
    names: dict[int, str] = {}
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        match = re.match(r"thread \((\w+)\)(?:: (.*))?", thread)
        if match is None or not frames or frames[-1].startswith(_WAITING):
            continue
        tid = int(match[1], 0)
        names[tid] = match[2] or "?"
        samples.setdefault(tid, []).append((frames, int(count)))
    lines = ["", "by thread, µs an image (exact):"]
    lines += [f"  {time:9.2f}  {names.get(tid, '')} ({tid})" for tid, time in _largest(own) if time > 0.05]
    itself: collections.Counter[str] = collections.Counter()
    with_callees: collections.Counter[str] = collections.Counter()
    for tid, several in samples.items():
        share = own.get(tid, 0.0) / sum(count for _, count in several)
        for frames, count in several:
            functions = [re.sub(r":\d+\)$", ")", frame) for frame in frames]
            itself[functions[-1]] += count * share  # type: ignore[assignment]
            for function in set(functions):
                with_callees[function] += count * share  # type: ignore[assignment]
    for title, found in (("itself", itself), ("with what it calls", with_callees)):
        lines += ["", f"by function, {title}, µs an image (samples; waiting for the interpreter lock counts):"]
        lines += [f"  {time:9.2f}  {function}" for function, time in found.most_common(_MOST) if time > 0.05]
    return lines


def _largest(times: dict[int, float]) -> list[tuple[int, float]]:
    return sorted(times.items(), key=lambda pair: -pair[1])
