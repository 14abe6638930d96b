"""The API without a server, where a gate decides when images are made: limits, deadlines, clients that go away."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import prometheus_client
import pytest

from augmint import Generator
from augmint.errors import BundleError
from serving.api import Api
from serving.bundles import open_bundles
from serving.limits import RateLimit
from serving.metrics import Metrics
from serving.middleware import drain_on_signal
from serving.settings import Settings
from tests.augmint.broken_bundles import read_manifest, seal, write_manifest
from tests.serving.conftest import Reply
from tests.tinybundle import write_tiny_bundle


class Harness:
    """An `Api` whose "tiny" bundle makes images only while `gate` is open."""

    def __init__(self, api: Api, registry: prometheus_client.CollectorRegistry, gate: threading.Event) -> None:
        self.api = api
        self.registry = registry
        self.gate = gate
        self.calls: list[int] = []

    async def ask(
        self,
        body: Any = None,
        *,
        method: str = "POST",
        path: str = "/v1/generate",
        gone: asyncio.Event | None = None,
        pieces: list[bytes] | None = None,
        client: str = "1.2.3.4",
        server: tuple[str, int] | None = ("127.0.0.1", 3000),
        headers: dict[str, str] | None = None,
    ) -> Reply | None:
        """The answer, or None if there was none. `gone` is set when the client goes away."""
        if pieces is None:
            pieces = [] if body is None else [json.dumps(body).encode()]
        waiting = list(pieces) or [b""]
        sent: list[dict[str, Any]] = []
        never = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if waiting:
                piece = waiting.pop(0)
                if piece == b"STALL":
                    await never.wait()
                if piece == b"GONE":
                    return {"type": "http.disconnect"}
                return {"type": "http.request", "body": piece, "more_body": bool(waiting)}
            await (gone or never).wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path.partition("?")[0],
            "raw_path": path.partition("?")[0].encode(),
            "query_string": path.partition("?")[2].encode(),
            "headers": [
                (b"content-type", b"application/json"),
                *((name.lower().encode(), value.encode()) for name, value in (headers or {}).items()),
            ],
            "client": (client, 1),
            "server": server,
        }
        await self.api(scope, receive, send)
        if not sent:
            return None
        head, *bodies = sent
        headers = {name.decode(): value.decode() for name, value in head["headers"]}
        return Reply(head["status"], headers, b"".join(message["body"] for message in bodies))

    def refused(self, reason: str) -> float:
        return self.registry.get_sample_value("augmint_rejections_total", {"reason": reason}) or 0.0

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)


Scenario = Callable[[Harness], Awaitable[None]]


@pytest.fixture
def run(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """run(scenario, **settings): start an Api with these settings, run the scenario, stop it."""

    def go(scenario: Scenario, **options: Any) -> None:
        settings = Settings(**{"bundles": (tiny_bundle,), "device": "cpu", "threads": 1, "batch": 16, **options})
        registry = prometheus_client.CollectorRegistry()
        gate = threading.Event()
        harness = Harness(Api(settings, Metrics(registry)), registry, gate)

        def gated(*arguments: Any) -> Any:
            served = open_bundles(*arguments)
            for bundle in served.values():
                inner = bundle.lane._render

                def render(*rows: Any, inner: Any = inner) -> Any:
                    harness.calls.append(len(rows[0]))
                    assert gate.wait(10)
                    return inner(*rows)

                bundle.lane._render = render
            return served

        monkeypatch.setattr("serving.api.open_bundles", gated)

        async def main() -> None:
            await harness.api.start()
            try:
                await scenario(harness)
            finally:
                gate.set()
                await harness.api.stop()

        asyncio.run(main())

    return go


def problem(reply: Reply | None, status: int, code: str) -> dict[str, Any]:
    assert reply is not None
    assert (reply.status, reply.json()["code"]) == (status, code)
    assert reply.headers["content-type"] == "application/problem+json"
    return dict(reply.json())


def test_a_full_queue_answers_503_at_once(run: Callable[..., None]) -> None:
    async def scenario(service: Harness) -> None:
        first = asyncio.create_task(service.ask({"counts": {"cat": 90}, "seed": 1}))
        await service.until(lambda: bool(service.calls))
        full = await service.ask({"counts": {"cat": 20}})
        problem(full, 503, "queue-full")
        assert full is not None
        assert int(full.headers["retry-after"]) >= 1
        assert service.refused("queue-full") == 1
        second = asyncio.create_task(service.ask({"counts": {"dog": 10}, "seed": 1}))
        service.gate.set()
        for task in (first, second):
            reply = await task
            assert reply is not None
            assert reply.status == 200

    run(scenario, max_images=90, queue_images=100)


def test_a_deadline_answers_504_and_stops_the_work(run: Callable[..., None]) -> None:
    async def scenario(service: Harness) -> None:
        reply = await service.ask({"counts": {"cat": 500}})
        problem(reply, 504, "deadline")
        service.gate.set()
        await service.until(lambda: service.api.pending == 0)
        assert service.calls == [16]
        assert service.refused("deadline") == 1

    run(scenario, timeout_s=0.1)


def test_a_client_that_goes_away_frees_the_queue(run: Callable[..., None]) -> None:
    async def scenario(service: Harness) -> None:
        gone = asyncio.Event()
        task = asyncio.create_task(service.ask({"counts": {"cat": 500}}, gone=gone))
        await service.until(lambda: bool(service.calls))
        assert service.api.pending == 500
        gone.set()
        reply = await task
        assert reply is not None  # nobody reads it; BentoML's timeout middleware waits for it
        assert reply.status == 499
        assert service.api.pending == 16  # what is in the running call
        service.gate.set()
        await service.until(lambda: service.api.pending == 0)
        assert service.calls == [16]
        assert service.refused("cancelled") == 1

    run(scenario)


def test_a_cancelled_task_frees_the_queue(run: Callable[..., None]) -> None:
    async def scenario(service: Harness) -> None:
        task = asyncio.create_task(service.ask({"counts": {"cat": 500}}))
        await service.until(lambda: bool(service.calls))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert service.api.pending == 16

    run(scenario)


def test_a_client_that_goes_away_while_sending(run: Callable[..., None]) -> None:
    async def scenario(service: Harness) -> None:
        reply = await service.ask(pieces=[b'{"counts"', b"GONE"])
        assert reply is not None
        assert reply.status == 499

    run(scenario)


@pytest.mark.parametrize("pieces", [[b"STALL"], [b'{"counts"', b"STALL"]])
def test_a_body_that_does_not_arrive_in_time(run: Callable[..., None], pieces: list[bytes]) -> None:
    async def scenario(service: Harness) -> None:
        problem(await asyncio.wait_for(service.ask(pieces=pieces), 10), 504, "deadline")

    run(scenario, timeout_s=0.1)


def test_a_body_in_pieces(run: Callable[..., None], tiny_bundle: Path) -> None:
    async def scenario(service: Harness) -> None:
        service.gate.set()
        reply = await service.ask(pieces=[b'{"counts": ', b'{"cat": 2},', b'"seed": 3, "format": "npy"}'])
        assert reply is not None
        local = Generator(tiny_bundle, device="cpu", threads=1).generate({"cat": 2}, seed=3)
        assert reply.body.endswith(local.images.tobytes())
        problem(await service.ask(pieces=[b" " * 600, b" " * 600, b"STALL"]), 413, "body-too-large")

    run(scenario, max_body=1000)


def test_draining_refuses_new_requests_and_finishes_the_others(run: Callable[..., None]) -> None:
    async def scenario(service: Harness) -> None:
        ready = await service.ask(method="GET", path="/readyz")
        assert ready is not None
        assert ready.status == 200
        task = asyncio.create_task(service.ask({"counts": {"cat": 100}}))
        await service.until(lambda: bool(service.calls))
        service.api.begin_draining()
        assert not service.api.ready
        for path in ("/readyz", "/v1/generate"):
            body = {"counts": {"cat": 1}} if path == "/v1/generate" else None
            refused = await service.ask(body, method="POST" if body else "GET", path=path)
            problem(refused, 503, "draining")
            assert refused is not None
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["connection"] == "close"
        service.gate.set()
        reply = await task
        assert reply is not None
        assert reply.status == 200

    run(scenario)


RARE = {"counts": {"été 10": 3}, "seed": 1, "quality": "labels:0.99"}  # takes several rounds


def test_draining_finishes_what_is_between_two_rounds(run: Callable[..., None], judged_bundle: Path) -> None:
    async def scenario(service: Harness) -> None:
        task = asyncio.create_task(service.ask(RARE))
        await service.until(lambda: bool(service.calls))
        service.api.begin_draining()
        problem(await service.ask(RARE), 503, "draining")
        service.gate.set()
        await service.api.stop()
        reply = await task
        assert reply is not None
        assert reply.status == 200
        assert len(service.calls) > 1
        wanted = Generator(judged_bundle, device="cpu", threads=1).generate(
            {"été 10": 3}, seed=1, quality="labels:0.99"
        )
        assert reply.headers["augmint-generated"] == str(wanted.generated["été 10"])

    run(scenario, bundles=(judged_bundle,))


def test_a_deadline_and_a_client_that_goes_end_a_search_too(run: Callable[..., None], judged_bundle: Path) -> None:
    async def scenario(service: Harness) -> None:
        problem(await service.ask(RARE), 504, "deadline")
        gone = asyncio.Event()
        task = asyncio.create_task(service.ask(RARE, gone=gone))
        gone.set()
        reply = await task
        assert reply is not None
        assert reply.status == 499
        service.gate.set()
        await service.until(lambda: service.api.pending == 0)

    run(scenario, bundles=(judged_bundle,), timeout_s=0.3)


def test_what_a_search_made_counts_against_the_rate(run: Callable[..., None], judged_bundle: Path) -> None:
    async def scenario(service: Harness) -> None:
        service.gate.set()
        reply = await service.ask(RARE)
        assert reply is not None
        assert int(reply.headers["augmint-generated"]) > 30
        problem(await service.ask({"counts": {"cat": 25}}), 429, "rate")

    run(scenario, bundles=(judged_bundle,), max_images=30, rate_images=0.001)


def test_sigterm_drains_whatever_the_loop_is_doing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler may find any lock held: it must not need one."""
    lock = threading.Lock()
    api = Api(Settings(drain_s=0.05), Metrics(prometheus_client.CollectorRegistry()))
    inner = api.begin_draining

    def begin_draining() -> None:
        assert lock.acquire(timeout=1)
        inner()

    monkeypatch.setattr(api, "begin_draining", begin_draining)
    closed: list[float] = []
    before = signal.signal(signal.SIGTERM, lambda *_: closed.append(time.monotonic()))

    async def main() -> None:
        drain_on_signal(api)
        with lock:
            signal.raise_signal(signal.SIGTERM)
            assert not api.draining
        begun = time.monotonic()
        async with asyncio.timeout(10):
            while not closed:
                await asyncio.sleep(0.005)
        assert api.draining
        assert closed[0] - begun >= 0.04  # not ready first, the door closed later
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(closed) == 2  # asked twice: at once

    try:
        asyncio.run(main())
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_bundle_that_fails_leaves_the_service_not_ready(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: Any) -> Any:
        raise BundleError("/secret/digits does not reproduce its golden samples.", code="bundle.golden-mismatch")

    async def scenario() -> None:
        api = Api(Settings(), Metrics(prometheus_client.CollectorRegistry()))
        monkeypatch.setattr("serving.api.open_bundles", refuse)
        await api.start()
        service = Harness(api, prometheus_client.CollectorRegistry(), threading.Event())
        for method, path in (("GET", "/readyz"), ("POST", "/v1/generate"), ("GET", "/v1/bundles")):
            document = problem(
                await service.ask({"counts": 1} if method == "POST" else None, method=method, path=path),
                503,
                "not-ready",
            )
            assert "secret" not in document["detail"]
        alive = await service.ask(method="GET", path="/livez")
        assert alive is not None
        assert alive.status == 200
        await api.stop()

    asyncio.run(scenario())
    (record,) = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert record.getMessage() == (
        "not ready, and will not be: /secret/digits does not reproduce its golden samples. (bundle.golden-mismatch)"
    )


