"""The service beside raw ONNX Runtime and its peers, as ratios in one interleaved run: docs/serving.md.

    python benchmarks/serving.py [--docs] [--models tiny] [--loads small,medium] [--services augmint,fastapi] [--quick]
    python benchmarks/serving.py --setup
    python benchmarks/serving.py --profile tiny/small/npy

All services stand ready, those that are not being measured are stopped (SIGSTOP), and each cell goes in rounds: the
limit, then each service. The limit is what raw ONNX Runtime gives: as many free-running loops of `session.run`, each of
one thread, as there are cores, on one session, at the best batch of a sweep in this run; no latents, no HTTP, no
encoding. Shares are medians over the rounds of the ratio within a round.

The load runs on the same cores and takes its part of them, so a service's share by images a second is bounded by what
the load leaves; its share by CPU time an image (user and system time of all its processes) is the steadier figure.

Generators have random weights, since speed does not depend on what was learned. Requests: see LOADS. Ours gets another
seed each time. --setup makes the peers' environments (.venv-peers, .venv-peers-triton) and nothing else; a peer whose
environment is not there, or that does not start, is left out and named.
"""

from __future__ import annotations

import os

# The limit's loops are the only threads: before numpy and ONNX Runtime are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import contextlib
import itertools
import json
import random
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from augmint.runtime import usable_cores  # noqa: E402
from benchmarks import serving_page  # noqa: E402
from benchmarks.contenders import CONTENDERS, EMPTY, FRONT, OURS, Contender, Form, augmint, check, setup  # noqa: E402
from benchmarks.load import Ask, Figures, Service, median, require_wrk, send, wrk  # noqa: E402
from benchmarks.profiling import profile  # noqa: E402
from benchmarks.random_bundles import GENERATORS, write_random_bundle  # noqa: E402
from benchmarks.record import made, save  # noqa: E402

MODELS: Final = ("tiny", "64x64")
FORMS: Final[tuple[Form, ...]] = ("npy", "png")
SWEEP: Final = (1, 4, 8, 16, 32, 64, 128)
BULK: Final = 1024
MIXTURE: Final = ((1, 1024), (16, 64), (BULK, 1))
"""Images of a request, and how many such requests there are in a round of the mixture: as many images of each."""


@dataclass(frozen=True)
class Load:
    """`connections` that ask for `images` each (0: the mixture)."""

    images: int
    connections: int
    title: str


LOADS: Final = {
    "small": Load(1, 32, "32 × 1 image"),
    "medium": Load(16, 8, "8 × 16 images"),
    "bulk": Load(BULK, 1, "1 × 1,024 images"),
    "bulk2": Load(BULK, 2, "2 × 1,024 images"),
    "mixture": Load(0, 24, "24 × a mixture"),
}


# ------------------------------------------------------------------------------------------------- the limit


class Limit:
    """Raw ONNX Runtime on a bundle's graph."""

    def __init__(self, bundle: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            bundle / "generator.onnx", options, providers=["CPUExecutionProvider"]
        )
        self._latent_dim = self._session.get_inputs()[0].shape[1]
        self.sweep: dict[int, float] = {}
        self.batch = 1

    def find_best(self, seconds: float) -> None:
        self.sweep = {batch: self.measure(seconds, batch)[0] for batch in SWEEP}
        self.batch = max(self.sweep, key=lambda batch: self.sweep[batch])

    def measure(self, seconds: float, batch: int = 0) -> tuple[float, float]:
        """Images a second of all loops, and CPU microseconds an image."""
        batch = batch or self.batch
        latent = np.random.default_rng(0).standard_normal((batch, self._latent_dim), dtype=np.float32)
        self._session.run(None, {"latent": latent})
        calls = [0] * usable_cores()

        def loop(i: int) -> None:
            while time.perf_counter() < end:
                self._session.run(None, {"latent": latent})
                calls[i] += 1

        threads = [threading.Thread(target=loop, args=(i,)) for i in range(len(calls))]
        cpu, begun = time.process_time(), time.perf_counter()
        end = begun + seconds
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        images = sum(calls) * batch
        return images / (time.perf_counter() - begun), (time.process_time() - cpu) / images * 1e6


