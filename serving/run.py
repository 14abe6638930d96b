"""`augmint serve`: check everything that can be checked, then become BentoML's server.

The process is replaced rather than wrapped: signals, exit code and terminal are then simply the server's, and no
server is left behind when something kills the wrapper.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from augmint.data.split import cache_folder
from augmint.errors import ServiceError, UsageError
from augmint.generator import Generator
from serving.access import Door, is_loopback
from serving.bundles import check_bundles, device_of_worker
from serving.settings import Settings
from serving.tracing import open_tracer

__all__ = ["ServeRequest", "serve"]

SERVICE = "serving.service:AugmintService"


@dataclass(frozen=True)
class ServeRequest:
    """What `augmint serve` was asked for. None: as AUGMINT_* says, else the default.

    Attributes:
        bundles: bundle directories, or directories of bundles; empty: AUGMINT_BUNDLES.
        host: address to listen on; the default is this machine alone.
        port: TCP port.
        device: "auto", "cpu", "cuda" or "cuda:N".
        workers: processes.
        tokens: the file of tokens that requests must carry.
        trust: the file of public keys, one of which must have signed each bundle.
    """

    bundles: tuple[Path, ...] = ()
    host: str = "127.0.0.1"
    port: int = 3000
    device: str | None = None
    workers: int | None = None
    tokens: Path | None = None
    trust: Path | None = None


def serve(request: ServeRequest) -> int:
    """Serve until stopped. Does not return, unless something is wrong before the server starts.

    Raises:
        UsageError, BundleError, DeviceError: see `serving.bundles.open_bundles`; found before anything is started.
        ServiceError: the port is taken.
    """
    if importlib.util.find_spec("bentoml") is None:
        raise UsageError('serving needs bentoml: pip install "augmint[serve]".')
    settings = _settings(request)
    # Opened here as well as in each worker, so that a golden sample or a device that fails is one sentence and an exit
    # code, not a server that never becomes ready.
    for files in check_bundles(settings):
        Generator(files.path, device=device_of_worker(settings, 1), threads=1, trust=settings.trust)
    if (tracer := open_tracer(settings.tracing)) is not None:
        tracer.close()
    _check_address(request.host, request.port)
    if Door(settings.tokens, open_to_all=not settings.auth).local_only and not is_loopback(request.host):
        raise UsageError(
            f"--host {request.host} lets others in: make a token with `augmint token NAME --file tokens.json` and give "
            "--tokens tokens.json, or set AUGMINT_AUTH=off where something else guards the service."
        )

    root = Path(__file__).resolve().parent.parent
    environment = {
        **os.environ,
        **settings.to_environment(),
        "AUGMINT_URL": f"http://{_shown_host(request.host)}:{request.port}",
        # BentoML reports each start to its makers unless told not to.
        "BENTOML_DO_NOT_TRACK": os.environ.get("BENTOML_DO_NOT_TRACK", "True"),
        "BENTOML_HOME": os.environ.get("BENTOML_HOME") or _own_home(request.port),
    }
    command = [
        *(sys.executable, "-m", "bentoml", "serve", SERVICE, "--working-dir", str(root)),
        *("--host", request.host, "--port", str(request.port)),
    ]
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(2, 1)  # a server's talk is no result: BentoML writes its log to stdout
    os.chdir(root)
    os.execve(sys.executable, command, environment)


def _settings(request: ServeRequest) -> Settings:
    if strange := [path for path in request.bundles if os.pathsep in str(path)]:
        raise UsageError(f"{strange[0]} has {os.pathsep!r} in its name, which separates bundles: rename it.")
    # Through the same door as the environment, so that a wrong value meets the same sentence.
    given = {
        "AUGMINT_BUNDLES": os.pathsep.join(str(path) for path in request.bundles) or None,
        "AUGMINT_DEVICE": request.device,
        "AUGMINT_WORKERS": None if request.workers is None else str(request.workers),
        "AUGMINT_TOKENS": None if request.tokens is None else str(request.tokens),
        "AUGMINT_TRUST": None if request.trust is None else str(request.trust),
    }
    overrides = {name: value for name, value in given.items() if value is not None}
    settings = Settings.from_environment({**os.environ, **overrides})
    return settings.absolute()


def _check_address(host: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise UsageError(f"--port must be from 1 to 65535, not {port}.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except socket.gaierror:
        raise UsageError(f"--host {host!r} is not an address of this machine: use 127.0.0.1 or 0.0.0.0.") from None
    except OSError as error:
        raise ServiceError(
            f"{host}:{port} cannot be listened on ({error.strerror}): choose another --port, or stop what uses it.",
            code="service.address",
        ) from None
    if not re.fullmatch(r"[0-9.]+|[0-9a-fA-F:]+", host):
        raise UsageError(f"--host must be an IP address, such as 127.0.0.1 or 0.0.0.0, not {host!r}.")


def _shown_host(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "localhost"
    return f"[{host}]" if ":" in host else host


def _own_home(port: int) -> str:
    """A BENTOML_HOME for this server alone.

    BentoML keeps its workers' metrics there, and empties the place whenever a server starts: two servers that share it
    lose each other's figures.
    """
    home = cache_folder() / "serve" / str(port)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError:
        return tempfile.mkdtemp(prefix="augmint-serve-")
    return str(home)
