"""The service under fire: what it does when too much is asked, when parts of it die, when clients misbehave.

    python benchmarks/chaos.py [--only NAME …] [--seconds 60] [--cases 10000] [--soak 1800] [--docs]

Each scenario starts a real `bentoml serve` on loopback, does its worst, and prints what was observed; whatever images
are delivered meanwhile are compared with the local Generator's. Exits 1 when a promise was broken. --docs writes
docs/chaos.md. Linux alone; all together about 10 minutes and the soak.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import io
import itertools
import json
import os
import random
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from augmint import Client, Generator  # noqa: E402
from benchmarks.random_bundles import write_random_bundle  # noqa: E402
from serving.protocol import HEAD_SECONDS  # noqa: E402
from tests.serving.conftest import Service, bentoml_serve  # noqa: E402
from tests.tinybundle import write_tiny_bundle  # noqa: E402

HANGS_S: Final = 30.0
"""An answer that takes longer than this hangs."""


# ------------------------------------------------------------------------------------------------- what was observed


@dataclass
class Report:
    """What a scenario saw: rows of (what, observed, whether a promise was kept; None where nothing was promised)."""

    name: str
    rows: list[tuple[str, str, bool | None]] = field(default_factory=list)

    def see(self, what: str, observed: str, kept: bool | None = None) -> None:
        self.rows.append((what, observed, kept))
        mark = {True: "kept", False: "BROKEN", None: ""}[kept]
        print(f"  {what:<58} {observed:<52} {mark}", flush=True)

    @property
    def kept(self) -> bool:
        return all(kept is not False for _, _, kept in self.rows)


@dataclass
class Options:
    seconds: float
    cases: int
    soak: float


# ------------------------------------------------------------------------------------------------- asking and comparing


@dataclass(frozen=True)
class Ask:
    """A request, and whether an answer's body holds the images that the local generator makes."""

    method: str
    path: str
    body: bytes | None
    right: Callable[[bytes], bool]


@dataclass
class Tally:
    """What came back. `cut`: connections that ended before their answer did; `wrong`: bodies with other bytes."""

    statuses: Counter[int] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    hung: int = 0
    without_retry_after: int = 0
    delivered: int = 0
    seconds: dict[int, list[float]] = field(default_factory=dict)

    def __str__(self) -> str:
        cut = f", cut off {sum(self.cut.values())}" if self.cut else ""
        return ", ".join(f"{status} {n}×" for status, n in sorted(self.statuses.items())) + cut

    def percentile(self, status: int, percent: float) -> float:
        return float(np.percentile(self.seconds.get(status) or [np.nan], percent))


def bulk(generator: Generator, bundle: str, count: int, seeds: int, label: str | None = None) -> list[Ask]:
    """Requests for `count` images as npy, each with its own seed."""
    asks = []
    for seed in range(seeds):
        counts: Any = count if label is None else {label: count}
        pixels = np.ascontiguousarray(generator.generate(counts, seed=seed).images).tobytes()
        asks.append(_post({"bundle": bundle, "counts": counts, "seed": seed, "format": "npy"}, _ends_with(pixels)))
    return asks


def mixture(generator: Generator, bundle: str) -> list[Ask]:
    """Requests of every kind of a conditional bundle, most of them small."""
    labels = generator.info().class_names
    asks = [
        ask
        for count, seeds in ((1, 6), (7, 4), (64, 3), (700, 2))
        for ask in bulk(generator, bundle, count, seeds, labels[0])
    ]
    for seed in range(4):
        images = generator.generate({labels[1]: 5}, seed=seed).images
        request = {"bundle": bundle, "counts": {labels[1]: 5}, "seed": seed, "format": "npz"}
        asks.append(_post(request, lambda body, images=images: np.array_equal(_npz(body), images)))
        path = f"/v1/bundles/{bundle}/images/{labels[1]}/{seed}/0.png"
        asks.append(Ask("GET", path, None, lambda body, image=images[0]: np.array_equal(_png(body), image)))
    return asks


def _post(request: dict[str, Any], right: Callable[[bytes], bool]) -> Ask:
    return Ask("POST", "/v1/generate", json.dumps(request).encode(), right)


def _ends_with(pixels: bytes) -> Callable[[bytes], bool]:
    return lambda body: (
        body.startswith(b"\x93NUMPY") and len(body) - len(pixels) in range(64, 257) and body.endswith(pixels)
    )


def _npz(body: bytes) -> Any:
    return np.load(io.BytesIO(body))["images"]


def _png(body: bytes) -> Any:
    image = np.array(Image.open(io.BytesIO(body)))
    return image[..., None] if image.ndim == 2 else image


