"""BentoML's own two addresses, let in by the same door and answered in the same form as every other: where
there are tokens, for the scope "admin", since they name BentoML's version.

`serving.middleware` puts BentoML's application into the scope of every request; where there is none, there is nothing
at these addresses.
"""

from __future__ import annotations

from typing import Any, Final

from augmint.errors import RequestError
from serving import openapi
from serving.context import Context
from serving.exchange import Answer, Exchange, Receive, Route

__all__ = ["BENTOML", "Mounted"]

BENTOML: Final = "augmint.bentoml"
"""Key of BentoML's application in the scope."""


class Mounted:
    def __init__(self, context: Context) -> None:
        self.routes = [
            Route("GET", "/docs.json", self._forward, _DOCS, scope="admin"),
            Route("GET", "/schema.json", self._forward, _SCHEMA, scope="admin"),
        ]

    async def _forward(self, exchange: Exchange) -> Answer:
        app = exchange.scope.get(BENTOML)
        if app is None:
            raise RequestError("BentoML does not run this application.", code="request.not-found")
        return await _ask(app, exchange)


async def _ask(app: Any, exchange: Exchange) -> Answer:
    """What another ASGI application answers, whole: for small answers."""
    made = Answer(500, b"", b"")

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            made.status = message["status"]
            made.content_type = dict(message["headers"]).get(b"content-type", b"")
        else:
            made.body += message.get("body", b"")

    receive: Receive = exchange.receive
    await app({**exchange.scope, "method": "GET"}, receive, send)
    return made


def _document(name: str, summary: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object"}}}
    return openapi.operation("operation", name, summary, content=content, errors=("not-found",))


_DOCS: Final = _document("getBentoOpenAPI", "BentoML's own OpenAPI document.")
_SCHEMA: Final = _document("getBentoSchema", "BentoML's own description of the service.")
