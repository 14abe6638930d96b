"""Streams: the bytes of the local Generator in three formats, whole or noticed to be cut, flat, and fair."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import http.client
import io
import json
import shutil
import signal
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augmint import Generator, Samples, tars
from augmint.endmark import StreamForm, check_bytes, tail_length
from augmint.errors import TransportError
from augmint.samples import Request
from serving.streams import writer_of
from tests.serving.conftest import Service, bentoml_serve
from tests.serving.test_addresses import array
from tests.serving.test_api import Harness, problem
from tests.serving.test_api import run as run  # a fixture
from tests.serving.test_service import tiny as tiny

COUNTS = {"dog": 2500, "cat": 700}  # more than one request of the service may have


def stream(service: Service, form: str, **more: Any) -> bytes:
    reply = service.ask("POST", "/v1/stream", {"bundle": "tiny", "counts": COUNTS, "seed": 5, "format": form, **more})
    assert reply.status == 200, reply.body
    assert reply.headers["augmint-requested"] == "3200"
    return reply.body


@pytest.fixture(scope="module")
def expected(tiny: Generator) -> Samples:
    return tiny.generate(COUNTS, seed=5)


# ---------------------------------------------------------------------------------------------- whole streams


def test_npy_rows(service: Service, expected: Samples) -> None:
    body = stream(service, "npy")
    assert np.array_equal(np.load(io.BytesIO(body)), expected.images)
    assert check_bytes(body, "npy") == 3200


def test_a_tar_holds_images_labels_and_addresses(service: Service, expected: Samples) -> None:
    body = stream(service, "tar")
    assert check_bytes(body, "tar") == 3200
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        found = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert len(found) == 3 * 3200 + 1
    for row in (0, 2499, 2500, 3199):
        key = f"{row:012d}"
        assert np.array_equal(array(found[f"{key}.png"]), expected.images[row])
        assert int(found[f"{key}.cls"]) == expected.labels[row]
        assert json.loads(found[f"{key}.json"]) == {
            "label": "dog" if row < 2500 else "cat",
            "synthetic": True,
            "seed": "5",
            "index": str(row % 2500),
            "truncation": 1.0,
            "bundle": expected.bundle,
        }


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset reads URLs with curl")
def test_webdataset_reads_a_stream_unmodified(service: Service, expected: Samples, tmp_path: Path) -> None:
    import webdataset

    wish = tmp_path / "wish.json"  # webdataset expands braces in what it is given
    wish.write_text(json.dumps({"bundle": "tiny", "counts": COUNTS, "seed": 5}))
    url = f"http://127.0.0.1:{service.port}/v1/stream"
    pipe = f"pipe:curl -sf -H 'content-type: application/json' -d @{wish} {url}"
    data = webdataset.WebDataset(pipe, shardshuffle=False).decode("rgb8").to_tuple("png", "cls", "json")
    found = list(data)
    assert [label for _, label, _ in found] == expected.labels.tolist()
    assert np.array_equal(np.stack([image[:, :, :1] for image, _, _ in found]), expected.images)
    assert [int(address["index"]) for _, _, address in found] == expected.indices.tolist()


def test_a_zip_is_that_of_a_request(service: Service, expected: Samples) -> None:
    body = stream(service, "zip", start=2400, stop=2600)
    assert check_bytes(body, "zip") == 200
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.testzip() is None
        rows = list(csv.DictReader(io.StringIO(archive.read("metadata.csv").decode())))
        assert [int(row["index"]) for row in rows] == expected.indices[2400:2600].tolist()
        for row, image in zip(rows, expected.images[2400:2600], strict=True):
            assert np.array_equal(array(archive.read(row["file_name"])), image)


def test_a_seed_is_chosen_and_told(service: Service, tiny: Generator) -> None:
    reply = service.ask("POST", "/v1/stream", {"bundle": "tiny", "counts": {"cat": 3}, "format": "npy", "offset": "7"})
    again = tiny.generate({"cat": 3}, seed=int(reply.headers["augmint-seed"]), offset=7)
    assert np.array_equal(np.load(io.BytesIO(reply.body)), again.images)
    assert int(reply.headers["content-length"]) == len(reply.body)


# ---------------------------------------------------------------------------------------------- pieces and joins


FORMS: tuple[StreamForm, ...] = ("tar", "npy", "zip")


def written(source: Generator, request: Request, form: StreamForm, most: int, start: int, stop: int) -> bytes:
    shape = source.info().image_shape
    writer = writer_of(form, images=stop - start, first=start, image_shape=shape)
    pieces = [writer.write(source._answer(part, 0, part.total)) for part in request.parts(most, start, stop)]
    body = b"".join(pieces)
    assert writer.length in (None, len(body))
    assert check_bytes(body, form) == stop - start
    return body


@given(form=st.sampled_from(FORMS), most=st.integers(1, 40), cut=st.integers(1, 29), n=st.integers(0, 30))
@settings(max_examples=40, deadline=None)
def test_a_stream_is_the_same_however_it_is_made_and_joined(
    tiny: Generator, form: StreamForm, most: int, cut: int, n: int
) -> None:
    request = Request.make({"dog": n, "cat": 30 - n}, tiny.class_names, seed=3, offset=4)
    whole = written(tiny, request, form, 30, 0, 30)
    assert written(tiny, request, form, most, 0, 30) == whole
    head = written(tiny, request, form, most, 0, cut)
    rest = written(tiny, request, form, most, cut, 30)
    end = tail_length(form)
    if form == "tar":  # joined without the ends
        assert head[:-end] + rest[:-end] == whole[:-end]
    if form == "npy":
        joined = [np.load(io.BytesIO(part)) for part in (head, rest)]
        assert np.array_equal(np.concatenate(joined), np.load(io.BytesIO(whole)))


@given(st.text("abcXYZ019._-/", min_size=1, max_size=99), st.integers(0, 8**11 - 1))
def test_a_tars_headers_are_tarfiles_own(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    assert tars.header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


@given(form=st.sampled_from(FORMS), where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_any_cut_and_any_damage_is_noticed(tiny: Generator, form: StreamForm, where: float, flip: int) -> None:
    request = Request.make({"cat": 4}, tiny.class_names, seed=3)
    whole = written(tiny, request, form, 3, 0, 4)
    place = int(where * len(whole))
    with pytest.raises(TransportError, match="ask for it again"):
        check_bytes(whole[:place], form)
    hashed = len(whole) - tail_length(form)
    damaged = bytearray(whole)
    damaged[int(where * hashed)] ^= flip
    with pytest.raises(TransportError, match="sha256"):
        check_bytes(bytes(damaged), form)


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("wish", "status", "code", "words"),
    [
        ({"counts": {"bird": 3}}, 422, "unknown-label", "bird"),
        ({"counts": {"cat": 3}, "start": 3}, 422, "invalid", "start below stop"),
        ({"counts": {"cat": 3}, "start": 2, "stop": 1}, 422, "invalid", "start below stop"),
        ({"counts": {"cat": 3}, "stop": 4}, 422, "invalid", "rows of the 3"),
        ({"counts": {"cat": 3}, "start": -1}, 422, "invalid", "start must be"),
        ({"counts": {"cat": 3}, "format": "png"}, 422, "invalid", "tar, npy or zip"),
        ({"counts": {"cat": 3}, "quality": "labels"}, 422, "invalid", "'quality' is not known here"),
        ({"counts": {"cat": 70000}, "format": "zip"}, 413, "too-many-images", "tar or npy"),
        ({"counts": {"cat": 3}, "edit": {"nothing": 1.0}}, 422, "edit", "nothing"),
        ({}, 422, "invalid", "counts is missing"),
    ],
)
def test_streams_that_cannot_be(service: Service, wish: Any, status: int, code: str, words: str) -> None:
    reply = service.ask("POST", "/v1/stream", {"bundle": "tiny", **wish})
    assert words in problem(reply, status, code)["detail"]


# ---------------------------------------------------------------------------------------------- without a server


async def ask(service: Harness, wish: Any, take: Callable[[int], Any] = lambda size: None) -> tuple[list[Any], bytes]:
    """The messages that were sent but for the bodies, and the body; `take` may wait before each piece is taken."""
    waiting = [{"type": "http.request", "body": json.dumps(wish).encode(), "more_body": False}]
    sent: list[dict[str, Any]] = []
    body = bytearray()

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop()

    async def send(message: dict[str, Any]) -> None:
        if (pause := take(len(body))) is not None:
            await pause
        body.extend(message.pop("body", b""))
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/stream",
        "raw_path": b"/v1/stream",
        "headers": [(b"content-type", b"application/json")],
        "client": ("1.2.3.4", 1),
        "server": ("127.0.0.1", 3000),
    }
    await service.api(scope, receive, send)
    return sent, bytes(body)


def whole(sent: list[Any]) -> bool:
    return not sent[-1].get("more_body", False) and sent[-1]["type"] == "http.response.body"


WISH = {"counts": {"cat": 60, "dog": 60}, "seed": 5, "format": "npy"}


def test_an_error_midway_never_looks_like_an_end(run: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(service: Harness) -> None:
        service.gate.set()
        lane = service.api.context.library.find("tiny").lane
        render, calls = lane._render, 0

        def failing(*rows: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > 4:
                raise RuntimeError("the GPU fell off the bus")
            return render(*rows)

        lane._render = failing
        sent, body = await ask(service, WISH)
        assert sent[0]["status"] == 200
        assert not whole(sent)
        with pytest.raises(TransportError):
            check_bytes(body, "npy")
        assert "is cut off: the images could not be made" in caplog.text
        assert service.api.pending == 0

    run(scenario, max_images=32)


def test_a_stream_is_slowed_to_the_rate_and_cut_where_that_takes_too_long(run: Callable[..., None]) -> None:
    async def slowed(service: Harness) -> None:
        service.gate.set()
        begun = time.monotonic()
        sent, body = await ask(service, {**WISH, "counts": {"cat": 101}})
        assert whole(sent)
        assert check_bytes(body, "npy") == 101
        assert time.monotonic() - begun > 0.3

    run(slowed, max_images=100, rate_images=1.6)

    async def cut(service: Harness) -> None:
        service.gate.set()
        sent, body = await ask(service, WISH)
        assert sent[0]["status"] == 200
        assert not whole(sent)
        assert len(body) > 64
        # Nothing is begun that is not allowed.
        sent, body = await ask(service, WISH)
        assert (sent[0]["status"], json.loads(body)["code"]) == (429, "rate")

    run(cut, max_images=100, rate_images=0.01, timeout_s=0.5)


def test_only_so_many_streams_at_once(run: Callable[..., None]) -> None:
    async def scenario(service: Harness) -> None:
        first = asyncio.create_task(ask(service, WISH))
        await service.until(lambda: bool(service.calls))
        sent, body = await ask(service, WISH)
        assert (sent[0]["status"], json.loads(body)["code"]) == (503, "queue-full")
        service.gate.set()
        assert whole((await first)[0])
        assert whole((await ask(service, WISH))[0])

    run(scenario, streams=1)


def test_a_slow_reader_holds_back_its_own_stream_alone(run: Callable[..., None]) -> None:
    """It is made one part ahead of the reader and no more; others go on meanwhile."""

    async def scenario(service: Harness) -> None:
        service.gate.set()
        reads = asyncio.Event()
        slow = asyncio.create_task(ask(service, WISH, lambda size: reads.wait() if size else None))
        await service.until(lambda: sum(service.calls) >= 30)
        await asyncio.sleep(0.1)
        assert sum(service.calls) == 30  # of 120: the part that waits, one that is made, one ahead
        sent, body = await ask(service, {**WISH, "seed": 6})
        assert whole(sent)
        assert check_bytes(body, "npy") == 120
        assert sum(service.calls) == 150
        reads.set()
        sent, body = await slow
        assert whole(sent)
        assert check_bytes(body, "npy") == 120

    run(scenario, max_images=10)


def test_a_stream_that_was_begun_may_end_while_the_service_shuts_down(run: Callable[..., None]) -> None:
    async def scenario(service: Harness) -> None:
        first = asyncio.create_task(ask(service, WISH))
        await service.until(lambda: bool(service.calls))
        service.api.begin_draining()
        sent, body = await ask(service, WISH)
        assert (sent[0]["status"], json.loads(body)["code"]) == (503, "draining")
        service.gate.set()
        sent, body = await first
        assert whole(sent)
        assert check_bytes(body, "npy") == 120

    run(scenario, max_images=10)


def test_a_reader_that_never_reads_is_given_up(run: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(service: Harness) -> None:
        service.gate.set()
        sent, _ = await ask(service, WISH, lambda size: asyncio.Event().wait() if size else None)
        assert not whole(sent)
        assert "its client does not read it" in caplog.text
        assert whole((await ask(service, WISH))[0])

    run(scenario, max_images=10, timeout_s=0.2, streams=1)


# ---------------------------------------------------------------------------------------------- with a server


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Iterator[Service]:
    """A service that gives up after two seconds."""
    with bentoml_serve(
        tmp_path_factory.mktemp("short"),
        AUGMINT_BUNDLES=str(tiny_bundle),
        AUGMINT_TIMEOUT_S="2",
        AUGMINT_DRAIN_S="0",
    ) as service:
        service.wait_until_ready()
        yield service


@contextlib.contextmanager
def endless(service: Service, form: str) -> Iterator[http.client.HTTPResponse]:
    """An answer of which a megabyte was read, and many are left."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    wish = json.dumps({"counts": {"cat": 10**9}, "seed": 5, "format": form})
    with contextlib.closing(connection):
        connection.request("POST", "/v1/stream", wish, {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            assert len(response.read(1 << 20)) == 1 << 20
            yield response


@pytest.mark.xdist_group("short streams")
def test_a_client_that_goes_midway_frees_the_service(short: Service) -> None:
    with endless(short, "npy"):
        pass
    end = time.monotonic() + 10
    while b" 499 " not in short.log.read_bytes():
        assert time.monotonic() < end
        time.sleep(0.05)
    before = images_made(short)
    assert before > 1 << 14
    time.sleep(0.2)
    assert images_made(short) == before


@pytest.mark.xdist_group("short streams")
def test_a_connection_that_is_not_read_stops_its_own_stream_alone(short: Service, tiny: Generator) -> None:
    with endless(short, "npy"):
        before, now = -1.0, images_made(short)
        while now > before:  # until all that it may have made ahead is made
            time.sleep(0.1)
            before, now = now, images_made(short)
        wish = {"counts": {"cat": 2000}, "seed": 9, "format": "npy"}
        body = short.ask("POST", "/v1/stream", wish).body
        assert np.array_equal(np.load(io.BytesIO(body)), tiny.generate({"cat": 2000}, seed=9).images)
        assert images_made(short) == now + 2000


def images_made(service: Service) -> float:
    text = service.ask("GET", "/metrics").body.decode()
    return sum(
        float(line.split()[-1]) for line in text.splitlines() if line.startswith("augmint_images_generated_total")
    )


@pytest.mark.xdist_group("short streams")
def test_shutting_down_cuts_a_stream_so_that_the_reader_notices(short: Service) -> None:
    """Last in this module: it ends the service."""
    with endless(short, "tar") as response:
        short.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        with pytest.raises(http.client.IncompleteRead):
            response.read()
    assert time.monotonic() - begun < 10
    assert short.process.wait(20) == 0
