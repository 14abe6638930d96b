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
import datetime
import io
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from augmint.bundle import (  # noqa: E402
    Architecture,
    Data,
    Description,
    Evidence,
    Golden,
    Graph,
    Identity,
    Image,
    Sampling,
    Tensor,
    essentials,
    read_bundle,
    write_bundle,
)
from augmint.latents import latents  # noqa: E402

CONNECTIONS = 32


# ------------------------------------------------------------------------------------------------- a generator


def _weights(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return (rng.normal(size=shape) / np.sqrt(np.prod(shape[:1] + shape[2:]))).astype(np.float32)


def gan_graph(shape: tuple[int, int, int]) -> tuple[int, list[onnx.NodeProto], dict[str, Any]]:
    """The family `gan` at its paper's size (Goodfellow et al. 2014, mnist.yaml): 100 -> 1200 -> 1200 -> pixels. A call
    spends its time on reading 10 MB of weights (21 MB for 32×32 colour), however many images it makes."""
    rng = np.random.default_rng(0)
    height, width, channels = shape
    widths = (100, 1200, 1200, height * width * channels)
    nodes, constants, hidden = [], {}, "latent"
    for layer, (n_in, n_out) in enumerate(pairwise(widths)):
        constants |= {f"w{layer}": _weights(rng, n_in, n_out), f"b{layer}": np.zeros(n_out, np.float32)}
        nodes.append(helper.make_node("Gemm", [hidden, f"w{layer}", f"b{layer}"], [f"linear{layer}"]))
        activation = "Relu" if layer < 2 else "Tanh"
        nodes.append(helper.make_node(activation, [f"linear{layer}"], [f"on{layer}"]))
        hidden = f"on{layer}"
    constants["to_map"] = np.array([-1, channels, height, width])
    return widths[0], [*nodes, helper.make_node("Reshape", [hidden, "to_map"], ["tanh"])], constants


def dcgan_graph(shape: tuple[int, int, int]) -> tuple[int, list[onnx.NodeProto], dict[str, Any]]:
    """A small DCGAN: latent -> 64×7×7 -> 32×14×14 -> 1×28×28 by transposed convolutions of 4×4. A call spends its time
    on arithmetic, which grows with the images."""
    assert shape == (28, 28, 1)
    rng = np.random.default_rng(0)
    up = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Gemm", ["latent", "w0", "b0"], ["flat"]),
        helper.make_node("Relu", ["flat"], ["flat_on"]),
        helper.make_node("Reshape", ["flat_on", "to_map"], ["map7"]),
        helper.make_node("ConvTranspose", ["map7", "w1"], ["map14"], **up),
        helper.make_node("Relu", ["map14"], ["map14_on"]),
        helper.make_node("ConvTranspose", ["map14_on", "w2"], ["map28"], **up),
        helper.make_node("Tanh", ["map28"], ["tanh"]),
    ]
    constants = {
        "w0": _weights(rng, 64, 49 * 64),
        "b0": np.zeros(49 * 64, np.float32),
        "to_map": np.array([-1, 64, 7, 7]),
        "w1": _weights(rng, 64, 32, 4, 4) * 4,
        "w2": _weights(rng, 32, 1, 4, 4) * 4,
    }
    return 64, nodes, constants


GENERATORS = {
    "gan28": ("gan", gan_graph, (28, 28, 1)),
    "gan32": ("gan", gan_graph, (32, 32, 3)),
    "dcgan28": ("dcgan", dcgan_graph, (28, 28, 1)),
}


