"""The HTTP API, as one ASGI application: its life, its door, its router, and what every answer has.

    POST /v1/generate                  images by label
    POST /v1/stream                    images of any number, as tar, npy or zip
    POST /v1/jobs                      a stream that is made into a file and kept; GET: one's own
    GET  /v1/jobs/{id}                 how far it is; DELETE cancels and removes it
    GET  /v1/jobs/{id}/result          the file
    POST /v1/plan                      how many images would balance these counts
    GET  /v1/bundles                   what there is, and the limits
    GET  /v1/bundles/{bundle}          one bundle, by name or digest
    GET  /v1/bundles/{bundle}/samples.png
    GET  /v1/bundles/{bundle}/report   the evaluation's page, where the bundle has one
    GET  /v1/bundles/{bundle}/images/{label}/{seed}/{index}.png
                                       one image by its address (no {label} where the bundle has none); or npy, webp
    GET  /v1/bundles/{bundle}/shards/{shard}.tar
                                       a piece of an endless data set, as WebDataset reads it
    GET  /v2/…  POST /v2/models/{model}/infer
                                       the same images as tensors: the Open Inference Protocol v2
    GET  /                             a page to try it
    GET  /livez /readyz /metrics /openapi.json
    GET  /docs.json /schema.json       BentoML's own

    Exchange ── door ── router ── handler (serving/routes) ── Answer
                                     └── Maker ── Engine

A handler takes an `Exchange` and returns an `Answer`; whatever it raises becomes a problem+json document here, in one
place. This module knows nothing of BentoML, bundles' insides or images.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from starlette.routing import compile_path

from augmint.errors import AugmintError, RequestError, ServiceError
from serving import problems
from serving.access import AccessError, Door
from serving.accesslog import AccessLog
from serving.bundles import open_bundle, open_bundles, threads_for
from serving.context import Context
from serving.exchange import FRESH, Answer, ClientGoneError, Exchange, Headers, Receive, Route, Scope, Send
from serving.jobrunner import JobRunner
from serving.jobs import JobStore
from serving.library import Library
from serving.maker import Maker
from serving.metrics import Metrics
from serving.routes import all_routes
from serving.settings import Settings
from serving.tracing import Attributes, Trace, Tracer, open_tracer
from serving.watcher import Watcher, follow

__all__ = ["Api"]

log = logging.getLogger("augmint")

# What httptools would take of an address and of headers is unbounded; proxies commonly stop at 8 KiB each.
_MOST_PATH: Final = 8192
_MOST_HEADERS: Final = 32_768
_SENT_AT_ONCE: Final = 1 << 18  # bytes of a stream
_QUIET: Final = frozenset({"/livez", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/metrics"})
_COUNTED_BY_ENGINE: Final = frozenset(
    {"service.queue-full", "service.draining", "service.deadline", "service.internal", "service.cancelled"}
)


class Api:
    """The application. `start` and `stop` are called in the event loop that it will run in."""

    def __init__(self, settings: Settings, metrics: Metrics | None = None) -> None:
        self.settings = settings
        self._door = Door(settings.tokens, open_to_all=not settings.auth, hosts=settings.hosts)
        self.context = Context(settings, self._door, metrics)
        self._access = AccessLog(json=settings.log == "json")
        self._jobs = (
            None
            if settings.jobs is None
            else JobStore(settings.jobs, most_bytes=settings.jobs_bytes, hours=settings.jobs_hours)
        )
        self._tracer: Tracer | None = None
        self._following: asyncio.Task[None] | None = None
        # Other pages may not even show our pictures, unless some are allowed to ask.
        self._resource_policy = b"cross-origin" if settings.origins else b"same-origin"
        self.context.routes += all_routes(self.context)
        self._fixed: dict[str, dict[str, Route]] = {}
        patterns: dict[str, dict[str, Route]] = {}
        for route in self.context.routes:
            (patterns if "{" in route.path else self._fixed).setdefault(route.path, {})[route.method] = route
        self._patterns: list[tuple[re.Pattern[str], dict[str, Route]]] = [
            # A label is any text, such as n/a.
            (compile_path(path.replace("{label}", "{label:path}"))[0], methods)
            for path, methods in patterns.items()
        ]

    # ------------------------------------------------------------------------------------------ its life

    @property
    def ready(self) -> bool:
        """Whether every bundle has passed its golden test and is warm, and the door is not closing."""
        return self.context.ready

    @property
    def draining(self) -> bool:
        return self.context.draining

    @property
    def pending(self) -> int:
        """Images waiting or being made."""
        return self.context.maker.pending if self.context.opened else 0

    async def start(self, worker: int | None = None) -> None:
        """Open the bundles and start the engine. A refused bundle leaves the service not ready, and says why."""
        context, settings = self.context, self.settings
        if context.metrics is None:
            context.metrics = Metrics()
        try:
            watcher = await asyncio.get_running_loop().run_in_executor(None, self._open, worker)
            self._tracer = open_tracer(settings.tracing)
        except AugmintError as error:
            # No exit: BentoML would start this worker again and again.
            context.failure = f"{error} ({error.code})"
            log.critical("not ready, and will not be: %s", context.failure)
            return
        except Exception:  # a GPU without memory, say: the same holds for what nobody foresaw
            context.failure = "the bundles could not be opened (bundle.unexpected)"
            log.exception("not ready, and will not be")
            return
        library = Library(watcher.served.values())
        maker = Maker(settings, context.metrics, threads_for(library, settings))
        for served in library:
            context.metrics.serves(served.info)
            log.info("serving %s", served)
        # What was made so far lives as long as the process: the collector need not look at it ever again. And requests
        # leave no cycles worth the default's haste, while BentoML keeps a timer of each for as long as its timeout.
        gc.collect()
        gc.freeze()
        gc.set_threshold(25_000, 20, 50)
        context.opened = library, maker
        context.metrics.admits(settings.queue_images)
        context.metrics.ready(True)
        if self._jobs is not None:
            context.jobs = self._jobs, JobRunner(self._jobs, library, maker, settings)
        if settings.poll_s:
            following = follow(watcher, library, context.metrics, every_s=settings.poll_s)
            self._following = asyncio.create_task(following)
        if worker in (None, 1):
            if self._door.local_only:
                log.info("no tokens (AUGMINT_TOKENS): only this machine is answered")
            elif not self._door.asks_for_tokens:
                log.warning("AUGMINT_AUTH is off: everybody who reaches this service is answered")
            log.info("ready%s", f" at {url}" if (url := os.environ.get("AUGMINT_URL")) else "")

    def _open(self, worker: int | None) -> Watcher:
        """The bundles that are there, and from now on a watch on where they are."""
        watcher = Watcher(self.settings, lambda path: open_bundle(path, self.settings, worker))
        watcher.served = open_bundles(self.settings, worker)
        return watcher

    def begin_draining(self) -> None:
        """Not ready from now on, and no new requests; those admitted are finished."""
        self.context.draining = True
        if self.context.jobs is not None:
            self.context.jobs[1].begin_stopping()
        if self.context.opened is not None:
            self.context.maker.stop_admitting()
        if self.context.metrics is not None:
            self.context.metrics.ready(False)

    async def stop(self) -> None:
        """Finish what was admitted and end the threads."""
        self.begin_draining()
        if self._following is not None:
            self._following.cancel()
        if self.context.jobs is not None:
            await self.context.jobs[1].stop()
        if self.context.opened is not None:
            await self.context.maker.stop()
        if self._tracer is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._tracer.close)
        self._access.flush()

    # ------------------------------------------------------------------------------------------ the application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"this application speaks HTTP, not {scope['type']}")
        exchange = Exchange(scope, receive, send, timeout_s=self.settings.timeout_s)
        if self._tracer is not None:
            exchange.trace = self._tracer.begin(exchange.method, exchange.traceparent, exchange.begun)
            if exchange.traceparent == "-":
                exchange.traceparent = exchange.trace.traceparent
        path = "-"  # of the route: the address itself is endless
        try:
            self._check(exchange)
            route = self._route(exchange)
            path = route.path
            if route.scope is not None:
                # Until here the caller is known by its address alone.
                authorization, address = exchange.headers.get(b"authorization"), exchange.caller.name
                exchange.caller = self._door.admit(authorization, route.scope, address)
            exchange.read_deadline()
            answer = await route.handler(exchange)
        except ClientGoneError:
            # Nobody reads this, but BentoML's timeout waits for the first byte of an answer, and shutting down for it.
            answer = Answer(499, b"text/plain; charset=utf-8", b"")
        except AugmintError as error:
            answer = self._problem(exchange, error)
        except Exception as error:
            fault = ServiceError("", code="service.internal")
            fault.__cause__ = error
            answer = self._problem(exchange, fault)
        sent = time.monotonic()
        size = await self._answer(exchange, answer)
        if exchange.trace is not None and path not in _QUIET:
            self._trace(exchange, exchange.trace, path, answer, sent)
        self._log(exchange, path, answer.status, answer.images, size)

    def _trace(self, exchange: Exchange, trace: Trace, path: str, answer: Answer, sent: float) -> None:
        assert self._tracer is not None
        about: Attributes = {
            "http.request.method": exchange.method,
            "http.route": path,
            "augmint.request_id": exchange.request_id,
            "augmint.images": answer.images,
        }
        self._tracer.end(trace, f"{exchange.method} {path}", answer.status, sent, about)

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

    def _route(self, exchange: Exchange) -> Route:
        path: str = exchange.scope["path"]
        methods = self._fixed.get(path)
        if methods is None:
            for pattern, methods in self._patterns:  # noqa: B007
                if match := pattern.match(path):
                    exchange.params = match.groupdict()
                    break
            else:
                raise RequestError(
                    "there is nothing at this address: /openapi.json lists what there is.", code="request.not-found"
                )
        assert methods is not None
        route = methods.get("GET" if exchange.method == "HEAD" else exchange.method)
        if route is None:
            raise _MethodError(sorted(methods))
        return route

    async def _answer(self, exchange: Exchange, answer: Answer) -> int:
        """Send it; how many bytes its body had."""
        headers = [
            (b"content-type", answer.content_type),
            (b"x-request-id", exchange.request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"x-frame-options", b"DENY"),
            (b"cross-origin-resource-policy", self._resource_policy),
            *answer.headers,
        ]
        if answer.status in (204, 304):  # have neither a body nor a type of one
            headers = headers[1:]
        elif answer.stream is None:
            headers.append((b"content-length", str(len(answer.body)).encode()))
        await exchange.send({"type": "http.response.start", "status": answer.status, "headers": headers})
        if answer.stream is not None and exchange.method != "HEAD":
            size, whole = await self._send_pieces(exchange, answer, answer.stream)
            if whole:  # else the server closes the connection, for want of a last message, and the reader sees the cut
                await exchange.send({"type": "http.response.body", "body": b""})
            return size
        body = b"" if exchange.method == "HEAD" or answer.status == 304 else answer.body
        await exchange.send({"type": "http.response.body", "body": body})
        return len(body)

    async def _send_pieces(
        self, exchange: Exchange, answer: Answer, stream: AsyncGenerator[bytes, None]
    ) -> tuple[int, bool]:
        """How many bytes of a streaming answer were sent, and whether that is all of them."""
        size, piece = 0, answer.body
        gone = asyncio.create_task(_disconnect(exchange.receive))
        try:
            async with aclosing(stream) as pieces:
                while piece:
                    if gone.done():  # the server's `send` does not say so
                        raise ClientGoneError
                    for start in range(0, len(piece), _SENT_AT_ONCE):
                        part = piece[start : start + _SENT_AT_ONCE]
                        # `send` waits while the client does not read: a slow reader holds back its own stream alone.
                        # One that does not read at all is given up, or the service could never shut down.
                        async with asyncio.timeout(self.settings.timeout_s):
                            await exchange.send({"type": "http.response.body", "body": part, "more_body": True})
                        size += len(part)
                    piece = await anext(pieces, b"")
        except ClientGoneError:
            answer.status = 499
        except TimeoutError:
            log.warning(
                "the stream of request %s is cut off: its client does not read it",
                exchange.request_id,
                extra=exchange.marks,
            )
        except AugmintError as error:
            self._count(error)
            log.warning("the stream of request %s is cut off: %s", exchange.request_id, error, extra=exchange.marks)
        except Exception:
            log.exception("the stream of request %s is cut off", exchange.request_id, extra=exchange.marks)
        else:
            return size, True
        finally:
            gone.cancel()
        return size, False

    def _problem(self, exchange: Exchange, error: AugmintError) -> Answer:
        problem = problems.problem_of(error)
        headers: Headers = [FRESH]
        if (wait := problems.retry_after_of(error)) is not None:
            headers.append((b"retry-after", wait))
        if isinstance(error, AccessError) and error.challenge is not None:
            headers.append((b"www-authenticate", error.challenge.encode()))
        if isinstance(error, _MethodError):
            headers.append((b"allow", ", ".join(error.allowed).encode()))
        if error.code in ("request.body-too-large", "service.draining"):
            headers.append((b"connection", b"close"))
        if problem.status == 500:
            log.error(
                "request %s failed",
                exchange.request_id,
                exc_info=error.__cause__ or error,
                extra=exchange.marks,
            )
        self._count(error)
        inference = exchange.scope["path"].startswith("/v2")
        body = problems.body_of(error, exchange.request_id, inference=inference)
        return Answer(problem.status, problems.CONTENT_TYPE, body, headers)

    def _count(self, error: AugmintError) -> None:
        # What the engine refuses it counts itself.
        if self.context.metrics is not None and error.code not in _COUNTED_BY_ENGINE:
            self.context.metrics.refused(problems.problem_of(error).code, 0)

    def _log(self, exchange: Exchange, route: str, status: int, images: int, size: int) -> None:
        seconds = time.monotonic() - exchange.begun
        if self.context.metrics is not None:
            self.context.metrics.answered(route, status, seconds)
        if self.settings.access_log and route not in _QUIET:
            self._access.write(
                exchange.caller.name,
                exchange.method,
                exchange.scope.get("raw_path", b"-"),
                route,
                status,
                images,
                size,
                seconds,
                exchange.request_id,
                exchange.traceparent,
            )


async def _disconnect(receive: Receive) -> None:
    """Returns when the client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass


class _MethodError(RequestError):
    def __init__(self, allowed: list[str]) -> None:
        super().__init__(f"this address takes {', '.join(allowed)}.", code="request.method")
        self.allowed = [*allowed, *(["HEAD"] if "GET" in allowed else [])]