async def ask_once(session: aiohttp.ClientSession, url: str, ask: Ask, tally: Tally, **headers: str) -> int:
    """One request; its status, 0 where there was none."""
    begun = time.monotonic()
    given = {"Content-Type": "application/json", **headers} if ask.body else headers
    try:
        async with session.request(ask.method, url + ask.path, data=ask.body, headers=given) as response:
            body = await response.read()
    except TimeoutError:
        tally.hung += 1
        return 0
    except (aiohttp.ClientError, OSError) as error:
        tally.cut[type(error).__name__] += 1
        return 0
    tally.statuses[response.status] += 1
    tally.seconds.setdefault(response.status, []).append(time.monotonic() - begun)
    if response.status == 200:
        tally.delivered += 1
        tally.wrong += not ask.right(body)
    if response.status in (429, 503) and not response.headers.get("Retry-After", "").isdigit():
        tally.without_retry_after += 1
    return response.status


@contextlib.asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=HANGS_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, trust_env=False) as made:
        yield made


async def closed_loop(url: str, asks: list[Ask], clients: int, until: Callable[[], bool], seed: int = 0) -> Tally:
    """So many clients, each of which asks again as soon as it has its answer."""
    tally, choose = Tally(), random.Random(seed)

    async def client() -> None:
        while not until():
            if await ask_once(made, url, choose.choice(asks), tally) in (0, 503):
                await asyncio.sleep(0.05)

    async with session() as made:
        await asyncio.gather(*(client() for _ in range(clients)))
    return tally


async def open_loop(url: str, asks: list[Ask], rate: float, seconds: float, seed: int = 0) -> Tally:
    """Requests that come at random moments, `rate` a second, whatever became of those before."""
    tally, choose = Tally(), random.Random(seed)
    loop = asyncio.get_running_loop()
    tasks = []
    async with session() as made:
        due = end = loop.time()
        end += seconds
        while (due := due + choose.expovariate(rate)) < end:
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            tasks.append(loop.create_task(ask_once(made, url, choose.choice(asks), tally)))
        await asyncio.gather(*tasks)
    return tally


def for_seconds(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def judge_bytes(report: Report, tally: Tally) -> None:
    report.see(
        "answers with other bytes than the local Generator's", f"{tally.wrong} of {tally.delivered}", not tally.wrong
    )


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


# ------------------------------------------------------------------------------------------------- the process


def worker_of(service: Service) -> psutil.Process:
    """The process that answers: BentoML's child with an event loop, of which there is one."""
    return psutil.Process(service.process.pid).children()[0]


def memory(process: psutil.Process) -> float:
    """MB resident."""
    return float(process.memory_info().rss) / 1e6


class Watch:
    """Memory and descriptors of a process, sampled in a thread."""

    def __init__(self, process: psutil.Process, every: float = 0.2) -> None:
        self.samples: list[tuple[float, float, int]] = []  # seconds, MB, descriptors
        self._process, self._every, self._end = process, every, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        begun = time.monotonic()
        while not self._end.wait(self._every):
            with contextlib.suppress(psutil.Error):
                self.samples.append((time.monotonic() - begun, memory(self._process), self._process.num_fds()))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def most_memory(self) -> float:
        return max(mb for _, mb, _ in self.samples)


@contextlib.contextmanager
def service_of(scratch: Path, *bundles: Path, **variables: str) -> Iterator[tuple[Service, str]]:
    given = {"AUGMINT_BUNDLES": os.pathsep.join(map(str, bundles)), "AUGMINT_DEVICE": "cpu", **variables}
    with bentoml_serve(scratch / "home", **given) as service:
        service.wait_until_ready()
        yield service, f"http://127.0.0.1:{service.port}"


def gauge(service: Service, name: str) -> float:
    lines = service.ask("GET", "/metrics").body.decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"augmint_{name}"))


def no_traceback(report: Report, service: Service) -> None:
    report.see(
        "tracebacks in the log",
        str(service.log.read_text().count("Traceback")),
        "Traceback" not in service.log.read_text(),
    )


# ------------------------------------------------------------------------------------------------- scenarios


