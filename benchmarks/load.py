"""Services under load, for benchmarks: start them, ask them for images, read what their processes cost.

Two clients. `wrk` (Debian: apt-get install wrk) for many small requests: it costs the machine next to nothing and keeps
its connections busy for so many seconds. `send` for requests that take long: it sends a fixed list and waits for every
answer, so that no request is cut off by the end of the measurement and CPU time an image is exact.

Both share the cores with the service, so a service's own CPU time is the steadier figure. Knows nothing of which
services there are.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import psutil

ROOT: Final = Path(__file__).resolve().parent.parent
SEED: Final = "SEED"
"""Stands in a request's body where a number below 2^53 is to be put, another one for every request."""
_READY_S: Final = 120.0


@dataclass(frozen=True)
class Ask:
    """A request: `images` are what a right answer to it holds."""

    path: str
    body: bytes
    images: int
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Figures:
    """Of one measurement.

    Attributes:
        images: delivered a second.
        cpu: microseconds of the service's processes an image.
        p50: milliseconds, of the smallest kind of request.
        p99: the same.
        memory: largest resident size in MB, summed over the service's processes.
    """

    images: float
    cpu: float
    p50: float
    p99: float
    memory: float


def median(runs: Sequence[Figures]) -> Figures:
    """Each figure's own median."""
    names = [field.name for field in fields(Figures)]
    return Figures(**{name: statistics.median(getattr(run, name) for run in runs) for name in names})


def require_wrk() -> None:
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: apt-get install wrk")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ------------------------------------------------------------------------------------------------- services


class Service:
    """A process and all its children, that answers at `port`."""

    def __init__(self, name: str, process: psutil.Process, port: int, log: Path) -> None:
        self.log = log
        self.name = name
        self.process = process
        self.port = port
        self.seconds_to_ready = 0.0
        self._paused: list[psutil.Process] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def last_words(self) -> str:
        """The end of its log without what went well: for whoever is told that it failed."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([line for line in lines if " 200 " not in line][-10:])

    def pause(self) -> None:
        """Let it take no CPU time at all until `resume`: some services are busy while nobody asks them."""
        self._paused = self.processes()
        for process in self._paused:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> bool:
        """Whether it was stopped."""
        paused, self._paused = self._paused, []
        for process in paused:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        return bool(paused)

    def cpu_seconds(self) -> float:
        """User and system time of all processes so far."""
        total = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def forget_peak(self) -> None:
        """`peak_mb` counts from here on (Linux; elsewhere there is no peak, only the size now)."""
        for process in self.processes():
            with contextlib.suppress(OSError):
                Path(f"/proc/{process.pid}/clear_refs").write_text("5")

    def peak_mb(self) -> float:
        """The largest resident size of each process, summed: pages that they share are counted in each."""
        total = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                try:
                    status = Path(f"/proc/{process.pid}/status").read_text()
                except OSError:
                    total += process.memory_info().rss / 2**20
                else:
                    found = re.search(r"VmHWM:\s+(\d+) kB", status)
                    total += int(found[1]) / 1024 if found else 0.0
        return total


@contextlib.contextmanager
def running(
    name: str,
    command: Sequence[str],
    port: int,
    log: Path,
    environment: Mapping[str, str] | None = None,
    *,
    ready: str = "/readyz",
) -> Iterator[Service]:
    """Start a service, wait until `ready` answers 200, end it with SIGTERM.

    Raises:
        RuntimeError: it ended, or was not ready in time.
    """
    begun = time.monotonic()
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=output,
            stderr=output,
            # A stopped process is sent SIGHUP when the shell that it hangs on ends: it must hang on none.
            start_new_session=True,
        )
    service = Service(name, psutil.Process(process.pid), port, log)
    try:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(service.url + ready, timeout=2) as answer:
                if answer.status == 200:
                    break
            if process.poll() is not None or time.monotonic() - begun > _READY_S:
                raise RuntimeError(f"{name} did not start:\n{service.last_words()}")
            time.sleep(0.02)
        service.seconds_to_ready = time.monotonic() - begun
        yield service
    finally:
        service.resume()
        left = service.processes() if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in psutil.wait_procs(left, timeout=5)[1]:  # some peers leave their workers behind
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def ask_once(service: Service, ask: Ask) -> bytes:
    """The body of the answer to one request.

    Raises:
        RuntimeError: it was not 200.
    """
    with contextlib.closing(_Connection(service.port)) as client:
        client.begin(ask, seed=1)
        while not client.receive():
            pass
        if client.status != 200:
            raise RuntimeError(f"{service.name} answered {client.status}: {bytes(client.body[:500])!r}")
        return bytes(client.body)


# ------------------------------------------------------------------------------------------------- wrk


def wrk(service: Service, ask: Ask, connections: int, seconds: float, scratch: Path) -> Figures:
    """So many connections that send `ask` over and over, each with its own seeds.

    Raises:
        RuntimeError: an answer was an error.
    """
    script = scratch / f"{service.name}.lua"
    script.write_text(_lua(ask))
    service.forget_peak()
    before = service.cpu_seconds()
    output = subprocess.run(
        [
            *("wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "60s", "--latency"),
            *("-s", str(script), service.url + ask.path, "--", str(random.randrange(2**31))),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    cpu = service.cpu_seconds() - before
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(f"{service.name} refused requests:\n{service.last_words()}\n{output}")
    images = int(_found(r"(\d+) requests in", output)[0]) * ask.images
    return Figures(
        images=float(_found(r"Requests/sec:\s+([\d.]+)", output)[0]) * ask.images,
        cpu=cpu / max(images, 1) * 1e6,
        p50=_milliseconds(output, 50),
        p99=_milliseconds(output, 99),
        memory=service.peak_mb(),
    )


def _lua(ask: Ask) -> str:
    headers = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in ask.headers.items())
    escaped = "".join(f"\\{byte:03}" for byte in ask.body)
    numbered = "".join(f"\\{byte:03}" for byte in SEED.encode())
    return f"""\
