"""The services of benchmarks/serving.py: how each is started, how it is asked for images, and the peers' environments.

Each answers a POST for N images, whose latents it draws anew for every request, with npy or PNG. Ours is given another
seed with every request. Knows nothing of loads or figures.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from PIL import Image

from benchmarks.load import ROOT, SEED, Ask, Service, ask_once, free_port, running

__all__ = [
    "CONTENDERS",
    "EMPTY",
    "FRONT",
    "OURS",
    "PACKAGES",
    "PEERS",
    "Contender",
    "Form",
    "augmint",
    "check",
    "setup",
]

Form = Literal["npy", "png"]
OURS: Final = "augmint"
PEERS: Final = ROOT / ".venv-peers"
TRITON: Final = ROOT / ".venv-peers-triton"
PACKAGES: Final = ("litserve==0.2.19", "fastapi==0.165.0", "nvidia-pytriton==0.7.0")
_JSON: Final = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Contender:
    """A service that can be measured.

    Attributes:
        title: for tables.
        python: the interpreter that it runs in.
        command: what follows it; "PORT" stands for the port.
        ready: an address that answers 200 once it is.
        ask: the request for so many images.
        triton: its answers carry a JSON head before the bytes, and PNGs one after another, not in a zip. It does not
            survive being stopped while others are measured, so it idles.
    """

    title: str
    python: Path
    command: tuple[str, ...]
    ready: str
    ask: Callable[[int, Form], Ask]
    triton: bool = False

    def run(self, bundle: Path, scratch: Path, **environment: str) -> contextlib.AbstractContextManager[Service]:
        """Start it with a bundle (the peers take its ONNX file); see `load.running`."""
        port = free_port()
        scratch.mkdir(exist_ok=True)
        return running(
            self.title,
            [str(self.python), *(word.replace("PORT", str(port)) for word in self.command)],
            port,
            scratch / f"{port}.log",
            {
                "AUGMINT_BUNDLES": str(bundle.resolve()),
                "AUGMINT_DEVICE": "cpu",
                "PEER_MODEL": str(bundle.resolve() / "generator.onnx"),
                "BENTOML_HOME": str(scratch / f"bentoml-{port}"),
                "BENTOML_DO_NOT_TRACK": "True",
                "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
                **environment,
            },
            ready=self.ready,
        )


def _json(path: str, document: Mapping[str, Any], images: int) -> Ask:
    # The mark for a seed is a number in JSON, so its quotes go.
    return Ask(path, json.dumps(document).replace(f'"{SEED}"', SEED).encode(), images, _JSON)


def _ask_augmint(n: int, form: Form) -> Ask:
    written = form if form == "npy" or n == 1 else "zip"
    return _json("/v1/generate", {"counts": n, "seed": SEED, "format": written}, n)


def _ask_bentoml(n: int, form: Form) -> Ask:
    return _json(f"/{form}", {"wishes": [1] * n}, n)


def _ask_triton(n: int, form: Form) -> Ask:
    head = json.dumps(
        {
            "inputs": [
                {"name": "wish", "shape": [n, 1], "datatype": "UINT8", "parameters": {"binary_data_size": n}},
            ],
            "outputs": [{"name": "image", "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Ask(f"/v2/models/{form}/infer", head + b"\1" * n, n, headers)


_HERE: Final = Path(sys.executable)
_BENTOML: Final = ("-m", "bentoml", "serve")
_AT: Final = ("--host", "127.0.0.1", "--port", "PORT")
CONTENDERS: Final[dict[str, Contender]] = {
    OURS: Contender(OURS, _HERE, (*_BENTOML, "serving.service:AugmintService", *_AT), "/readyz", _ask_augmint),
    "bentoml": Contender(
        "BentoML batchable",
        _HERE,
        (*_BENTOML, "benchmarks.peers.bentoml_batchable:Images", *_AT),
        "/readyz",
        _ask_bentoml,
    ),
    "fastapi": Contender(
        "FastAPI",
        PEERS / "bin/python",
        ("-m", "benchmarks.peers.fastapi_plain", "PORT"),
        "/readyz",
        lambda n, form: _json("/generate", {"n": n, "form": form}, n),
    ),
    "litserve": Contender(
        "LitServe",
        PEERS / "bin/python",
        ("-m", "benchmarks.peers.litserve_batched", "PORT"),
        "/health",
        lambda n, form: _json("/predict", {"n": n, "form": form}, n),
    ),
    "triton": Contender(
        "Triton",
        TRITON / "bin/python",
        ("-m", "benchmarks.peers.triton_batched", "PORT"),
        "/v2/models/png/ready",
        _ask_triton,
        triton=True,
    ),
}
EMPTY: Final = Contender(
    "BentoML, empty",
    _HERE,
    (*_BENTOML, "benchmarks.peers.bentoml_empty:Empty", *_AT),
    "/readyz",
    _ask_bentoml,
)
FRONT: Final = Contender("augmint serve", _HERE, ("-m", "augmint", "serve", *_AT), "/readyz", _ask_augmint)


def augmint(
    bundle: Path, scratch: Path, name: str = OURS, **environment: str
) -> contextlib.AbstractContextManager[Service]:
    """Our service, under a `name` of its own where several run."""
    ours = CONTENDERS[OURS]
    # A benchmark keeps as many requests waiting as it pleases, and peers refuse none.
    settings = {"AUGMINT_QUEUE_S": "60", **environment}
    return Contender(name, ours.python, ours.command, ours.ready, ours.ask).run(bundle, scratch, **settings)


def check(contender: Contender, service: Service, shape: Sequence[int]) -> None:
    """Look whether its answers are what was asked for.

    Raises:
        RuntimeError: they are not.
    """
    for form in ("npy", "png"):
        for n in (1, 16):
            body = ask_once(service, contender.ask(n, form))
            try:
                images = _images(body, contender, form, n, shape)
            except Exception as error:
                raise RuntimeError(f"{contender.title} answers {n} images as {form} with {body[:100]!r}") from error
            if images.shape != (n, *shape) or images.dtype != np.uint8 or images.std() < 1:
                raise RuntimeError(f"{contender.title} answers {n} images as {form} with {images.dtype} {images.shape}")


def _images(body: bytes, contender: Contender, form: Form, n: int, shape: Sequence[int]) -> Any:
    if contender.triton:
        body = body[body.index(b"]}") + 2 :]
        if form == "npy":
            return np.frombuffer(body, np.uint8).reshape(n, *shape)
        files = []
        while body:
            size = int.from_bytes(body[:4], "little")
            files.append(body[4 : 4 + size])
            body = body[4 + size :]
    elif form == "npy":
        return np.load(io.BytesIO(body), allow_pickle=False)
    elif n == 1:
        files = [body]
    else:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            files = [archive.read(name) for name in archive.namelist() if name.endswith(".png")]
    return np.stack([np.asarray(Image.open(io.BytesIO(file))).reshape(shape) for file in files])


# ------------------------------------------------------------------------------------------------- environments


def setup() -> None:
    """Make the peers' environments, with our versions of ONNX Runtime and numpy; nothing of them comes into ours."""
    constraints = str(ROOT / "constraints.txt")
    if not (PEERS / ".installed").exists():
        _pip(PEERS, "-c", constraints, *PACKAGES[:2], "uvicorn", "uvloop", "httptools", *_runtime(), "py-spy")
        (PEERS / ".installed").touch()
    if not (TRITON / ".installed").exists():
        # Triton's Python backend is built for numpy 1, and hands out empty tensors under numpy 2.
        runtime = [_pinned(name) for name in _runtime() if name.startswith("onnxruntime")]
        _pip(TRITON, PACKAGES[2], *runtime, "pillow")
        _mend_pytriton(next((TRITON / "lib").glob("python*/site-packages/pytriton/proxy")))
        (TRITON / ".installed").touch()


def _runtime() -> tuple[str, ...]:
    return ("onnxruntime-gpu" if _pinned("onnxruntime-gpu") else "onnxruntime", "numpy", "pillow")


def _pinned(name: str) -> str:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next((line for line in lines if line.startswith(f"{name}==")), "")


def _pip(environment: Path, *words: str) -> None:
    print(f"making {environment.name} …", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    command = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *words], check=True)


def _mend_pytriton(proxy: Path) -> None:
    """Two lines without which nvidia-pytriton 0.7.0 does not start here: the Python inside Triton is older than the
    standard library that it finds, and its second instance waits one second for the first."""
    data, communication = proxy / "data.py", proxy / "communication.py"
    lock = "multiprocessing.resource_tracker._resource_tracker._lock = threading._PyRLock()"
    data.write_text(f"{data.read_text()}\nimport multiprocessing.resource_tracker, threading\n{lock}\n")
    text = communication.read_text()
    communication.write_text(text.replace("timeout_s: float = 1.0) -> dict", "timeout_s: float = 60.0) -> dict"))