# ------------------------------------------------------------------------------------------------- cells


@contextlib.contextmanager
def standing(
    names: Sequence[str], bundle: Path, shape: Sequence[int], scratch: Path, left_out: dict[str, str]
) -> Iterator[dict[str, Service]]:
    """The services, ready, looked at and stopped until somebody resumes them. Why one is missing goes to `left_out`."""
    with contextlib.ExitStack() as stack:
        found: dict[str, Service] = {}
        for name in names:
            contender = CONTENDERS[name]
            say(f"starting {contender.title}")
            try:
                if not contender.python.exists():
                    raise RuntimeError("its environment is not there: run with --setup first")
                start = augmint if name == OURS else contender.run
                service = stack.enter_context(start(bundle, scratch))
                check(contender, service, shape)
            except (RuntimeError, OSError) as error:
                if name == OURS:
                    raise
                left_out[contender.title] = str(error).strip().splitlines()[-1]
                say(f"{contender.title} is left out: {error}")
                continue
            if not contender.triton:
                service.pause()
            found[name] = service
        yield found


@contextlib.contextmanager
def awake(service: Service) -> Iterator[None]:
    """Resumed, if it was stopped, and stopped again."""
    stopped = service.resume()
    try:
        yield
    finally:
        if stopped:
            service.pause()


def run_load(
    contender: Contender, service: Service, load: Load, form: Form, seconds: float, pace: float, scratch: Path
) -> Figures:
    """One measurement; `pace` is about how many images a second there will be, to choose how many to ask for."""
    ask = contender.ask
    if 0 < load.images < BULK:
        return wrk(service, ask(load.images, form), load.connections, seconds, scratch)
    if form == "png":
        pace *= 0.4  # Pillow's
    if load.images == BULK:
        each = max(1, round(seconds * pace / BULK / 2))
        return send(service, [ask(BULK, form)] * each * load.connections, load.connections)
    return send(service, mixture(ask, form, rounds=max(1, round(seconds * pace / 30_000))), load.connections)


def mixture(ask: Callable[[int, Form], Ask], form: Form, rounds: int) -> list[Ask]:
    """The same order every time; the large one in the middle, so that it has company from its beginning to its end."""
    small = [ask(n, form) for n, times in MIXTURE if n != BULK for _ in range(times)]
    random.Random(0).shuffle(small)
    middle = len(small) // 2
    return [*small[:middle], ask(BULK, form), *small[middle:]] * rounds


def measure_cell(
    services: dict[str, Service], limit: Limit, name: str, form: Form, arguments: argparse.Namespace, scratch: Path
) -> dict[str, Any]:
    """Rounds of the limit and every service. A service that fails in a cell is named there with the reason."""
    load = LOADS[name]
    limits: list[tuple[float, float]] = []
    runs: dict[str, list[Figures]] = {service: [] for service in services}
    failed: dict[str, str] = {}
    for _ in range(arguments.rounds):
        limits.append(limit.measure(arguments.seconds / 2))
        for service in services:
            if service in failed:
                continue
            with awake(services[service]):
                try:
                    runs[service].append(
                        run_load(
                            CONTENDERS[service],
                            services[service],
                            load,
                            form,
                            arguments.seconds,
                            limits[0][0],
                            scratch,
                        )
                    )
                except (RuntimeError, OSError) as error:
                    if service == OURS:
                        raise
                    failed[service] = str(error).strip().splitlines()[-1]
    found = {}
    for service, several in runs.items():
        if service in failed:
            found[service] = {"failed": failed[service]}
            continue
        found[service] = asdict(median(several)) | {
            "share_cpu": statistics.median(cpu / run.cpu for (_, cpu), run in zip(limits, several, strict=True)),
            "share_wall": statistics.median(run.images / rate for (rate, _), run in zip(limits, several, strict=True)),
        }
    return {
        "load": name,
        "form": form,
        "limit": {"images": statistics.median(x for x, _ in limits), "cpu": statistics.median(x for _, x in limits)},
        "services": found,
    }