def test_an_unforeseen_error_is_a_problem_without_details(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(service: Harness) -> None:
        service.gate.set()

        def fail(*arguments: Any) -> Any:
            raise ZeroDivisionError("/secret")

        monkeypatch.setattr("serving.replies._encode", fail)
        document = problem(await service.ask({"counts": {"cat": 1}}), 500, "internal")
        assert "secret" not in json.dumps(document)
        assert document["request_id"] in caplog.text

    run(scenario)


def test_one_client_may_not_ask_for_too_much(run: Callable[..., None]) -> None:
    async def scenario(service: Harness) -> None:
        service.gate.set()
        statuses = [await service.ask({"counts": {"cat": 100}}) for _ in range(3)]
        assert [reply.status for reply in statuses if reply] == [200, 200, 429]
        assert statuses[2] is not None
        assert 1 <= int(statuses[2].headers["retry-after"]) <= 60
        problem(statuses[2], 429, "rate")
        other = await service.ask({"counts": {"cat": 100}}, client="5.6.7.8")
        assert other is not None
        assert other.status == 200

    run(scenario, rate_images=4, max_images=100)


PATHS = ["/v1/generate", "/v1/bundles/tiny/shards/0.tar", "/v1/stream", "/v2/models/tiny/infer"]


@pytest.mark.parametrize("path", PATHS)
def test_what_is_refused_for_want_of_room_is_not_counted(run: Callable[..., None], path: str) -> None:
    """Whoever tries again, as Retry-After tells them to, must not use up what they may have."""
    columns = {"seed": ("UINT64", 1), "index": ("UINT64", 2), "label": ("BYTES", "cat")}
    tensors = [
        {"name": name, "shape": [20], "datatype": kind, "data": [value] * 20} for name, (kind, value) in columns.items()
    ]
    body = {"inputs": tensors} if path.startswith("/v2") else {"counts": {"cat": 20}, "seed": 1}

    async def scenario(service: Harness) -> None:
        first = asyncio.create_task(service.ask({"counts": {"cat": 50}}, client="1.1.1.1"))
        await service.until(lambda: bool(service.calls))
        for _ in range(5):
            if path.endswith(".tar"):
                full = await service.ask(method="GET", path=f"{path}?per_shard=20")
            else:
                full = await service.ask(body, path=path)
            problem(full, 503, "queue-full")
        service.gate.set()
        await first
        reply = await service.ask({"counts": {"cat": 60}})
        assert reply is not None
        assert reply.status == 200

    run(scenario, max_images=60, queue_images=60, rate_images=1)


def test_what_the_quota_refuses_does_not_count_for_the_rate(run: Callable[..., None], tmp_path: Path) -> None:
    from serving.access import add_token

    tokens = tmp_path / "tokens.json"
    secret = add_token(tokens, "t", images_per_day=10)

    async def scenario(service: Harness) -> None:
        service.gate.set()
        headers = {"authorization": f"Bearer {secret}"}
        for _ in range(5):
            problem(await service.ask({"counts": {"cat": 50}}, headers=headers), 429, "quota")
        reply = await service.ask({"counts": {"cat": 10}}, headers=headers)
        assert reply is not None
        assert reply.status == 200

    run(scenario, max_images=60, queue_images=60, rate_images=1, tokens=tokens)


def test_the_verdict_and_its_report_are_shown(run: Callable[..., None], tiny_bundle: Path, tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "judged")
    document = read_manifest(path)
    document["evidence"]["utility"] = {
        "verdict": "helps", "sentence": "It helps for dog.", "method": "m", "amount": "a", "classes": ["dog"],
        "difference": 0.01, "interval": [0.005, 0.015], "seeds": 5, "n": 100,
    }  # fmt: skip
    write_manifest(path, document)
    seal(path, "report.html", b"<!doctype html><title>It helps</title>")

    async def scenario(service: Harness) -> None:
        detail = await service.ask(method="GET", path="/v1/bundles/judged")
        assert detail is not None
        assert detail.json()["utility"]["sentence"] == "It helps for dog."
        assert detail.json()["report"] is True
        report = await service.ask(method="GET", path="/v1/bundles/judged/report")
        assert report is not None
        assert report.body == b"<!doctype html><title>It helps</title>"
        assert report.headers["content-type"] == "text/html; charset=utf-8"
        policy = report.headers["content-security-policy"]
        # Somebody else's page: nothing may run in it, and it may ask for nothing.
        assert "default-src 'none'" in policy
        assert policy.endswith("; sandbox")
        assert "script-src" not in policy
        problem(await service.ask(method="GET", path="/v1/bundles/tiny/report"), 404, "not-found")
        without = await service.ask(method="GET", path="/v1/bundles/tiny")
        assert without is not None
        assert without.json()["utility"] is None
        assert without.json()["report"] is False

    run(scenario, bundles=(path, tiny_bundle))


def test_the_rate_is_an_average() -> None:
    limit = RateLimit(10, largest=100)  # holds 600
    limit.take("a", 600, now=0)
    for images, now, allowed in ((1, 0, False), (10, 1, True), (1, 1, False), (600, 61, True)):
        if allowed:
            limit.take("a", images, now=now)
        else:
            with pytest.raises(Exception, match="images a second"):
                limit.take("a", images, now=now)
    RateLimit(0, largest=1).take("a", 10**9)


def test_padding_to_buckets_changes_nothing(tiny_bundle: Path) -> None:
    """What a GPU does, on the CPU: rows of padding are made and thrown away."""
    from augmint.samples import Request
    from serving.engine import Engine, Lane, power_buckets

    (served,) = open_bundles(Settings(bundles=(tiny_bundle,), device="cpu")).values()
    padded = Lane("padded", served.lane._render, served.info.image_shape, batch=32, buckets=power_buckets(32))
    engine = Engine(threads=2, queue_images=1000)
    try:
        local = Generator(tiny_bundle, device="cpu", threads=1)
        for n in (1, 3, 5, 33, 100):
            request = Request.make({"cat": n, "dog": 2}, served.info.class_names, seed=n)
            images = engine.wait(engine.submit(padded, request), 10)
            assert np.array_equal(images, local.generate({"cat": n, "dog": 2}, seed=n).images)
    finally:
        engine.close()
