"""What an attacker would send to a real service, byte by byte: no server of the field's own makes some of these."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from serving.protocol import MOST_HEAD, ConnectionLimits
from tests.serving.conftest import Service

HEAD = "Host: localhost\r\nConnection: close\r\n"


def send(port: int, *pieces: str | bytes, seconds: float = 10) -> bytes:
    """Everything that comes back until the other side closes, or for so long."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        answer = b""
        with contextlib.suppress(OSError):  # closed on us, or silent
            for piece in pieces:
                connection.sendall(piece.encode("latin-1") if isinstance(piece, str) else piece)
            while piece := connection.recv(65536):
                answer += piece
        return answer


def status_of(answer: bytes) -> int:
    found = re.match(rb"HTTP/1\.1 ([0-9]{3}) ", answer)
    assert found, answer[:200]
    return int(found[1])


@pytest.mark.parametrize("path", ["/docs", "//docs.json", "//v1/bundles", "/v1/../metrics", "/metrics/"])
def test_nothing_but_our_own_addresses(service: Service, path: str) -> None:
    answer = send(service.port, f"GET {path} HTTP/1.1\r\n{HEAD}\r\n")
    assert status_of(answer) == 404
    assert b"urn:augmint:problem:not-found" in answer


@pytest.mark.parametrize(
    "name", ["%00", "%ff", "%c0%ae%c0%ae", "%2e%2e", "%0d%0aX-Evil:%20yes", "%e2%80%ae", '"', "\\"]
)
def test_a_strange_name_is_an_unknown_bundle(service: Service, name: str) -> None:
    answer = send(service.port, f"GET /v1/bundles/{name} HTTP/1.1\r\n{HEAD}\r\n")
    assert status_of(answer) == 404
    assert b"\r\nx-evil" not in answer.lower()
    assert b"unknown-bundle" in answer


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"FOO / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /livez HTTP/1.1\nHost: localhost\n\n",
        b"GET /livez HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: local\0host\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n",
        b"GET /\xc3\xa9\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: -2\r\n\r\n{}",
        b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_400_and_no_more(service: Service, request_: bytes) -> None:
    """Also the ways to smuggle one request inside another: they are no HTTP here."""
    answer = send(service.port, request_)
    assert status_of(answer) == 400
    assert b"\r\nconnection: close\r\n" in answer.lower()
    assert b"Traceback" not in answer
    assert service.ask("GET", "/livez").status == 200


def test_no_answer_names_a_server_or_a_version(service: Service) -> None:
    for request in (
        f"GET / HTTP/1.1\r\n{HEAD}\r\n",
        f"GET /nope HTTP/1.1\r\n{HEAD}\r\n",
        f"TRACE /v1/bundles HTTP/1.1\r\nX-Secret: mirror\r\n{HEAD}\r\n",
        f"OPTIONS * HTTP/1.1\r\n{HEAD}\r\n",
        f"GET /v1/bundles HTTP/1.1\r\nUpgrade: h2c\r\n{HEAD}\r\n",
        "\r\n\r\nnonsense\r\n\r\n",
    ):
        head = send(service.port, request).partition(b"\r\n\r\n")[0].lower()
        assert head.startswith(b"http/1.1 "), request
        assert not re.search(rb"\r\n(server|x-powered-by|x-bentoml[\w-]*|via):", head), head
        assert not re.search(rb"uvicorn|bentoml|starlette|python|mirror", head), head