def fuzz(report: Report, scratch: Path, options: Options) -> None:
    """schemathesis over the OpenAPI document."""
    bundles = [
        write_tiny_bundle(scratch / "tiny", judged=True),
        write_tiny_bundle(scratch / "plain", class_names=(), shape=(8, 10, 3), seed=1),
    ]
    limits = {"AUGMINT_MAX_IMAGES": "300", "AUGMINT_MAX_BODY": "4096"}
    with service_of(scratch, *bundles, AUGMINT_JOBS=str(scratch / "jobs"), **limits) as (service, url):
        command = [sys.executable, str(ROOT / "benchmarks" / "fuzz_api.py"), url, "--cases", str(options.cases)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        print(result.stdout + result.stderr)
        last = (result.stdout.strip() or result.stderr.strip()).splitlines()[-1]
        report.see("every answer as documented, no 5xx, errors problem+json", last, result.returncode == 0)
        report.see(
            "ready afterwards", str(service.ask("GET", "/readyz").status), service.ask("GET", "/readyz").status == 200
        )
        no_traceback(report, service)


def overload(report: Report, scratch: Path, options: Options) -> None:
    """Ten times what the service can make, at random moments: requests of half a second each, for which AUGMINT_QUEUE_S
    is set to half as much."""
    _overload(report, scratch, options, seconds=0.5, AUGMINT_QUEUE_S="0.25")


def overload_small(report: Report, scratch: Path, options: Options) -> None:
    """The same with requests that take about 0.06 s, for which AUGMINT_QUEUE_S is set to half as much."""
    _overload(report, scratch, options, seconds=0.06, AUGMINT_QUEUE_S="0.03")


def _overload(report: Report, scratch: Path, options: Options, seconds: float, **variables: str) -> None:
    bundle = write_random_bundle("gan32", scratch / "gan32")
    generator = Generator(bundle, device="cpu", threads=1)
    with service_of(scratch, bundle, AUGMINT_ACCESS_LOG="off", **variables) as (service, url):
        process = worker_of(service)
        first = bulk(generator, "gan32", 512, 4)
        pace = asyncio.run(closed_loop(url, first, 1, for_seconds(3))).percentile(200, 50) / 512
        count = max(1, min(5000, int(seconds / pace)))
        asks = bulk(generator, "gan32", count, 12)

        idle = asyncio.run(closed_loop(url, asks, 1, for_seconds(max(5.0, min(30.0, options.seconds / 2)))))
        idle_p50, idle_p99 = idle.percentile(200, 50), idle.percentile(200, 99)
        report.see(
            f"idle: one request of {count} images after another",
            f"p50 {ms(idle_p50)}, p99 {ms(idle_p99)}, n {idle.delivered}",
        )
        for_capacity = max(5.0, options.seconds / 6)
        capacity = asyncio.run(closed_loop(url, asks, 2, for_seconds(for_capacity))).delivered / for_capacity
        before = memory(process)
        report.see("capacity, two clients", f"{capacity:.1f} requests/s")

        with Watch(process) as watch:
            tally = asyncio.run(open_loop(url, asks, 10 * capacity, options.seconds))
        recovered, quick = time.monotonic(), 0.0
        after = Tally()

        async def recover() -> float:
            async with session() as made:
                while time.monotonic() < recovered + 10:
                    begun = time.monotonic()
                    if await ask_once(made, url, asks[0], after) == 200 and time.monotonic() - begun <= 1.5 * idle_p50:
                        return begun - recovered
            return 10.0

        quick = asyncio.run(recover())
        admitted = tally.percentile(200, 99)
        report.see(f"offered for {options.seconds:g} s", f"{10 * capacity:.0f} requests/s: {tally}")
        report.see("delivered, share of capacity", f"{tally.delivered / options.seconds / capacity:.0%}")
        ratio = f"p50 {ms(tally.percentile(200, 50))}, p99 {ms(admitted)}: {admitted / idle_p99:.2f} × idle p99"
        report.see("admitted: p99 at most 3 × idle", ratio, admitted <= 3 * idle_p99)
        refusals = f"p50 {ms(tally.percentile(503, 50))}, p99 {ms(tally.percentile(503, 99))}"
        report.see(
            "refused at once (p99 below idle p50 and 0.5 s)", refusals, tally.percentile(503, 99) <= max(0.5, idle_p50)
        )
        report.see("503 without Retry-After", str(tally.without_retry_after), not tally.without_retry_after)
        odd = {status: n for status, n in tally.statuses.items() if status not in (200, 429, 503)}
        report.see(
            "hung, cut off, or answered otherwise",
            f"{tally.hung}, {sum(tally.cut.values())}, {odd}",
            not tally.hung and not tally.cut and not odd,
        )
        report.see(
            "memory, before and at most",
            f"{before:.0f} MB, {watch.most_memory:.0f} MB",
            watch.most_memory < before + 300,
        )
        report.see("full speed again after (2 s at most)", f"{quick:.2f} s", quick <= 2)
        judge_bytes(report, tally)
        no_traceback(report, service)


def kill_worker(report: Report, scratch: Path, options: Options) -> None:
    """kill -9 of the only worker under load; augmint's own client goes on."""
    bundle = write_tiny_bundle(scratch / "tiny")
    generator = Generator(bundle, device="cpu", threads=1)
    with service_of(scratch, bundle) as (service, url):
        asks = mixture(generator, "tiny")
        stop = threading.Event()
        right: list[bool] = []

        def faithful(seed: int) -> None:
            with Client(url, timeout=60) as client:
                for turn in itertools.count():
                    if stop.is_set():
                        return
                    counts, own = {"dog": 300}, seed * 1000 + turn
                    images = client.generate(counts, seed=own).images
                    right.append(bool(np.array_equal(images, generator.generate(counts, seed=own).images)))

        with ThreadPoolExecutor(3) as pool:
            load = pool.submit(asyncio.run, closed_loop(url, asks, 8, stop.is_set))
            clients = [pool.submit(faithful, number) for number in range(2)]
            time.sleep(2)
            victim = worker_of(service).pid
            os.kill(victim, signal.SIGKILL)
            killed = time.monotonic()
            time.sleep(0.2)
            with contextlib.suppress(AssertionError):
                service.wait_until_ready(60)
            back = time.monotonic() - killed
            time.sleep(2)
            stop.set()
            tally = load.result()
            failures = [repr(client.exception()) for client in clients if client.exception()]
        report.see("another worker is ready after", f"{back:.1f} s", back < 60 and worker_of(service).pid != victim)
        report.see("eight plain clients saw", str(tally))
        judge_bytes(report, tally)
        report.see(
            "two augmint.Clients: calls that gave the right images",
            f"{sum(right)} of {len(right)}, failed {failures}",
            all(right) and not failures,
        )


def terminate(report: Report, scratch: Path, options: Options) -> None:
    """SIGTERM under load: not ready first, what was admitted is finished."""
    bundle = write_random_bundle("dcgan28", scratch / "dcgan28")
    generator = Generator(bundle, device="cpu", threads=1)
    with service_of(scratch, bundle, AUGMINT_DRAIN_S="1", AUGMINT_QUEUE_S="30") as (service, url):
        asks = bulk(generator, "dcgan28", 300, 8)
        begun: list[float] = []
        outcome: list[tuple[float, int]] = []  # when it was sent, its status
        tally, readiness = Tally(), []

        async def client(made: aiohttp.ClientSession) -> None:
            while service.process.poll() is None:
                sent = time.monotonic()
                status = await ask_once(made, url, random.choice(asks), tally)
                outcome.append((sent, status))
                if not status:
                    await asyncio.sleep(0.02)

        async def look(made: aiohttp.ClientSession) -> None:
            while service.process.poll() is None:
                status = 0
                with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                    async with made.get(url + "/readyz", timeout=aiohttp.ClientTimeout(total=0.5)) as response:
                        status = response.status
                readiness.append((time.monotonic(), status))
                await asyncio.sleep(0.02)

        async def scenario() -> None:
            async with session() as made:
                clients = [asyncio.create_task(client(made)) for _ in range(8)]
                looking = asyncio.create_task(look(made))
                await asyncio.sleep(3)
                service.process.send_signal(signal.SIGTERM)
                begun.append(time.monotonic())
                await asyncio.gather(*clients, looking)

        asyncio.run(scenario())
        at = begun[0]
        ended = time.monotonic() - at
        first = next((when - at for when, status in readiness if when > at and status == 503), None)
        closed = next((when - at for when, status in readiness if when > at and not status), None)
        before = [status for sent, status in outcome if sent < at]
        flight = sum(1 for sent, _ in outcome if sent < at) - sum(1 for sent, status in outcome if sent < at and status)
        report.see(
            "not ready after SIGTERM, door closed after",
            f"{first or -1:.2f} s, {closed or -1:.2f} s",
            first is not None and (closed is None or first < closed),
        )
        report.see("asked before SIGTERM and not answered", f"{flight} of {len(before)}", not flight)
        report.see("all answers", str(tally))
        report.see(
            "ended after, with code", f"{ended:.1f} s, {service.process.returncode}", service.process.returncode == 0
        )
        judge_bytes(report, tally)
        no_traceback(report, service)


def clients_gone(report: Report, scratch: Path, options: Options) -> None:
    """Clients that ask for much and go, some at once and some in the middle of the answer."""
    bundle = write_random_bundle("gan32", scratch / "gan32")
    generator = Generator(bundle, device="cpu", threads=1)
    with service_of(scratch, bundle, AUGMINT_QUEUE_S="600", AUGMINT_QUEUE_IMAGES="1000000") as (service, url):
        asks = bulk(generator, "gan32", 16, 4)
        idle = asyncio.run(closed_loop(url, asks, 1, for_seconds(2)))
        before, made = memory(worker_of(service)), gauge(service, "images_generated_total")
        open_sockets = [_send(service.port, {"counts": 10_000, "format": "npy"}) for _ in range(20)]
        time.sleep(0.3)
        queued = gauge(service, "queue_images")
        for connection in open_sockets:
            connection.close()
        gone = time.monotonic()
        while gauge(service, "queue_images") and time.monotonic() < gone + 20:
            time.sleep(0.02)
        report.see("20 × 10,000 images asked for; waiting when the clients went", f"{queued:.0f}")
        freed = time.monotonic() - gone
        report.see("nothing waits any more after", f"{freed:.2f} s", freed < 2)
        report.see("of those images made", f"{gauge(service, 'images_generated_total') - made:.0f}")
        for _ in range(10):  # in the middle of an answer of 18 MB
            connection = _send(service.port, {"counts": 6000, "format": "npy"})
            connection.recv(65536)
            connection.close()
        time.sleep(1)
        tally = asyncio.run(closed_loop(url, asks, 1, for_seconds(2)))
        slower = tally.percentile(200, 50) / idle.percentile(200, 50)
        report.see("then as fast as before", f"{slower:.2f} × the time", slower < 2)
        after = memory(worker_of(service))
        report.see("memory, before and after", f"{before:.0f} MB, {after:.0f} MB", after < before + 300)
        judge_bytes(report, tally)
        no_traceback(report, service)


def slow_clients(report: Report, scratch: Path, options: Options) -> None:
    """Slow-loris, half-open connections, answers that nobody reads; with a deadline of 8 s."""
    bundle = write_random_bundle("gan32", scratch / "gan32")
    generator = Generator(bundle, device="cpu", threads=1)
    limit = 8.0
    with service_of(scratch, bundle, AUGMINT_TIMEOUT_S=str(limit), AUGMINT_QUEUE_S="60") as (service, url):
        asks = bulk(generator, "gan32", 4, 4)
        idle = asyncio.run(closed_loop(url, asks, 1, for_seconds(2)))
        worker, before = worker_of(service), memory(worker_of(service))
        descriptors = worker.num_fds()
        unread = [_send(service.port, {"counts": 3000, "format": "npy"}, buffer=4096) for _ in range(5)]
        time.sleep(0.5)
        while gauge(service, "queue_images"):
            time.sleep(0.1)
        slow = {
            "heads": [_connect(service.port, b"GET / HTTP/1.1\r\nHo") for _ in range(150)],
            "bodies": [_connect(service.port, _HEAD + b"Content-Length: 100\r\n\r\n{") for _ in range(150)],
            "nothing": [_connect(service.port, b"") for _ in range(150)],
            "unread": unread,
        }
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.5):
                for connection in slow["heads"] + slow["bodies"]:
                    with contextlib.suppress(OSError):
                        connection.send(b"x")

        begun = time.monotonic()
        dripping = threading.Thread(target=drip, daemon=True)
        dripping.start()
        tally = asyncio.run(closed_loop(url, asks, 1, for_seconds(5)))
        worse = tally.percentile(200, 99) / idle.percentile(200, 99)
        report.see("others meanwhile, p99", f"{ms(tally.percentile(200, 99))}: {worse:.2f} × idle", worse < 5)
        held = memory(worker)
        while worker.num_fds() > descriptors + 4 and time.monotonic() < begun + HEAD_SECONDS + 2 * limit:
            time.sleep(0.1)
        took, left = time.monotonic() - begun, worker.num_fds() - descriptors
        what = "150 heads, 150 bodies, 150 silent, 5 unread answers: closed after"
        report.see(what, f"{took:.1f} s, {max(left, 0)} left", left <= 4)
        stop.set()
        dripping.join()
        first = slow["bodies"][0].recv(400).split(b"\r\n")[0].decode()
        report.see("a body that does not come is answered", first, " 504" in first or " 408" in first)
        after = memory(worker)
        figures = f"{before:.0f} MB, {held:.0f} MB, {after:.0f} MB"
        report.see("memory: before, with them, after", figures, after < before + 200)
        judge_bytes(report, tally)
        no_traceback(report, service)
        for connection in itertools.chain.from_iterable(slow.values()):
            connection.close()


