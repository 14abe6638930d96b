"""A real service for the tests of this room, started once; and the API without a server, for what needs a gate."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Service:
    """A running service: where it listens, its process, its log."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 30
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            given = dict(headers or {})
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
            if body is not None:
                given.setdefault("Content-Type", "application/json")
            connection.request(method, path, body, given)
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def generate(self, body: Any, **headers: str) -> Reply:
        return self.ask("POST", "/v1/generate", body, {name.replace("_", "-"): v for name, v in headers.items()})

    def wait_until_ready(self, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(f"the service ended with {self.process.returncode}: {self.log.read_text()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.ask("GET", "/readyz", timeout=5).status == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"the service did not become ready: {self.log.read_text()}")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(home: Path, **variables: str) -> dict[str, str]:
    """The test's own environment without any AUGMINT_* of the user's, and a BENTOML_HOME of its own."""
    others = ("AUGMINT_", "BENTOML_", "PYTHONWARNINGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return {
        **kept,
        "BENTOML_HOME": str(home),
        "BENTOML_DO_NOT_TRACK": "True",
        # What a service leaves in a Bento's folder must not decide whether another test passes.
        "PYTHONDONTWRITEBYTECODE": "1",
        "AUGMINT_CACHE": str(home / "cache"),
        **variables,
    }


@contextlib.contextmanager
def running(command: list[str], cwd: Path, port: int, home: Path, **variables: str) -> Iterator[Service]:
    """Start a server and end it, whatever happens in between."""
    log = home / f"{port}.log"
    home.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=cwd, env=environment(home, **variables), stdout=output, stderr=output
        )
    service = Service(port, process, log)
    try:
        yield service
    finally:
        service.stop()


@contextlib.contextmanager
def bentoml_serve(
    home: Path, cwd: Path = ROOT, target: str = "serving.service:AugmintService", **variables: str
) -> Iterator[Service]:
    port = free_port()
    command = ["-m", "bentoml", "serve", target, "--host", "127.0.0.1", "--port", str(port)]
    with running(command, cwd, port, home, **variables) as service:
        yield service


@pytest.fixture(scope="session")
def service(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, tiny_bundle_unconditional: Path
) -> Iterator[Service]:
    """`bentoml serve` with the bundles "tiny" and "plain", small limits."""
    with bentoml_serve(
        tmp_path_factory.mktemp("service"),
        AUGMINT_BUNDLES=os.pathsep.join([str(tiny_bundle), str(tiny_bundle_unconditional)]),
        AUGMINT_MAX_IMAGES="3000",
        AUGMINT_MAX_BODY="4096",
        AUGMINT_THREADS="2",
        AUGMINT_QUEUE_S="30",  # a busy machine must not decide whether a test passes
    ) as running_service:
        running_service.wait_until_ready()
        yield running_service
