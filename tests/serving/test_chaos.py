"""The service under fire, in short: `make chaos` is the long form."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from augmint import Generator
from tests.serving.conftest import ROOT, Service
from tests.serving.test_api import Harness, problem
from tests.serving.test_api import run as run  # a fixture


def test_every_address_does_what_its_document_says(service: Service) -> None:
    """In a process of its own: schemathesis keeps to no rule of ours about warnings."""
    result = subprocess.run(
        [sys.executable, "benchmarks/fuzz_api.py", f"http://127.0.0.1:{service.port}", "--cases", "200"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in service.log.read_text()


def test_overload_is_refused_at_once_and_passes(run: Callable[..., None], tiny_bundle: Path) -> None:
    async def scenario(service: Harness) -> None:
        service.api.context.library.find("tiny").lane.seconds_per_image = 0.1
        admitted = asyncio.create_task(service.ask({"counts": {"cat": 10}, "seed": 1, "format": "npy"}))
        await service.until(lambda: service.calls == [10])
        begun = time.monotonic()
        for reply in await asyncio.gather(*(service.ask({"counts": {"dog": 10}}) for _ in range(50))):
            assert "work for 1.0 s already" in problem(reply, 503, "queue-full")["detail"]
            assert reply is not None
            assert reply.headers["retry-after"] == "1"
        assert time.monotonic() - begun < 2
        service.gate.set()
        reply = await admitted
        assert reply is not None
        images = Generator(tiny_bundle, device="cpu", threads=1).generate({"cat": 10}, seed=1).images
        assert reply.body.endswith(np.ascontiguousarray(images).tobytes())
        again = await service.ask({"counts": {"dog": 10}})
        assert again is not None
        assert again.status == 200

    run(scenario, queue_s=0.25)


def test_the_clients_own_deadline_holds_at_each_point(run: Callable[..., None]) -> None:
    """At admission, in the queue, and between the batches of 16 that its images are made in."""

    async def scenario(service: Harness) -> None:
        body = {"counts": {"cat": 40}, "seed": 1}
        problem(await service.ask(body, headers={"x-request-timeout-ms": "0"}), 504, "deadline")
        assert service.calls == []
        begun = asyncio.create_task(service.ask(body, headers={"x-request-timeout-ms": "100"}))
        await service.until(lambda: service.calls == [16])
        queued = asyncio.create_task(service.ask(body, headers={"x-request-timeout-ms": "100"}))
        for late in (begun, queued):
            problem(await asyncio.wait_for(late, 5), 504, "deadline")
        service.gate.set()
        await service.until(lambda: service.api.pending == 0)
        assert service.calls == [16]

    run(scenario, queue_s=60.0)
