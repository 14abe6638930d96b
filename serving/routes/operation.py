"""For those who run the service, and the page to try it."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from serving import openapi, page
from serving.context import Context
from serving.exchange import FRESH, JSON, TEXT, Answer, Exchange, Route, cacheable, to_json

__all__ = ["Operation"]


class Operation:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._written = b""  # the OpenAPI document
        self.routes = [
            Route("GET", "/", self._index, _PAGE, scope=None),
            Route("GET", "/livez", self._livez, _probe("isAlive", "Whether the process answers."), scope=None),
            Route("GET", "/healthz", self._livez, _probe("isHealthy", "The same as /livez."), scope=None),
            Route("GET", "/readyz", self._readyz, _READY, scope=None),
            Route("GET", "/metrics", self._metrics, _METRICS, scope="admin"),
            Route("GET", "/openapi.json", self._document, _DOCUMENT, scope=None),
        ]

    async def _index(self, exchange: Exchange) -> Answer:
        answer = cacheable(exchange, b"text/html; charset=utf-8", page.HTML)
        answer.headers += [(b"content-security-policy", page.POLICY), (b"referrer-policy", b"no-referrer")]
        return answer

    async def _livez(self, exchange: Exchange) -> Answer:
        return Answer(200, TEXT, b"alive\n", [FRESH])

    async def _readyz(self, exchange: Exchange) -> Answer:
        self._context.check_ready()
        return Answer(200, TEXT, b"ready\n", [FRESH])

    async def _metrics(self, exchange: Exchange) -> Answer:
        metrics = self._context.metrics
        if metrics is None:
            raise self._context.not_ready()
        body, kind = await asyncio.get_running_loop().run_in_executor(None, metrics.exposition)
        return Answer(200, kind.encode(), body, [FRESH])

    async def _document(self, exchange: Exchange) -> Answer:
        if not self._written:
            self._written = to_json(openapi.document(self._context.routes))
        return cacheable(exchange, JSON, self._written)


def _probe(name: str, summary: str, **more: Any) -> dict[str, Any]:
    return openapi.operation(
        "operation", name, summary, content={"text/plain": {"schema": {"type": "string"}}}, **{"free": True, **more}
    )


_READY: Final = _probe(
    "isReady",
    "Whether every bundle reproduced its golden samples and is warm; not while shutting down.",
    errors=("not-ready", "draining"),
)
_METRICS: Final = _probe("getMetrics", "Prometheus metrics.", free=False)
_PAGE: Final = openapi.operation(
    "images", "getPage", "A page to try it.", content={"text/html": {}}, cached=True, free=True
)
_DOCUMENT: Final = openapi.operation(
    "operation",
    "getOpenAPI",
    "This document.",
    content={"application/json": {"schema": {"type": "object"}}},
    cached=True,
    free=True,
)
