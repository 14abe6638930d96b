"""The HTTP API, as one ASGI application.

    POST /v1/generate                  images by label
    GET  /v1/bundles                   what there is, and the limits
    GET  /v1/bundles/{bundle}          one bundle, by name or digest
    GET  /v1/bundles/{bundle}/samples.png
    GET  /v1/bundles/{bundle}/report   the evaluation's page, where the bundle has one
    GET  /v1/bundles/{bundle}/images/{label}/{seed}/{index}.png
                                       one image by its address (without {label} where the bundle has none); also npy
    GET  /v1/bundles/{bundle}/shards/{shard}.tar
                                       a piece of an endless data set, as WebDataset reads it
    POST /v1/plan                      how many images would balance these counts
    GET  /                             a page to try it
    GET  /livez /readyz /metrics /openapi.json

A handler takes an `Exchange` and returns an `Answer`; whatever it raises becomes a problem+json document here, in one
place. Requests are validated once, at this door. This module knows nothing of BentoML, and leaves to `engine` when
images are made, to `codecs` what they look like as bytes and to `problems` which status an error has.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import itertools
import json
import logging
import math
import os
import re
import secrets
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from starlette.routing import compile_path

from augmint import __version__
from augmint.balancing import plan
from augmint.bundle import REPORT_PAGE
from augmint.errors import (
    AugmintError,
    DeadlineError,
    RequestError,
    ServiceError,
    TooLargeError,
    UnavailableError,
    UnknownBundleError,
    UsageError,
)
from augmint.quality import REASONS
from augmint.samples import Request, Samples
from augmint.selection import Selection
from serving import accept, page, problems
from serving.access import AccessError, Caller, Door
from serving.access import Scope as TokenScope
from serving.accesslog import AccessLog
from serving.bundles import Served, open_bundles, threads_for
from serving.codecs import CODEC_VERSION, FORMATS, Format, encode, encode_npy
from serving.engine import Engine, Ticket
from serving.limits import Quota, RateLimit
from serving.metrics import Metrics
from serving.openapi import document as openapi_document
from serving.schema import BundleModel, parse_body, parse_plan
from serving.settings import Settings
from serving.shards import MOST_SHARDS, Cycle, shard_request, tar

__all__ = ["Answer", "Api", "Exchange"]

log = logging.getLogger("augmint")

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON: Final = b"application/json"
# Bodies up to this size are encoded where they stand: handing them to a thread would cost more.
_INLINE_BYTES: Final = 32_768
# An answer that takes longer than this has its client watched, to stop when it goes.
_WATCH_AFTER_S: Final = 0.02
# Of a request under a quality, made and judged at once: bounds the memory for those that are not kept.
_CANDIDATES: Final = 1024
# What httptools would take of an address and of headers is unbounded; proxies commonly stop at 8 KiB each.
_MOST_PATH: Final = 8192
_MOST_HEADERS: Final = 32_768
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._~:+/=@-]{1,128}")
_TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


# Ids of our own: unique, cheap, and in order within a process.
_PROCESS: Final = secrets.token_hex(8)
_NUMBERS: Final = itertools.count(1)


class _ClientGoneError(Exception):
    """Nobody is there to be answered."""


@dataclass(slots=True)
class Answer:
    """A response, whole."""

    status: int
    content_type: bytes
    body: bytes
    headers: Headers
    images: int = 0


class Exchange:
    """One request on its way to an answer."""

    __slots__ = (
        "begun",
        "caller",
        "headers",
        "method",
        "params",
        "receive",
        "request_id",
        "scope",
        "send",
        "traceparent",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.begun = time.monotonic()
        self.method: str = scope["method"]
        self.headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            # A list may come in several lines (RFC 9110 §5.2).
            self.headers[name] = self.headers[name] + b", " + value if name in self.headers else value
        given = self.headers.get(b"x-request-id", b"")
        self.request_id = given.decode() if _REQUEST_ID.fullmatch(given) else f"{_PROCESS}-{next(_NUMBERS):x}"
        trace = self.headers.get(b"traceparent", b"")
        self.traceparent = trace.decode() if _TRACEPARENT.fullmatch(trace) else "-"
        self.params: dict[str, str] = {}
        self.caller = Caller(self.client)

    @property
    def client(self) -> str:
        client = self.scope.get("client")
        return str(client[0]) if client else "-"


Handler = Callable[[Exchange], Awaitable[Answer]]


class Api:
    """The application and what it needs: settings, open bundles, the engine, the metrics.

    `start` and `stop` are called in the event loop that it will run in.
    """

    def __init__(self, settings: Settings, metrics: Metrics | None = None) -> None:
        self.settings = settings
        self.bundles: dict[str, Served] = {}
        self.failure = ""  # why it never became ready
        self._ready = False
        self._draining = False
        self._waking = False
        self._selecting = 0  # requests under a quality on their way
        self._engine: Engine | None = None
        self._metrics = metrics
        self._access = AccessLog()
        # Other pages may not even show our pictures, unless some are allowed to ask.
        self._resource_policy = b"cross-origin" if settings.origins else b"same-origin"
        self._rate = RateLimit(settings.rate_images, settings.max_images)
        self._quota = Quota(settings.workers)
        self._door = Door(settings.tokens, open_to_all=not settings.auth, hosts=settings.hosts)
        self._encoders: ThreadPoolExecutor | None = None
        self._threads = 1
        self._fixed: dict[str, dict[str, Handler]] = {
            "/v1/generate": {"POST": self._generate},
            "/v1/plan": {"POST": self._plan},
            "/v1/bundles": {"GET": self._list},
            "/": {"GET": self._index},
            "/livez": {"GET": self._livez},
            "/healthz": {"GET": self._livez},
            "/readyz": {"GET": self._readyz},
            "/metrics": {"GET": self._exposition},
            "/openapi.json": {"GET": self._openapi},
        }
        self._patterns: list[tuple[str, re.Pattern[str], dict[str, Handler]]] = [
            (path, compile_path(path)[0], {"GET": handler})
            for path, handler in (
                ("/v1/bundles/{bundle}", self._detail),
                ("/v1/bundles/{bundle}/samples.png", self._sheet),
                ("/v1/bundles/{bundle}/report", self._report),
                ("/v1/bundles/{bundle}/images/{label}/{seed}/{index}.{format}", self._image),
                ("/v1/bundles/{bundle}/images/{seed}/{index}.{format}", self._image),
                ("/v1/bundles/{bundle}/shards/{shard}.tar", self._shard),
            )
        ]

    # ------------------------------------------------------------------------------------------ its life

    @property
    def ready(self) -> bool:
        """Whether every bundle has passed its golden test and is warm, and the door is not closing."""
        return self._ready and not self._draining

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def pending(self) -> int:
        """Images waiting or being made."""
        return self._engine.pending if self._engine is not None else 0

    async def start(self, worker: int | None = None) -> None:
        """Open the bundles and start the engine. A refused bundle leaves the service not ready, and says why."""
        loop = asyncio.get_running_loop()
        if self._metrics is None:
            self._metrics = Metrics()
        try:
            self.bundles = await loop.run_in_executor(None, open_bundles, self.settings, worker)
        except AugmintError as error:
            # No exit: BentoML would start this worker again and again.
            self.failure = f"{error} ({error.code})"
            log.critical("not ready, and will not be: %s", self.failure)
            return
        except Exception:  # a GPU without memory, say: the same holds for what nobody foresaw
            self.failure = "the bundles could not be opened (bundle.unexpected)"
            log.exception("not ready, and will not be")
            return

        def notify(tickets: Sequence[Ticket]) -> None:
            try:
                loop.call_soon_threadsafe(_wake, tickets)
            except RuntimeError:  # the loop is closed: nobody waits any more
                log.debug("%d answers came after the end", len(tickets))

        self._threads = threads = threads_for(self.bundles, self.settings)
        self._engine = Engine(
            threads=threads,
            queue_images=self.settings.queue_images,
            batching=self.settings.batching,
            notify=notify,
            observer=self._metrics,
        )
        self._encoders = ThreadPoolExecutor(threads, thread_name_prefix="augmint-encode")
        for served in self.bundles.values():
            self._metrics.serves(served.info)
            log.info(
                "serving %s (%s, %s) on %s: %d classes, %s images, batches of up to %d, %s",
                served.info.name,
                served.info.family,
                served.info.digest[:12],
                served.info.device,
                len(served.info.class_names),
                "×".join(map(str, served.info.image_shape)),
                served.lane.batch,
                "bit for bit as exported"
                if served.info.reproducibility == "exact"
                else f"within {served.info.tolerance} grey levels of what was exported",
            )
        # What was made so far lives as long as the process: the collector need not look at it ever again. And requests
        # leave no cycles worth the default's haste, while BentoML keeps a timer of each for as long as its timeout.
        gc.collect()
        gc.freeze()
        gc.set_threshold(25_000, 20, 50)
        self._ready = True
        self._metrics.ready(True)
        if worker in (None, 1):
            if self._door.local_only:
                log.info("no tokens (AUGMINT_TOKENS): only this machine is answered")
            elif not self._door.asks_for_tokens:
                log.warning("AUGMINT_AUTH is off: everybody who reaches this service is answered")
            log.info("ready%s", f" at {url}" if (url := os.environ.get("AUGMINT_URL")) else "")

    def begin_draining(self) -> None:
        """Not ready from now on, and no new requests; those admitted are finished."""
        self._draining = True
        if self._engine is not None:
            self._engine.stop_admitting()
        if self._metrics is not None:
            self._metrics.ready(False)

    async def stop(self) -> None:
        """Finish what was admitted and end the threads."""
        self.begin_draining()
        if self._engine is not None:
            loop = asyncio.get_running_loop()
            # Between two rounds of a request under a quality the engine has nothing of it.
            end = time.monotonic() + self.settings.timeout_s
            while self._selecting and time.monotonic() < end:
                await asyncio.sleep(0.01)
            await loop.run_in_executor(None, self._engine.drain, self.settings.timeout_s)
            await loop.run_in_executor(None, self._engine.close)
        if self._encoders is not None:
            self._encoders.shutdown(wait=False)
        self._access.flush()

    # ------------------------------------------------------------------------------------------ the application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"this application speaks HTTP, not {scope['type']}")
        exchange = Exchange(scope, receive, send)
        route = "-"
        try:
            self._check(exchange)
            route, handler = self._route(exchange)
            if (needed := _SCOPES.get(route, "generate")) is not None:
                exchange.caller = self._door.admit(exchange.headers.get(b"authorization"), needed, exchange.client)
            answer = await handler(exchange)
        except _ClientGoneError:
            # Nobody reads this, but BentoML's timeout waits for the first byte of an answer, and shutting down for it.
            answer = Answer(499, b"text/plain; charset=utf-8", b"", [])
        except AugmintError as error:
            answer = self._problem(exchange, error)
        except Exception:
            log.exception("request %s failed", exchange.request_id)
            answer = self._problem(exchange, ServiceError("", code="service.internal"))
        await self._answer(exchange, answer)
        self._log(exchange, route, answer.status, answer.images, len(answer.body))

    def _check(self, exchange: Exchange) -> None:
        """What holds for every request, whatever it asks for."""
        scope = exchange.scope
        if len(scope.get("raw_path", b"")) + len(scope.get("query_string", b"")) > _MOST_PATH:
            raise RequestError(
                f"the address is longer than {_MOST_PATH} bytes: shorten it.", code="request.uri-too-long"
            )
        if sum(len(name) + len(value) for name, value in scope["headers"]) > _MOST_HEADERS:
            raise RequestError(
                f"the headers are longer than {_MOST_HEADERS} bytes: send fewer.", code="request.headers-too-large"
            )
        server = scope.get("server")
        self._door.check_place(str(server[0]) if server else None, exchange.headers.get(b"host"))

    def _route(self, exchange: Exchange) -> tuple[str, Handler]:
        path: str = exchange.scope["path"]
        route, methods = path, self._fixed.get(path)
        if methods is None:
            for route, pattern, methods in self._patterns:  # noqa: B007
                if match := pattern.match(path):
                    exchange.params = match.groupdict()
                    break
            else:
                raise RequestError(
                    "there is nothing at this address: /openapi.json lists what there is.", code="request.not-found"
                )
        assert methods is not None
        handler = methods.get("GET" if exchange.method == "HEAD" else exchange.method)
        if handler is None:
            raise _MethodError(sorted(methods))
        return route, handler

    async def _answer(self, exchange: Exchange, answer: Answer) -> None:
        headers = [
            (b"content-type", answer.content_type),
            (b"content-length", str(len(answer.body)).encode()),
            (b"x-request-id", exchange.request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"x-frame-options", b"DENY"),
            (b"cross-origin-resource-policy", self._resource_policy),
            *answer.headers,
        ]
        if answer.status == 304:  # has neither a body nor a type of one
            headers = headers[2:]
        await exchange.send({"type": "http.response.start", "status": answer.status, "headers": headers})
        body = b"" if exchange.method == "HEAD" or answer.status == 304 else answer.body
        await exchange.send({"type": "http.response.body", "body": body})

    def _problem(self, exchange: Exchange, error: AugmintError) -> Answer:
        problem = problems.problem_of(error)
        headers: Headers = [(b"cache-control", b"no-store")]
        if (wait := problems.retry_after_of(error)) is not None:
            headers.append((b"retry-after", wait))
        if isinstance(error, AccessError) and error.challenge is not None:
            headers.append((b"www-authenticate", error.challenge.encode()))
        if isinstance(error, _MethodError):
            headers.append((b"allow", ", ".join(error.allowed).encode()))
        if error.code in ("request.body-too-large", "service.draining"):
            headers.append((b"connection", b"close"))
        # What the engine refuses it counts itself.
        if self._metrics is not None and error.code not in _COUNTED_BY_ENGINE:
            self._metrics.refused(problem.code, 0)
        return Answer(problem.status, problems.CONTENT_TYPE, problems.body_of(error, exchange.request_id), headers)

    def _log(self, exchange: Exchange, route: str, status: int, images: int, size: int) -> None:
        seconds = time.monotonic() - exchange.begun
        if self._metrics is not None:
            self._metrics.answered(route, status, seconds)
        if self.settings.access_log and route not in _QUIET:
            self._access.write(
                exchange.caller.name,
                exchange.method,
                exchange.scope.get("raw_path", b"-"),
                status,
                images,
                size,
                seconds,
                exchange.request_id,
                exchange.traceparent,
            )

    # ------------------------------------------------------------------------------------------ images

    async def _generate(self, exchange: Exchange) -> Answer:
        engine = self._require_engine()
        settings = self.settings
        wish = parse_body(await self._body(exchange))
        served = self._bundle(wish.bundle)
        request = Request.make(
            wish.counts,
            served.info.class_names,
            seed=wish.seed_number,
            offset=int(wish.offset),
            truncation=wish.truncation,
            quality=wish.quality,
            offered=served.info.quality,
            candidates=wish.candidates,
            edit=wish.edit,
            editable=served.info.edits,
        )
        if request.total > settings.max_images:
            raise TooLargeError(
                f"{request.total} images are more than the {settings.max_images} that one request may have: ask in "
                "several requests, with offset."
            )
        form = wish.format or accept.choose(exchange.headers.get(b"accept", b"").decode("latin-1"), request.total)
        if form == "png" and request.total != 1:
            raise RequestError(f"a PNG holds one image, not {request.total}: ask for one, or for the format zip.")
        headers: Headers = [(b"vary", b"accept")]
        if wish.seed is None:
            headers.append((b"cache-control", b"no-store"))
        else:
            # The answer is a function of the request alone, so its tag is known before it is made.
            tag = _tag(served, request, form)
            headers.append((b"etag", tag))
            if (known := _known(exchange, served, request, tag, headers)) is not None:
                return known
        return await self._made(engine, served, request, form, exchange, headers)

    async def _image(self, exchange: Exchange) -> Answer:
        """One image by its address: a function of the path, so whoever caches it need never ask again."""
        engine = self._require_engine()
        served = self._bundle(exchange.params["bundle"])
        form = _FORM_OF_IMAGE.get(exchange.params["format"])
        if form is None:
            raise RequestError("an image has the ending .png or .npy.", code="request.not-found")
        label = exchange.params.get("label")
        truncation, edit = _query(exchange, ("truncation", "edit"))
        request = Request.make(
            1 if label is None else {label: 1},
            served.info.class_names,
            seed=_number(exchange.params["seed"], "seed"),
            offset=_number(exchange.params["index"], "index"),
            truncation=_share(truncation),
            edit=_edit(edit),
            editable=served.info.edits,
        )
        tag = _tag(served, request, form)
        headers = self._lasting(exchange, served, tag)
        if (known := _known(exchange, served, request, tag, headers)) is not None:
            return known
        return await self._made(engine, served, request, form, exchange, headers)

    async def _shard(self, exchange: Exchange) -> Answer:
        """A piece of an endless data set: `webdataset` reads shards/{000000..000099}.tar."""
        engine = self._require_engine()
        served = self._bundle(exchange.params["bundle"])
        k = _number(exchange.params["shard"], "the shard")
        per_shard, seed, labels, truncation = _query(exchange, ("per_shard", "seed", "labels", "truncation"))
        rows = _number(per_shard or "1000", "per_shard")
        if not rows >= 1 or k >= MOST_SHARDS:
            raise RequestError(f"per_shard must be 1 or more, and the shard below {MOST_SHARDS}.")
        if rows > self.settings.max_images:
            raise TooLargeError(f"{rows} images are more than the {self.settings.max_images} that a shard may have.")
        names = served.info.class_names
        cycle = Cycle.parse(labels or "balanced", names)
        request, order = shard_request(
            cycle, k, rows, names, seed=_number(seed or "0", "seed"), truncation=_share(truncation)
        )
        tag = _tag(served, request, "png", k, rows, cycle.turns, request.firsts)
        headers = self._lasting(exchange, served, tag)
        if (known := _known(exchange, served, request, tag, headers)) is not None:
            return known
        self._take(exchange, request)
        images = await self._images(engine, served, request, exchange)

        def encoded() -> bytes:
            return tar(_samples(served, request, images), order, k)

        body = await asyncio.get_running_loop().run_in_executor(self._encoders, encoded)
        headers += [*_about(served, request), (b"augmint-delivered", str(rows).encode())]
        return Answer(200, b"application/x-tar", body, [*headers, (b"repr-digest", _digest(body))], images=rows)

    async def _plan(self, exchange: Exchange) -> Answer:
        """What would balance a data set with these counts, and what it would cost here."""
        engine = self._require_engine()
        wish = parse_plan(await self._body(exchange))
        served = self._bundle(wish.bundle)
        names = served.info.class_names
        try:
            counts = plan(wish.counts, wish.strategy)
        except UsageError as error:
            raise RequestError(str(error)) from None
        asked = {label: n for label, n in counts.items() if n}
        if asked:
            Request.make(asked, names)  # for its sentence about labels that are not there
        total = sum(asked.values())
        seconds = total * served.lane.seconds_per_image / self._threads
        document = {
            "bundle": served.info.digest,
            "counts": counts,
            "images": total,
            "bytes": total * math.prod(served.info.image_shape),
            "requests": -(-total // self.settings.max_images),
            "seconds": round(seconds, 3) if served.lane.seconds_per_image else None,
            "waiting": engine.pending,
        }
        return Answer(200, JSON, _json(document), [(b"cache-control", b"no-store")])

    def _lasting(self, exchange: Exchange, served: Served, tag: bytes) -> Headers:
        """ETag and Cache-Control of what an address gives: for ever, if it names the bundle by its digest."""
        whose = b"private" if self._door.asks_for_tokens else b"public"
        by_digest = exchange.params["bundle"] == served.info.digest
        return [
            (b"etag", tag),
            (b"cache-control", whose + (b", max-age=31536000, immutable" if by_digest else b", no-cache")),
        ]

    def _take(self, exchange: Exchange, request: Request) -> None:
        """Count a request against its caller's rate and quota."""
        self._rate.take(exchange.caller.name, request.total)
        self._quota.take(exchange.caller.name, exchange.caller.images_per_day, request.total)

    async def _made(
        self,
        engine: Engine,
        served: Served,
        request: Request,
        form: Format,
        exchange: Exchange,
        headers: Headers,
    ) -> Answer:
        """Have the images made and encoded."""
        self._take(exchange, request)
        headers = [*_about(served, request), *headers]
        made: NDArray[np.uint8] | Samples
        if request.quality:
            made = await self._select(engine, served, request, exchange)
            headers += self._account(served, request, made)
            if form == "png" and not len(made):
                raise RequestError(
                    f"none of the {sum(made.generated.values())} images that were made was {request.quality}: "
                    "ask for a lower quality, or with a higher offset.",
                    code="request.quality",
                )
            size = made.images.nbytes
        else:
            made = await self._images(engine, served, request, exchange)
            size = made.nbytes
        if form in ("npy", "npz") and size <= _INLINE_BYTES:
            body, digest = _encode(served, request, made, form)
        else:
            loop = asyncio.get_running_loop()
            body, digest = await loop.run_in_executor(self._encoders, _encode, served, request, made, form)
        headers += [(b"augmint-delivered", str(len(made)).encode()), (b"repr-digest", digest)]
        return Answer(200, FORMATS[form].name.encode(), body, headers, images=len(made))

    async def _select(self, engine: Engine, served: Served, request: Request, exchange: Exchange) -> Samples:
        """Have candidates made and judged until there are enough, in rounds that others' requests mix with."""
        loop = asyncio.get_running_loop()
        selection = Selection(request)
        most = min(_CANDIDATES, self.settings.queue_images)
        self._selecting += 1
        try:
            while (candidates := selection.next(most)) is not None:
                images = await self._images(engine, served, candidates, exchange, admitted=selection.examined > 0)
                labels, _ = candidates.addresses()
                reasons = await loop.run_in_executor(self._encoders, served.judge, images, labels, request.quality)
                selection.add(candidates, images, reasons)
        finally:
            self._selecting -= 1
            beyond = max(selection.examined - request.total, 0)
            self._rate.charge(exchange.caller.name, beyond)
            self._quota.charge(exchange.caller.name, beyond)
        return selection.samples(served.info)

    def _account(self, served: Served, request: Request, samples: Samples) -> Headers:
        totals = dict.fromkeys(REASONS, 0)
        for counts in samples.rejected.values():
            for reason, n in zip(REASONS, counts, strict=True):
                totals[reason] += n
        if self._metrics is not None:
            for reason, n in totals.items():
                self._metrics.unfit(served.info.name, reason, n)
        return [
            (b"augmint-quality", str(request.quality).encode()),
            (b"augmint-generated", str(sum(samples.generated.values())).encode()),
            (b"augmint-rejected", ", ".join(f"{reason}={n}" for reason, n in totals.items()).encode()),
        ]

    async def _images(
        self, engine: Engine, served: Served, request: Request, exchange: Exchange, *, admitted: bool = False
    ) -> NDArray[np.uint8]:
        """Wait for the engine, and tell it when the client goes or the time is up."""
        loop = asyncio.get_running_loop()
        deadline = exchange.begun + self.settings.timeout_s
        future: asyncio.Future[None] = loop.create_future()
        ticket = engine.submit(served.lane, request, deadline=deadline, context=future, wake=False, admitted=admitted)
        if not self._waking:
            # One turn of the loop later: by then every request that arrived with this one is in the queue too.
            self._waking = True
            loop.call_soon(self._wake_engine, engine)
        guard: asyncio.Task[None] | None = None

        def watch() -> None:
            nonlocal guard
            guard = loop.create_task(_watch(exchange.receive, engine, ticket, deadline))

        timer = loop.call_later(_WATCH_AFTER_S, watch)
        try:
            await future
        except asyncio.CancelledError:
            engine.cancel(ticket)
            raise
        finally:
            timer.cancel()
            if guard is not None:
                guard.cancel()
        if isinstance(ticket.error, _Gone):
            raise _ClientGoneError
        if ticket.error is not None:
            raise ticket.error
        assert ticket.images is not None
        return ticket.images

    def _wake_engine(self, engine: Engine) -> None:
        self._waking = False
        engine.wake()

    async def _body(self, exchange: Exchange) -> bytes:
        """The whole body, never holding more than the limit."""
        kind = exchange.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != JSON:
            raise RequestError(
                "the body must be JSON: send the header Content-Type: application/json.",
                code="request.media-type",
            )
        most = self.settings.max_body
        length = exchange.headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            raise _body_too_large(most)
        pieces = bytearray()
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                while True:
                    message = await exchange.receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientGoneError
                    pieces += message.get("body", b"")
                    if len(pieces) > most:
                        raise _body_too_large(most)
                    if not message.get("more_body", False):
                        return bytes(pieces)
        except TimeoutError:
            raise DeadlineError("the request's body did not arrive in time: send it at once.") from None

    def _require_engine(self) -> Engine:
        if self._engine is None or not self._ready:
            raise UnavailableError(self._why_not_ready(), code="service.not-ready", retry_after=5.0)
        return self._engine

    def _why_not_ready(self) -> str:
        # The failure's own sentence names a path of this machine: it is in the log.
        return (
            "the service could not open its bundles and never will: its log says why."
            if self.failure
            else "the service is still opening its bundles: try again shortly."
        )

    def _bundle(self, name: str | None) -> Served:
        if name is None:
            if len(self.bundles) == 1:
                return next(iter(self.bundles.values()))
            raise UnknownBundleError(
                f"this service has {len(self.bundles)} bundles: name one of {', '.join(self.bundles)}.",
                bundles=tuple(self.bundles),
                code="request.invalid",
            )
        served = self.bundles.get(name) or next((b for b in self.bundles.values() if b.info.digest == name), None)
        if served is None:
            raise UnknownBundleError(
                f"there is no bundle {name[:80]!r} here: there is {', '.join(self.bundles)}.",
                bundles=tuple(self.bundles),
            )
        return served

    # ------------------------------------------------------------------------------------------ the rest

    async def _list(self, exchange: Exchange) -> Answer:
        self._require_engine()
        settings = self.settings
        listing = {
            "bundles": [BundleModel.of(served.info) for served in self.bundles.values()],
            "limits": {
                "images": settings.max_images,
                "queue_images": settings.queue_images,
                "body_bytes": settings.max_body,
                "seconds": settings.timeout_s,
            },
        }
        return _cacheable(exchange, JSON, _json(listing))

    async def _detail(self, exchange: Exchange) -> Answer:
        self._require_engine()
        served = self._bundle(exchange.params["bundle"])
        manifest = served.files.manifest
        detail = {
            **BundleModel.of(served.info),
            "parameters": manifest.architecture.parameters,
            "trained": manifest.identity.trained,
            "licence": manifest.identity.licence,
            "augmint_version": manifest.identity.augmint_version,
            "train_counts": manifest.data.class_counts,
            "metrics": [metric.model_dump() for metric in manifest.evidence.metrics],
            "directions": [edit.model_dump() for edit in manifest.edits.attributes] if manifest.edits else [],
            "utility": manifest.evidence.utility and manifest.evidence.utility.model_dump(),
            "report": REPORT_PAGE in served.files.content,
            "warnings": list(manifest.evidence.warnings),
        }
        return _cacheable(exchange, JSON, _json(detail))

    async def _sheet(self, exchange: Exchange) -> Answer:
        self._require_engine()
        sheet = self._bundle(exchange.params["bundle"]).files.content.get("samples.png")
        if sheet is None:
            raise RequestError("this bundle has no sheet of samples.", code="request.not-found")
        return _cacheable(exchange, b"image/png", sheet)

    async def _report(self, exchange: Exchange) -> Answer:
        self._require_engine()
        report = self._bundle(exchange.params["bundle"]).files.content.get(REPORT_PAGE)
        if report is None:
            raise RequestError(
                "this bundle was not evaluated: export it with --evaluate for a report.", code="request.not-found"
            )
        answer = _cacheable(exchange, b"text/html; charset=utf-8", report)
        answer.headers += [(b"content-security-policy", page.REPORT_POLICY), (b"referrer-policy", b"no-referrer")]
        return answer

    async def _index(self, exchange: Exchange) -> Answer:
        answer = _cacheable(exchange, b"text/html; charset=utf-8", page.HTML)
        answer.headers += [(b"content-security-policy", page.POLICY), (b"referrer-policy", b"no-referrer")]
        return answer

    async def _livez(self, exchange: Exchange) -> Answer:
        return Answer(200, b"text/plain; charset=utf-8", b"alive\n", [(b"cache-control", b"no-store")])

    async def _readyz(self, exchange: Exchange) -> Answer:
        self._require_engine()
        if self._draining:
            raise UnavailableError(
                "the service is shutting down: send requests to another one.", code="service.draining", retry_after=1.0
            )
        return Answer(200, b"text/plain; charset=utf-8", b"ready\n", [(b"cache-control", b"no-store")])

    async def _exposition(self, exchange: Exchange) -> Answer:
        metrics = self._metrics
        if metrics is None:
            raise UnavailableError(self._why_not_ready(), code="service.not-ready", retry_after=5.0)
        body, kind = await asyncio.get_running_loop().run_in_executor(None, metrics.exposition)
        return Answer(200, kind.encode(), body, [(b"cache-control", b"no-store")])

    async def _openapi(self, exchange: Exchange) -> Answer:
        return _cacheable(exchange, JSON, _json(openapi_document()))


