"""A request on its way to an answer, and what every handler needs to read the one and write the other.

A handler takes an `Exchange` and returns an `Answer`, or raises an `AugmintError`; a `Route` says which handler an
address has and how the OpenAPI document describes it. This module knows nothing of bundles, images or the engine.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import json
import re
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

from augmint.errors import DeadlineError, RequestError, TooLargeError
from serving.access import Caller
from serving.access import Scope as TokenScope
from serving.tracing import Trace

__all__ = [
    "FRESH",
    "JSON",
    "OCTETS",
    "TEXT",
    "Answer",
    "ClientGoneError",
    "Exchange",
    "Handler",
    "Headers",
    "Receive",
    "Route",
    "Scope",
    "Send",
    "cacheable",
    "digest_value",
    "matches",
    "repr_digest",
    "to_json",
]

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON: Final = b"application/json"
FRESH: Final = (b"cache-control", b"no-store")
"""Header of what nobody may keep."""
OCTETS: Final = b"application/octet-stream"
TEXT: Final = b"text/plain; charset=utf-8"
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._~:+/=@-]{1,128}")
_TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TIMEOUT_MS: Final = re.compile(rb"[0-9]{1,9}")
# Behind a proxy that is trusted, the client's address is whatever X-Forwarded-For says.
_ADDRESS: Final = re.compile(r"[0-9A-Fa-f.:]{2,45}(%[0-9A-Za-z]{1,15})?")

# Ids of our own: unique, cheap, and in order within a process.
_PROCESS: Final = secrets.token_hex(8)
_NUMBERS: Final = itertools.count(1)


class ClientGoneError(Exception):
    """Nobody is there to be answered."""


@dataclass(slots=True)
class Answer:
    """A response.

    Attributes:
        status: of HTTP.
        content_type: of the body.
        body: the whole of it, or its beginning where there is a `stream`.
        headers: besides those that every answer has.
        images: delivered, for the log.
        stream: what comes after `body`, in pieces as they are made, for what would not fit into memory. It is closed
            when the client goes; if it raises, the answer is cut off so that the client sees it.
    """

    status: int
    content_type: bytes
    body: bytes
    headers: Headers = field(default_factory=list)
    images: int = 0
    stream: AsyncGenerator[bytes, None] | None = None


class Exchange:
    """One request on its way to an answer.

    Attributes:
        method, headers: of the request; names in lower case, the values of a repeated one joined by commas.
        params: the address's parts, by the names that its route gives them.
        request_id: the client's, or one of our own.
        traceparent: the client's (W3C Trace Context), or "-".
        begun: `time.monotonic()` of its arrival.
        deadline: `time.monotonic()` after which nobody waits for an answer: the service's limit, or the client's
            X-Request-Timeout-Ms, whichever is first.
        caller: whoever asks: by IP address (or "-"), and once the door has let them in as it knows them.
        trace: where its stages are noted; None where nothing is traced.
        counted: images that were counted against the caller's rate and quota last.
    """

    __slots__ = (
        "begun",
        "caller",
        "counted",
        "deadline",
        "headers",
        "method",
        "params",
        "receive",
        "request_id",
        "scope",
        "send",
        "trace",
        "traceparent",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, timeout_s: float) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.begun = time.monotonic()
        self.deadline = self.begun + timeout_s
        self.method: str = scope["method"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        if len(self.headers) < len(scope["headers"]):
            self.headers = _joined(scope["headers"])
        given = self.headers.get(b"x-request-id", b"")
        known = given and _REQUEST_ID.fullmatch(given)
        self.request_id = given.decode() if known else f"{_PROCESS}-{next(_NUMBERS):x}"
        trace = self.headers.get(b"traceparent", b"")
        self.traceparent = trace.decode() if trace and _TRACEPARENT.fullmatch(trace) else "-"
        self.trace: Trace | None = None
        self.params: dict[str, str] = {}
        client = scope.get("client")
        self.caller = Caller(client[0] if client and _ADDRESS.fullmatch(client[0]) else "-")
        self.counted = 0

    @property
    def marks(self) -> dict[str, str]:
        """What a log record about this request carries: the extras of `serving.logs`."""
        return {"request_id": self.request_id, "traceparent": self.traceparent}

    def encoded(self, begun: float, form: str, size: int) -> None:
        """For the trace: so many bytes of this form are made now, since a `time.monotonic()`."""
        if self.trace is not None:
            self.trace.add("encode", begun, time.monotonic(), {"augmint.format": form, "augmint.bytes": size})

    def read_deadline(self) -> None:
        """Take the client's own limit into account.

        Raises:
            RequestError: X-Request-Timeout-Ms is no number of milliseconds.
        """
        given = self.headers.get(b"x-request-timeout-ms")
        if given is None:
            return
        if not _TIMEOUT_MS.fullmatch(given):
            raise RequestError(
                "X-Request-Timeout-Ms must be a whole number of milliseconds, such as 2000.", code="request.malformed"
            )
        self.deadline = min(self.deadline, self.begun + int(given) / 1000)

    async def body(self, most: int, *kinds: bytes) -> bytes:
        """The whole body, never holding more than `most` bytes.

        Args:
            kinds: media types that it may be of; b"": it need not say. JSON alone by default.

        Raises:
            RequestError: it is of another media type, or compressed.
            TooLargeError: it is longer.
            DeadlineError: it did not arrive in time.
            ClientGoneError: it never will.
        """
        kinds = kinds or (JSON,)
        if self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower() not in kinds:
            named = " or ".join(kind.decode() for kind in kinds if kind)
            raise RequestError(
                f"the body must be {named}: send that as the header Content-Type.", code="request.media-type"
            )
        if self.headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise RequestError(
                "compressed bodies are not read here: send it as it is, without the header Content-Encoding.",
                code="request.media-type",
            )
        length = self.headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            raise _body_too_large(most)
        pieces = bytearray()
        try:
            async with asyncio.timeout(max(self.deadline - time.monotonic(), 0)):
                while True:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    pieces += message.get("body", b"")
                    if len(pieces) > most:
                        raise _body_too_large(most)
                    if not message.get("more_body", False):
                        return bytes(pieces)
        except TimeoutError:
            raise DeadlineError("the request's body did not arrive in time: send it at once.") from None

    def query(self, *names: str) -> list[str | None]:
        """The values of the address's parameters; None for those that are not there.

        Raises:
            RequestError: there are others, or one twice.
        """
        text = self.scope.get("query_string", b"").decode("latin-1")
        pairs = parse_qsl(text, keep_blank_values=True)
        given = dict(pairs)
        if len(given) < len(pairs) or not given.keys() <= set(names):
            raise RequestError(f"this address takes the parameters {', '.join(names)}, each once.")
        return [given.get(name) for name in names]


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """A list may come in several lines (RFC 9110 §5.2)."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name, []).append(value)
    return {name: b", ".join(values) for name, values in found.items()}