def write_bundle_of(name: str, path: Path) -> Path:
    """An unconditional bundle of random weights: speed does not depend on what was learned."""
    import onnxruntime

    family, build, shape = GENERATORS[name]
    latent_dim, nodes, constants = build(shape)
    constants["half"] = np.float32(127.5)
    nodes += [
        helper.make_node("Mul", ["tanh", "half"], ["scaled"]),
        helper.make_node("Add", ["scaled", "half"], ["grey"]),
        helper.make_node("Round", ["grey"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["nchw"], to=TensorProto.UINT8),
        helper.make_node("Transpose", ["nchw"], ["image"], perm=[0, 2, 3, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        family,
        [helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["N", latent_dim])],
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *shape])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    description = Description(
        identity=Identity(name=name, augmint_version="benchmark", run="none", trained="never"),
        architecture=Architecture(family=family, options={}, parameters=0, checkpoint_step=0, images_seen=0),
        data=Data(
            name="none",
            fingerprint="0" * 64,
            class_counts={},
            split={"train": 0, "validation": 0, "test": 0},
            resize="fit",
        ),
        class_names=(),
        image=Image(height=shape[0], width=shape[1], channels=shape[2]),
        sampling=Sampling(latent_dim=latent_dim, tolerance=1),
        generator=Graph(
            file="generator.onnx",
            inputs=(Tensor(name="latent", dtype="float32", shape=("N", latent_dim)),),
            outputs=(Tensor(name="image", dtype="uint8", shape=("N", *shape)),),
            opset=20,
            precision="fp32",
            optimisation="all",
            versions={"onnx": onnx.__version__},
        ),
        evidence=Evidence(),
        golden=(Golden(label="", seed=1, index=0, truncation=1.0),),
    )
    entry = model.metadata_props.add()
    entry.key, entry.value = "augmint", json.dumps(essentials(description))
    data = model.SerializeToString(deterministic=True)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (image,) = session.run(None, {"latent": latents([1], [0], latent_dim)})
    golden = io.BytesIO()
    np.save(golden, image)
    write_bundle(path, description, {"generator.onnx": data, "golden.npy": golden.getvalue()})
    return path


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


@contextlib.contextmanager
def service(bundle: Path, batching: str, scratch: Path) -> Iterator[tuple[str, psutil.Process]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "AUGMINT_BUNDLES": str(bundle.resolve()),
        "AUGMINT_DEVICE": "cpu",
        "AUGMINT_BATCHING": batching,
        "BENTOML_HOME": str(scratch / batching),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    command = [sys.executable, "-m", "bentoml", "serve", "serving.service:AugmintService"]
    with open(scratch / f"{batching}.log", "wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(240):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{url}/readyz", timeout=2)
                    break
                if process.poll() is not None:
                    sys.exit(f"the service did not start: see {log.name}")
                time.sleep(0.25)
            (worker,) = psutil.Process(process.pid).children()
            yield url, worker
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def load(url: str, worker: psutil.Process, body: Path, seconds: float) -> dict[str, float]:
    """Images a second, service's CPU microseconds an image, median and 99th percentile of the answer time in ms."""
    before = worker.cpu_times()
    output = subprocess.run(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "--latency", "-s", str(body), f"{url}/v1/generate"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    after = worker.cpu_times()
    if "Non-2xx" in output:
        sys.exit(f"the service refused requests:\n{output}")
    requests = int(re.search(r"(\d+) requests in", output)[1])  # type: ignore[index]

    def milliseconds(percent: int) -> float:
        number, unit = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s)", output).groups()  # type: ignore[union-attr]
        return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]

    cpu = (after.user + after.system) - (before.user + before.system)
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1])  # type: ignore[index]
    return {"rate": rate, "cpu": cpu / requests * 1e6, "p50": milliseconds(50), "p99": milliseconds(99)}


def measure(bundle: Path, scratch: Path, seconds: float, rounds: int) -> None:
    manifest = read_bundle(bundle).manifest
    counts = {manifest.class_names[0]: 1} if manifest.class_names else 1
    document = json.dumps({"counts": counts, "seed": 1, "format": "npy"})
    body = scratch / "body.lua"
    body.write_text(
        f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = [[{document}]]\n'
    )
    calls = session_calls(bundle)
    results: dict[str, list[dict[str, float]]] = {"on": [], "off": []}
    with service(bundle, "on", scratch) as on, service(bundle, "off", scratch) as off:
        services = {"on": on, "off": off}
        for url, worker in services.values():
            load(url, worker, body, 1.0)
        for turn in range(rounds):
            for batching, (url, worker) in services.items():
                results[batching].append(load(url, worker, body, seconds))
                print(f"round {turn + 1}, batching {batching}: {results[batching][-1]}", file=sys.stderr)

    middle = {
        batching: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for batching, runs in results.items()
    }
    shape = "×".join(map(str, manifest.image.shape))
    print(f"\n{manifest.identity.name} ({manifest.architecture.family}, {shape})")
    print(
        "  latents and session call, one thread, µs an image: "
        + ", ".join(f"{time:.0f} in a batch of {n}" for n, time in calls.items())
    )
    print(f"  {'batching':<10}{'images/s':>10}{'CPU µs/image':>14}{'p50 ms':>9}{'p99 ms':>9}")
    for batching, row in middle.items():
        print(f"  {batching:<10}{row['rate']:>10.0f}{row['cpu']:>14.0f}{row['p50']:>9.1f}{row['p99']:>9.1f}")
    print(
        f"  on : off = {middle['on']['rate'] / middle['off']['rate']:.2f} : 1 in images a second, "
        f"1 : {middle['off']['cpu'] / middle['on']['cpu']:.2f} in CPU time an image"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="a bundle to serve, instead of those that are built")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each service")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: apt-get install wrk")

    print(f"{datetime.date.today()}, {_machine()}, Python {platform.python_version()}")
    print(
        f"{CONNECTIONS} concurrent requests of 1 image as npy: median of {arguments.rounds} × {arguments.seconds:g} s"
    )
    with tempfile.TemporaryDirectory(prefix="augmint-bench-") as name:
        for generator in [None] if arguments.bundle else GENERATORS:
            scratch = Path(name) / (generator or "given")
            scratch.mkdir()
            bundle = write_bundle_of(generator, scratch / "bundle") if generator else arguments.bundle
            measure(bundle, scratch, arguments.seconds, arguments.rounds)


def _machine() -> str:
    model = "unknown processor"
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        model = found[1] if found else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores (the load runs on them too)"


if __name__ == "__main__":
    main()