_FORM_OF_IMAGE: Final[dict[str, Format]] = {"png": "png", "npy": "npy"}
# Route -> what a token must allow; None: nothing is given away there.
_SCOPES: Final[dict[str, TokenScope | None]] = {
    "/": None,
    "/livez": None,
    "/healthz": None,
    "/readyz": None,
    "/openapi.json": None,
    "/metrics": "admin",
}
_QUIET: Final = frozenset({"/livez", "/healthz", "/readyz", "/metrics"})
_COUNTED_BY_ENGINE: Final = frozenset(
    {"service.queue-full", "service.draining", "service.deadline", "service.internal", "service.cancelled"}
)


class _MethodError(RequestError):
    def __init__(self, allowed: list[str]) -> None:
        super().__init__(f"this address takes {', '.join(allowed)}.", code="request.method")
        self.allowed = [*allowed, *(["HEAD"] if "GET" in allowed else [])]


class _Gone(ServiceError):
    """The client went away: there is nobody to tell."""


def _wake(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        future = ticket.context
        if isinstance(future, asyncio.Future) and not future.done():
            future.set_result(None)


async def _watch(receive: Receive, engine: Engine, ticket: Ticket, deadline: float) -> None:
    """Give the ticket up when its client goes or its time is up, whichever is first."""
    try:
        async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        error = DeadlineError("the images were not ready in time: ask for fewer at once, or allow more time.")
        engine.cancel(ticket, error, reason="deadline")
    else:
        engine.cancel(ticket, _Gone("the client went away.", code="service.cancelled"))


def _encode(served: Served, request: Request, made: NDArray[np.uint8] | Samples, form: Format) -> tuple[bytes, bytes]:
    """The body and its Repr-Digest (RFC 9530)."""
    if isinstance(made, Samples):
        body = encode(made, form)
        return body, _digest(body)
    if form == "npy":  # needs no addresses, and is what the fastest clients ask for
        body = encode_npy(made)
        return body, _digest(body)
    body = encode(_samples(served, request, made), form)
    return body, _digest(body)


def _samples(served: Served, request: Request, images: NDArray[np.uint8]) -> Samples:
    """The images with their addresses."""
    labels, indices = request.addresses()
    return Samples(
        images=images,
        labels=labels,
        seeds=np.full(request.total, request.seed, dtype=np.uint64),
        indices=indices,
        class_names=served.info.class_names,
        bundle=served.info.digest,
        reproducibility=served.info.reproducibility,
        truncation=request.truncation,
        requested=dict(request.counts),
        edit=dict(request.edit),
    )


def _about(served: Served, request: Request) -> Headers:
    return [
        (b"augmint-requested", str(request.total).encode()),
        (b"augmint-bundle", served.info.digest.encode()),
        (b"augmint-seed", str(request.seed).encode()),
        (b"augmint-reproducibility", served.info.reproducibility.encode()),
    ]


def _known(exchange: Exchange, served: Served, request: Request, tag: bytes, headers: Headers) -> Answer | None:
    """304 where the client has it already, so that nothing is made."""
    if not _matches(exchange.headers.get(b"if-none-match"), tag):
        return None
    return Answer(304, b"", b"", [*_about(served, request), *headers])


def _query(exchange: Exchange, names: Sequence[str]) -> list[str | None]:
    """The values of the address's parameters; None for those that are not there."""
    text = exchange.scope.get("query_string", b"").decode("latin-1")
    pairs = parse_qsl(text, keep_blank_values=True)
    given = dict(pairs)
    if len(given) < len(pairs) or not given.keys() <= set(names):
        raise RequestError(f"this address takes the parameters {', '.join(names)}, each once.")
    return [given.get(name) for name in names]


def _number(text: str, what: str) -> int:
    if not re.fullmatch(r"[0-9]{1,20}", text):
        raise RequestError(f"{what} must be a whole number, 0 or more, not {text[:40]!r}.")
    return int(text)


def _share(text: str | None) -> float:
    if text is None:
        return 1.0
    if not re.fullmatch(r"[0-9]{0,3}(\.[0-9]{1,17})?", text) or not text:
        raise RequestError(f"truncation must be a number above 0, at most 1, not {text[:40]!r}.")
    return float(text)


def _edit(text: str | None) -> dict[str, float]:
    """ "slant:1.5,size:-1" -> amounts by attribute."""
    amounts: dict[str, float] = {}
    for part in text.split(",") if text else []:
        name, colon, amount = part.partition(":")
        if not colon or name in amounts or not re.fullmatch(r"[+-]?[0-9]{1,3}(\.[0-9]{1,17})?", amount):
            raise RequestError(f"edit must be amounts by attribute, such as slant:1.5,size:-1, not {text!r:.80}.")
        amounts[name] = float(amount)
    return amounts


def _digest(body: bytes) -> bytes:
    return b"sha-256=:" + base64.b64encode(hashlib.sha256(body).digest()) + b":"


def _tag(served: Served, request: Request, form: Format, *more: object) -> bytes:
    """A strong ETag: two answers with the same tag are the same bytes, on whichever machine they were made."""
    parts = (
        served.info.digest,
        served.arithmetic,
        request.counts,
        request.seed,
        request.offset,
        request.truncation,
        (str(request.quality), request.candidates, served.judging) if request.quality else "",
        request.edit,
        form,
        CODEC_VERSION,
        _VERSIONS,
        *more,
    )
    # BLAKE2 because it is there at once; hashlib looks up OpenSSL's SHA-256 anew each time.
    hashed = hashlib.blake2b(repr(parts).encode("utf-8", "backslashreplace"), digest_size=20)
    return b'"' + hashed.hexdigest().encode() + b'"'


_VERSIONS: Final = (__version__, np.__version__, zlib.ZLIB_RUNTIME_VERSION)


def _matches(if_none_match: bytes | None, tag: bytes) -> bool:
    """RFC 9110 §13.1.2: weak comparison against a list, or *."""
    if if_none_match is None:
        return False
    return if_none_match.strip() == b"*" or tag in [
        part.strip().removeprefix(b"W/") for part in if_none_match.split(b",")
    ]


def _cacheable(exchange: Exchange, content_type: bytes, body: bytes) -> Answer:
    tag = b'"' + hashlib.sha256(body).hexdigest()[:40].encode() + b'"'
    headers: Headers = [(b"etag", tag), (b"cache-control", b"no-cache")]
    if _matches(exchange.headers.get(b"if-none-match"), tag):
        return Answer(304, b"", b"", headers)
    return Answer(200, content_type, body, headers)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _body_too_large(most: int) -> TooLargeError:
    return TooLargeError(
        f"the body is longer than {most} bytes: ask for fewer labels at once.", code="request.body-too-large"
    )
