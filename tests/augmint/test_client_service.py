"""The client against the real service, in a process of its own: `augmint serve`, asked over the loopback."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

import augmint
from augmint.client import AsyncClient, Client
from augmint.endmark import check
from augmint.errors import DataError, RequestError, TransportError, UnknownBundleError
from augmint.generator import Generator
from tests.augmint.test_client import same

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def url(tiny_bundle: Path, tiny_bundle_unconditional: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("service")
    # Few images a request, so that what the client asks for is split by the limit that the service states.
    variables = {"AUGMINT_MAX_IMAGES": "50", "AUGMINT_CACHE": str(folder), "AUGMINT_DRAIN_S": "0"}
    words = ["serve", str(tiny_bundle), str(tiny_bundle_unconditional), "--port", str(port), "--device", "cpu"]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "augmint", *words], cwd=ROOT, stdout=log, stderr=log, env={**os.environ, **variables}
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until_ready(address, process, folder / "log")
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx2.get(f"{address}/readyz", timeout=2).status_code == 200:
                return
        except httpx2.HTTPError:
            time.sleep(0.1)
    raise AssertionError(log.read_text(errors="replace")[-3000:])


@pytest.fixture(scope="module")
def generator(tiny_bundle: Path) -> Generator:
    return Generator(tiny_bundle, device="cpu")


def test_near_and_far_describe_the_same(url: str, generator: Generator, tiny_bundle_unconditional: Path) -> None:
    with Client(url) as client:
        assert client.bundles() == [generator.info(), Generator(tiny_bundle_unconditional, device="cpu").info()]
        with pytest.raises(UnknownBundleError, match="tiny, plain"):
            client.info()


def test_near_and_far_give_the_same(url: str, generator: Generator, tiny_bundle_unconditional: Path) -> None:
    counts = {"été 10": 70, "cat": 0, "dog": 33}
    arguments: Any = {"seed": 2**64 - 1, "offset": 2**63, "truncation": 0.7, "edit": {"brightness": 2, "slant": -1.25}}
    with Client(url, bundle="tiny") as client:
        same(client.generate(counts, **arguments), generator.generate(counts, **arguments))
        parts = list(client.stream(counts, chunk=20, **arguments))
        assert max(map(len, parts)) <= 20
        same(augmint.Samples.concatenate(parts), generator.generate(counts, **arguments))
    plain = Generator(tiny_bundle_unconditional, device="cpu")
    with Client(url, bundle="plain") as client:
        same(client.generate(120, seed=1), plain.generate(120, seed=1))


def test_tasks_and_threads_do(url: str, generator: Generator) -> None:
    async def use() -> list[augmint.Samples]:
        async with AsyncClient(url, bundle="tiny") as client:
            return await asyncio.gather(*(client.generate({"cat": 60}, seed=seed) for seed in range(8)))

    with Client(url, bundle="tiny") as client, ThreadPoolExecutor(8) as pool:
        near = list(pool.map(lambda seed: client.generate({"cat": 60}, seed=seed), range(8)))
    for seed, (one, other) in enumerate(zip(near, asyncio.run(use()), strict=True)):
        same(one, generator.generate({"cat": 60}, seed=seed))
        same(other, one)


def test_balancing_through_it_is_balancing_here(url: str, generator: Generator) -> None:
    data = (np.zeros((90, 8, 8), np.uint8), ["cat"] * 80 + ["dog"] * 10)
    with Client(url, bundle="tiny") as client:
        far = augmint.balance(data, client, seed=3)
    near = augmint.balance(data, generator, seed=3)
    np.testing.assert_array_equal(far.images, near.images)
    assert far.bundle == near.bundle == generator.digest


def test_from_the_command_line(url: str, tiny_bundle: Path, tmp_path: Path) -> None:
    files = []
    for number, source in enumerate(([url, "--bundle", "tiny"], [str(tiny_bundle), "--device", "cpu"])):
        out = tmp_path / f"{number}.npz"
        words = ["sample", *source, "--count", "cat=120", "--seed", "5", "--out", str(out), "--json"]
        words += ["--edit", "slant=+1.5", "--edit", "brightness=-1"]
        result = subprocess.run([sys.executable, "-m", "augmint", *words], cwd=ROOT, capture_output=True, check=True)
        assert json.loads(result.stdout)["delivered"] == {"cat": 120}
        files.append(out.read_bytes())
    assert files[0] == files[1]


def test_another_server_is_not_mistaken_for_it() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: (peer := server.accept()[0]).sendall(b"SSH-2.0-OpenSSH\r\n") or peer.close())
            with pytest.raises(TransportError):
                Client(f"http://127.0.0.1:{port}", retries=0, timeout=5).bundles()


class Cutting(httpx2.HTTPTransport):
    """The network, which breaks off every other stream midway."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: list[int] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = super().handle_request(request)
        if request.url.path != "/v1/stream":
            return response
        body = response.read()
        self.streams.append(len(body))
        kept = body[: len(body) // 2] if len(self.streams) % 2 else body
        headers = {name: value for name, value in response.headers.items() if name != "transfer-encoding"}
        return httpx2.Response(response.status_code, headers=headers, content=kept)


@pytest.mark.parametrize("form", ["tar", "npy"])
def test_a_download_is_the_services_own_stream_whatever_is_cut(
    url: str, generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Any
) -> None:
    monkeypatch.setattr("augmint.protocol._SEGMENT_BYTES", 64_000 if form == "tar" else 700)
    counts, out = {"dog": 20, "cat": 13}, tmp_path / "out"
    network = Cutting()
    with Client(url, bundle="tiny", transport=network, retries=2) as client:
        found = client.download(counts, out, format=form, seed=2**63, offset=5)
    assert (found.images, found.bytes, found.seed) == (33, out.stat().st_size, 2**63)
    assert len(network.streams) == 8  # four segments, each cut once
    with out.open("rb") as file:
        assert check(file, form) == 33
    wish = {"bundle": "tiny", "counts": counts, "seed": str(2**63), "offset": 5, "format": form}
    assert out.read_bytes() == httpx2.post(f"{url}/v1/stream", json=wish).content
    if form == "npy":
        assert np.array_equal(np.load(out), generator.generate(counts, seed=2**63, offset=5).images)
    with Client(url, bundle="tiny") as client, pytest.raises(DataError, match="is there already"):
        client.download(counts, out, format=form)

    async def again() -> Any:
        async with AsyncClient(url, bundle="tiny") as far:
            return await far.download(counts, tmp_path / "again", format=form, seed=2**63, offset=5)

    asyncio.run(again())
    assert (tmp_path / "again").read_bytes() == out.read_bytes()


def test_a_download_that_fails_leaves_nothing(url: str, tmp_path: Path) -> None:
    class Dead(Cutting):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            if len(self.streams) > 1:
                raise httpx2.ReadError("cut")
            return super().handle_request(request)

    with Client(url, bundle="tiny", transport=Dead(), retries=1) as client, pytest.raises(TransportError):
        client.download({"dog": 10**6}, tmp_path / "out", format="npy", seed=1)
    with Client(url, bundle="tiny") as client, pytest.raises(RequestError, match="tar or npy"):
        client.download({"dog": 10}, tmp_path / "out", format="zip")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