Handler = Callable[[Exchange], Awaitable[Answer]]


@dataclass(frozen=True)
class Route:
    """An address, and who answers there.

    Attributes:
        method: of HTTP; GET includes HEAD.
        path: with {parts} that match up to the next slash; a {label} may have some itself.
        handler: see `Handler`.
        operation: its OpenAPI operation object.
        scope: what a token must allow; None: nothing is given away there.
    """

    method: str
    path: str
    handler: Handler
    operation: dict[str, Any]
    scope: TokenScope | None = "generate"


def matches(if_none_match: bytes | None, tag: bytes) -> bool:
    """Whether the client has it already (RFC 9110 §13.1.2: weak comparison against a list, or *)."""
    if if_none_match is None:
        return False
    return if_none_match.strip() == b"*" or tag in [
        part.strip().removeprefix(b"W/") for part in if_none_match.split(b",")
    ]


def cacheable(exchange: Exchange, content_type: bytes, body: bytes) -> Answer:
    """A body that may be kept, if the client asks each time whether it is still the same."""
    tag = b'"' + hashlib.sha256(body).hexdigest()[:40].encode() + b'"'
    headers: Headers = [(b"etag", tag), (b"cache-control", b"no-cache")]
    if matches(exchange.headers.get(b"if-none-match"), tag):
        return Answer(304, b"", b"", headers)
    return Answer(200, content_type, body, headers)


def repr_digest(body: bytes) -> bytes:
    """The value of Repr-Digest (RFC 9530)."""
    return digest_value(hashlib.sha256(body).digest())


def digest_value(sha256: bytes) -> bytes:
    """The value of Repr-Digest where the digest is known."""
    return b"sha-256=:" + base64.b64encode(sha256) + b":"


def to_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _body_too_large(most: int) -> TooLargeError:
    return TooLargeError(f"the body is longer than {most} bytes: ask for less at once.", code="request.body-too-large")
