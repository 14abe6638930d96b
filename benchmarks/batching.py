"""What batching gains: the same service with it on and off, under 32 concurrent requests of one image.

    python benchmarks/batching.py [--bundle BUNDLE] [--seconds 4] [--rounds 3]

Both services are started here, on loopback, with the same settings but AUGMINT_BATCHING; "off" runs every request as a
session call of its own, on as many threads as "on" has, which is the best that a service without batching does on a
CPU. They are loaded in turn (on, off, on, off, …), so that a machine that slows down slows both.

Without --bundle three generators with random weights are built, since speed does not depend on what was learned: the
family `gan` at its paper's size for 28×28 grey and 32×32 colour, whose calls cost what reading their weights costs,
and a small DCGAN, whose calls cost what its arithmetic costs. Batching saves a call's fixed costs, never the
arithmetic, and every request's HTTP remains: so what it gains on a CPU depends on the generator. On a GPU a call is
nearly all fixed costs.

The load comes from `wrk` (Debian: apt-get install wrk), which shares the cores with the service: so the service's own
CPU time an image is printed beside the images a second. Results go to stdout, with machine and date.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from augmint.bundle import read_bundle  # noqa: E402
from benchmarks.contenders import augmint  # noqa: E402
from benchmarks.load import SEED, Ask, Figures, Service, median, require_wrk, wrk  # noqa: E402
from benchmarks.random_bundles import write_random_bundle  # noqa: E402
from benchmarks.record import made  # noqa: E402

CONNECTIONS = 32
GENERATORS = ("gan28", "gan32", "dcgan28")


def session_calls(bundle: Path) -> dict[int, float]:
    """Microseconds an image of latents and one session call on one thread, by batch size: the limit of any gain."""
    from augmint.generator import Generator

    generator = Generator(bundle, device="cpu", threads=1)
    found: dict[int, float] = {}
    for n in (1, 8, 32, 64):
        labels, seeds, indices = np.zeros(n, np.int64), np.ones(n, np.uint64), np.arange(n, dtype=np.uint64)
        times = []
        for _ in range(60):
            begun = time.perf_counter()
            generator.render(labels, seeds, indices)
            times.append(time.perf_counter() - begun)
        found[n] = statistics.median(times) / n * 1e6
    return found


# ------------------------------------------------------------------------------------------------- two services


def measure(bundle: Path, scratch: Path, seconds: float, rounds: int) -> None:
    manifest = read_bundle(bundle).manifest
    counts = {manifest.class_names[0]: 1} if manifest.class_names else 1
    body = json.dumps({"counts": counts, "seed": SEED, "format": "npy"}).replace(f'"{SEED}"', SEED)
    ask = Ask("/v1/generate", body.encode(), 1, {"Content-Type": "application/json"})
    calls = session_calls(bundle)
    results: dict[str, list[Figures]] = {"on": [], "off": []}
    with _service(bundle, "on", scratch) as on, _service(bundle, "off", scratch) as off:
        for each in (on, off):
            wrk(each, ask, CONNECTIONS, 1.0, scratch)
        for turn in range(rounds):
            for each in (on, off):
                results[each.name].append(wrk(each, ask, CONNECTIONS, seconds, scratch))
                print(f"round {turn + 1}, batching {each.name}: {results[each.name][-1]}", file=sys.stderr)

    middle = {batching: median(runs) for batching, runs in results.items()}
    shape = "×".join(map(str, manifest.image.shape))
    print(f"\n{manifest.identity.name} ({manifest.architecture.family}, {shape})")
    print(
        "  latents and session call, one thread, µs an image: "
        + ", ".join(f"{time:.0f} in a batch of {n}" for n, time in calls.items())
    )
    print(f"  {'batching':<10}{'images/s':>10}{'CPU µs/image':>14}{'p50 ms':>9}{'p99 ms':>9}")
    for batching, row in middle.items():
        print(f"  {batching:<10}{row.images:>10.0f}{row.cpu:>14.0f}{row.p50:>9.1f}{row.p99:>9.1f}")
    print(
        f"  on : off = {middle['on'].images / middle['off'].images:.2f} : 1 in images a second, "
        f"1 : {middle['off'].cpu / middle['on'].cpu:.2f} in CPU time an image"
    )


def _service(bundle: Path, batching: str, scratch: Path) -> contextlib.AbstractContextManager[Service]:
    return augmint(bundle, scratch, name=batching, AUGMINT_BATCHING=batching)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="a bundle to serve, instead of those that are built")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each service")
    arguments = parser.parse_args()
    require_wrk()

    about = made("onnxruntime-gpu", "bentoml")
    print(f"{about['date']}, {about['machine']['cpu']}, {about['machine']['cores']} cores (the load runs on them too)")
    print(
        f"{CONNECTIONS} concurrent requests of 1 image as npy: median of {arguments.rounds} × {arguments.seconds:g} s"
    )
    with tempfile.TemporaryDirectory(prefix="augmint-bench-") as name:
        for generator in [None] if arguments.bundle else GENERATORS:
            scratch = Path(name) / (generator or "given")
            scratch.mkdir()
            bundle = write_random_bundle(generator, scratch / "bundle") if generator else arguments.bundle
            measure(bundle, scratch, arguments.seconds, arguments.rounds)


if __name__ == "__main__":
    main()
