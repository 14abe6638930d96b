"""Starting and ending: `serve` refuses before it starts anything, and a server that is told to stop loses nothing."""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from augmint import Generator
from augmint.errors import AugmintError, BundleError, DeviceError, ServiceError, UsageError
from augmint.runtime import cuda_driver_present
from augmint.signing import make_key, sign
from serving.run import ServeRequest, serve
from tests.serving.conftest import ROOT, environment, free_port, running


@pytest.fixture
def request_for(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> ServeRequest:
    for name in ("AUGMINT_BUNDLES", "AUGMINT_DEVICE", "AUGMINT_WORKERS"):
        monkeypatch.delenv(name, raising=False)
    return ServeRequest(bundles=(tiny_bundle,), port=free_port(), device="cpu")


def damaged(bundle: Path, target: Path, name: str) -> Path:
    shutil.copytree(bundle, target)
    with (target / name).open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"\x7f")
    return target


def test_refusals_come_before_anything_is_started(
    request_for: ServeRequest, tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(error: type[AugmintError], says: str, **changes: object) -> None:
        with pytest.raises(error, match=says):
            serve(replace(request_for, **changes))  # type: ignore[arg-type]

    bad = damaged(tiny_bundle, tmp_path / "bad", "golden.npy")
    refused(BundleError, r"bad/golden\.npy .* sha256", bundles=(bad,))
    key, _, public = make_key("alice", tmp_path / "keys")
    refused(BundleError, "is not signed", trust=public)
    refused(UsageError, "no.such.keys cannot be read", trust=tmp_path / "no.such.keys")
    signed = Path(shutil.copytree(tiny_bundle, tmp_path / "signed"))
    sign(signed, make_key("mallory", tmp_path / "keys")[0])
    refused(BundleError, "which .*alice.pub does not hold", bundles=(signed,), trust=public)
    sign(signed, key)
    refused(UsageError, "--port must be", bundles=(signed,), trust=public, port=0)  # it comes that far
    refused(UsageError, "is not a directory", bundles=(tmp_path / "none",))
    refused(UsageError, "AUGMINT_WORKERS must be", workers=0)
    refused(UsageError, "AUGMINT_DEVICE must be", device="gpu")
    refused(UsageError, "--port must be from 1 to 65535", port=0)
    refused(UsageError, "not an address of this machine", host="no.such.host.invalid")
    if not cuda_driver_present():
        refused(DeviceError, "CUDA was asked for but cannot be used", device="cuda")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused(ServiceError, "cannot be listened on", port=taken.getsockname()[1])
    monkeypatch.setenv("AUGMINT_MAX_IMAGES", "lots")
    refused(UsageError, "AUGMINT_MAX_IMAGES must be")


@pytest.mark.parametrize("case", ["bundle", "setting"])
def test_plain_bentoml_serve_ends_with_one_line(case: str, tmp_path: Path, tiny_bundle: Path) -> None:
    variables = (
        {"AUGMINT_BUNDLES": str(damaged(tiny_bundle, tmp_path / "bad", "generator.onnx"))}
        if case == "bundle"
        else {"AUGMINT_BUNDLES": str(tiny_bundle), "AUGMINT_DEVICE": "gpu"}
    )
    result = subprocess.run(
        [sys.executable, "-m", "bentoml", "serve", "serving.service:AugmintService", "--port", str(free_port())],
        cwd=ROOT,
        env=environment(tmp_path / "home", **variables),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("augmint:")]
    assert len(lines) == 1, result.stderr
    assert ("bad/generator.onnx" if case == "bundle" else "AUGMINT_DEVICE") in lines[0]
    assert "Traceback" not in result.stderr + result.stdout


def test_two_workers_from_anywhere_until_told_to_stop(tmp_path: Path, tiny_bundle: Path) -> None:
    """`serve` with a relative path, from another directory; requests of 10,000 images are under way at SIGTERM."""
    shutil.copytree(tiny_bundle, tmp_path / "here" / "tiny")
    port = free_port()
    driver = (
        "from pathlib import Path; from serving.run import ServeRequest, serve; "
        f"serve(ServeRequest(bundles=(Path('here'),), port={port}, device='cpu', workers=2))"
    )
    home = tmp_path / "home"
    variables = {
        **{"PYTHONPATH": str(ROOT), "AUGMINT_THREADS": "1"},
        **{"AUGMINT_QUEUE_IMAGES": "1000000", "AUGMINT_QUEUE_S": "60"},
    }
    with running(["-c", driver], tmp_path, port, home, **variables) as service:
        service.wait_until_ready()
        pid = service.process.pid
        for _ in range(200):
            metrics = service.ask("GET", "/metrics").body.decode()
            if "augmint_ready_workers 2.0" in metrics:
                break
            time.sleep(0.05)
        assert "augmint_ready_workers 2.0" in metrics

        # Figures add up over the workers, whichever of them answered.
        for seed in range(12):
            assert service.generate({"counts": {"cat": 5}, "seed": seed}).status == 200
        metrics = service.ask("GET", "/metrics").body.decode()
        assert 'augmint_images_generated_total{bundle="tiny"} 60.0' in metrics

        # Clients that went away without an answer do not hold up the end.
        for _ in range(4):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                body = b'{"counts": {"cat": 10000}}'
                head = f"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
                connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)

        def ask(seed: int) -> bytes:
            reply = service.generate(
                {"counts": {"dog": 10_000}, "seed": seed, "format": "npy"}, X_Request_ID=f"bulk-{seed}"
            )
            assert reply.status == 200, reply.body
            return reply.body

        def knock() -> set[int]:
            """What newcomers are told until the door is closed."""
            seen: set[int] = set()
            while service.process.poll() is None:
                try:
                    seen.add(service.ask("GET", "/readyz", timeout=0.5).status)
                except (OSError, http.client.HTTPException):
                    continue
            return seen

        with ThreadPoolExecutor(9) as pool:
            under_way = [pool.submit(ask, seed) for seed in range(8)]
            made = 0.0
            while made < 5_000:  # some of them have begun
                metrics = service.ask("GET", "/metrics").body.decode()
                found = re.search(r"^augmint_images_generated_total\S* (\S+)", metrics, re.MULTILINE)
                made = float(found[1]) if found else 0.0
            service.process.send_signal(signal.SIGTERM)
            knocked = pool.submit(knock)
            generator = Generator(tiny_bundle, device="cpu", threads=1)
            for seed, future in enumerate(under_way):
                images = generator.generate({"dog": 10_000}, seed=seed).images
                assert future.result(30).endswith(np.ascontiguousarray(images).tobytes())
            assert service.process.wait(20) == 0
            assert 503 in knocked.result()
        log = service.log.read_text()
        assert service.process.pid == pid  # it became the server, it did not start one
        assert log.count(f"ready at http://127.0.0.1:{port}\n") == 1
        assert log.count("shutting down") == 2
        assert {f"id=bulk-{seed} " for seed in range(8)} <= set(re.findall(r"200 .*(id=bulk-\d )", log))
        assert "Traceback" not in log
        assert "bentoml" not in log.lower()