# ------------------------------------------------------------------------------------------------- other promises


def measure_fairness(ours: Service, arguments: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """Requests of one image alone, and while two callers ask for 1,024 again and again: ms."""
    ask = CONTENDERS[OURS].ask
    found = []
    with awake(ours):
        for connections in (1, LOADS["small"].connections):
            idle, busy = [], []
            for _ in range(arguments.rounds):
                idle.append(wrk(ours, ask(1, "npy"), connections, arguments.seconds, scratch))
                with _bulk(ours, ask(BULK, "npy")):
                    busy.append(wrk(ours, ask(1, "npy"), connections, arguments.seconds, scratch))
            ratio = statistics.median(b.p99 / i.p99 for i, b in zip(idle, busy, strict=True))
            alone, beside = median(idle), median(busy)
            found.append(
                {"callers": connections, "ratio": ratio, "idle_p99": alone.p99, "busy_p99": beside.p99}
                | {"idle_p50": alone.p50, "busy_p50": beside.p50}
            )
    return found


@contextlib.contextmanager
def _bulk(service: Service, ask: Ask) -> Iterator[None]:
    stop = threading.Event()
    asks = itertools.takewhile(lambda _: not stop.is_set(), itertools.repeat(ask))
    thread = threading.Thread(target=send, args=(service, asks, 2))
    thread.start()
    time.sleep(0.2)
    try:
        yield
    finally:
        stop.set()
        thread.join()


def measure_start(bundle: Path, scratch: Path, rounds: int) -> dict[str, float]:
    """Seconds from the start of the process to a 200 of /readyz."""
    kinds = {"empty": EMPTY, "service": CONTENDERS[OURS], "front": FRONT}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, kind in kinds.items():
            with kind.run(bundle, scratch) as service:
                seconds[name].append(service.seconds_to_ready)
    return {name: statistics.median(times) for name, times in seconds.items()}


def measure_workers(bundle: Path, arguments: argparse.Namespace, scratch: Path, pace: float) -> dict[str, Any]:
    """One worker against two, and whether two workers' counters hold every image that was asked for."""
    names = [name for name in ("small", "medium", "bulk2") if name in arguments.loads]
    rates: dict[str, dict[int, list[float]]] = {name: {1: [], 2: []} for name in names}
    with augmint(bundle, scratch) as one, augmint(bundle, scratch, AUGMINT_WORKERS="2") as two:
        services = {1: one, 2: two}
        for service in services.values():
            service.pause()
        for name in names:
            for _ in range(arguments.rounds):
                for workers, service in services.items():
                    with awake(service):
                        run = run_load(CONTENDERS[OURS], service, LOADS[name], "npy", arguments.seconds, pace, scratch)
                    rates[name][workers].append(run.images)
        two.resume()
        asks = mixture(CONTENDERS[OURS].ask, "npy", rounds=1)
        before = _counted(two)
        send(two, asks, LOADS["mixture"].connections)
        counted = _counted(two) - before
    return {
        "images": {name: {n: statistics.median(x) for n, x in by.items()} for name, by in rates.items()},
        "asked": sum(ask.images for ask in asks),
        "counted": counted,
    }


def _counted(service: Service) -> int:
    text = urllib.request.urlopen(f"{service.url}/metrics", timeout=30).read().decode()
    return round(sum(map(float, re.findall(r"^augmint_images_generated_total\S* (\S+)$", text, re.MULTILINE))))


# ------------------------------------------------------------------------------------------------- all


def say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    left_out: dict[str, str] = {}
    models = []
    workers: dict[str, Any] = {}
    start: dict[str, float] = {}
    for name in arguments.models:
        shape = GENERATORS[name][2]
        bundle = write_random_bundle(name, scratch / name)
        limit = Limit(bundle)
        limit.find_best(arguments.seconds / 4)
        with standing(arguments.services, bundle, shape, scratch, left_out) as services:
            for service, running in services.items():  # the first second of each is no one's measure
                with awake(running):
                    wrk(running, CONTENDERS[service].ask(1, "npy"), 32, 1, scratch)
            cells = []
            for load, form in itertools.product(arguments.loads, arguments.forms):
                say(f"{name}, {LOADS[load].title}, {form}")
                cells.append(measure_cell(services, limit, load, form, arguments, scratch))
            say(f"{name}: small requests beside bulk")
            fairness = measure_fairness(services[OURS], arguments, scratch)
        models.append(
            {"name": name, "shape": shape, "batch": limit.batch, "sweep": limit.sweep, "cells": cells}
            | {"fairness": fairness}
        )
        if name == arguments.models[0]:
            say("start, and two workers")
            start = measure_start(bundle, scratch, arguments.rounds)
            workers = measure_workers(bundle, arguments, scratch, limit.sweep[limit.batch])
    return {
        "made": made("onnxruntime-gpu", "bentoml", "uvicorn", "uvloop"),
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "load_average": os.getloadavg()[0],
        "left_out": left_out,
        "models": models,
        "start": start,
        "workers": workers,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", action="store_true", help="make the peers' environments")
    parser.add_argument("--docs", type=Path, nargs="?", const=ROOT / "docs", help="write serving.md and serving.json")
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", type=_several(MODELS), default=list(MODELS))
    parser.add_argument("--loads", type=_several(LOADS), default=list(LOADS))
    parser.add_argument("--forms", type=_several(FORMS), default=list(FORMS))
    parser.add_argument("--services", type=_several(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--profile", metavar="CELL", help="where our CPU time goes in one cell, as tiny/small/npy")
    arguments = parser.parse_args()
    if arguments.setup:
        setup()
        return 0
    # Services are stopped while others are measured: whoever ends this program must not leave them so.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    require_wrk()
    if OURS not in arguments.services:
        parser.error(f"--services must name {OURS}: the others are compared with it.")
    if arguments.quick:
        arguments.seconds, arguments.rounds = 1.0, 1
    with tempfile.TemporaryDirectory(prefix="augmint-bench-") as name:
        scratch = Path(name)
        if arguments.profile:
            return _profile(arguments, parser, scratch)
        found = json.loads(json.dumps(measure(arguments, scratch), allow_nan=False))
    print(serving_page.table(found))
    if arguments.docs:
        save(arguments.docs / "serving.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        save(arguments.docs / "serving.md", serving_page.page(found))
    return 0


def _profile(arguments: argparse.Namespace, parser: argparse.ArgumentParser, scratch: Path) -> int:
    model, _, rest = arguments.profile.partition("/")
    load, _, form = rest.partition("/")
    if model not in MODELS or load not in LOADS or form not in FORMS:
        parser.error("--profile takes MODEL/LOAD/FORM, as tiny/small/npy.")
    bundle = write_random_bundle(model, scratch / model)
    limit = Limit(bundle)
    limit.find_best(0.3)
    pace = limit.sweep[limit.batch]
    contender = CONTENDERS[OURS]
    with augmint(bundle, scratch) as service:

        def once(seconds: float) -> Figures:
            return run_load(contender, service, LOADS[load], form, seconds, pace, scratch)

        print(f"{arguments.profile}; limit {limit.measure(1.0)[1]:.1f} µs of CPU an image")
        print(profile(service, once, arguments.seconds * 4, scratch))
    return 0


def _several(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if wrong := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(wrong)} is none of {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main())
