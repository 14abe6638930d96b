"""Between BentoML and the API: who answers what, SIGTERM. The only module that knows both."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from types import FrameType
from typing import Any

from starlette.middleware.cors import CORSMiddleware

from serving.api import Api
from serving.exchange import Receive, Scope, Send
from serving.openapi import HEADERS as EXPOSED
from serving.routes.mounted import BENTOML

__all__ = ["ApiMiddleware", "drain_on_signal", "quiet_bentoml", "with_cors"]

log = logging.getLogger("augmint")


class ApiMiddleware:
    """Hands requests to the API, and BentoML's application with them (see `serving.routes.mounted`); the lifespan
    events pass through."""

    def __init__(self, app: Any, *, api: Any) -> None:
        self.app = app
        self.api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope[BENTOML] = self.app
            await self.api(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # before it is accepted: 403
        else:
            await self.app(scope, receive, send)


def with_cors(api: Api, origins: Sequence[str]) -> Any:
    """The API as pages of these origins may use it from a browser; the API itself where there are none."""
    if not origins:
        return api
    return CORSMiddleware(
        api,  # type: ignore[arg-type]  # Starlette's messages are MutableMapping, ours dict
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=[
            "Authorization",
            "Content-Type",
            "If-None-Match",
            "If-Range",
            "Inference-Header-Content-Length",
            "Range",
            "X-Request-ID",
            "X-Request-Timeout-Ms",
            "traceparent",
        ],
        expose_headers=["*"] if "*" in origins else list(EXPOSED),
        max_age=600,
    )


def drain_on_signal(api: Api) -> None:
    """On SIGTERM first become "not ready", and only `drain_s` later let uvicorn close the door.

    In between the worker still answers, so a load balancer learns that it should look elsewhere; without this, its new
    connections would wait in the socket's backlog for a process that takes no more.
    """
    loop = asyncio.get_running_loop()

    def handle(number: int, frame: FrameType | None) -> None:
        # Nothing but this: a handler runs in the middle of whatever the thread was doing, perhaps with a lock held.
        loop.call_soon_threadsafe(drain, number)

    def drain(number: int) -> None:
        if api.draining:
            previous(number, None)  # asked twice: at once
            return
        api.begin_draining()
        log.info("shutting down: %d images to finish", api.pending)
        loop.call_later(api.settings.drain_s, previous, number, None)

    found = signal.getsignal(signal.SIGTERM)
    if not callable(found):
        return  # nobody shuts down gracefully here: not a server that we know
    previous = found
    signal.signal(signal.SIGTERM, handle)


def quiet_bentoml() -> None:
    """Under `augmint serve`, leave BentoML's account of its own steps out; plain `bentoml serve` keeps it."""
    if "AUGMINT_URL" in os.environ:
        logging.getLogger("bentoml").setLevel(logging.WARNING)