wrk.method = "POST"
{headers}
local body = "{escaped}"
local path, before, after
function init(arguments)
  math.randomseed(tonumber(arguments[1]))
  local from, to = body:find("{numbered}", 1, true)
  if from then before, after = body:sub(1, from - 1), body:sub(to + 1) else wrk.body = body end
end
function request()
  if before then
    wrk.body = before .. string.format("%d", math.random(0, 2^31 - 1)) .. after
  end
  return wrk.format()
end
"""


def _found(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"wrk printed no {pattern}:\n{text}")
    return tuple(match.groups())


def _milliseconds(output: str, percent: int) -> float:
    number, unit = _found(rf"{percent}%\s+([\d.]+)(us|ms|s|m)\b", output)
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}[unit]


# ------------------------------------------------------------------------------------------------- a fixed list


def send(service: Service, asks: Iterable[Ask], connections: int) -> Figures:
    """Send every request once, so many at a time, and wait for all answers.

    Raises:
        RuntimeError: an answer was not 200.
    """
    todo = iter(asks)
    seeds = random.Random()
    latencies: dict[int, list[float]] = {}  # by the images of a request
    service.forget_peak()
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        clients = [stack.enter_context(contextlib.closing(_Connection(service.port))) for _ in range(connections)]
        before, begun = service.cpu_seconds(), time.perf_counter()

        def next_for(client: _Connection) -> bool:
            ask = next(todo, None)
            if ask is not None:
                client.begin(ask, seeds.getrandbits(52))
            return ask is not None

        for client in clients:
            if next_for(client):
                selector.register(client.socket, selectors.EVENT_READ, client)
        while selector.get_map():
            for key, _ in selector.select():
                client = key.data
                if not client.receive():
                    continue
                if client.status != 200:
                    answer = f"{service.name} answered {client.status}: {bytes(client.body[:500])!r}"
                    raise RuntimeError(f"{answer}\n{service.last_words()}")
                latencies.setdefault(client.ask.images, []).append(time.perf_counter() - client.begun)
                if not next_for(client):
                    selector.unregister(client.socket)
        seconds, cpu = time.perf_counter() - begun, service.cpu_seconds() - before
    images = sum(n * len(times) for n, times in latencies.items())
    smallest = sorted(latencies[min(latencies)])
    return Figures(
        images=images / seconds,
        cpu=cpu / images * 1e6,
        p50=smallest[len(smallest) // 2] * 1e3,
        p99=smallest[min(len(smallest) - 1, len(smallest) * 99 // 100)] * 1e3,
        memory=service.peak_mb(),
    )


class _Connection:
    """One request at a time over one socket; as little work as there can be."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(1 << 20)
        self.body = bytearray()
        self.begun = 0.0

    def begin(self, ask: Ask, seed: int) -> None:
        self.ask, self.begun = ask, time.perf_counter()
        self.status, self._left, self._head = 0, 0, b""
        self.body.clear()
        body = ask.body.replace(SEED.encode(), b"%d" % seed)
        head = f"POST {ask.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in ask.headers.items())
        self.socket.sendall(f"{head}\r\n".encode() + body)

    def receive(self) -> bool:
        """Read what is there; whether the answer is whole. Of a large answer only the first megabyte is kept."""
        n = self.socket.recv_into(self._buffer)
        if not n:
            raise RuntimeError("the service closed the connection")
        data = memoryview(self._buffer)[:n]
        if not self.status:
            self._head += bytes(data)
            head, separator, rest = self._head.partition(b"\r\n\r\n")
            if not separator:
                return False
            length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
            if length is None:
                raise RuntimeError(f"an answer without a length: {head[:500]!r}")
            self.status, self._left = int(head[9:12]), int(length[1])
            data = memoryview(rest)
        if len(self.body) < 1 << 20:
            self.body += data
        self._left -= len(data)
        return self._left == 0

    def close(self) -> None:
        self.socket.close()
