"""The Open Inference Protocol v2, as `tritonclient.http` asks for it; `serving.oip` says what the tensors are.

A bundle is a model, its digest its version. The model repository can be listed, not changed; there is no shared memory,
no classification, no sequences, no statistics and no compression.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any, Final

from augmint.errors import RequestError, TooLargeError
from serving import oip, openapi
from serving.bundles import Served
from serving.context import Context
from serving.exchange import FRESH, JSON, OCTETS, Answer, Exchange, Handler, Headers, Route, repr_digest, to_json
from serving.replies import INLINE_BYTES

__all__ = ["OpenInference"]

_LENGTH: Final = openapi.JSON_LENGTH.lower().encode()


class OpenInference:
    def __init__(self, context: Context) -> None:
        self._context = context
        self.routes = [
            Route("GET", "/v2", self._server, _SERVER),
            Route("GET", "/v2/health/live", self._live, _LIVE, scope=None),
            Route("GET", "/v2/health/ready", self._ready, _READY, scope=None),
            Route("POST", "/v2/repository/index", self._index, _INDEX),
            *_of_model("GET", "", self._metadata, "getModel", "What a model takes and gives.", _METADATA),
            *_of_model("GET", "/ready", self._model_ready, "isModelReady", "Whether a model is there.", _MODEL_READY),
            *_of_model(
                "GET", "/config", self._config, "getModelConfig", "A model's configuration, as Triton's.", _CONFIG
            ),
            *_of_model("POST", "/infer", self._infer, "infer", "Images by address: a row, an image.", _INFER),
        ]

    async def _server(self, exchange: Exchange) -> Answer:
        return _json(oip.server())

    async def _live(self, exchange: Exchange) -> Answer:
        return _json({"live": True})

    async def _ready(self, exchange: Exchange) -> Answer:
        self._context.check_ready()
        return _json({"ready": True})

    async def _index(self, exchange: Exchange) -> Answer:
        """Only what is ready is served, so a body that asks for what is ready asks for nothing else."""
        return _json(
            [
                {"name": served.info.name, "version": served.info.digest, "state": "READY", "reason": ""}
                for served in self._context.library
            ]
        )

    async def _metadata(self, exchange: Exchange) -> Answer:
        served = self._find(exchange)
        versions = [other.info.digest for other in self._context.library if other.info.name == served.info.name]
        return _json(oip.metadata_of(served.info, versions))

    async def _model_ready(self, exchange: Exchange) -> Answer:
        return _json({"name": self._find(exchange).info.name, "ready": True})

    async def _config(self, exchange: Exchange) -> Answer:
        return _json(oip.config_of(self._find(exchange).info, self._context.settings.max_images))

    async def _infer(self, exchange: Exchange) -> Answer:
        _, maker = self._context.require()
        served = self._find(exchange)
        info, most = served.info, self._context.settings.max_images
        data, header = await self._body(exchange, served)
        inference = (
            oip.parse(data, header, info, most)
            if len(data) <= INLINE_BYTES
            else await maker.aside(lambda: oip.parse(data, header, info, most))
        )
        if inference.timeout_s is not None:
            exchange.deadline = min(exchange.deadline, exchange.begun + inference.timeout_s)
        maker.take(exchange, inference.request.total)
        images = await maker.images(served, inference.request, exchange)

        def encode() -> tuple[bytes, int | None, bytes]:
            body, length = oip.answer(inference, info, images)
            return body, length, repr_digest(body)

        begun = time.monotonic()
        small = inference.binary and images.nbytes <= INLINE_BYTES
        body, length, digest = encode() if small else await maker.aside(encode)
        exchange.encoded(begun, "json" if length is None else "binary", len(body))
        headers: Headers = [
            (b"augmint-bundle", info.digest.encode()),
            (b"augmint-reproducibility", info.reproducibility.encode()),
            (b"augmint-delivered", str(len(images)).encode()),
            (b"repr-digest", digest),
            FRESH,
        ]
        if length is None:
            return Answer(200, JSON, body, headers, images=len(images))
        headers.append((_LENGTH, str(length).encode()))
        return Answer(200, OCTETS, body, headers, images=len(images))

    async def _body(self, exchange: Exchange, served: Served) -> tuple[bytes, int | None]:
        """The request's body, and how much of it is JSON; None: all."""
        # `tritonclient` names no type. Nor need a page of another origin, whose browser would then not ask first
        # whether it may; but a browser always says where the page comes from.
        kinds = (JSON, OCTETS) if b"origin" in exchange.headers else (JSON, OCTETS, b"")
        settings = self._context.settings
        given = exchange.headers.get(_LENGTH)
        if given is None:
            return await exchange.body(settings.max_body, *kinds), None
        if not re.fullmatch(rb"[0-9]{1,10}", given):
            raise RequestError("Inference-Header-Content-Length must be a number of bytes.", code="request.malformed")
        if int(given) > settings.max_body:
            raise TooLargeError(
                f"the body's JSON is longer than {settings.max_body} bytes.", code="request.body-too-large"
            )
        # As much again as the tensors of the largest request can take: its images are the limit, not its bytes.
        most = settings.max_body + oip.most_tensor_bytes(served.info, settings.max_images)
        return await exchange.body(most, *kinds), int(given)

    def _find(self, exchange: Exchange) -> Served:
        model, version = exchange.params["model"], exchange.params.get("version")
        return self._context.library.find(model if version is None else f"{model}@{version}")


