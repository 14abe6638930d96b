"""The client against a service that fails in every way: same bytes, nothing asked twice, every error in the tree."""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augmint import protocol as protocol_module
from augmint.archive import pack
from augmint.client import AsyncClient, Client
from augmint.errors import (
    AugmintError,
    DeadlineError,
    RequestError,
    ServiceError,
    ShortfallError,
    TooLargeError,
    TransportError,
    UnavailableError,
    UnknownBundleError,
    UnknownLabelError,
    UsageError,
)
from augmint.generator import Generator
from augmint.protocol import Pause, Protocol, Reply, map_exception
from augmint.samples import Request, Samples, Source
from augmint.selection import Walk
from tests.augmint.fakeservice import FakeService, Fault, problem, sha256
from tests.tinybundle import write_tiny_bundle

URL = "http://service.test:3000"
FIELDS = ("images", "labels", "seeds", "indices")


@pytest.fixture(scope="module")
def generator(tiny_bundle: Path) -> Generator:
    return Generator(tiny_bundle, device="cpu")


@pytest.fixture(scope="module")
def plain(tiny_bundle_unconditional: Path) -> Generator:
    return Generator(tiny_bundle_unconditional, device="cpu")


class Near:
    """`AsyncClient` with the synchronous methods of `Client`, so that each test runs on both."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.far = AsyncClient(url, **settings)

    def bundles(self) -> Any:
        return asyncio.run(self.far.bundles())

    def info(self) -> Any:
        return asyncio.run(self.far.info())

    def generate(self, counts: Any, **more: Any) -> Samples:
        return asyncio.run(self.far.generate(counts, **more))

    def stream(self, counts: Any, **more: Any) -> Iterator[Samples]:
        # The parts that arrive before an error are handed over before it is raised.
        parts: list[Samples] = []

        async def collect() -> None:
            async for part in self.far.stream(counts, **more):
                parts.append(part)

        error: Exception | None = None
        try:
            asyncio.run(collect())
        except AugmintError as raised:
            error = raised
        yield from parts
        if error:
            raise error


@pytest.fixture(params=[Client, Near], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr(protocol_module, "_BACKOFF", 0.001)
    return lambda service, **settings: request.param(URL, transport=service.transport, **settings)


def samples_of(images: Any, names: tuple[str, ...], labels: Any, indices: Any) -> Samples:
    return Samples(images, labels, np.zeros(len(images), np.uint64), indices, names, "0" * 64, "exact")


def same(found: Samples, expected: Samples) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    for name in (
        "class_names",
        "bundle",
        "reproducibility",
        "truncation",
        "edit",
        "requested",
        "rejected",
        "delivered",
        "label_names",
    ):
        assert getattr(found, name) == getattr(expected, name)


# ------------------------------------------------------------------------------------------------- the same bytes


def test_it_is_a_source(generator: Generator) -> None:
    client = Client(URL, transport=FakeService(generator).transport)
    assert isinstance(client, Source)
    assert client.info() == generator.info()
    assert client.bundles() == [generator.info()]


@pytest.mark.parametrize("limit", [1, 3, 7, 1000])
def test_near_and_far_give_the_same(connect: Any, generator: Generator, limit: int) -> None:
    service = FakeService(generator, limit=limit)
    counts = {"été 10": 5, "cat": 0, "dog": 9}
    arguments: Any = {"seed": 2**64 - 1, "offset": 2**60, "truncation": 0.7, "edit": {"slant": -1.5}}
    same(connect(service).generate(counts, **arguments), generator.generate(counts, **arguments))
    assert all(sum(asked["counts"].values()) <= limit for asked in service.asked)


def test_unconditional_too(connect: Any, plain: Generator) -> None:
    service = FakeService(plain, limit=4)
    same(connect(service).generate(10, seed=3, offset=1), plain.generate(10, seed=3, offset=1))
    assert [asked["counts"] for asked in service.asked] == [4, 4, 2]


@pytest.mark.parametrize("chunk", [1, 4, 50])
def test_a_stream_adds_up_to_the_whole_and_asks_as_it_goes(connect: Any, generator: Generator, chunk: int) -> None:
    counts = {"dog": 11, "cat": 6, "été 10": 2}
    parts = list(connect(FakeService(generator)).stream(counts, seed=1, chunk=chunk))
    assert max(map(len, parts)) <= chunk
    same(Samples.concatenate(parts), generator.generate(counts, seed=1))


def test_a_stream_is_lazy(generator: Generator) -> None:
    service = FakeService(generator)
    stream = Client(URL, transport=service.transport).stream({"dog": 100}, seed=1, chunk=10)
    assert service.asked == []
    next(stream)
    assert len(service.asked) == 1


def test_a_seed_left_out_is_picked_once_for_all_pieces(connect: Any, generator: Generator) -> None:
    samples = connect(FakeService(generator, limit=2)).generate({"cat": 7})
    assert len(set(samples.seeds.tolist())) == 1
    same(samples, generator.generate({"cat": 7}, seed=int(samples.seeds[0])))


def test_the_images_are_the_callers_own_to_write_to(connect: Any, generator: Generator) -> None:
    connect(FakeService(generator)).generate({"cat": 1}, seed=1).images[:] = 0


@given(counts=st.lists(st.integers(0, 30), min_size=1, max_size=5).filter(any), most=st.integers(1, 40))
def test_pieces_cover_the_answer_once_in_order(counts: list[int], most: int) -> None:
    names = tuple("abcde"[: len(counts)])
    request = Request.make(dict(zip(names, counts, strict=True)), names, seed=1, offset=5)
    labels: list[int] = []
    indices: list[int] = []
    walk = Walk(request)
    while (piece := walk.piece(most)) is not None:
        part = Request.make(dict(piece.counts), names, seed=1, offset=piece.offset)
        assert 1 <= part.total <= most
        found = part.addresses()
        walk.advance(piece, samples_of(np.zeros((part.total, 1, 1, 1), np.uint8), names, *found))
        labels += found[0].tolist()
        indices += found[1].tolist()
    expected = request.addresses()
    assert (labels, indices) == (expected[0].tolist(), expected[1].tolist())


def test_few_labels_go_in_one_request(generator: Generator) -> None:
    service = FakeService(generator)
    Client(URL, transport=service.transport).generate({"cat": 3, "dog": 3, "été 10": 3}, seed=1, offset=2)
    assert len(service.asked) == 1


# ---------------------------------------------------------------------------------------------- refusals before sending


@pytest.mark.parametrize(
    ("counts", "more", "error"),
    [
        ({"bird": 1}, {}, UnknownLabelError),
        (3, {}, RequestError),
        ({"cat": -1}, {}, RequestError),
        ({"cat": 0}, {}, RequestError),
        ({"cat": 1}, {"seed": 2**64}, RequestError),
        ({"cat": 1}, {"seed": -1}, RequestError),
        ({"cat": 1}, {"truncation": 0.0}, RequestError),
        ({"cat": 1}, {"edit": {"smile": 1}}, RequestError),
        ({"cat": 1}, {"edit": {"slant": 2.1}}, RequestError),
        ({"cat": 1}, {"offset": 2**64}, RequestError),
    ],
)
def test_what_the_generator_refuses_is_refused_in_the_same_words(
    connect: Any, generator: Generator, counts: Any, more: dict[str, Any], error: type[AugmintError]
) -> None:
    service = FakeService(generator)
    with pytest.raises(error) as near:
        generator.generate(counts, **more)
    with pytest.raises(error) as far:
        connect(service).generate(counts, **more)
    assert str(near.value) == str(far.value)
    assert service.asked == []


@pytest.mark.parametrize("chunk", [0, -1, True, 1.5])
def test_a_chunk_must_be_a_count(generator: Generator, chunk: Any) -> None:
    with pytest.raises(RequestError, match="chunk"):
        Client(URL, transport=FakeService(generator).transport).stream({"cat": 1}, chunk=chunk)


@pytest.mark.parametrize(
    ("url", "settings", "code"),
    [
        ("localhost:3000", {}, "usage.url"),
        ("ftp://host", {}, "usage.url"),
        ("http://", {}, "usage.url"),
        ("http://host/?q=1", {}, "usage.url"),
        (URL, {"timeout": 0}, "usage.timeout"),
        (URL, {"timeout": float("nan")}, "usage.timeout"),
        (URL, {"deadline": float("inf")}, "usage.deadline"),
        (URL, {"retries": -1}, "usage.retries"),
        (URL, {"token": "new\nline"}, "usage.token"),
        (URL, {"token": "ключ"}, "usage.token"),
    ],
)
def test_wrong_settings_are_named_at_once(url: str, settings: dict[str, Any], code: str) -> None:
    with pytest.raises(UsageError) as error:
        Client(url, **settings)
    assert error.value.code == code


@pytest.mark.parametrize("proxy", ["nonsense", "gopher://host"])
def test_a_wrong_proxy_is_named_too(proxy: str) -> None:
    with pytest.raises(UsageError, match="proxy"):
        Client(URL, proxy=proxy).info()


def test_a_wrong_proxy_in_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(UsageError, match="ALL_PROXY"):
        Client(URL).info()


def test_several_bundles_must_be_told_apart(connect: Any, generator: Generator, plain: Generator) -> None:
    service = FakeService(generator, plain)
    assert [info.name for info in connect(service).bundles()] == ["tiny", "plain"]
    same(connect(service, bundle="plain").generate(2, seed=1), plain.generate(2, seed=1))
    with pytest.raises(UnknownBundleError, match="2 bundles") as error:
        connect(service).generate({"cat": 1})
    assert error.value.bundles == ("tiny", "plain")
    with pytest.raises(UnknownBundleError, match="'nope'"):
        connect(service, bundle="nope").info()


# ------------------------------------------------------------------------------------------------- retries


def damaged(response: httpx2.Response) -> httpx2.Response:
    body = bytearray(response.content)
    body[len(body) // 2] ^= 1
    return httpx2.Response(200, content=bytes(body), headers=response.headers)


def cut_short(response: httpx2.Response) -> httpx2.Response:
    headers = {key: value for key, value in response.headers.items() if key != "content-length"}
    return httpx2.Response(200, content=response.content[:-40], headers=headers)


PASSING: list[Fault] = [
    problem(503, "queue-full"),
    problem(503, "not-ready", headers={"Retry-After": "0"}),
    problem(503, "draining", headers={"Retry-After": "nonsense"}),
    problem(429, "rate"),
    problem(504, "deadline"),
    httpx2.Response(502, content=b"<html>bad gateway"),
    httpx2.ConnectError("refused"),
    httpx2.ReadError("reset"),
    httpx2.ReadTimeout("slow"),
    httpx2.RemoteProtocolError("closed"),
    ConnectionResetError(104, "reset"),
    damaged,
    cut_short,
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: getattr(fault, "__name__", repr(fault))[:40])
def test_passing_faults_are_got_over_and_nothing_is_asked_twice(
    connect: Any, generator: Generator, fault: Fault
) -> None:
    service = FakeService(generator, limit=4, faults=[None, fault, None])
    same(connect(service).generate({"cat": 10}, seed=5), generator.generate({"cat": 10}, seed=5))
    asked = [(document["offset"], document["counts"]["cat"], document["seed"]) for document in service.asked]
    assert asked == [(0, 4, 5), (4, 4, 5), (4, 4, 5), (8, 2, 5)]  # the piece that failed, and only that one


def test_retries_end(connect: Any, generator: Generator) -> None:
    service = FakeService(generator, faults=[problem(503, "queue-full", "The queue is full.")] * 9)
    with pytest.raises(UnavailableError, match=r"The queue is full\..*tried 4 times") as error:
        connect(service, retries=3).generate({"cat": 1})
    assert len(service.asked) == 4
    assert (error.value.status, error.value.code) == (503, "service.queue-full")


def drive(protocol: Protocol, outcomes: list[Any]) -> tuple[list[float], Any]:
    """Run a call for the catalogue on a clock that only pauses move; return the pauses and the error, if any."""
    steps = protocol.catalogue()
    pauses: list[float] = []
    try:
        step = next(steps)
        while True:
            if isinstance(step, Pause):
                pauses.append(step.seconds)
                protocol.clock.now += step.seconds
                step = steps.send(None)
            else:
                step = steps.send(outcomes.pop(0))
    except StopIteration:
        return pauses, None
    except AugmintError as error:
        return pauses, error


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def protocol(**settings: Any) -> Protocol:
    settings = {"bundle": None, "deadline": 300.0, "retries": 5, "clock": Clock(), "jitter": lambda: 0.0} | settings
    return Protocol(URL, **settings)


def busy(**headers: str) -> Reply:
    names = {key.replace("_", "-"): value for key, value in headers.items()}
    return Reply(503, httpx2.Headers(names), b"")


GOOD = Reply(200, httpx2.Headers(), b'{"bundles": []}')


def test_the_wait_is_the_services_own_in_either_form() -> None:
    now = datetime(2031, 5, 4, 12, tzinfo=UTC)
    later = format_datetime(now + timedelta(seconds=40), usegmt=True)
    past = format_datetime(now - timedelta(seconds=40), usegmt=True)
    date = format_datetime(now, usegmt=True)
    outcomes = [busy(Retry_After="7"), busy(Retry_After=later, Date=date), busy(Retry_After=past, Date=date), GOOD]
    assert drive(protocol(), outcomes) == ([7.0, 40.0, 0.0], None)


def test_without_a_wait_it_doubles_with_jitter_up_to_a_bound() -> None:
    low, _ = drive(protocol(retries=10), [busy() for _ in range(9)] + [GOOD])
    high, _ = drive(protocol(retries=10, jitter=lambda: 1.0), [busy() for _ in range(9)] + [GOOD])
    assert low[:4] == [0.125, 0.25, 0.5, 1.0]
    assert high == [2 * seconds for seconds in low]
    assert max(high) == 15.0


@pytest.mark.parametrize("nonsense", ["-5", "soon", "1e9", "inf", "9" * 40, "Mon, 99 Foo 2031 00:00:00 GMT"])
def test_a_nonsensical_wait_is_none(nonsense: str) -> None:
    assert drive(protocol(), [busy(Retry_After=nonsense), GOOD]) == ([0.125], None)


def test_a_wait_past_the_deadline_is_not_begun() -> None:
    pauses, error = drive(protocol(deadline=60), [busy(Retry_After="30"), busy(Retry_After="31")])
    assert pauses == [30.0]
    assert isinstance(error, UnavailableError)
    assert error.retry_after == 31.0
    assert "deadline of 60 s" in str(error)


def test_the_deadline_cuts_an_answer_that_only_drips(generator: Generator) -> None:
    class Dripping(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            while True:
                yield b" " * 10

    def handler(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, stream=Dripping())

    client = Client(URL, transport=httpx2.MockTransport(handler), deadline=0.05, retries=1)
    with pytest.raises(TransportError, match="deadline"):
        client.info()


def test_an_endless_or_encoded_answer_is_cut_off(connect: Any, generator: Generator) -> None:
    for change in (
        lambda response: httpx2.Response(200, content=response.content + b"\0" * 200_000, headers=response.headers),
        lambda response: httpx2.Response(200, content=b"", headers={"Content-Encoding": "br"}),
    ):
        service = FakeService(generator, faults=[change])
        with pytest.raises(TransportError, match=r"longer than|compressed"):
            connect(service).generate({"cat": 1})
        assert len(service.asked) == 1


# ------------------------------------------------------------------------------------------------- refused answers


def test_it_shrinks_its_requests_when_the_limit_is_lower_than_it_was_told(connect: Any, generator: Generator) -> None:
    service = FakeService(generator, limit=5)
    service.stated_limit = None
    same(connect(service).generate({"cat": 33}, seed=5), generator.generate({"cat": 33}, seed=5))
    service = FakeService(generator, limit=0)
    service.stated_limit = None
    with pytest.raises(TooLargeError):
        connect(service).generate({"cat": 33}, seed=5)


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (problem(422, "unknown-label", "No bird.", labels=["cat", "dog"]), UnknownLabelError, "request.unknown-label"),
        (problem(404, "unknown-bundle", bundles=["x"]), UnknownBundleError, "request.unknown-bundle"),
        (problem(400, "malformed", "Not JSON."), RequestError, "request.malformed"),
        (problem(406, "not-acceptable"), RequestError, "request.not-acceptable"),
        (problem(415, "unsupported-media"), RequestError, "request.unsupported-media"),
        (problem(422, "invalid"), RequestError, "request.invalid"),
        (httpx2.Response(401), ServiceError, "service.access"),
        (httpx2.Response(403), ServiceError, "service.access"),
        (httpx2.Response(404, content=b"<html>"), ServiceError, "service.not-found"),
        (httpx2.Response(301, headers={"Location": "https://elsewhere/"}), ServiceError, "service.not-found"),
        (problem(500, "internal"), ServiceError, "service.failed"),
        (
            httpx2.Response(500, content=b"[" * 100_000, headers={"Content-Type": "application/json"}),
            ServiceError,
            None,
        ),
        (problem(504, "deadline", "Too late."), DeadlineError, "service.deadline"),
        (httpx2.Response(200, content=b"hello"), TransportError, "service.bad-answer"),
        (httpx2.Response(204), ServiceError, "service.failed"),
    ],
)
def test_refusals_come_back_as_the_errors_that_were_raised_there(
    connect: Any, generator: Generator, answer: httpx2.Response, kind: type[AugmintError], code: str | None
) -> None:
    with pytest.raises(kind) as error:
        connect(FakeService(generator, faults=[answer]), retries=0).generate({"cat": 1})
    assert type(error.value) is kind
    assert code is None or error.value.code == code
    assert "<html>" not in str(error.value)


def test_what_a_refusal_says_is_kept_and_made_safe_to_print(connect: Any, generator: Generator) -> None:
    answer = problem(500, "internal", "It\n broke \x1b[31mbadly " + "x" * 5000, request_id="abc")
    with pytest.raises(ServiceError) as error:
        connect(FakeService(generator, faults=[answer])).generate({"cat": 1})
    assert str(error.value).startswith("It broke [31mbadly x")
    assert str(error.value).endswith("(request abc)")
    assert len(str(error.value)) < 600
    answer = problem(422, "unknown-label", labels=["cat", "dog"])
    with pytest.raises(UnknownLabelError) as unknown:
        connect(FakeService(generator, faults=[answer])).generate({"cat": 1})
    assert unknown.value.labels == ("cat", "dog")


@pytest.mark.parametrize(
    "body",
    [b"", b"hello", b"[]", b"{}", b'{"bundles": 3}', b'{"bundles": [{"name": "x"}]}', b"\xff\xfe", b'{"bundles": NaN}'],
)
def test_another_kind_of_server_is_recognised(connect: Any, body: bytes) -> None:
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=body))
    service = type("Service", (), {"transport": transport})
    with pytest.raises(TransportError, match="check the URL"):
        connect(service).info()


@pytest.mark.parametrize(
    "change", [{"digest": "x"}, {"image_shape": [0, 8, 1]}, {"image_shape": [8, 8]}, {"class_names": ["a", "a"]}]
)
def test_a_catalogue_that_cannot_be_is_refused(connect: Any, generator: Generator, change: dict[str, Any]) -> None:
    service = FakeService(generator)
    document = service.catalogue()
    document["bundles"][0] |= change
    service.catalogue = lambda: document  # type: ignore[method-assign]
    with pytest.raises(TransportError):
        connect(service).info()


def every_exception() -> list[type[Exception]]:
    found = {value for value in vars(httpx2).values() if isinstance(value, type) and issubclass(value, Exception)}
    queue = list(found)
    while queue:
        for sub in queue.pop().__subclasses__():
            if sub.__module__.startswith("httpx2") and sub not in found:
                found.add(sub)
                queue.append(sub)
    return sorted(found, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", every_exception(), ids=lambda kind: kind.__name__)
def test_no_exception_of_httpx2_gets_through(connect: Any, generator: Generator, kind: type[Exception]) -> None:
    assert len(every_exception()) > 25
    error = kind.__new__(kind)
    Exception.__init__(error, "something")
    with pytest.raises(AugmintError) as mapped:
        connect(FakeService(generator, faults=[error]), retries=0).generate({"cat": 1})
    assert type(mapped.value) is type(map_exception(error, URL)[0])


def test_a_service_that_is_not_there(connect: Any) -> None:
    for client in (Client("http://127.0.0.1:9", retries=0), Near("http://127.0.0.1:9", retries=0)):
        with pytest.raises(TransportError, match="augmint serve") as error:
            client.generate({"cat": 1})
        assert error.value.code == "service.unreachable"


# ------------------------------------------------------------------------------------------------- answers that lie


LIES: dict[str, Callable[[FakeService, Samples], httpx2.Response]] = {
    "another seed": lambda s, x: s.answer(x, 4, seeds=x.seeds + np.uint64(1)),
    "other indices": lambda s, x: s.answer(x, 4, indices=x.indices + np.uint64(1)),
    "other labels": lambda s, x: s.answer(x, 4, labels=x.labels[::-1].copy()),
    "a label too high": lambda s, x: s.answer(x, 4, labels=x.labels + 9),
    "other names": lambda s, x: s.answer(x, 4, class_names=("a", "b", "c")),
    "other types": lambda s, x: s.answer(x, 4, labels=x.labels.astype(np.int32)),
    "floats": lambda s, x: s.answer(x, 4, images=x.images.astype(np.float32)),
    "another shape": lambda s, x: s.answer(x, 4, images=x.images[:, :4]),
    "Fortran order": lambda s, x: s.answer(x, 4, images=np.asfortranarray(x.images)),
    "fewer labels": lambda s, x: s.answer(x, 4, labels=x.labels[:2]),
    "more images": lambda s, x: s.answer(Samples.concatenate([x, x]), 4),
}


@pytest.mark.parametrize("name", LIES)
def test_an_answer_is_not_believed(connect: Any, generator: Generator, name: str) -> None:
    service = FakeService(generator)
    samples = generator.generate({"cat": 2, "dog": 2}, seed=1)
    service.faults = [LIES[name](service, samples)]
    with pytest.raises(TransportError) as error:
        connect(service).generate({"cat": 2, "dog": 2}, seed=1)
    assert error.value.code == "service.bad-answer"
    assert len(service.asked) == 1


def npz(change: Callable[[dict[str, bytes]], None], compress: bool = False) -> bytes:
    members: dict[str, bytes] = {}
    arrays = {
        "images": np.zeros((2, 8, 8, 1), np.uint8),
        "labels": np.zeros(2, np.int64),
        "class_names": np.array(["cat"]),
        "seeds": np.zeros(2, np.uint64),
        "indices": np.zeros(2, np.uint64),
    }
    for name, array in arrays.items():
        stream = io.BytesIO()
        np.save(stream, array)
        members[f"{name}.npy"] = stream.getvalue()
    change(members)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def pickled(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(array, dtype=object), allow_pickle=True)
    return stream.getvalue()


def header(descr: str, shape: str) -> bytes:
    return raw_header(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}")


def raw_header(text: str) -> bytes:
    body = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


HOSTILE: dict[str, bytes] = {
    "pickle": npz(lambda m: m.update({"class_names.npy": pickled(["cat"])})),
    "extra member": npz(lambda m: m.update({"../../evil.npy": b"x"})),
    "missing member": npz(lambda m: m.pop("seeds.npy") and None),
    "empty member": npz(lambda m: m.update({"images.npy": b""})),
    "huge claim": npz(lambda m: m.update({"images.npy": header("|u1", "(2, 8, 8, 99999999999)")})),
    "negative claim": npz(lambda m: m.update({"labels.npy": header("<i8", "(-2,)")})),
    "no header": npz(lambda m: m.update({"labels.npy": raw_header("__import__('os')")})),
    "long tail": npz(lambda m: m.update({"images.npy": m["images.npy"] + b"\0" * 5000})),
    "short data": npz(lambda m: m.update({"images.npy": m["images.npy"][:-1]})),
    "bomb": npz(lambda m: m.update({"images.npy": m["images.npy"] + b"\0" * 50_000_000}), compress=True),
    "endless names": npz(lambda m: m.update({"class_names.npy": header("<U999999999", "(1,)")})),
    "not a zip": b"PK\x03\x04" + b"\0" * 100,
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_npz_is_refused(generator: Generator, name: str) -> None:
    service = FakeService(generator)

    def swap(response: httpx2.Response) -> httpx2.Response:
        headers = {k: v for k, v in response.headers.items() if k not in ("content-length", "repr-digest")}
        return httpx2.Response(200, content=HOSTILE[name], headers=headers | {"Repr-Digest": sha256(HOSTILE[name])})

    service.faults = [swap]
    with pytest.raises(TransportError) as error:
        Client(URL, transport=service.transport).generate({"cat": 2}, seed=0)
    assert error.value.code == "service.bad-answer"


@given(at=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(0, 10_000))
@settings(max_examples=200, deadline=None)
def test_a_changed_npz_is_read_right_or_refused(at: int, value: int, cut: int) -> None:
    from augmint.archive import unpack

    zeros = np.zeros(2, np.uint64)
    two = samples_of(np.zeros((2, 8, 8, 1), np.uint8), ("cat",), zeros.astype(np.int64), zeros)
    body = bytearray(pack(two))
    body[at % len(body)] = value
    try:
        arrays = unpack(bytes(body[: cut or None]), most=2, image_shape=(8, 8, 1))
    except TransportError:
        return
    assert arrays["images"].shape[1:] == (8, 8, 1)


@pytest.mark.parametrize(
    "name", ["Repr-Digest", "Augmint-Bundle", "Augmint-Requested", "Augmint-Delivered", "Augmint-Reproducibility"]
)
def test_a_header_that_a_proxy_removed_is_missed(connect: Any, generator: Generator, name: str) -> None:
    def remove(response: httpx2.Response) -> httpx2.Response:
        headers = {k: v for k, v in response.headers.items() if k != name.lower()}
        return httpx2.Response(200, content=response.content, headers=headers)

    with pytest.raises(TransportError):
        connect(FakeService(generator, faults=[remove])).generate({"cat": 2})


# ----------------------------------------------------------------------------------------------- shortfall, replacement


def keeps(which: slice) -> Callable[[FakeService], Callable[[httpx2.Response], httpx2.Response]]:
    return lambda service: lambda _: service.generate(service.asked[-1], which)


@pytest.mark.parametrize("which", [slice(3), slice(1, None), slice(None, None, 2), slice(0)])
def test_a_shortfall_is_said_after_what_arrived_was_handed_over(
    connect: Any, generator: Generator, which: slice
) -> None:
    service = FakeService(generator, limit=4)
    service.faults = [None, keeps(which)(service), None]
    parts: list[Samples] = []
    with pytest.raises(ShortfallError) as error:
        parts.extend(connect(service).stream({"cat": 10}, seed=5))
    found = Samples.concatenate(parts)
    kept = range(4, 8)[which]
    assert found.indices.tolist() == [*range(4), *kept, *range(8, 10)]
    assert (error.value.requested, error.value.delivered) == (10, 6 + len(kept))
    whole = generator.generate({"cat": 10}, seed=5).images
    np.testing.assert_array_equal(found.images, whole[found.indices.astype(int)])
    assert len(service.asked) == 3  # what the service does not have is not asked for again


def test_a_bundle_replaced_on_the_way_is_noticed(connect: Any, generator: Generator, tmp_path: Path) -> None:
    other = Generator(write_tiny_bundle(tmp_path / "tiny", seed=8), device="cpu")
    service = FakeService(generator, limit=4)
    service.faults = [None, lambda _: service.answer(other.generate({"cat": 4}, seed=5, offset=4), 4)]
    parts: list[Samples] = []
    with pytest.raises(TransportError, match="was replaced") as error:
        parts.extend(connect(service).stream({"cat": 10}, seed=5))
    assert error.value.code == "service.bundle-changed"
    assert [part.bundle for part in parts] == [generator.digest]


def test_a_bundle_replaced_between_requests_is_taken_as_it_is(generator: Generator, tmp_path: Path) -> None:
    names = ("cat", "dog", "été 10", "new")
    other = Generator(write_tiny_bundle(tmp_path / "tiny", seed=8, class_names=names, shape=(4, 4, 3)), device="cpu")
    service = FakeService(generator)
    client = Client(URL, transport=service.transport)
    same(client.generate({"cat": 2}, seed=5), generator.generate({"cat": 2}, seed=5))
    service.generators["tiny"] = other
    same(client.generate({"cat": 2}, seed=5), other.generate({"cat": 2}, seed=5))
    service.generators["tiny"] = generator
    same(client.generate({"cat": 2}, seed=5), generator.generate({"cat": 2}, seed=5))
    service.generators["tiny"] = other
    same(client.generate({"new": 2}, seed=5), other.generate({"new": 2}, seed=5))  # unknown to what it remembered


def test_a_newer_version_does_not_disturb_what_has_begun(connect: Any, generator: Generator, tmp_path: Path) -> None:
    other = Generator(write_tiny_bundle(tmp_path / "tiny", seed=8), device="cpu")
    service = FakeService(generator, limit=4)

    def newer(response: httpx2.Response) -> httpx2.Response:
        service.generators = {"tiny": other, "old": generator}
        return response

    service.faults = [newer]
    same(connect(service).generate({"cat": 10}, seed=5), generator.generate({"cat": 10}, seed=5))
    assert [document["bundle"] for document in service.asked] == ["tiny", generator.digest, generator.digest]


def test_a_bundle_removed_on_the_way_is_said_so(connect: Any, generator: Generator) -> None:
    service = FakeService(generator, limit=4)
    service.faults = [None, problem(404, "unknown-bundle", bundles=[])]
    with pytest.raises(TransportError, match="replaced or removed") as error:
        connect(service).generate({"cat": 10}, seed=5)
    assert error.value.code == "service.bundle-changed"


def test_a_worker_that_is_behind_is_asked_again(connect: Any, generator: Generator, tmp_path: Path) -> None:
    other = Generator(write_tiny_bundle(tmp_path / "tiny", seed=8), device="cpu")
    service = FakeService(generator)
    client = connect(service)
    client.info()
    behind = [service.catalogue()] * 3
    service.generators["tiny"] = other
    ahead = service.catalogue
    service.catalogue = lambda: behind.pop() if behind else ahead()  # type: ignore[method-assign]
    same(client.generate({"cat": 2}, seed=5), other.generate({"cat": 2}, seed=5))
    assert not behind


def test_versions_are_told_apart_by_their_address(generator: Generator, tmp_path: Path) -> None:
    other = Generator(write_tiny_bundle(tmp_path / "tiny", seed=8), device="cpu")
    service = FakeService()
    newest, older = (asdict(g.info()) | {"latest": g is other} for g in (other, generator))
    service.catalogue = lambda: {"bundles": [older, newest]}  # type: ignore[method-assign]
    for address, meant in (
        (None, other),
        ("tiny", other),
        ("tiny@latest", other),
        (f"tiny@{generator.digest[:8]}", generator),
        (generator.digest, generator),
    ):
        assert Client(URL, bundle=address, transport=service.transport).info().digest == meant.digest, address
    with pytest.raises(UnknownBundleError, match="it has tiny"):
        Client(URL, bundle=f"tiny@{generator.digest[:7]}", transport=service.transport).info()


def test_replicas_that_differ_are_noticed(connect: Any, generator: Generator, tmp_path: Path) -> None:
    other = Generator(write_tiny_bundle(tmp_path / "tiny", seed=8), device="cpu")
    service = FakeService(generator)
    catalogue = service.catalogue()
    service.catalogue = lambda: catalogue  # type: ignore[method-assign]
    service.generators["tiny"] = other
    with pytest.raises(TransportError, match="replicas"):
        connect(service).generate({"cat": 2})


# ------------------------------------------------------------------------------------------------- life


def test_what_is_known_of_the_service_is_asked_once(generator: Generator) -> None:
    service = FakeService(generator)
    client = Client(URL, transport=service.transport)
    for seed in range(3):
        client.generate({"cat": 1}, seed=seed)
    assert service.catalogues == 1


def test_the_token_is_sent_and_never_shown(connect: Any, generator: Generator) -> None:
    service = FakeService(generator)
    connect(service, token="s3cret").generate({"cat": 1})
    assert {request.headers["Authorization"] for request in service.requests} == {"Bearer s3cret"}
    assert all(request.headers["User-Agent"].startswith("augmint/") for request in service.requests)
    client = Client("http://me:s3cret@host:1", token="s3cret", retries=0)
    assert "s3cret" not in repr(client) + repr(client._settings.token and client)
    dead = httpx2.MockTransport(lambda _: (_ for _ in ()).throw(httpx2.ConnectError("x")))
    with pytest.raises(TransportError) as error:
        Client("http://me:s3cret@host:1", token="s3cret", retries=0, transport=dead).info()
    assert "s3cret" not in str(error.value)


def test_a_closed_client_says_so(generator: Generator) -> None:
    with Client(URL, transport=FakeService(generator).transport) as client:
        client.info()
    with pytest.raises(UsageError, match="closed"):
        client.info()

    async def use() -> None:
        async with AsyncClient(URL, transport=FakeService(generator).transport) as far:
            await far.info()
        with pytest.raises(UsageError, match="closed"):
            await far.info()

    asyncio.run(use())


def test_threads_and_tasks_share_it(generator: Generator) -> None:
    service = FakeService(generator, limit=7)
    client = Client(URL, transport=service.transport)
    expected = [generator.generate({"cat": 20}, seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for found, right in zip(
            pool.map(lambda s: client.generate({"cat": 20}, seed=s), range(8)), expected, strict=True
        ):
            same(found, right)

    async def use() -> list[Samples]:
        async with AsyncClient(URL, transport=service.transport) as far:
            return await asyncio.gather(*(far.generate({"cat": 20}, seed=seed) for seed in range(8)))

    for found, right in zip(asyncio.run(use()), expected, strict=True):
        same(found, right)


def _described(client: Client) -> str:
    return repr(client)


def test_it_goes_to_other_processes() -> None:
    client = Client(URL, bundle="x", token="t", timeout=3, deadline=9, retries=1)
    again = pickle.loads(pickle.dumps(client))
    assert again._settings == client._settings
    assert isinstance(pickle.loads(pickle.dumps(AsyncClient(URL))), AsyncClient)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(_described, (client,)).get(timeout=60) == repr(client)


def test_an_async_client_survives_its_event_loop(generator: Generator) -> None:
    client = AsyncClient(URL, transport=FakeService(generator).transport)
    for _ in range(2):
        assert asyncio.run(client.info()) == generator.info()