def test_a_websocket_is_refused(service: Service) -> None:
    """BentoML's own router never sees one, whatever host it asks for."""
    answer = send(
        service.port,
        "GET /v1/bundles HTTP/1.1\r\nHost: evil.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    assert status_of(answer) == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost, evil.example", "localhost@evil", "127.1", "0.0.0.0", "[::2]"]
)
def test_other_names_are_refused_where_only_this_machine_is_answered(service: Service, host: str) -> None:
    answer = send(service.port, f"GET /v1/bundles HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    assert status_of(answer) == 421
    twice = f"GET /v1/bundles HTTP/1.1\r\nHost: {host}\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert status_of(send(service.port, twice)) == 421


def test_nobody_writes_the_log_but_the_service(service: Service) -> None:
    """Neither with an address nor with a header that claims another client."""
    claims = "X-Forwarded-For: 6.6.6.6 POST /forged 200\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n"
    send(service.port, f"GET /v1/bundles?x=%0aforged HTTP/1.1\r\n{claims}X-Request-ID: forger-1\r\n{HEAD}\r\n")
    send(service.port, f"GET /v1/bundles HTTP/1.1\r\nX-Request-ID: forger-2 x\r\ntraceparent: forged\r\n{HEAD}\r\n")
    service.ask("GET", "/nope", headers={"X-Request-ID": "forger-3"})
    end = time.monotonic() + 5
    while "id=forger-3" not in (log := service.log.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    (line,) = [line for line in log.splitlines() if "id=forger-1" in line]
    assert " access 127.0.0.1 GET /v1/bundles " in line
    assert "6.6.6.6" not in log
    assert "forged" not in log
    assert "forger-2" not in log


def test_a_head_that_never_ends_is_cut_off(service: Service) -> None:
    """One long header, many headers, a long address, and trailers behind a body: at 64 KiB, before it costs memory."""
    filler = b"a" * 65536
    endless: list[tuple[bytes, bytes]] = [
        (b"GET /livez HTTP/1.1\r\nX: ", filler),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\n", b"X: a\r\n" * 10_000),
        (b"GET /", filler),
        (
            b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: ",
            filler,
        ),
    ]
    for start, more in endless:
        begun = time.monotonic()
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
            connection.sendall(start)
            with pytest.raises(OSError, match=r"reset|Broken|aborted"):
                connection.sendall(more * 1000)  # 64 MB: far more than what the kernel would hold for the service
        assert time.monotonic() - begun < 5
    assert service.ask("GET", "/livez").status == 200


# ---------------------------------------------------------------------------------------------- the protocol alone


async def _read(reader: asyncio.StreamReader) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionError):  # closed while we were still writing
        while piece := await reader.read(65536):
            answer += piece
    return answer


async def _talk(monkeypatch: pytest.MonkeyPatch, *pieces: bytes, pause: float = 0.0) -> tuple[bytes, float]:
    """What a server with a head's time of 0.2 s says to these pieces, and after how long it closed."""
    monkeypatch.setattr("serving.protocol.HEAD_SECONDS", 0.2)

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    config = Config(app, lifespan="off", log_config=None)  # type: ignore[arg-type]
    config.load()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: ConnectionLimits(config, ServerState(), {}), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        begun = loop.time()
        answer = asyncio.create_task(_read(reader))
        for piece in pieces:
            writer.write(piece)
            await asyncio.wait([answer], timeout=pause)
            if answer.done():
                break
        answered = await asyncio.wait_for(answer, 4)
        writer.close()
        return answered, loop.time() - begun


def test_a_head_that_is_late_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that says nothing, one that says little at a time, and a body that goes on after its answer."""
    drips = [b"GET / HTTP/1.1\r\n", *[b"X: a\r\n"] * 20]
    for pieces in ([], drips, [b"\r\n"] * 20, [b"POST / HTTP/1.1\r\nContent-Length: 99\r\n\r\n", *[b"a"] * 20]):
        answer, seconds = asyncio.run(_talk(monkeypatch, *pieces, pause=0.02))
        assert (b" 200 " in answer) == (b"POST" in b"".join(pieces))
        assert seconds < 2, pieces


def test_a_head_of_any_size_below_the_limit_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, several in one piece, and again on the same connection, also after a long body in many chunks."""
    long = b"GET / HTTP/1.1\r\nX: " + b"a" * (MOST_HEAD - 1000) + b"\r\n\r\n"
    last = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"
    answer, _ = asyncio.run(_talk(monkeypatch, long[:9000], long[9000:], long + last, pause=0.01))
    assert answer.count(b" 200 ") == 3
    chunks = b"1\r\na\r\n" * 50_000 + b"0\r\n\r\n"
    body = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    plain = b"POST / HTTP/1.1\r\nContent-Length: 500000\r\n\r\n" + b"a" * 500_000
    answer, _ = asyncio.run(_talk(monkeypatch, body + plain + last))
    assert answer.count(b" 200 ") == 3


async def _unread(monkeypatch: pytest.MonkeyPatch, *, sip: int) -> float:
    """Seconds until a server that waits 0.2 s for a reader gives one up that takes `sip` bytes every 0.1 s of an answer
    of 30 MB; infinite, if it does not within a second."""
    monkeypatch.setattr("serving.protocol.READ_SECONDS", 0.2)
    state = ServerState()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = bytes(30_000_000)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    config = Config(app, lifespan="off", log_config=None)  # type: ignore[arg-type]
    config.load()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: ConnectionLimits(config, state, {}), "127.0.0.1", 0)
    async with server:
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.setblocking(False)
            await loop.sock_connect(reader, server.sockets[0].getsockname())
            await loop.sock_sendall(reader, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            begun = loop.time()
            while loop.time() < begun + 1:
                await asyncio.sleep(0.1)
                if not state.connections:
                    return loop.time() - begun
                if sip:
                    await loop.sock_recv(reader, sip)
            for connection in list(state.connections):
                connection.transport.abort()  # type: ignore[union-attr]
            await asyncio.sleep(0.05)
            return float("inf")


def test_an_answer_that_nobody_reads_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """But one that is read slowly is."""
    assert 0.2 <= asyncio.run(_unread(monkeypatch, sip=0)) < 1
    assert asyncio.run(_unread(monkeypatch, sip=1_000_000)) == float("inf")
