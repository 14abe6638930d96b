"""What a service with two workers writes, counts and traces: JSON lines, figures that add up, spans for a collector."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import itertools
import json
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from augmint.errors import UsageError
from serving.access import add_token
from serving.accesslog import AccessLog
from serving.logs import JsonLines
from serving.settings import Settings
from serving.tracing import open_tracer
from tests.serving.conftest import Reply, Service, bentoml_serve
from tests.serving.test_api import Harness, problem
from tests.serving.test_api import run as run  # the fixture

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


# ---------------------------------------------------------------------------------------------- the lines


def written(form: str, *paths: bytes) -> list[str]:
    async def write() -> str:
        stream = io.StringIO()
        log = AccessLog(json=form == "json", stream=stream)
        for path in paths:
            log.write("trainer", "GET", path, "/v1/bundles/{bundle}", 404, 3, 21, 0.01234, "id-1", TRACE)
        log.write("127.0.0.1", "POST", b"/v1/generate", "-", 200, 0, 0, 0.0, "id-2", "-")
        log.flush()
        return stream.getvalue()

    return asyncio.run(write()).splitlines()


def test_a_line_of_the_access_log_is_one_json_object() -> None:
    odd = rb'/v1/bundles/a"b\c%0a' + b"\x7f\xff"
    first, second = (json.loads(line) for line in written("json", odd))
    assert datetime.fromisoformat(first.pop("time")).tzinfo is not None
    assert first == {
        "level": "INFO",
        "logger": "augmint.access",
        "message": "access",
        "client": "trainer",
        "method": "GET",
        "path": '/v1/bundles/a"b\\c%0a\x7f\ufffd',
        "route": "/v1/bundles/{bundle}",
        "status": 404,
        "images": 3,
        "bytes": 21,
        "ms": 12.3,
        "request_id": "id-1",
        "traceparent": TRACE,
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    }
    assert "traceparent" not in second
    assert len(written("text", odd)) == 2


def test_a_record_is_one_json_object() -> None:
    try:
        raise ValueError("line one\nline two")
    except ValueError:
        record = logging.LogRecord("augmint", logging.ERROR, "x.py", 1, "request %s\nfailed", ("7",), sys.exc_info())
    record.request_id = "7"
    line = JsonLines().format(record)
    assert "\n" not in line
    document = json.loads(line)
    assert re.fullmatch(r"[0-9-]{10}T[0-9:]{8}\.[0-9]{3}Z", document["time"])
    assert document["level"] == "ERROR"
    assert document["message"] == "request 7\nfailed"
    assert document["request_id"] == "7"
    assert document["exception"].endswith("ValueError: line one\nline two")


def test_the_form_is_text_or_json() -> None:
    assert Settings.from_environment({"AUGMINT_LOG": "json"}).log == "json"
    with pytest.raises(UsageError, match="AUGMINT_LOG must be text or json"):
        Settings.from_environment({"AUGMINT_LOG": "xml"})


def test_a_failure_is_logged_with_its_request_s_id(run: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(h: Harness) -> None:
        h.gate.set()
        served = h.api.context.library["tiny"]

        def fail(*args: object) -> Any:
            raise RuntimeError("/secret/path is gone")

        served.lane._render = fail
        body = {"counts": {served.info.class_names[0]: 2}, "seed": 1}
        reply = await h.ask(body, headers={"X-Request-ID": "seen-1", "traceparent": TRACE})
        assert "/secret" not in str(problem(reply, 500, "internal"))
        (record,) = [r for r in caplog.records if getattr(r, "request_id", "") == "seen-1"]
        assert record.levelname == "ERROR"
        assert record.getMessage() == "request seen-1 failed"
        assert record.traceparent == TRACE  # type: ignore[attr-defined]
        assert record.exc_info is not None
        assert "gone" in str(record.exc_info[1])

    with caplog.at_level(logging.INFO, logger="augmint"):
        run(scenario)


# ---------------------------------------------------------------------------------------------- two workers


@dataclass(frozen=True)
class Two:
    service: Service
    user: str
    admin: str
    few: str
    spans: list[Span]

    def ask(self, *args: Any, headers: dict[str, str] | None = None, admin: bool = False) -> Reply:
        token = self.admin if admin else self.user
        return self.service.ask(*args, headers={"Authorization": f"Bearer {token}", **(headers or {})})

    def scrape(self) -> dict[str, float]:
        text = self.ask("GET", "/metrics", admin=True).body.decode()
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}


@contextlib.contextmanager
def collector() -> Iterator[tuple[str, list[Span]]]:
    """An OTLP/HTTP collector on loopback: its address, and the spans that it gets."""
    spans: list[Span] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                (name,) = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
                assert name == "augmint"
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", spans
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Iterator[Two]:
    """`bentoml serve` with two workers, tokens, a log in JSON and a collector of spans."""
    home = tmp_path_factory.mktemp("two")
    file = home / "tokens.json"
    user = add_token(file, "user")
    admin = add_token(file, "admin", scopes=("admin",))
    few = add_token(file, "few", images_per_day=50)
    with (
        collector() as (endpoint, spans),
        bentoml_serve(
            home,
            AUGMINT_BUNDLES=str(tiny_bundle),
            AUGMINT_WORKERS="2",
            AUGMINT_THREADS="1",
            AUGMINT_TOKENS=str(file),
            AUGMINT_LOG="json",
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            OTEL_BSP_SCHEDULE_DELAY="100",
        ) as service,
    ):
        service.wait_until_ready()
        found = Two(service, user, admin, few, spans)
        end = time.monotonic() + 30
        while found.scrape().get("augmint_ready_workers") != 2 and time.monotonic() < end:
            time.sleep(0.1)
        yield found


def test_the_figures_of_all_workers_add_up(two: Two) -> None:
    """Whichever worker is asked for them, what all made is counted, no more and no less."""
    before = two.scrape()

    def one(number: int) -> tuple[str, int]:
        bad = number % 4 == 0
        counts = {"cow": 1} if bad else {"cat": number % 7 + 1, "dog": 1}
        reply = two.ask("POST", "/v1/generate", {"counts": counts, "seed": number, "format": "npy"})
        assert reply.status == (422 if bad else 200)
        worker = reply.headers["x-request-id"].rpartition("-")[0]
        return worker, 0 if bad else number % 7 + 2

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(one, range(200)))
    assert len({worker for worker, _ in done}) == 2, "both were asked"
    images = sum(n for _, n in done)
    answered = 'augmint_http_answer_seconds_count{route="/v1/generate"}'
    end = time.monotonic() + 5
    while two.scrape()[answered] < before.get(answered, 0) + 200 and time.monotonic() < end:
        time.sleep(0.02)  # an answer is counted when its last byte is out, which its reader may have before that
    for _ in range(6):  # by either worker
        after = two.scrape()
        grew = {name: value - before.get(name, 0.0) for name, value in after.items()}
        assert grew['augmint_images_generated_total{bundle="tiny"}'] == images
        assert grew['augmint_batch_images_sum{bundle="tiny"}'] == images
        assert grew["augmint_queue_wait_seconds_count"] == 150
        assert grew['augmint_rejections_total{reason="unknown-label"}'] == 50
        assert grew['augmint_http_answers_total{route="/v1/generate",status="200"}'] == 150
        assert grew['augmint_http_answers_total{route="/v1/generate",status="422"}'] == 50
        assert grew[answered] == 200
        assert after["augmint_ready_workers"] == 2
        assert after["augmint_queue_images"] == 0


def test_a_quota_is_one_for_all_workers(two: Two) -> None:
    """A token has its images of the day whichever workers it asks, all in one request or one by one, and no more."""
    headers = {"Authorization": f"Bearer {two.few}"}

    def one(images: int) -> tuple[int, str]:
        body = {"counts": {"cat": images}, "seed": 1, "format": "npy"}
        reply = two.service.ask("POST", "/v1/generate", body, headers)
        assert ("retry-after" in reply.headers) == (reply.status == 429 and images <= 50)
        return reply.status, reply.headers["x-request-id"].rpartition("-")[0]

    assert one(51)[0] == 429
    assert one(30)[0] == 200
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(one, [1] * 40))
    assert len({worker for _, worker in done}) == 2, "both were asked"
    assert sorted(status for status, _ in done) == [200] * 20 + [429] * 20


def test_the_log_of_a_service_is_json_and_keeps_secrets(two: Two) -> None:
    """Every line of it, whoever wrote it; with request and trace; never a token, a body, a query or a header."""
    secrets = ("mark-body", "mark-query", "mark-header", two.user, two.admin, "augmint_wrong")
    two.ask("POST", "/v1/generate", {"counts": {"mark-body": 1}}, headers={"X-Request-ID": "json-1"})
    two.ask("GET", f"/v1/bundles?token={two.user}&x=mark-query", headers={"traceparent": TRACE})
    two.ask("GET", "/v1/bundles", headers={"Authorization": "Bearer augmint_wrong", "Cookie": "mark-header"})
    two.service.ask("GET", "/v1/bundles", headers={"X-Request-ID": "json-2", "User-Agent": "mark-header"})
    end = time.monotonic() + 5
    awaited = ('"json-1"', '"json-2"', TRACE)  # each worker writes when it likes
    while not all(mark in (log := two.service.log.read_text()) for mark in awaited) and time.monotonic() < end:
        time.sleep(0.05)
    lines = [json.loads(line) for line in log.splitlines()]
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(line) for line in lines))
    (refused,) = [line for line in lines if line.get("request_id") == "json-1"]
    assert refused.items() >= {"client": "user", "route": "/v1/generate", "status": 422, "images": 0}.items()
    assert TRACE[3:35] in [line.get("trace_id") for line in lines]
    (stranger,) = [line for line in lines if line.get("request_id") == "json-2"]
    assert stranger["client"] == "127.0.0.1"
    assert not [secret for secret in secrets if secret in log]


# ---------------------------------------------------------------------------------------------- spans


def spans_of(two: Two, request_id: str) -> dict[str, Span]:
    """The spans of a request by name, with "request" for its own."""

    def value(span: Span, key: str) -> Any:
        return next((a.value.string_value for a in span.attributes if a.key == key), None)

    end = time.monotonic() + 10
    while time.monotonic() < end:
        found = [span for span in list(two.spans) if value(span, "augmint.request_id") == request_id]
        if found:
            inside = [s for s in list(two.spans) if s.parent_span_id == found[0].span_id]
            assert len({s.name for s in inside}) == len(inside)
            return {"request": found[0], **{s.name: s for s in inside}}
        time.sleep(0.05)
    raise AssertionError(f"no span of {request_id} was exported")


def attributes(span: Span) -> dict[str, Any]:
    return {
        a.key: a.value.int_value if a.value.HasField("int_value") else a.value.string_value for a in span.attributes
    }


def test_a_request_is_traced_through_its_stages(two: Two, tiny_bundle: Path) -> None:
    begun = time.time_ns()
    body = {"counts": {"cat": 3, "dog": 2}, "seed": 1, "format": "npz"}
    reply = two.ask("POST", "/v1/generate", body, headers={"X-Request-ID": "traced-1", "traceparent": TRACE})
    spans = spans_of(two, "traced-1")
    request = spans.pop("request")
    assert request.name == "POST /v1/generate"
    assert request.kind == Span.SPAN_KIND_SERVER
    assert request.trace_id.hex() == TRACE[3:35]
    assert request.parent_span_id.hex() == TRACE[36:52]
    about = attributes(request)
    assert about["http.route"] == "/v1/generate"
    assert about["http.response.status_code"] == 200
    assert about["augmint.images"] == 5
    assert list(spans) == ["admit", "queue", "infer", "encode", "stream"]
    times = [begun, request.start_time_unix_nano]
    for span in spans.values():
        assert span.trace_id == request.trace_id
        times += [span.start_time_unix_nano, span.end_time_unix_nano]
    times += [request.end_time_unix_nano, time.time_ns()]
    # The clocks of the machine and of the process are read one after the other.
    assert all(later - earlier > -1_000_000 for earlier, later in itertools.pairwise(times))
    made = attributes(spans["infer"])
    assert made["augmint.images"] == made["augmint.batch_images"] == 5
    assert made["augmint.labels"] == 2
    assert made["augmint.bundle"] == reply.headers["augmint-bundle"]
    assert attributes(spans["encode"]) == {"augmint.format": "npz", "augmint.bytes": len(reply.body)}


def test_a_refused_request_is_traced_as_far_as_it_came(two: Two) -> None:
    """With a trace of its own where the client has none, which the log names; probes are not traced."""
    two.ask("GET", "/readyz", headers={"X-Request-ID": "probe-1"})
    two.ask("POST", "/v1/generate", {"counts": {"cow": 1}}, headers={"X-Request-ID": "traced-2"})
    spans = spans_of(two, "traced-2")
    request = spans["request"]
    assert list(spans) == ["request", "stream"]
    assert attributes(request)["http.response.status_code"] == 422
    assert request.status.code == Status.STATUS_CODE_UNSET
    end = time.monotonic() + 5
    while '"traced-2"' not in (log := two.service.log.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    (line,) = [json.loads(line) for line in log.splitlines() if '"traced-2"' in line]
    assert line["trace_id"] == request.trace_id.hex()
    assert not [span for span in two.spans if attributes(span).get("augmint.request_id") == "probe-1"]


@pytest.mark.parametrize(
    ("mode", "variables", "traced"),
    [
        ("auto", {}, False),
        ("auto", {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, False),
        ("auto", {"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}, False),
        ("auto", {"OTEL_TRACES_EXPORTER": "console"}, True),
        ("auto", {"OTEL_TRACES_EXPORTER": "zipkin"}, False),
        ("off", {"OTEL_TRACES_EXPORTER": "console"}, False),
        ("on", {}, True),
    ],
)
def test_only_what_is_configured_is_traced(mode: str, variables: dict[str, str], traced: bool) -> None:
    tracer = open_tracer(mode, variables)
    assert (tracer is not None) == traced
    if tracer is not None:
        tracer.close()


def test_a_collector_that_does_not_answer_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        tracer = open_tracer("auto")
        assert tracer is not None
        begun = time.monotonic()
        tracer.end(tracer.begin("GET", "-", begun), "GET /", 200, begun, {})
        tracer.close(0.2)
        assert time.monotonic() - begun < 3


def test_an_exporter_that_is_not_known_ends_the_service_only_when_it_is_asked_for() -> None:
    with pytest.raises(UsageError, match="OTEL_TRACES_EXPORTER must be otlp, console or none, not 'zipkin'"):
        open_tracer("on", {"OTEL_TRACES_EXPORTER": "zipkin"})
    with pytest.raises(UsageError, match="AUGMINT_TRACING must be auto, on or off"):
        Settings.from_environment({"AUGMINT_TRACING": "zipkin"})
