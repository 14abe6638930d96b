"""How much memory a stream takes: the server's peak for a million images against that for ten thousand.

    python benchmarks/streaming.py [--bundle BUNDLE] [--images 1000000] [--format npy]

For each of the two numbers a service of one worker is started here, on loopback; one connection reads one stream of so
many images and checks its end mark; then the worker's peak of resident memory (VmHWM, Linux) is read. A service that
has answered nothing but /readyz is measured, too, to see what is the stream's. Without --bundle the generator is a tiny
one of random weights, 28×28 grey, so that a million takes minutes: a stream's memory depends on its parts, not on how
long they take. Results go to stdout, with machine and date; the exit code is 1 where the ratio is above --most.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import http.client
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from augmint.endmark import tail_length  # noqa: E402
from augmint.generator import Generator  # noqa: E402
from benchmarks.contenders import augmint  # noqa: E402
from benchmarks.load import Service  # noqa: E402
from tests.tinybundle import write_tiny_bundle  # noqa: E402

READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Measured:
    images: int
    seconds: float
    bytes: int
    peak_mb: float


def peak_mb(service: Service) -> float:
    """The largest peak of resident memory among a service's processes: its worker's."""
    peaks = []
    for one in service.processes():
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{one.pid}/status").read_text()
            peaks.append(int(status.split("VmHWM:")[1].split()[0]) / 1024)
    return max(peaks)


def read_stream(port: int, counts: dict[str, int] | int, form: str) -> int:
    """Read a stream to its end and check it; how many bytes it had. Holds none of them but the last."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    wish = json.dumps({"counts": counts, "seed": 1, "format": form})
    connection.request("POST", "/v1/stream", wish, {"Content-Type": "application/json"})
    hashed, size, tail = hashlib.sha256(), 0, b""
    with contextlib.closing(connection), connection.getresponse() as response:
        assert response.status == 200, response.read()
        while piece := response.read(READ_BYTES):
            size += len(piece)
            seen = tail + piece
            keep = min(tail_length(form), len(seen))
            hashed.update(seen[:-keep])
            tail = seen[-keep:]
    mark = json.loads(tail[tail.index(b"{") : tail.index(b"}") + 1])
    assert mark["sha256"] == hashed.hexdigest(), "the stream was cut or damaged"
    assert mark["images"] == (counts if isinstance(counts, int) else sum(counts.values()))
    return size


def measure(bundle: Path, images: int, form: str) -> Measured:
    labels = Generator(bundle, device="cpu").class_names
    counts = {labels[0]: images} if labels else images
    with tempfile.TemporaryDirectory() as home, augmint(bundle, Path(home)) as service:
        begun = time.monotonic()
        size = read_stream(service.port, counts, form) if images else 0
        return Measured(images, time.monotonic() - begun, size, peak_mb(service))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=10_000)
    parser.add_argument("--format", default="npy", choices=("npy", "tar"))
    parser.add_argument("--most", type=float, default=1.5, help="largest ratio that will do")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle or write_tiny_bundle(Path(folder) / "tiny28", shape=(28, 28, 1))
        print(f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores; {arguments.format}")
        found = []
        for images in (0, arguments.few, arguments.images):
            found.append(measure(bundle, images, arguments.format))
            one = found[-1]
            pace = f", {one.images / one.seconds:,.0f} images/s" if images else ""
            print(
                f"{one.images:>9,} images: peak {one.peak_mb:.1f} MB, {one.bytes / 1e6:,.1f} MB sent{pace}", flush=True
            )
    ratio = found[2].peak_mb / found[1].peak_mb
    print(f"ratio of the peaks: {ratio:.3f} (at most {arguments.most})")
    sys.exit(ratio > arguments.most)


if __name__ == "__main__":
    main()