def _json(value: object) -> Answer:
    return Answer(200, JSON, to_json(value), [FRESH])


def _of_model(
    method: str, path: str, handler: Handler, name: str, summary: str, rest: dict[str, Any]
) -> Iterator[Route]:
    """The address with and without a version."""
    model = {**openapi.BUNDLE, "name": "model"}
    version = openapi.part("version", "the beginning of its digest, 8 digits or more; or latest")
    parameters = rest.get("parameters", [])
    for place, called, parts in (
        ("/v2/models/{model}", name, [model]),
        ("/v2/models/{model}/versions/{version}", f"{name}Version", [model, version]),
    ):
        operation = openapi.operation("inference", called, summary, **{**rest, "parameters": [*parts, *parameters]})
        yield Route(method, place + path, handler, operation)


def _object(**properties: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {name: {"type": kind} for name, kind in properties.items()}}
    return {"application/json": {"schema": {**schema, "required": list(properties)}}}


_SERVER: Final = openapi.operation(
    "inference", "getServer", "The server's metadata.", content=openapi.json_of("ServerMetadata")
)
_LIVE: Final = openapi.operation(
    "inference", "isServerLive", "Whether the process answers.", content=_object(live="boolean"), free=True
)
_READY: Final = openapi.operation(
    "inference",
    "isServerReady",
    "The same as /readyz.",
    content=_object(ready="boolean"),
    free=True,
    errors=("not-ready", "draining"),
)
_INDEX: Final = openapi.operation(
    "inference",
    "listModels",
    "The models; a body is not looked at.",
    content={"application/json": {"schema": {"type": "array", "items": {"type": "object"}}}},
)
_METADATA: Final[dict[str, Any]] = {"content": openapi.json_of("ModelMetadata"), "errors": ("unknown-bundle",)}
_MODEL_READY: Final[dict[str, Any]] = {
    "content": _object(name="string", ready="boolean"),
    "errors": ("unknown-bundle",),
}
_CONFIG: Final[dict[str, Any]] = {
    "content": {"application/json": {"schema": {"type": "object"}}},
    "errors": ("unknown-bundle",),
}
_BINARY: Final = {"schema": {"type": "string", "format": "binary", "description": "the JSON, then the binary tensors"}}
_INFER: Final[dict[str, Any]] = {
    "description": "Clients may leave Content-Type out. A function of its inputs: the same rows give the same images.",
    "parameters": [
        {
            "name": openapi.JSON_LENGTH,
            "in": "header",
            "description": "how many bytes of the body are JSON, where binary tensors follow",
            "schema": {"type": "string"},
        }
    ],
    "body": {
        "required": True,
        "content": {**openapi.json_of("InferBody"), "application/octet-stream": _BINARY},
    },
    "headers": ("Augmint-Bundle", "Augmint-Reproducibility", "Augmint-Delivered", "Repr-Digest", openapi.JSON_LENGTH),
    "content": {**openapi.json_of("InferAnswer"), "application/octet-stream": _BINARY},
    "errors": (
        *openapi.BODY,
        *openapi.LATE,
        "unknown-bundle",
        "unknown-label",
        "invalid",
        "too-many-images",
        "rate",
        "quota",
    ),
}