def clock(report: Report, scratch: Path, options: Options) -> None:
    """The wall clock jumps by years under load (through a library before libc; the machine's own is let be)."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        report.see("not done", "no C compiler here")
        return
    source, library, offset = scratch / "jump.c", scratch / "jump.so", scratch / "offset"
    source.write_text(_JUMP)
    offset.write_bytes((0).to_bytes(8, "little"))
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    bundle = write_tiny_bundle(scratch / "tiny")
    generator = Generator(bundle, device="cpu", threads=1)
    variables = {"LD_PRELOAD": str(library), "CHAOS_OFFSET": str(offset)}
    with service_of(scratch, bundle, **variables) as (service, url):
        asks = mixture(generator, "tiny")
        dates = []

        def jump() -> None:
            for years in (0, 10, -20, 5, 0):
                with offset.open("r+b") as file:
                    file.write(int(years * 365.25 * 86400).to_bytes(8, "little", signed=True))
                time.sleep(1)
                dates.append(service.ask("GET", "/livez").headers["date"].split()[3])

        jumping = threading.Thread(target=jump)
        jumping.start()
        tally = asyncio.run(closed_loop(url, asks, 4, lambda: not jumping.is_alive()))
        report.see("years that the service's Date said", ", ".join(dates), len(set(dates)) >= 3)
        only = set(tally.statuses) == {200} and not tally.cut and not tally.hung
        report.see("answers", str(tally), only)
        report.see("slowest", ms(max(tally.seconds[200])), max(tally.seconds[200]) < 5)
        judge_bytes(report, tally)
        no_traceback(report, service)


# time.time() and datetime.now() go through these; clocks that only run forward are not touched.
_JUMP: Final = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
static int64_t offset(void) {
    static volatile int64_t *shared;
    if (!shared) {
        const char *path = getenv("CHAOS_OFFSET");
        int file = path ? open(path, O_RDONLY) : -1;
        if (file < 0) return 0;
        void *mapped = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
        if (mapped == MAP_FAILED) return 0;
        shared = mapped;
    }
    return *shared;
}
int clock_gettime(clockid_t id, struct timespec *to) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, to);
    if (!result && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) to->tv_sec += offset();
    return result;
}
time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}
int gettimeofday(struct timeval *restrict to, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    to->tv_sec = now.tv_sec;
    to->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""


def out_of_memory(report: Report, scratch: Path, options: Options) -> None:
    """Batches of up to 16,384 images, and a process that is not given the memory for them."""
    bundle = write_random_bundle("dcgan28", scratch / "dcgan28")
    generator = Generator(bundle, device="cpu", threads=1)
    variables = {"AUGMINT_BATCH": "16384", "AUGMINT_THREADS": "2", "AUGMINT_MAX_IMAGES": "20000"}
    with service_of(scratch, bundle, AUGMINT_QUEUE_S="600", **variables) as (service, url):
        worker = worker_of(service)
        small, large = bulk(generator, "dcgan28", 8, 4), bulk(generator, "dcgan28", 16_000, 2)
        room = int(worker.memory_info().vms + 60e6)
        resource.prlimit(worker.pid, resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
        tally = Tally()

        async def both() -> None:
            async with session() as made:
                asks = [ask_once(made, url, ask, tally) for ask in [*large, *small * 4]]
                await asyncio.gather(*asks)

        asyncio.run(both())
        text = service.log.read_text()
        failed = text.count("ERROR augmint.engine: a batch of"), text.count("cannot be made")
        report.see("session calls that failed; images that could not be made", f"{failed[0]}; {failed[1]}")
        report.see("2 × 16,000 images and 16 × 8 images, with 60 MB to spare", str(tally), tally.statuses[200] >= 16)
        report.see("alive", str(service.ask("GET", "/livez").status), worker.is_running())
        resource.prlimit(worker.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        after = Tally()

        async def again() -> None:
            async with session() as made:
                for ask in [*large, *small]:
                    await ask_once(made, url, ask, after)

        asyncio.run(again())
        report.see("with memory again", str(after), set(after.statuses) == {200})
        judge_bytes(report, tally)
        judge_bytes(report, after)


def full_disk(report: Report, scratch: Path, options: Options) -> None:
    """Jobs on a disk of 4 MB that is too small for them."""
    bundle = write_random_bundle("gan32", scratch / "gan32")
    generator = Generator(bundle, device="cpu", threads=1)
    folder = scratch / "jobs"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=4m", "augmint-chaos", str(folder)]
    if subprocess.run(mounting, capture_output=True).returncode:
        report.see("not done", "a small disk cannot be mounted here: this needs root")
        return
    try:
        with service_of(scratch, bundle, AUGMINT_JOBS=str(folder)) as (service, url):
            asks, ended = bulk(generator, "gan32", 16, 4), threading.Event()
            with ThreadPoolExecutor(1) as pool:
                load = pool.submit(asyncio.run, closed_loop(url, asks, 1, ended.is_set))
                large = _job(service, {"counts": 4000, "seed": 1, "format": "npy"})
                said = f"{large['state']}: {large['error']}"
                report.see("a job of 12 MB", said, large["state"] == "failed" and bool(large["error"]))
                left = psutil.disk_usage(str(folder)).used / 1e6
                report.see("left on the disk of it", f"{left:.2f} MB", left < 0.5)
                small = _job(service, {"counts": 300, "seed": 2, "format": "npy"})
                result = service.ask("GET", f"/v1/jobs/{small['id']}/result").body
                images = generator.generate(300, seed=2).images
                right = result.startswith(b"\x93NUMPY") and images.tobytes() in result
                report.see("a job of 1 MB afterwards: done, with the right bytes", f"{small['state']}, {right}", right)
                ended.set()
                tally = load.result()
            only = set(tally.statuses) <= {200, 503} and not tally.cut and not tally.hung
            report.see("others meanwhile", str(tally), only)
            judge_bytes(report, tally)
            no_traceback(report, service)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _job(service: Service, wish: dict[str, Any]) -> dict[str, Any]:
    """A job, once it is done or failed."""
    reply = service.ask("POST", "/v1/jobs", wish)
    place, end = reply.headers.get("location"), time.monotonic() + HANGS_S
    if place is None:  # refused at once
        return {"state": "failed", "error": reply.json().get("detail", "")}
    while time.monotonic() < end:
        found: dict[str, Any] = service.ask("GET", place).json()
        if found["state"] in ("done", "failed"):
            return found
        time.sleep(0.05)
    return {"state": "hangs", "error": ""}


def corrupt_bundles(report: Report, scratch: Path, options: Options) -> None:
    """Damaged bundles dropped into the directory that is served, and over one that is served."""
    home = scratch / "bundles"
    bundle = write_tiny_bundle(home / "tiny")
    other = write_tiny_bundle(home / "other", seed=3)
    good = write_tiny_bundle(scratch / "late", seed=4)
    generator = Generator(bundle, device="cpu", threads=1)
    with service_of(scratch, home, AUGMINT_POLL_S="0.2") as (service, url):
        asks, ended = mixture(generator, "tiny"), threading.Event()
        asks += bulk(Generator(other, device="cpu", threads=1), "other", 5, 3, "cat")
        with ThreadPoolExecutor(1) as pool:
            load = pool.submit(asyncio.run, closed_loop(url, asks, 3, ended.is_set))
            for name, file, damage in (
                ("flipped", "generator.onnx", _flip),
                ("cut", "generator.onnx", lambda data: data[: len(data) // 2]),
                ("no-json", "manifest.json", lambda data: b"\x00" * len(data)),
                ("empty", "manifest.json", lambda data: b""),
            ):
                _copy(good, home / name, file, damage)
            _damage(other / "generator.onnx", _flip)
            time.sleep(2)
            served = [found["name"] for found in service.ask("GET", "/v1/bundles").json()["bundles"]]
            report.see(
                "four dropped in, one overwritten; still served", ", ".join(served), set(served) == {"tiny", "other"}
            )
            ready = service.ask("GET", "/readyz").status
            report.see("ready", str(ready), ready == 200)
            shutil.copytree(good, home / "late")
            time.sleep(2)
            names = [found["name"] for found in service.ask("GET", "/v1/bundles").json()["bundles"]]
            report.see("a good one dropped in afterwards; served", ", ".join(names), "late" in names)
            ended.set()
            tally = load.result()
        report.see("answers meanwhile", str(tally), set(tally.statuses) == {200} and not tally.cut and not tally.hung)
        judge_bytes(report, tally)
        text = service.log.read_text()
        named = [name for name in ("flipped", "cut", "no-json", "empty", "other") if f"/{name}" in text]
        report.see("named in the log", ", ".join(named), len(named) == 5)
        no_traceback(report, service)


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


def _damage(path: Path, damage: Callable[[bytes], bytes]) -> None:
    path.write_bytes(damage(path.read_bytes()))


def _copy(source: Path, to: Path, file: str, damage: Callable[[bytes], bytes]) -> None:
    shutil.copytree(source, to)
    _damage(to / file, damage)


def deadlines(report: Report, scratch: Path, options: Options) -> None:
    """Clients that wait 100 ms, in a queue of seconds."""
    bundle = write_random_bundle("gan32", scratch / "gan32")
    generator = Generator(bundle, device="cpu", threads=1)
    with service_of(scratch, bundle, AUGMINT_QUEUE_S="600", AUGMINT_QUEUE_IMAGES="1000000") as (service, url):
        asks, tally = bulk(generator, "gan32", 2000, 1), Tally()
        made_before = gauge(service, "images_generated_total")

        async def scenario() -> None:
            async with session() as made:
                hurried = {"X-Request-Timeout-Ms": "100"}
                await asyncio.gather(*(ask_once(made, url, asks[0], tally, **hurried) for _ in range(40)))

        asyncio.run(scenario())
        time.sleep(0.2)
        made = gauge(service, "images_generated_total") - made_before
        report.see(
            "40 × 2,000 images within 100 ms each", str(tally), set(tally.statuses) <= {200, 504} and not tally.hung
        )
        late = tally.percentile(504, 99)
        report.see("504 after, p99", ms(late), late < 1)
        report.see(
            "images made of 80,000",
            f"{made:.0f}; still waiting {gauge(service, 'queue_images'):.0f}",
            made < 40_000 and not gauge(service, "queue_images"),
        )
        zero = Tally()

        async def at_once() -> None:
            async with session() as opened:
                await ask_once(opened, url, asks[0], zero, **{"X-Request-Timeout-Ms": "0"})

        asyncio.run(at_once())
        report.see("0 ms: refused at admission", str(zero), set(zero.statuses) == {504})
        judge_bytes(report, tally)
        no_traceback(report, service)


def soak(report: Report, scratch: Path, options: Options) -> None:
    """Mixed load for long: memory and descriptors stay flat."""
    bundle = write_tiny_bundle(scratch / "tiny")
    generator = Generator(bundle, device="cpu", threads=1)
    with service_of(scratch, bundle) as (service, url):
        asks = mixture(generator, "tiny")
        with Watch(worker_of(service), every=max(0.5, options.soak / 600)) as watch:
            tally = asyncio.run(closed_loop(url, asks, 6, for_seconds(options.soak)))
        third = [sample for sample in watch.samples if sample[0] > options.soak / 3]
        middle = [sample for sample in third if sample[0] < 2 * options.soak / 3]
        last = [sample for sample in third if sample[0] >= 2 * options.soak / 3]
        memories = [statistics.median(mb for _, mb, _ in part) for part in (middle, last)]
        descriptors = [max(n for _, _, n in part) for part in (middle, last)]
        only = set(tally.statuses) <= {200, 503} and not tally.cut and not tally.hung
        report.see(f"{options.soak:g} s of six clients", str(tally), only)
        report.see(
            "memory, median of the second and last third",
            f"{memories[0]:.1f} MB, {memories[1]:.1f} MB",
            memories[1] < memories[0] * 1.03 + 3,
        )
        report.see(
            "descriptors, most of the second and last third",
            f"{descriptors[0]}, {descriptors[1]}",
            descriptors[1] <= descriptors[0] + 4,
        )
        judge_bytes(report, tally)
        no_traceback(report, service)


_HEAD: Final = b"POST /v1/generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def _connect(port: int, first: bytes, buffer: int | None = None) -> socket.socket:
    connection = socket.socket()
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", port))
    if first:
        connection.sendall(first)
    return connection


def _send(port: int, request: dict[str, Any], buffer: int | None = None) -> socket.socket:
    body = json.dumps(request).encode()
    return _connect(port, _HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body, buffer)


SCENARIOS: Final[dict[str, Callable[[Report, Path, Options], None]]] = {
    "fuzz": fuzz,
    "overload": overload,
    "overload-small": overload_small,
    "kill": kill_worker,
    "sigterm": terminate,
    "clients-gone": clients_gone,
    "slow-clients": slow_clients,
    "full-disk": full_disk,
    "corrupt-bundles": corrupt_bundles,
    "clock": clock,
    "out-of-memory": out_of_memory,
    "deadlines": deadlines,
    "soak": soak,
}


def run(name: str, options: Options) -> Report:
    """One scenario, in a folder of its own."""
    report, scenario = Report(name), SCENARIOS[name]
    print(f"\n{name}: {(scenario.__doc__ or '').strip()}", flush=True)
    with tempfile.TemporaryDirectory(prefix="augmint-chaos-") as scratch:
        scenario(report, Path(scratch), options)
    return report


def write_docs(path: Path, reports: list[Report], options: Options) -> None:
    lines = [
        "# The service under fire",
        "",
        "Written by `make chaos` (`benchmarks/chaos.py --docs`): each scenario starts a real `bentoml serve` on",
        "loopback, does its worst and compares every image delivered with the local Generator's. ✓ a promise that was",
        "kept, ✗ one that was broken; rows without a mark were only observed.",
        "",
        f"{datetime.date.today()}, {len(os.sched_getaffinity(0))} cores, which the load runs on too; "
        f"overload {options.seconds:g} s, soak {options.soak:g} s.",
    ]
    for report in reports:
        lines += [
            "",
            f"## {report.name}",
            "",
            (SCENARIOS[report.name].__doc__ or "").strip(),
            "",
            "| what | observed | |",
            "|---|---|---|",
        ]
        lines += [
            f"| {what} | {observed} | {({True: '✓', False: '✗', None: ''})[kept]} |"
            for what, observed, kept in report.rows
        ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=SCENARIOS, help="this scenario; may be given again")
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    parser.add_argument("--cases", type=int, default=10_000, help="of schemathesis")
    parser.add_argument("--soak", type=float, default=1800.0, help="seconds of the soak")
    parser.add_argument("--docs", action="store_true", help="write docs/chaos.md")
    arguments = parser.parse_args()
    options = Options(arguments.seconds, arguments.cases, arguments.soak)
    reports = [run(name, options) for name in arguments.only or SCENARIOS]
    if arguments.docs:
        write_docs(ROOT / "docs" / "chaos.md", reports, options)
    broken = [report.name for report in reports if not report.kept]
    print(f"\nbroken promises: {', '.join(broken) or 'none'}")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
